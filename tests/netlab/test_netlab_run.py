"""`gfwemu run`: the program is itself, only the network is another."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_kit import DEADLINE, environment, gfwemu, own, run_gfwemu

pytestmark = pytest.mark.kernel

BARE = ("run", "--topology", "bare")
BOTH = pytest.mark.parametrize("user", ["caller", "ordinary"])


@BOTH
def test_the_exit_code_is_the_programs(tmp_path: Path, user: str) -> None:
    done = run_gfwemu(tmp_path, *BARE, "--", "sh", "-c", "exit 42", user=user)
    assert (done.returncode, done.stdout) == (42, b"")
    assert done.stderr == b"gfwemu: no censor, topology bare\n"
    assert own(tmp_path) == []


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["sh", "-c", "kill -KILL $$"], 128 + 9, b""),
        (["sh", "-c", "kill -SEGV $$"], 128 + 11, b""),
        (["no-such-program"], 127, b"gfwemu: no-such-program: command not found\n"),
        (["/nowhere/program"], 127, b"gfwemu: /nowhere/program: command not found\n"),
        (["/etc/hosts"], 126, b"gfwemu: /etc/hosts: Permission denied\n"),
    ],
)
def test_exit_codes_as_a_shell_has_them(tmp_path: Path, command: list[str], code: int, said: bytes) -> None:
    done = run_gfwemu(tmp_path, *BARE, "-q", "--", *command)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", said)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run"], 2, "gfwemu: Say which program to run: gfwemu run --profile NAME -- PROGRAM [ARGUMENT]...\n"),
        (["run", "--topology", "bear", "--", "true"], 2, "gfwemu: There is no topology 'bear'; did you mean 'bare'?\n"),
        ([*BARE, "--link", "3gg", "--", "true"], 2, "gfwemu: There is no link '3gg'; did you mean '3g'?\n"),
        (
            [*BARE, "--node", "cenzor", "--", "true"],
            2,
            "The lab has no node 'cenzor'; did you mean 'censor'?\n",
        ),
        ([*BARE, "--profile", "sni-rset", "--", "true"], 2, "did you mean 'sni-reset'?"),
        ([*BARE, "--time-scale", "0", "--", "true"], 2, "time-scale"),
        ([*BARE, "--pcap", "x.pcapng", "--", "true"], 2, "gfwemu: The censor takes the capture: give rules, too.\n"),
        ([*BARE, "--eve", "/nowhere/eve.json", "--", "true"], 2, "Cannot write /nowhere/eve.json: No such file"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    done = run_gfwemu(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (code, b"")
    assert said in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert own(tmp_path) == []


def test_wrong_rules_are_told_with_their_place_before_anything_starts(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("version: 1\nrules:\n  - name: x\n    match: {tls.snl: a.example}\n    action: drop\n")
    done = run_gfwemu(tmp_path, *BARE, "--rules", str(rules), "--", "touch", str(tmp_path / "ran"))
    assert done.returncode == 3
    assert done.stderr.decode() == f"gfwemu: {rules}:4:13: unknown key 'tls.snl'; did you mean 'tls.sni'?\n"
    assert own(tmp_path) == ["rules.yaml"]


@BOTH
def test_it_runs_as_the_caller_or_as_the_labs_root(tmp_path: Path, user: str) -> None:
    uid = 1000 if user == "ordinary" and os.geteuid() == 0 else os.geteuid()
    script = "id -u; id -g; pwd"
    done = run_gfwemu(tmp_path, *BARE, "-q", "--", "sh", "-c", script, user=user)
    assert done.stdout.decode().split()[::2] == [str(uid), str(Path.cwd())]
    done = run_gfwemu(tmp_path, *BARE, "-q", "--as-root", "--", "sh", "-c", script, user=user)
    assert done.stdout.decode().split()[:2] == ["0", "0"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can play sudo")
def test_root_by_sudo_is_who_called_sudo(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    sudo = {"SUDO_UID": "65534", "SUDO_GID": "65534"}
    done = run_gfwemu(tmp_path, *BARE, "-q", "--", "sh", "-c", "id -u; id -G; echo $HOME", env=sudo)
    assert done.stdout.decode().split()[:2] == ["65534", "65534"], done.stderr
    assert done.stdout.decode().split()[2] != os.environ.get("HOME")
    done = run_gfwemu(tmp_path, *BARE, "-q", "--as-root", "--", "id", "-u", env=sudo)
    assert done.stdout == b"0\n"


def test_stdin_and_stdout_pass_every_byte(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    done = run_gfwemu(tmp_path, *BARE, "--", "cat", data=data)
    assert done.stdout == data


def test_an_early_end_of_the_reader_ends_the_program(tmp_path: Path) -> None:
    """SIGPIPE works as for any program: `yes | head` ends."""
    command = " ".join(["exec", *gfwemu(*BARE, "-q", "--", "yes"), "| head -n 2"])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("exec ", "", 1)],
        capture_output=True,
        timeout=DEADLINE,
        env=environment(tmp_path),
        check=False,
    )
    assert (done.stdout, done.returncode) == (b"y\ny\n", 128 + signal.SIGPIPE)


def test_another_node(tmp_path: Path) -> None:
    done = run_gfwemu(tmp_path, *BARE, "-q", "--node", "internet", "--", "ip", "-br", "address", "show", "eth0")
    assert b"192.0.2.138/30" in done.stdout


def test_the_links_are_listed(tmp_path: Path) -> None:
    done = run_gfwemu(tmp_path, "run", "--link", "list")
    assert done.returncode == 0
    assert b"3g      1600/768 kbit/s down/up, 150 ms\n" in done.stdout


@pytest.mark.needs("curl")
def test_the_verdicts_event_log_and_capture(tmp_path: Path) -> None:
    eve, pcap, verdicts = tmp_path / "eve.json", tmp_path / "capture.pcapng", tmp_path / "verdicts.json"
    done = run_gfwemu(
        tmp_path,
        *("run", "--profile", "sni-reset", "--seed", "7", "--json", str(verdicts)),
        *("--eve", str(eve), "--pcap", str(pcap), "--", "curl", "-sS", "-m", "10", "https://www.blocked.example/"),
    )
    assert done.returncode == 35, done.stderr.decode()
    said = done.stderr.decode()
    assert said.startswith("gfwemu: profile sni-reset, seed 7\n")
    assert "sni-reset" in said.split("\n", 2)[2]
    rows = json.loads(verdicts.read_text())["rows"]
    assert [(row["rule"], row["action"]) for row in rows] == [("sni-reset", "reset")]
    records = [json.loads(line) for line in eve.read_text().splitlines()]
    assert "www.blocked.example" in {record.get("tls", {}).get("sni") for record in records}
    assert pcap.read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"


# The terminal


class Terminal:
    """A program on a pseudo-terminal of its own, as a terminal emulator starts it."""

    def __init__(self, argv: list[str], env: dict[str, str], rows: int = 33, columns: int = 99) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Read until the pattern comes; what came up to its end is taken off."""
        end = time.monotonic() + DEADLINE
        while True:
            found = re.search(pattern, self.seen)
            if found:
                self.seen = self.seen[found.end() :]
                return found
            assert self._read(end - time.monotonic()), f"{pattern!r} did not come; instead: {self.seen!r}"

    def finish(self) -> int:
        end = time.monotonic() + DEADLINE
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(timeout=max(0.1, end - time.monotonic()))

    def _read(self, timeout: float) -> bool:
        if not select.select([self.master], [], [], max(0.0, timeout))[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has the other end open any more
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


@contextlib.contextmanager
def terminal(runtime: Path, argv: list[str]) -> Iterator[Terminal]:
    opened = Terminal(argv, environment(runtime, TERM="dumb", PS1="ready> "))
    try:
        yield opened
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(opened.process.pid, signal.SIGKILL)
        opened.process.wait()
        os.close(opened.master)


@BOTH
def test_the_program_has_the_terminal_and_its_size(tmp_path: Path, user: str) -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && stty size && read line && echo got $line"
    with terminal(tmp_path, gfwemu(*BARE, "--", "sh", "-c", script, user=user)) as pty:
        pty.expect("33 99")
        pty.type("a line\n")
        pty.expect("got a line")
        assert pty.finish() == 0


@BOTH
def test_ctrl_c_ends_the_program_and_the_lab(tmp_path: Path, user: str) -> None:
    with terminal(tmp_path, gfwemu(*BARE, "--", "sh", "-c", "echo up; exec sleep 4321", user=user)) as pty:
        pty.expect("up")
        pty.type("\x03")
        assert pty.finish() == 128 + signal.SIGINT
    assert own(tmp_path) == []


def test_ctrl_c_is_the_programs_to_handle(tmp_path: Path) -> None:
    script = (
        "import time\n"
        "try: print('up', flush=True); time.sleep(99)\n"
        "except KeyboardInterrupt: print('caught', flush=True); raise SystemExit(5)\n"
    )
    with terminal(tmp_path, gfwemu(*BARE, "--", sys.executable, "-c", script)) as pty:
        pty.expect("up")
        pty.type("\x03")
        pty.expect("caught")
        assert pty.finish() == 5


def test_ctrl_c_in_a_pipeline_reaches_everybody_once(tmp_path: Path) -> None:
    """In a pipeline the program stays in the job's process group."""
    script = (
        "import signal, sys, time\n"
        "times = []\n"
        "signal.signal(signal.SIGINT, lambda *_: times.append(1))\n"
        "print('up', file=sys.stderr, flush=True)\n"
        "end = time.monotonic() + 30\n"
        "while not times and time.monotonic() < end: time.sleep(0.05)\n"
        "time.sleep(0.5); print('interrupted', len(times), 'times', file=sys.stderr, flush=True)\n"
    )
    program = tmp_path / "program.py"
    program.write_text(script)
    run = " ".join(gfwemu(*BARE, "-q", "--", sys.executable, str(program)))
    with terminal(tmp_path, ["bash", "-c", f"trap : INT; {run} | cat"]) as pty:
        pty.expect("up")
        pty.type("\x03")
        pty.expect("interrupted 1 times")


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_job_control_of_the_shell_outside(tmp_path: Path) -> None:
    """Ctrl-Z stops the program and gives the prompt back; fg goes on."""
    program = tmp_path / "program.py"
    program.write_text("import sys\nprint('up', flush=True)\nfor line in sys.stdin: print(line, end='', flush=True)\n")
    run = " ".join(gfwemu(*BARE, "-q", "--", sys.executable, str(program)))
    with terminal(tmp_path, ["bash", "--norc", "-i"]) as pty:
        pty.expect("ready> ")
        pty.type(run + "\n")
        pty.expect("\nup")
        pty.type("\x1a")
        pty.expect("Stopped")
        pty.expect("ready> ")
        pty.type("echo $((40 + 2))\n")
        pty.expect("\n42")
        pty.type("fg\n")
        pty.expect("gfwemu run")
        pty.type("hello\n")
        pty.expect("\nhello")
        pty.type("\x04")
        pty.expect("ready> ")
        pty.type("exit\n")
        assert pty.finish() == 0


@BOTH
def test_a_shell_inside_has_job_control(tmp_path: Path, user: str) -> None:
    with terminal(tmp_path, ["env", "SHELL=/bin/bash", *gfwemu("shell", "--topology", "bare", user=user)]) as pty:
        pty.expect(r"gfwemu: no censor(.|\n)*[$#] ")
        pty.type("PS1='inside> '\n")
        pty.expect("\ninside> ")
        pty.type("sh -c 'echo started; exec cat'\n")
        pty.expect("\nstarted")
        pty.type("\x1a")
        pty.expect("Stopped")
        pty.expect("inside> ")
        pty.type("kill %1; ip -br address show eth0\n")
        pty.expect(r"192\.0\.2\.10/25")
        pty.expect("inside> ")
        assert "no job control" not in pty.seen
        pty.type("exit 9\n")
        assert pty.finish() == 9
