"""Run the mini-internet: `python -m gfwemu.netlab.internet --plan PLAN.json --ready-fd N`.

Writes one byte to the descriptor when everything answers, and `status.json` beside the plan: the state of every
service, and where the certificates are. What cannot be started is said in one line on stderr each; a site or a resolver
that cannot is fatal, a service is not. Ends on SIGTERM and with its parent.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from gfwemu.netlab.internet.process import die_with_parent, run_until_stopped


def main() -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m gfwemu.netlab.internet", description="The lab's mini-internet")
    parser.add_argument("--plan", type=Path, required=True, metavar="FILE", help="what to serve, as JSON")
    parser.add_argument("--ready-fd", type=int, metavar="N", help="file descriptor that gets one byte when all is up")
    options = parser.parse_args()

    async def serve() -> Iterable[Callable[[], None]]:
        from gfwemu.netlab.internet.server import serve_plan

        return await serve_plan(options.plan, options.ready_fd)

    return run_until_stopped(serve)


if __name__ == "__main__":
    raise SystemExit(main())
