"""The running censor: rules replaced under traffic, its own death, faults, garbage, bounds."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from live_drive import ECHO, ECHO_V6, ECHOES, V4, V6, Drive
from live_kit import TOPOLOGY, Client, wait_for
from live_nodes import Node, packed
from live_tcp import HAND_V4, HAND_V6, Wire
from live_tls import Hello, outcome, read_until

from gfwemu.netlab.errors import LabError
from gfwemu.netlab.lab import Lab
from gfwemu.netlab.topology import load_topology
from gfwemu.wire.build import build_ip

pytestmark = pytest.mark.kernel

RULES = "version: 1\nrules: [{name: none, match: {tls.sni: none.example}, action: alert}]\n"
LAB = {"services": ECHOES}
ADDRESSES = pytest.mark.parametrize("address", [V4, V6])
SILENCE = 0.5
REQUEST = b"GET / HTTP/1.1\r\nHost: www.allowed.example\r\n\r\n"
ANSWER = b"hello from www.allowed.example over http/1.1\n"


@pytest.fixture(scope="module")
def drive(client: Client, client_node: Node, internet_node: Node, wire: Wire) -> Drive:
    return Drive(client, client_node, internet_node, wire)


# -- rules replaced -----------------------------------------------------------------------------------------------


class Flowing:
    """A page that never ends, a byte each 200 ms."""

    def __init__(self, client: Client, node: Node, address: str, name: str) -> None:
        self.tcp: Any = node.connect(address, 443)
        hello = Hello(client.lab, name)
        self.tcp.sendall(hello.record)
        hello.start(self.tcp, "/slow/500")

    def goes_on(self) -> str:
        """What is met while some more of it is read."""
        self.tcp.settimeout(1.0)
        return outcome(lambda: [self.tcp.recv(4096) for _ in range(3)])


@ADDRESSES
@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("{name: new, match: {tls.sni: running.example}, action: reset}", "reset"),
        ("{name: new, match: {tls.sni: running.example}, action: drop}", "timeout"),
        ("{name: new, match: {ip.server: [203.0.113.10, '2001:db8:f::10'], transport: tcp}, action: drop}", "timeout"),
        ("{name: new, match: {tls.sni: other.example}, action: drop}", "ok"),
    ],
)
def test_new_rules_decide_running_flows_anew(
    client: Client, client_node: Node, address: str, rules: str, expected: str
) -> None:
    client.load(RULES)
    flow = Flowing(client, client_node, address, "running.example")
    assert flow.goes_on() == "ok"
    client.load(f"version: 1\nrules: [{rules}]\n")
    assert flow.goes_on() == expected
    flow.tcp.close()


@ADDRESSES
def test_a_dropped_flow_comes_back_when_its_rule_is_gone(client: Client, client_node: Node, address: str) -> None:
    client.load("version: 1\nrules: [{name: gone, match: {http.path: /cut}, action: drop}]\n")
    with client_node.connect(address, 80) as tcp:
        tcp.sendall(REQUEST.replace(b" / ", b" /cut "))
        tcp.settimeout(SILENCE)
        assert outcome(lambda: read_until(tcp, ANSWER)) == "timeout"
        client.load(RULES)
        # The client's kernel sends again what nobody acknowledged.
        tcp.settimeout(10)
        read_until(tcp, ANSWER)


def test_wrong_rules_leave_the_old_ones_in_force(client: Client, drive: Drive) -> None:
    client.load("version: 1\nrules: [{name: kept, match: {http.host: kept.example}, action: reset}]\n")
    wrong = client.directory / "wrong.yaml"
    wrong.write_text("version: 1\nrules: [{name: bad, match: {http.hots: kept.example}, action: reset}]\n")
    with pytest.raises(LabError, match=r"wrong\.yaml:2:29: unknown key 'http\.hots'; did you mean 'http\.host'\?"):
        client.lab.reload([wrong])
    assert outcome(lambda: drive.http("kept.example")) == "reset"
    drive.http()


def test_a_download_survives_many_reloads(client: Client, client_node: Node) -> None:
    client.load(RULES)
    with client_node.connect(V4, 80) as tcp:
        tcp.sendall(b"GET /bytes/30000000 HTTP/1.1\r\nHost: www.allowed.example\r\n\r\n")
        got, reloads = 0, 0
        while got < 30_000_000:
            got += len(tcp.recv(1 << 20))
            if reloads < 20 and got > reloads * 1_000_000:
                client.lab.reload()
                reloads += 1
    assert reloads == 20


# -- bounds and faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [ECHO, ECHO_V6])
def test_so_many_packets_wait_and_no_more(client: Client, client_node: Node, address: str) -> None:
    client.load("""version: 1
