"""The daemon from its start to its end: what it leaves, what it survives, what it says."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from kernel_net import CLIENT4, INSIDE, OUTSIDE, SERVER4, SmallNet, in_namespaces, run, wait_until
from stub_daemon import StubDaemon, accept, drop, offload_accept

from gfwemu.cli.daemon import daemon as daemon_command
from gfwemu.cli.main import main
from gfwemu.cli.outputs import FileOutputs
from gfwemu.engine.commands import Command, Hold, Inject, SetTimer, SetVerdict
from gfwemu.engine.events import Event, PacketArrived, Stopping, TimerFired
from gfwemu.errors import Place, Problem, RulesError, UsageError
from gfwemu.kernel.systemd import notify
from gfwemu.model import FiveTuple, Verdict, address_bytes
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.plan import KernelPlan, KernelRule
from gfwemu.wire.build import build_udp

RULES = """
version: 1
rules:
  - name: sni-blocked
    match: {tls.sni: blocked.example}
    action: reset
  - name: address
    match: {ip.server: 198.51.100.0/28}
    action: drop
"""


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gfwemu", "daemon", *arguments]


def _refusal(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr, by a fork of this process: it has all modules already."""
    said = os.memfd_create("stderr")
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            sys.argv = ["gfwemu", "daemon", *arguments]
            sys.stderr = os.fdopen(said, "w")
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, os.pread(said, 65536, 0).decode()


def _rules_file(text: str = RULES) -> Path:
    """In a /tmp of the test's own: its mount namespace goes with it."""
    run("mount -t tmpfs tmpfs /tmp")
    path = Path("/tmp/rules.yaml")
    path.write_text(text)
    return path


def _empty() -> bool:
    return "gfwemu" not in run("nft list ruleset; iptables-save; ip6tables-save")


@in_namespaces
def test_sigterm_leaves_nothing(net: SmallNet) -> None:
    daemon = StubDaemon(offload_accept)
    server, client = net.udp("server", port=9000), net.udp("client")
    client.sendto(b"x", (SERVER4, 9000))
    server.recv(100)
    assert "mark=0 " not in run("conntrack -L -p udp 2>/dev/null")
    daemon.stop()
    assert run("nft list ruleset") == ""
    assert "mark=0 " in run("conntrack -L -p udp 2>/dev/null")
    assert run("cat /proc/net/netfilter/nfnetlink_queue") == ""


@in_namespaces
def test_after_sigkill_a_new_daemon_starts_clean(net: SmallNet) -> None:
    first = StubDaemon(offload_accept)
    server, client = net.udp("server", port=9000), net.udp("client")
    client.sendto(b"x", (SERVER4, 9000))
    server.recv(100)
    first.kill()
    second = StubDaemon(accept)
    assert run("nft list tables") == "table inet gfwemu\n"
    client.sendto(b"x", (SERVER4, 9000))
    server.recv(100)
    assert len(second.packets()) == 1, "the first daemon's offload no longer holds"
    second.stop()
    assert _empty()


@in_namespaces
def test_packets_that_wait_get_their_verdict_when_the_daemon_stops(net: SmallNet) -> None:
    held: list[int] = []

    def hold(event: PacketArrived) -> list[Command]:
        held.append(event.packet_id)
        return [Hold(event.packet_id)]

    def release(event: Event) -> list[Command]:
        # The first is left to the daemon.
        return [SetVerdict(packet_id, Verdict.ACCEPT) for packet_id in held[1:]] if isinstance(event, Stopping) else []

    daemon = StubDaemon(hold, other=release)
    server, client = net.udp("server", port=9000), net.udp("client")
    for text in (b"first", b"second"):
        client.sendto(text, (SERVER4, 9000))
    wait_until(lambda: len(daemon.packets()) == 2, "both packets in user space")
    daemon.stop()
    assert {server.recv(100), server.recv(100)} == {b"first", b"second"}


@in_namespaces
def test_held_packets_and_delayed_injections_leave_on_time(net: SmallNet) -> None:
    waiting: list[tuple[int, float]] = []
    forged = build_udp(
        FiveTuple(17, address_bytes(SERVER4), 9000, address_bytes(CLIENT4), 9001),
        b"forged",
        ttl=64,
        ip_id=1,
        dont_fragment=False,
    )

    def hold(event: PacketArrived) -> list[Command]:
        waiting.append((event.packet_id, event.now + 0.2))
        return [Hold(event.packet_id), SetTimer(event.now + 0.2)]

    def fire(event: Event) -> list[Command]:
        if not isinstance(event, TimerFired) or not waiting or event.now < waiting[0][1]:
            return [SetTimer(waiting[0][1])] if waiting else []
        packet_id, _ = waiting.pop(0)
        return [SetVerdict(packet_id, Verdict.ACCEPT), Inject(forged, "after a delay")]

    daemon = StubDaemon(hold, other=fire)
    server, client = net.udp("server", port=9000), net.udp("client", port=9001)
    start = time.monotonic()
    client.sendto(b"x", (SERVER4, 9000))
    assert server.recv(100) == b"x"
    late = time.monotonic() - start
    assert client.recv(100) == b"forged"
    assert 0.2 <= late < 1.0
    daemon.stop()


