"""The bulk queue: which packets come there, what they count as, and how a flow leaves it again."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kernel_net import CLIENT4, INSIDE, OUTSIDE, SERVER4, SERVER6, SmallNet, in_namespaces, run
from stub_daemon import StubDaemon

from gfwemu.cli import daemon as _imported_for_all_forks
from gfwemu.engine.commands import Command, SetVerdict
from gfwemu.engine.events import PacketArrived
from gfwemu.kernel.queue import bulk_queue
from gfwemu.model import Verdict
from gfwemu.wire.packet import Packet
from gfwemu.wire.parse import parse_packet

assert _imported_for_all_forks

BYTES = 30_000_000
MSS = 1448


def _offloads_on(net: SmallNet) -> None:
    """As network cards have it: what is sent is split at the very end, if at all."""
    for node in ("client", "server"):
        with net.on(node):
            run("ethtool -K eth0 tx on tso on gso on gro on >/dev/null")
    for port in (INSIDE, OUTSIDE):
        run(f"ethtool -K {port} tx on tso on gso on gro on >/dev/null")


def _download(net: SmallNet, size: int, family: int = socket.AF_INET, repeated: list[int] | None = None) -> int:
    """How many bytes of `size` reach the client. repeated: gets the number of segments that the server sent again."""
    listener, client = net.listen(family), net.tcp(family, timeout=2)

    def serve() -> None:
        connection, _ = listener.accept()
        connection.settimeout(10)
        try:
            connection.recv(100)
            connection.sendall(bytes(size))
        except OSError:
            return
        finally:
            if repeated is not None:
                information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
                repeated.append(
                    int.from_bytes(information[100:104], sys.byteorder)
                )  # tcpi_total_retrans, <linux/tcp.h>
            connection.close()

    server = threading.Thread(target=serve)
    server.start()
    got = 0
    try:
        client.connect((SERVER4 if family == socket.AF_INET else SERVER6, 80))
        client.send(b"GET")
        while data := client.recv(1 << 20):
            got += len(data)
    except TimeoutError:
        pass
    finally:
        client.close()
        server.join()
        listener.close()
    return got


def _queued(number: int) -> int:
    """Packets that this queue had so far."""
    rows = [line.split() for line in run("cat /proc/net/netfilter/nfnetlink_queue").splitlines()]
    return next(int(row[7]) for row in rows if int(row[0]) == number)


@in_namespaces
def test_bulk_packets_come_unsplit_and_cut_with_their_true_length(net: SmallNet) -> None:
    _offloads_on(net)

    def answer(event: PacketArrived) -> list[Command]:
        packet = parse_packet(event.data)
        assert isinstance(packet, Packet)
        os.write(log, f"{event.length} {len(event.data)} {packet.seq} {packet.payload[:1].hex()}\n".encode())
        return [SetVerdict(event.packet_id, Verdict.ACCEPT, bulk=True)]

    log = os.memfd_create("lengths")
    daemon = StubDaemon(answer)
    assert _download(net, 2_000_000) == 2_000_000
    assert _queued(bulk_queue(0)) > 10
    daemon.stop()
    lines = os.pread(log, 1 << 20, 0).decode().splitlines()
    lengths = [(int(line.split()[0]), int(line.split()[1])) for line in lines]
    assert max(length for length, _ in lengths) > 20_000
    assert all(seen == min(length, 256) for length, seen in lengths if length > 1500)
    assert sum(length for length, _ in lengths) > 2_000_000


def _allow_longer_packets(net: SmallNet) -> None:
    """BIG TCP: more than the 65,535 bytes that a length field can say. ip has no word for IPv4's limit before 6.3."""
    gso_ipv4_max_size = 63  # <linux/if_link.h>
    for node in ("client", "server"):
        with net.on(node), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as rtnetlink:
            run("ip link set eth0 gso_max_size 150000")
            link = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex("eth0"), 0, 0)
            body = link + struct.pack("=HHI", 8, gso_ipv4_max_size, 150_000)
            rtnetlink.send(struct.pack("=IHHII", 16 + len(body), 19, 5, 1, 0) + body)
            assert struct.unpack_from("=i", rtnetlink.recv(4096), 16) == (0,)
    # IPv6 packets of that size carry 8 bytes more (RFC 2675), for which the router wants room; no segment has them.
    run(f"ip link set {INSIDE} mtu 1508")