engine: {limits: {hold_packets: 5}}
rules: [{name: late, match: {port.server: 7}, action: delay, with: {time: 400ms, direction: to_server}}]
""")
    with client_node.sniffer() as sniffer, client_node.datagrams(address, 7) as udp:
        port = udp.getsockname()[1]
        for number in range(12):
            udp.send(bytes([number]))

        def echoes() -> list[bytes]:
            return [s.packet.payload for s in sniffer.look() if s.packet.five_tuple.dport == port]

        assert sniffer.wait(lambda: len(echoes()) >= 5)
        udp.send(b"end")
        assert sniffer.wait(lambda: b"end" in echoes())
        assert echoes() == [bytes([number]) for number in range(5)] + [b"end"]


@pytest.mark.parametrize(("on_error", "expected"), [("accept", "ok"), ("drop", "timeout")])
def test_a_fault_over_a_packet_gets_what_on_error_says(
    client: Client, drive: Drive, on_error: str, expected: str
) -> None:
    (client.directory / "faulty.py").write_text("def faulty(facts):\n    return 1 / 0\n")
    client.load(f"""version: 1
engine: {{on_error: {on_error}}}
rules: [{{name: faulty, match: {{port.server: 7, python: "faulty.py:faulty"}}, action: alert}}]
""")
    assert outcome(lambda: drive.udp(b"x", timeout=SILENCE)) == expected
    drive.http()
    faults = [event for event in client.lab.events() if event.get("censor", {}).get("kind") == "fault"]
    assert "ZeroDivisionError" in faults[-1]["censor"]["error"]


def test_garbage_passes_and_hurts_nobody(client: Client, drive: Drive, wire: Wire) -> None:
    client.load("version: 1\nrules: [{name: any, match: {protocol: [openvpn, wireguard]}, action: drop}]\n")
    rng = random.Random(1)
    before = [event for event in client.lab.events() if event.get("censor", {}).get("kind") == "fault"]
    for number in range(600):
        version6 = number % 2
        src, dst = (HAND_V6, V6) if version6 else (HAND_V4, V4)
        proto = rng.choice([0, 1, 4, 6, 6, 17, 17, 41, 43, 44, 47, 50, 51, 58, 60, 132])
        content = rng.randbytes(rng.choice([0, 1, 7, 8, 19, 20, 60, 300]))
        data = bytearray(build_ip(packed(src), packed(dst), proto, content, ip_id=number))
        if number % 3 == 0 and not version6:
            data[6:8] = rng.randbytes(2)
        wire.send(bytes(data))
    drive.flush()
    drive.http()
    drive.http(address=V6)
    after = [event for event in client.lab.events() if event.get("censor", {}).get("kind") == "fault"]
    assert after == before


# -- life and death -------------------------------------------------------------------------------------------------


@contextmanager
def censored(directory: Path, rules: str) -> Iterator[tuple[Lab, Node]]:
    path = directory / "rules.yaml"
    path.write_text(rules)
    with Lab(load_topology(str(TOPOLOGY)), rules=[path]) as lab, Node(lab, "client") as node:
        yield lab, node


def daemon_ended(lab: Lab) -> Callable[[], bool]:
    def ended() -> bool:
        lab.attached.refresh()
        return str(lab.attached.state["services"]["daemon"]["state"]) != "running"

    return ended


@pytest.mark.parametrize(("fail_open", "after"), [("true", "ok"), ("false", "timeout")])
def test_a_killed_censor_fails_open_or_closed(tmp_path: Path, fail_open: str, after: str) -> None:
    rules = f"""version: 1
