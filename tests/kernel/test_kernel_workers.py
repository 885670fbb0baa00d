"""Several workers: who gets which packets, what they write, and how they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kernel_net import INSIDE, OUTSIDE, SERVER4, SERVER6, SmallNet, in_namespaces, run, wait_until

from gfwemu.cli import daemon as _imported_for_all_forks

assert _imported_for_all_forks

WORKERS = 3
SERVERS4 = [f"198.51.100.{number}" for number in range(20, 44)]
SERVERS6 = [f"2001:db8:2::{number}" for number in range(20, 44)]
RULES = """
version: 1
rules:
  - name: forbidden
    match: {dns.qname: blocked.example}
    action: drop
    residual: {key: 2tuple, seconds: 60}
"""
QUERY = bytes.fromhex("12340100000100000000000007626c6f636b6564076578616d706c650000010001")


class Running:
    """The whole command in a process of its own; its files are in a /tmp of the test's own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def stop(self) -> str:
        """What it said to the end, which was a good one."""
        self.process.terminate()
        assert self.process.wait(20) == 0
        return self.said()

    def said(self) -> str:
        assert self.process.stderr
        return self.process.stderr.read()


@contextmanager
def _censor(*arguments: str, rules: str = RULES, workers: int = WORKERS) -> Iterator[Running]:
    run("mount -t tmpfs tmpfs /tmp")
    Path("/tmp/rules.yaml").write_text(rules)
    ready, writer = os.pipe()
    command = [sys.executable, "-m", "gfwemu", "daemon", "-c", "/tmp/rules.yaml", "--workers", str(workers)]
    command += ["--inside", INSIDE, "--outside", OUTSIDE, "--ready-fd", str(writer), "--eve", "/tmp/eve.json"]
    process = subprocess.Popen([*command, *arguments], pass_fds=[writer], stderr=subprocess.PIPE, text=True)
    os.close(writer)
    try:
        assert os.read(ready, 1) == b"\n", process.stderr and process.stderr.read()
        yield Running(process)
    finally:
        os.close(ready)
        if process.poll() is None:
            process.kill()
            process.wait()


def _runs(pid: int) -> bool:
    """Nobody in a test's namespaces buries the children of the dead."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def _is_clean() -> bool:
    return run("nft list ruleset") == "" and run("cat /proc/net/netfilter/nfnetlink_queue") == ""


def _events(kind: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in Path("/tmp/eve.json").read_text().splitlines()]
    return [event for event in found if event["event_type"] == kind]


def _many_servers(net: SmallNet) -> None:
    with net.on("server"):
        run("; ".join(f"ip addr add {address}/24 dev eth0" for address in SERVERS4))
        run("; ".join(f"ip addr add {address}/64 dev eth0 nodad" for address in SERVERS6))


def _exchange(net: SmallNet, address: str, port: int = 9000, text: bytes = b"hello") -> None:
    """One datagram each way, however large."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with net.on("server"):
        server = socket.socket(family, socket.SOCK_DGRAM)
    with server, net.udp("client", family) as client:
        server.settimeout(3)
        server.bind((address, port))
        client.connect((address, port))
        client.send(text)
        data, peer = server.recvfrom(65_535)
        assert data == text
        server.sendto(text, peer)
        assert client.recv(65_535) == text


@in_namespaces
def test_flows_are_shared_out_and_each_stays_with_its_worker(net: SmallNet) -> None:
    _many_servers(net)
    counted = "  - {name: counted, match: {port.server: 9000}, action: freeze, with: {packets: 1000}}\n"
    with _censor(rules=RULES + counted) as censor:
        for address in (*SERVERS4, *SERVERS6):
            _exchange(net, address)
        rows = [line.split() for line in run("cat /proc/net/netfilter/nfnetlink_queue").splitlines()]
        seen = {int(row[0]): int(row[7]) for row in rows}
        assert all(seen[queue] >= 2 for queue in range(WORKERS)), seen
        said = censor.stop()
    assert f"{WORKERS} workers on queues 0 to 2" in said
    flows = _events("flow")
    # A worker that had seen but one direction would have had a flow of its own for it.
    assert sorted(str(flow["dest_ip"]) for flow in flows) == sorted([*SERVERS4, *SERVERS6])
    assert {flow["flow"]["pkts_toclient"] for flow in flows} == {1}  # type: ignore[index]
    assert len({flow["flow_id"] for flow in flows}) == len(flows)
    assert _is_clean()


@in_namespaces
def test_all_protocols_between_two_addresses_meet_the_same_residual_block(net: SmallNet) -> None:
    _many_servers(net)
    with _censor() as censor:
        blocked = SERVERS4[:12]
        for address in blocked:
            with net.udp("client") as client:
                client.sendto(QUERY, (address, 53))
        wait_until(lambda: len(_events("alert")) == len(blocked), "all queries")
        with net.on("server"):
            listener = socket.create_server(("0.0.0.0", 80))
        for address in blocked:
            with net.tcp(timeout=0.1) as client, pytest.raises(TimeoutError):
                client.connect((address, 80))
        with net.tcp() as client:
            client.connect((SERVERS4[20], 80))
        listener.close()
        censor.stop()