def _longer_than_a_length_field(net: SmallNet, family: int) -> None:
    _offloads_on(net)
    _allow_longer_packets(net)

    def answer(event: PacketArrived) -> list[Command]:
        field = int.from_bytes(event.data[2:4] if family == socket.AF_INET else event.data[4:6])
        os.write(log, f"{event.length} {len(event.data)} {field}\n".encode())
        return [SetVerdict(event.packet_id, Verdict.ACCEPT, bulk=True)]

    log = os.memfd_create("lengths")
    daemon = StubDaemon(answer)
    assert _download(net, BYTES, family) == BYTES
    daemon.stop()
    rows = [[int(word) for word in line.split()] for line in os.pread(log, 1 << 20, 0).decode().splitlines()]
    longest = [(seen, field) for length, seen, field in rows if length > 70_000]
    assert longest
    assert set(longest) == {(256, 0)}
    assert BYTES < sum(length for length, _, _ in rows) < 1.01 * BYTES + 100_000


@pytest.mark.kernel
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_packets_longer_than_their_length_field_can_say_have_their_true_length(family: int) -> None:
    def test(net: SmallNet) -> None:
        _longer_than_a_length_field(net, family)

    in_namespaces(test)()


@in_namespaces
def test_a_verdict_without_bulk_brings_the_flow_back_to_the_queue(net: SmallNet) -> None:
    seen: list[int] = []

    def answer(event: PacketArrived) -> list[Command]:
        seen.append(event.packet_id)
        return [SetVerdict(event.packet_id, Verdict.ACCEPT, bulk=len(seen) != 4)]

    daemon = StubDaemon(answer)
    server, client = net.udp("server", port=9000), net.udp("client")
    for number in range(1, 7):
        client.sendto(b"%d" % number, (SERVER4, 9000))
        assert server.recv(100) == b"%d" % number
    # The first came to the queue, as the fifth did after the fourth's verdict.
    assert (_queued(0), _queued(bulk_queue(0))) == (2, 4)
    daemon.stop()


def _censored_download(
    net: SmallNet, limits: str, size: int = BYTES, repeated: list[int] | None = None
) -> tuple[int, dict[str, int], tuple[int, int]]:
    """Bytes that arrived, the flow's record, and packets of the queue and of its bulk queue."""
    run("mount -t tmpfs tmpfs /tmp")
    rule = f"{{name: quota, match: {{port.server: 80}}, action: freeze, with: {{{limits}}}}}"
    Path("/tmp/rules.yaml").write_text(f"version: 1\nrules:\n  - {rule}\n")
    ready, writer = os.pipe()
    command = [sys.executable, "-m", "gfwemu", "daemon", "-c", "/tmp/rules.yaml", "--eve", "/tmp/eve.json"]
    command += ["--inside", INSIDE, "--outside", OUTSIDE, "--ready-fd", str(writer)]
    process = subprocess.Popen(command, pass_fds=[writer])
    os.close(writer)
    assert os.read(ready, 1) == b"\n"
    got = _download(net, size, repeated=repeated)
    queued = _queued(0), _queued(bulk_queue(0))
    process.terminate()
    assert process.wait(20) == 0
    events = [json.loads(line) for line in Path("/tmp/eve.json").read_text().splitlines()]
    (flow,) = (event["flow"] for event in events if event["event_type"] == "flow" and event["src_ip"] == CLIENT4)
    return got, flow, queued


@in_namespaces
def test_a_flow_far_from_its_quota_is_counted_as_on_the_wire_though_it_comes_unsplit(net: SmallNet) -> None:
    _offloads_on(net)
    repeated: list[int] = []
    got, flow, queued = _censored_download(net, "bytes: 10000MB", repeated=repeated)
    assert got == BYTES
    assert queued[1] > queued[0]
    segments = BYTES / MSS + repeated[0]
    assert queued[1] < segments / 2
    assert abs(flow["pkts_toclient"] - segments) < 0.02 * segments
    assert abs(flow["bytes_toclient"] - (BYTES + MSS * repeated[0] + 52 * segments)) < 0.002 * BYTES


@pytest.mark.slow
@in_namespaces
def test_the_quota_is_met_by_the_packet_though_most_of_the_flow_came_unsplit(net: SmallNet) -> None:
    _offloads_on(net)
    repeated: list[int] = []
    got, _, queued = _censored_download(net, "bytes: 20MB, counting: to_client, payload_only: true", repeated=repeated)
    assert queued[1] > 100
    # What a busy machine makes the server send twice counts twice, as on any wire.
    assert 20_000_000 - MSS * (1 + repeated[0]) <= got <= 20_000_000


@pytest.mark.slow
@in_namespaces
def test_a_flow_near_its_quota_never_comes_unsplit(net: SmallNet) -> None:
    _offloads_on(net)
    got, _, queued = _censored_download(net, "bytes: 16KB, counting: to_client, payload_only: true", 100_000)
    assert queued[1] == 0
    assert 16_000 - MSS <= got <= 16_000