engine: {{fail_open: {fail_open}}}
rules:
  - {{name: kernel, match: {{ip.server: [203.0.113.21, "2001:db8:f::21"]}}, action: drop}}
  - {{name: host, match: {{http.host: blocked.example}}, action: reset}}
"""
    with censored(tmp_path, rules) as (lab, node):

        def visit(address: str, host: str = "www.allowed.example") -> str:
            def work() -> None:
                with node.connect(address, 80, timeout=SILENCE) as tcp:
                    tcp.sendall(REQUEST.replace(b"www.allowed.example", host.encode()))
                    read_until(tcp, b"hello from")

            return outcome(work)

        running = node.connect(V4, 80)
        running.sendall(REQUEST)
        read_until(running, ANSWER)
        assert [visit(V4, "blocked.example"), visit(V6), visit("203.0.113.21")] == ["reset", "ok", "timeout"]
        lab.attached.signal_service("daemon", signal.SIGKILL)
        wait_for(daemon_ended(lab))
        assert [visit(V4), visit(V6), visit(V6, "blocked.example")] == [after] * 3
        # What the kernel decides alone, it goes on deciding.
        assert visit("203.0.113.21") == "timeout"
        assert visit("2001:db8:f::21") == "timeout"
        running.settimeout(SILENCE)
        running.sendall(REQUEST)
        assert outcome(lambda: read_until(running, ANSWER)) == after


@pytest.mark.parametrize(("fail_open", "expected"), [("true", True), ("false", False)])
def test_a_full_queue_fails_open_or_closed(tmp_path: Path, fail_open: str, expected: bool) -> None:
    """The daemon stands still; more packets come than its queue takes."""
    rules = f"""version: 1
engine: {{fail_open: {fail_open}, limits: {{hold_packets: 1}}}}
rules: [{{name: lossless, match: {{payload.contains: nothing-of-this}}, action: drop}}]
"""
    count = 6000
    with (
        censored(tmp_path, rules) as (lab, node),
        Node(lab, "internet") as internet,
        internet.sniffer() as sniffer,
        node.datagrams(source="0.0.0.0") as udp,
    ):
        lab.attached.signal_service("daemon", signal.SIGSTOP)
        for _ in range(count):
            udp.sendto(b"x", (V4, 9))
        arrived = len([seen for seen in sniffer.look(0.2) if seen.packet.dst == packed(V4)])
        lab.attached.signal_service("daemon", signal.SIGCONT)
        assert (arrived > count // 10) == expected
        node.connect(V4, 80).close()


def test_a_censor_that_ends_takes_its_rules_along(tmp_path: Path) -> None:
    rules = """version: 1
engine: {fail_open: false}
rules:
  - {name: kernel, match: {ip.server: 203.0.113.21}, action: drop}
  - {name: late, match: {port.server: 80}, action: delay, with: {time: 60s}}
"""
    with censored(tmp_path, rules) as (lab, node):
        assert outcome(lambda: node.connect("203.0.113.21", 443, timeout=SILENCE)) == "timeout"
        with node.sniffer() as sniffer, node.connect(V4, 443):
            held = node.socket(2, 1)
            held.setblocking(False)
            held.connect_ex((V4, 80))
            lab.attached.signal_service("daemon", signal.SIGTERM)
            wait_for(daemon_ended(lab))
            # The SYN that was held goes on its way, and the kernel is as if there had been no censor.
            assert sniffer.wait(lambda: sniffer.segments(sport=80, sent=False), 0.9)
        started = time.monotonic()
        node.connect("203.0.113.21", 443).close()
        assert time.monotonic() - started < 0.9
        tables = lab.exec("censor", ["nft", "list", "tables"], timeout=10, as_root=True)
        assert (tables.returncode, b"gfwemu" in tables.stdout) == (0, False)