@in_namespaces
def test_a_fault_of_the_engine_costs_no_packet(net: SmallNet) -> None:
    def fail(_event: PacketArrived) -> list[Command]:
        raise ZeroDivisionError("a bug")

    daemon = StubDaemon(fail)
    server, client = net.udp("server", port=9000), net.udp("client")
    client.sendto(b"saved", (SERVER4, 9000))
    assert server.recv(100) == b"saved"
    assert any("EngineFault" in note and "ZeroDivisionError: a bug" in note for note in daemon.notes())
    daemon.stop()


@in_namespaces
def test_on_error_drop_drops_what_the_engine_failed_on(net: SmallNet) -> None:
    def fail(event: PacketArrived) -> list[Command]:
        if b"bad" in event.data:
            raise ZeroDivisionError("a bug")
        return accept(event)

    daemon = StubDaemon(fail, rules=RuleSet((), on_error="drop"))
    server, client = net.udp("server", port=9000), net.udp("client")
    for text in (b"bad", b"good"):
        client.sendto(text, (SERVER4, 9000))
    assert server.recv(100) == b"good"
    daemon.stop()


@in_namespaces
def test_a_packet_without_verdict_is_a_fault_and_gets_one(net: SmallNet) -> None:
    daemon = StubDaemon(lambda _: [])
    server, client = net.udp("server", port=9000), net.udp("client")
    client.sendto(b"saved", (SERVER4, 9000))
    assert server.recv(100) == b"saved"
    assert any("the engine gave no verdict" in note for note in daemon.notes())
    daemon.stop()


@in_namespaces
def test_a_fault_in_a_timer_frees_what_is_held(net: SmallNet) -> None:
    def fail(_event: Event) -> list[Command]:
        raise ZeroDivisionError("a bug")

    daemon = StubDaemon(lambda event: [Hold(event.packet_id), SetTimer(event.now)], other=fail)
    server, client = net.udp("server", port=9000), net.udp("client")
    client.sendto(b"saved", (SERVER4, 9000))
    assert server.recv(100) == b"saved"
    daemon.stop()


@in_namespaces
def test_wrong_rules_at_a_reload_leave_the_old_ones_in_force(net: SmallNet) -> None:
    plans = iter([KernelPlan((KernelRule(0, "old", "drop", servers=(f"{SERVER4}/32",)),))])

    def plan() -> KernelPlan:
        try:
            return next(plans)
        except StopIteration:
            raise RulesError([Problem(Place("rules.yaml", 4, 7), "unknown key 'snl'; did you mean 'sni'?")]) from None

    said, pen = os.pipe()
    sys.stderr = os.fdopen(pen, "w")
    daemon = StubDaemon(accept, plan)
    daemon.signal(signal.SIGHUP)
    heard = b""
    while b"stay in force" not in heard or b"snl" not in heard:
        heard += os.read(said, 4096)
    client, server = net.udp("client"), net.udp("server", port=9000)
    client.sendto(b"x", (SERVER4, 9000))
    server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        server.recv(100)
    daemon.stop()
    assert daemon.notes() == ["old drop 1"]


@in_namespaces
def test_a_second_daemon_on_the_same_queue_is_refused_and_harms_nothing() -> None:
    first = StubDaemon(drop)
    rules = _rules_file()
    code, said = _refusal("-c", str(rules), "--inside", INSIDE, "--outside", OUTSIDE)
    assert (code, said) == (
        4,
        "gfwemu: Netfilter queue 0 belongs to another process. Stop it, or choose another with --queue-num.\n",
    )
    assert "inet gfwemu" in run("nft list tables")
    first.stop()


