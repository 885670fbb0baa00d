"""The `gfwemu` command: one table of subcommands, each loaded when it is called."""

from __future__ import annotations

import importlib
import sys

import click

from gfwemu import __version__, interpreted
from gfwemu.errors import GfwemuError

COMMANDS: dict[str, str] = {
    "run": "gfwemu.cli.run:run",
    "shell": "gfwemu.cli.run:shell",
    "lab": "gfwemu.cli.lab:lab",
    "check": "gfwemu.cli.check:check",
    "plan": "gfwemu.cli.plan:plan",
    "schema": "gfwemu.cli.schema:schema",
    "list": "gfwemu.cli.catalogue:list_",
    "show": "gfwemu.cli.catalogue:show",
    "daemon": "gfwemu.cli.daemon:daemon",
    "replay": "gfwemu.cli.replay:replay",
    "conformance": "gfwemu.cli.conformance:conformance",
    "doctor": "gfwemu.cli.doctor:doctor",
}


class LazyGroup(click.Group):
    """Imports a subcommand's module only when it is needed: `gfwemu --help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, name = target.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(
    __version__,
    prog_name="gfwemu",
    message=f"%(prog)s, version %(version)s, {f'interpreted: {interpreted}' if interpreted else 'compiled'}",
)
def cli() -> None:
    """Put any program behind an emulated national firewall, in a private network of Linux namespaces.

    \b
    gfwemu run --profile sni-reset -- curl https://www.blocked.example/
    gfwemu list
    gfwemu doctor
    """


def main() -> None:
    """Runs the command line; one sentence for each error, and its documented exit code."""
    try:
        # Of `ctx.exit(n)` click makes a return value here.
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except GfwemuError as error:
        click.echo(f"gfwemu: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    sys.exit(code if isinstance(code, int) else 0)