@in_namespaces
def test_a_block_of_a_server_holds_for_clients_of_all_workers(net: SmallNet) -> None:
    rules = RULES.replace("2tuple", "server")
    clients = [f"192.0.2.{number}" for number in range(20, 32)]
    with net.on("client"):
        run("; ".join(f"ip addr add {address}/24 dev eth0" for address in clients))
    with _censor(rules=rules) as censor:
        with net.udp("client") as client:
            client.sendto(QUERY, (SERVER4, 53))
        wait_until(lambda: len(_events("alert")) == 1, "the query")
        server = net.udp("server", port=9000)
        server.settimeout(0.3)
        for address in clients:
            with net.on("client"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.bind((address, 0))
                client.sendto(b"blocked?", (SERVER4, 9000))
        with pytest.raises(TimeoutError):
            server.recv(100)
        server.close()
        assert "one worker" not in censor.stop()


@in_namespaces
def test_one_worker_decides_all_where_a_rule_bears_upon_all_flows(net: SmallNet) -> None:
    _many_servers(net)
    slow = "  - {name: slow, match: {port.server: 9000}, action: throttle, with: {rate: 100mbit, per: rule}}\n"
    with _censor(rules=RULES + slow) as censor:
        for address in SERVERS4[:8]:
            _exchange(net, address)
        rows = [line.split() for line in run("cat /proc/net/netfilter/nfnetlink_queue").splitlines()]
        assert [int(row[0]) for row in rows if int(row[7])] == [0]
        assert "one worker decides all packets, because the rule 'slow' bears upon flows of all" in censor.stop()


@in_namespaces
def test_the_fragments_of_a_datagram_reach_one_worker(net: SmallNet) -> None:
    _many_servers(net)
    with _censor() as censor:
        for address in (*SERVERS4[:6], *SERVERS6[:6]):
            _exchange(net, address, text=bytes(5000))
        censor.stop()
    assert {flow["flow"]["pkts_toserver"] for flow in _events("flow")} == {1}  # type: ignore[index]


@in_namespaces
def test_lines_of_several_workers_are_whole_and_metrics_are_sums(net: SmallNet) -> None:
    _many_servers(net)
    with _censor("--metrics", "/tmp/metrics", "--pcap", "/tmp/out.pcapng") as censor:
        with net.udp("client") as client:
            for number in range(600):
                address = SERVERS4[number % len(SERVERS4)]
                client.sendto(QUERY, (address, 53))
        wait_until(
            lambda: 'gfwemu_packets_total{verdict="drop"} 600.0' in Path("/tmp/metrics").read_text(), "the metrics"
        )
        censor.stop()
    assert len(_events("alert")) == len(SERVERS4)
    capture = Path("/tmp/out.pcapng").read_bytes()
    assert capture.count(b"\x07blocked\x07example") == 600
    assert capture.startswith(b"\x0a\x0d\x0d\x0a")
    assert capture.count(b"\x0a\x0d\x0d\x0a") == 1


@in_namespaces
def test_a_reload_takes_force_in_all_workers_or_in_none(net: SmallNet) -> None:
    _many_servers(net)
    with _censor() as censor:
        assert censor.process.stderr

        def reload(rules: str) -> str:
            Path("/tmp/rules.yaml").write_text(rules)
            censor.process.send_signal(signal.SIGHUP)
            return str(censor.process.stderr.readline())  # type: ignore[union-attr]

        assert "ready" in censor.process.stderr.readline()
        assert "the rules were not reloaded" in reload(RULES.replace("drop", "dorp"))
        assert "dorp" in censor.process.stderr.readline()
        both = "version: 1\nrules:\n  - {name: all, match: {dns.qname: blocked.example}, action: pass}\n"
        assert "reloaded: 1 rules" in reload(both)
        for address in SERVERS4[:12]:
            _exchange(net, address, 53, QUERY)
        censor.stop()
    assert _is_clean()


@in_namespaces
def test_the_death_of_a_worker_ends_the_daemon_cleanly(net: SmallNet) -> None:
    with _censor() as censor:
        os.kill(censor.workers()[1], signal.SIGKILL)
        assert censor.process.wait(20) == 1
        assert "Worker 2 was killed by SIGKILL: the censor ends" in censor.said()
    assert _is_clean()
    _exchange(net, SERVER4)


@in_namespaces
def test_workers_die_with_a_killed_daemon_and_the_next_one_starts_clean(net: SmallNet) -> None:
    with _censor() as first:
        workers = first.workers()
        assert len(workers) == WORKERS
        first.process.kill()
        first.process.wait()
        # At once: its queues may still be bound.
        Path("/tmp/eve.json").unlink()
        with _censor() as second:
            assert not any(_runs(pid) for pid in workers)
            _exchange(net, SERVER6)
            second.stop()
    assert _is_clean()


@in_namespaces
def test_a_terminals_interrupt_reaches_everybody_and_nothing_is_lost(net: SmallNet) -> None:
    with _censor() as censor:
        _exchange(net, SERVER4)
        for pid in censor.workers():
            os.kill(pid, signal.SIGINT)
        censor.process.send_signal(signal.SIGINT)
        assert censor.process.wait(20) == 0
        assert "Traceback" not in censor.said()
    assert len(_events("flow")) == 1
    assert _is_clean()