@in_namespaces
def test_the_command_says_what_is_wrong_before_it_touches_anything() -> None:
    rules = str(_rules_file())
    both = ("--inside", INSIDE, "--outside", OUTSIDE)
    for arguments, code, text in (
        ((), 2, "Name a rule file"),
        (("-c", rules), 2, "no interface is taken by default"),
        (("-c", rules, "--inside", INSIDE), 2, "Name both interfaces"),
        (("-c", rules, "--inside", INSIDE, "--outside", INSIDE), 2, f"--inside and --outside are both {INSIDE}"),
        (
            ("-c", rules, "--inside", INSIDE, "--outside", "nope"),
            2,
            "--outside nope: there is no such interface; there",
        ),
        (("-c", rules, *both, "--pid-file", "/nonexistent/pid"), 2, "--pid-file /nonexistent/pid: No such file"),
        (("-c", "/nonexistent.yaml", *both), None, "/nonexistent.yaml"),
        (("-c", rules, *both, "--eve", "/nonexistent/eve.json"), 2, "/nonexistent/eve.json: No such file"),
    ):
        found, said = _refusal(*arguments)
        assert text in said
        assert found == code if code else found in (2, 3)
    Path("/tmp/wrong.yaml").write_text(
        "version: 1\nrules:\n  - name: x\n    match: {tls.snl: y.example}\n    action: drop\n"
    )
    found, said = _refusal("-c", "/tmp/wrong.yaml", *both)
    assert found == 3
    assert "/tmp/wrong.yaml:4:" in said
    run("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
    found, said = _refusal("-c", rules, *both)
    assert found == 4
    assert "Turn it on: sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1." in said
    assert _empty()


@in_namespaces
def test_without_privileges_the_command_says_so() -> None:
    rules = str(_rules_file())
    argv = _command("-c", rules, "--inside", INSIDE, "--outside", OUTSIDE)
    done = subprocess.run(["setpriv", "--bounding-set=-all", "--inh-caps=-all", *argv], capture_output=True, text=True)
    assert done.returncode == 4
    assert "Raw sockets need CAP_NET_RAW." in done.stderr
    assert "Traceback" not in done.stderr


@in_namespaces
def test_the_whole_command_with_real_rules(net: SmallNet) -> None:
    rules = _rules_file()
    service = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    service.bind("/tmp/notify")
    service.settimeout(10)
    ready, writer = os.pipe()
    process = subprocess.Popen(
        _command(
            *("-c", str(rules), "--inside", INSIDE, "--outside", OUTSIDE, "--ready-fd", str(writer)),
            *("--eve", "/tmp/eve.json", "--metrics", "/tmp/metrics", "--pid-file", "/tmp/pid", "--seed", "7"),
        ),
        pass_fds=[writer],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NOTIFY_SOCKET": "/tmp/notify", "WATCHDOG_USEC": "200000"},
    )
    os.close(writer)
    assert os.read(ready, 1) == b"\n"
    assert service.recv(1000).startswith(b"READY=1\n")
    assert service.recv(1000) == b"WATCHDOG=1"
    assert int(Path("/tmp/pid").read_text()) == process.pid

    client = net.tcp(timeout=0.3)
    with pytest.raises(TimeoutError):
        client.connect((SERVER4, 80))
    rules.write_text(RULES.replace("198.51.100.0/28", "203.0.113.0/24"))
    process.send_signal(signal.SIGHUP)
    while not (text := service.recv(1000)).startswith(b"RELOADING=1\nMONOTONIC_USEC="):
        assert text == b"WATCHDOG=1"
    while not (text := service.recv(1000)).startswith(b"READY=1"):
        assert text == b"WATCHDOG=1"
    listener, client = net.listen(), net.tcp()
    client.connect((SERVER4, 80))
    listener.accept()

    wait_until(lambda: 'rule="address"} ' in Path("/tmp/metrics").read_text(), "the metrics")
    process.terminate()
    assert process.wait(10) == 0
    assert process.stderr
    assert re.fullmatch(
        rf"gfwemu: ready: 2 rules between {INSIDE} \(inside\) and {OUTSIDE} \(outside\), queue 0, seed 7\n"
        r"gfwemu: reloaded: 2 rules\n",
        process.stderr.read(),
    )
    events = Path("/tmp/eve.json").read_text()
    assert '"rule":"address"' in events
    assert '"event_type":"flow"' in events
    assert not Path("/tmp/pid").exists()
    assert _empty()


@in_namespaces
def test_a_capture_holds_every_packet_and_turns_kernel_decisions_off(net: SmallNet) -> None:
    rules = _rules_file()
    ready, writer = os.pipe()
    process = subprocess.Popen(
        _command(
            *("-c", str(rules), "--inside", INSIDE, "--outside", OUTSIDE, "--ready-fd", str(writer)),
            *("--pcap", "/tmp/out.pcapng"),
        ),
        pass_fds=[writer],
    )
    os.close(writer)
    assert os.read(ready, 1) == b"\n"
    client = net.udp("client")
    for number in range(5):
        client.sendto(b"packet %d" % number, (SERVER4, 9000))
    wait_until(lambda: Path("/tmp/out.pcapng").read_bytes().count(b"packet ") == 5, "the capture")
    process.terminate()
    assert process.wait(10) == 0
    assert Path("/tmp/out.pcapng").read_bytes().count(b"dropped (address") == 5


@pytest.mark.parametrize("option", ["--metrics", "--pid-file"])
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path, option: str) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        done = CliRunner().invoke(daemon_command, ("--inside", "a", "--outside", "b", option, str(path)))
        assert done.exit_code == 2
        assert f"{pipe} is no regular file, and would be replaced." in done.output
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((Path("/nowhere/eve"), None, None), "/nowhere/eve: No such file or directory"),
        ((None, Path("/dev/full"), None), "/dev/full: No space left on device"),
        ((None, None, Path("/nowhere/metrics")), "/nowhere/metrics: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(files: tuple[Path | None, Path | None, Path | None], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{said}$"):
        FileOutputs(*files)


@in_namespaces
def test_a_full_disk_ends_the_telling_and_not_the_deciding(net: SmallNet) -> None:
    rules = _rules_file(RULES.replace("reset", "alert").replace("drop", "alert"))
    ready, writer = os.pipe()
    process = subprocess.Popen(
        _command(
            *("-c", str(rules), "--inside", INSIDE, "--outside", OUTSIDE, "--ready-fd", str(writer)),
            *("--eve", "/dev/full"),
        ),
        pass_fds=[writer],
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert os.read(ready, 1) == b"\n"
    server, client = net.udp("server", port=9000), net.udp("client")
    for _ in range(3):
        client.sendto(b"x", (SERVER4, 9000))
        assert server.recv(100) == b"x"
    process.terminate()
    assert process.wait(10) == 0
    assert process.stderr
    assert process.stderr.read().count("nothing more is written: ") == 1
    assert _empty()


@in_namespaces
def test_sigint_during_a_reload_still_ends_cleanly() -> None:
    daemon = StubDaemon(accept)
    for _ in range(5):
        daemon.signal(signal.SIGHUP)
    daemon.signal(signal.SIGINT)
    assert daemon.wait() == 0
    assert _empty()


def test_notify_without_a_service_manager_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", "relative", "/nonexistent/socket", "@nobody"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify("READY=1") is None


@in_namespaces
def test_lost_packets_are_told_in_events_and_metrics(net: SmallNet) -> None:
    rules = _rules_file(RULES + "  - {name: udp, match: {transport: udp, count.packets: '>1000000'}, action: drop}\n")
    ready, writer = os.pipe()
    process = subprocess.Popen(
        _command(
            *("-c", str(rules), "--inside", INSIDE, "--outside", OUTSIDE, "--ready-fd", str(writer)),
            *("--eve", "/tmp/eve.json", "--metrics", "/tmp/metrics", "--queue-length", "1", "--fail-closed"),
        ),
        pass_fds=[writer],
    )
    os.close(writer)
    assert os.read(ready, 1) == b"\n"
    process.send_signal(signal.SIGSTOP)
    client = net.udp("client")
    # More than the queue holds, those included that the engine may hold.
    sent = RuleSet(()).hold_packets + 1 + 500
    for _ in range(sent):
        client.sendto(b"x", ("198.51.100.200", 9000))
    columns = [int(column) for column in run("grep '^ *0 ' /proc/net/netfilter/nfnetlink_queue").split()]
    lost = columns[5] + columns[6]
    assert lost >= 500
    process.send_signal(signal.SIGCONT)
    told = r'"kernel_drops":(\d+).*"queue_dropped":(\d+),"socket_dropped":(\d+)'
    wait_until(lambda: re.search(told, Path("/tmp/eve.json").read_text()) is not None, "the stats event")
    found = re.search(told, Path("/tmp/eve.json").read_text())
    assert found
    assert [int(count) for count in found.groups()] == [lost, columns[5], columns[6]]
    metrics = Path("/tmp/metrics").read_text()
    assert f"gfwemu_queue_dropped_total {columns[5]}.0" in metrics
    assert f"gfwemu_socket_dropped_total {columns[6]}.0" in metrics
    process.terminate()
    assert process.wait(10) == 0


@pytest.mark.slow
@in_namespaces
def test_a_thousand_reloads_leak_no_descriptor() -> None:
    daemon = StubDaemon(accept)

    def reload(number: int) -> int:
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: daemon.notes().count("reloaded") >= number, "the reload")
        return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))

    first = [reload(number) for number in range(1, 11)]
    later = [reload(number) for number in range(11, 1001)]
    assert max(later) <= max(first)
    daemon.stop()
