"""Packets through the real queue: verdicts, offload, watches, fragments, and what happens without a daemon."""

from __future__ import annotations

import signal
import socket
import struct
from collections.abc import Callable

import pytest
from kernel_net import CLIENT4, CLIENT6, INSIDE, SERVER4, SERVER6, SmallNet, in_namespaces, run, wait_until
from stub_daemon import StubDaemon, accept, drop, offload_accept

from gfwemu.engine.commands import Command, SetVerdict, Watch
from gfwemu.engine.events import PacketArrived
from gfwemu.model import FiveTuple, Verdict, address_bytes
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.plan import KernelPlan
from gfwemu.wire.build import build_tcp, build_udp
from gfwemu.wire.packet import Packet
from gfwemu.wire.parse import parse_packet


def _exchange(net: SmallNet, family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """A connected pair (client, server) of UDP sockets after one packet each way."""
    server, client = net.udp("server", family, 9000), net.udp("client", family)
    client.connect((SERVER4 if family == socket.AF_INET else SERVER6, 9000))
    client.send(b"hello")
    _, address = server.recvfrom(100)
    server.connect(address)
    server.send(b"welcome")
    assert client.recv(100) == b"welcome"
    return client, server


def _silent(sock: socket.socket) -> bool:
    sock.settimeout(0.2)
    try:
        sock.recv(100)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(3)
    return False


@in_namespaces
def test_accepted_packets_pass_and_their_side_is_known(net: SmallNet) -> None:
    daemon = StubDaemon(accept)
    _exchange(net)[1].close()
    _exchange(net, socket.AF_INET6)
    sides = [(side, data[0] >> 4) for side, data in daemon.packets()]
    assert sides == [("inside", 4), ("outside", 4), ("inside", 6), ("outside", 6)]
    daemon.stop()


@in_namespaces
def test_dropped_packets_are_gone(net: SmallNet) -> None:
    daemon = StubDaemon(drop)
    server, client = net.udp("server", port=9000), net.udp("client")
    client.sendto(b"lost", (SERVER4, 9000))
    wait_until(lambda: len(daemon.packets()) == 1, "the packet in user space")
    assert _silent(server)
    daemon.stop()
    client.sendto(b"found", (SERVER4, 9000))
    assert server.recv(100) == b"found"


@in_namespaces
def test_rewritten_packets_arrive_with_their_new_bytes(net: SmallNet) -> None:
    def rewrite(event: PacketArrived) -> list[Command]:
        packet = parse_packet(event.data)
        assert isinstance(packet, Packet)
        new = build_udp(packet.five_tuple, b"another, longer text", ttl=packet.ttl)
        return [SetVerdict(event.packet_id, Verdict.ACCEPT, new)]

    daemon = StubDaemon(rewrite)
    server, client = net.udp("server", port=9000), net.udp("client")
    client.sendto(b"text", (SERVER4, 9000))
    assert server.recv(100) == b"another, longer text"
    daemon.stop()


@in_namespaces
def test_packets_larger_than_the_librarys_buffer_are_whole(net: SmallNet) -> None:
    run(f"ip link set {INSIDE} mtu 9000; ip link set outside0 mtu 9000")
    for node in ("client", "server"):
        with net.on(node):
            run("ip link set eth0 mtu 9000")
    daemon = StubDaemon(lambda event: [SetVerdict(event.packet_id, Verdict.ACCEPT, event.data)])
    server, client = net.udp("server", port=9000), net.udp("client")
    client.sendto(bytes(range(250)) * 32, (SERVER4, 9000))
    assert server.recv(10_000) == bytes(range(250)) * 32
    daemon.stop()


@in_namespaces
def test_offloaded_flows_pass_and_never_reach_user_space_again(net: SmallNet) -> None:
    daemon = StubDaemon(offload_accept)
    for family in (socket.AF_INET, socket.AF_INET6):
        before = len(daemon.packets())
        client, server = _exchange(net, family)
        for number in range(50):
            client.send(b"%d" % number)
            assert server.recv(100) == b"%d" % number
            server.send(b"back")
            assert client.recv(100) == b"back"
        # UDP is offloaded by its first packet.
        assert len(daemon.packets()) - before == 1
        server.close()
    daemon.stop()


@in_namespaces
def test_a_flow_offloaded_to_drop_is_silent_in_both_directions(net: SmallNet) -> None:
    def answer(event: PacketArrived) -> list[Command]:
        forbidden = b"forbidden" in event.data
        return [SetVerdict(event.packet_id, Verdict.DROP if forbidden else Verdict.ACCEPT, offload=forbidden)]

    daemon = StubDaemon(answer)
    client, server = _exchange(net)
    client.send(b"forbidden")
    wait_until(lambda: len(daemon.packets()) == 3, "the packet in user space")
    for _ in range(5):
        client.send(b"more")
        server.send(b"more")
    assert _silent(server)
    assert _silent(client)
    assert len(daemon.packets()) == 3
    other, _sink = net.udp("client"), net.udp("server", port=9001)
    other.sendto(b"fresh", (SERVER4, 9001))
    wait_until(lambda: len(daemon.packets()) == 4, "another flow in user space")
    daemon.stop()


@in_namespaces
def test_user_space_sees_a_packet_of_a_decided_flow_eight_times_in_its_lifetime(net: SmallNet) -> None:
    lifetime = 8 * 0.6
    daemon = StubDaemon(offload_accept, time_scale=RuleSet(()).options.flows.udp / lifetime)
    client, server = _exchange(net)
    for _ in range(20):
        client.send(b"busy")
        server.recv(100)
    assert len(daemon.packets()) == 1
    wait_until(lambda: "expires" not in run("nft list set inet gfwemu offloaded"), "the next sample")
    client.send(b"again")
    server.recv(100)
    assert len(daemon.packets()) == 2
    daemon.stop()


@in_namespaces
def test_a_syn_of_an_offloaded_connection_is_queued(net: SmallNet) -> None:
    daemon = StubDaemon(offload_accept)
    listener, client = net.listen(), net.tcp()
    client.bind((CLIENT4, 40000))
    client.connect((SERVER4, 80))
    listener.accept()[0].sendall(b"x")
    assert client.recv(1) == b"x"
    assert len(daemon.packets()) == 1
    # The same endpoints again, while conntrack still knows the connection as established.
    with net.on("client"):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    raw.sendto(_syn(40000, 80), (SERVER4, 0))
    wait_until(lambda: len(daemon.packets()) == 2, "the new SYN in user space")
    daemon.stop()


def _syn(sport: int, dport: int) -> bytes:
    five = FiveTuple(6, address_bytes(CLIENT4), sport, address_bytes(SERVER4), dport)
    return build_tcp(five, seq=1, ack=0, flags=2, window=100)


@in_namespaces
def test_an_icmp_error_about_an_offloaded_flow_is_queued(net: SmallNet) -> None:
    daemon = StubDaemon(offload_accept)
    client, server = _exchange(net)
    seen = len(daemon.packets())
    server.close()
    client.send(b"nobody there")
    wait_until(lambda: len(daemon.packets()) == seen + 1, "the ICMP error in user space")
    side, data = daemon.packets()[-1]
    assert (side, data[9]) == ("outside", 1)
    daemon.stop()


@in_namespaces
def test_the_last_verdict_takes_an_offload_back(net: SmallNet) -> None:
    def answer(event: PacketArrived) -> list[Command]:
        watch = Watch(address_bytes(CLIENT4), address_bytes(SERVER4), None, None, 17, 30.0)
        return [
            SetVerdict(event.packet_id, Verdict.ACCEPT, offload=b"hello" in event.data),
            *([watch] * (b"watch" in event.data)),
        ]

    daemon = StubDaemon(answer)
    client, server = _exchange(net)
    assert len(daemon.packets()) == 1
    other, _sink = net.udp("client"), net.udp("server", port=9001)
    other.sendto(b"watch", (SERVER4, 9001))
    wait_until(lambda: "expires" in run("nft list set inet gfwemu watch2_v4"), "the watch")
    client.send(b"seen")
    assert server.recv(100) == b"seen"
    wait_until(lambda: len(daemon.packets()) == 3, "the watched packet")
    run("nft flush set inet gfwemu watch2_v4")
    client.send(b"seen again")
    assert server.recv(100) == b"seen again"
    assert len(daemon.packets()) == 4
    daemon.stop()


def _watched(net: SmallNet, family: int, watch: Watch) -> None:
    def answer(event: PacketArrived) -> list[Command]:
        if b"begin" in event.data:
            return [SetVerdict(event.packet_id, Verdict.ACCEPT), watch]
        return offload_accept(event)

    daemon = StubDaemon(answer)
    server, client = net.udp("server", family, 9000), net.udp("client", family, 41000)
    client.connect((SERVER4 if family == socket.AF_INET else SERVER6, 9000))

    def is_seen() -> bool:
        before = len(daemon.packets())
        client.send(b"hello")
        server.recv(100)
        return len(daemon.packets()) > before

    assert is_seen()
    assert not is_seen()
    other, sink = net.udp("client", family), net.udp("server", family, 9001)
    other.sendto(b"begin", (client.getpeername()[0], 9001))
    sink.recv(100)
    wait_until(is_seen, "the beginning of the watch")
    before = len(daemon.packets())
    server.sendto(b"back", client.getsockname()[:2] if family == socket.AF_INET else (CLIENT6, 41000))
    client.recv(100)
    assert [side for side, _ in daemon.packets()[before:]] == ["outside"]
    wait_until(lambda: not is_seen(), "the end of the watch")
    daemon.stop()


def _watch_test(family: int, client_port: int | None, server_port: int | None) -> Callable[[SmallNet], None]:
    client, server = (CLIENT4, SERVER4) if family == socket.AF_INET else (CLIENT6, SERVER6)
    watch = Watch(address_bytes(client), address_bytes(server), client_port, server_port, 17, 0.5)
    return lambda net: _watched(net, family, watch)


@pytest.mark.kernel
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("ports", [(None, None), (None, 9000), (41000, 9000)])
def test_watched_endpoints_are_queued_though_offloaded(family: int, ports: tuple[int | None, int | None]) -> None:
    in_namespaces(_watch_test(family, *ports))()


@in_namespaces
def test_a_watch_of_other_endpoints_changes_nothing(net: SmallNet) -> None:
    others = [
        Watch(address_bytes(CLIENT4), address_bytes(SERVER4), None, 9000, 6, 30.0),
        Watch(address_bytes(CLIENT4), address_bytes(SERVER4), None, 9001, 17, 30.0),
        Watch(address_bytes(CLIENT4), address_bytes(SERVER4), 1, 9000, 17, 30.0),
        Watch(address_bytes(CLIENT4), address_bytes("198.51.100.11"), None, None, 17, 30.0),
    ]
    daemon = StubDaemon(lambda event: [*offload_accept(event), *others])
    client, server = _exchange(net)
    wait_until(lambda: "198.51.100.11 timeout" in run("nft list set inet gfwemu watch2_v4"), "the last watch")
    client.send(b"again")
    server.recv(100)
    assert len(daemon.packets()) == 1
    daemon.stop()


@in_namespaces
def test_a_reload_has_offloaded_flows_queued_again(net: SmallNet) -> None:
    daemon = StubDaemon(offload_accept)
    client, server = _exchange(net)
    for generation in range(1, 20):
        assert len(daemon.packets()) == generation
        daemon.signal(signal.SIGHUP)
        wait_until(lambda now=generation: daemon.notes().count("reloaded") == now, "the reload")  # type: ignore[misc]
        for _ in range(3):
            client.send(b"again")
            server.recv(100)
    daemon.stop()


@in_namespaces
def test_a_flow_offloaded_sixteen_reloads_ago_is_queued_again(net: SmallNet) -> None:
    daemon = StubDaemon(offload_accept)
    client, server = _exchange(net)
    for generation in range(1, 16):
        daemon.signal(signal.SIGHUP)
        wait_until(lambda now=generation: daemon.notes().count("reloaded") == now, "the reload")  # type: ignore[misc]
    client.send(b"again")
    server.recv(100)
    assert len(daemon.packets()) == 2
    daemon.stop()


@in_namespaces
def test_without_offload_every_packet_is_queued(net: SmallNet) -> None:
    daemon = StubDaemon(offload_accept, kernel_decides=False)
    client, server = _exchange(net)
    client.send(b"again")
    server.recv(100)
    assert len(daemon.packets()) == 3
    daemon.stop()


@in_namespaces
def test_fragments_reach_user_space_unreassembled_and_travel_on_so(net: SmallNet) -> None:
    daemon = StubDaemon(accept)
    for family, address in ((socket.AF_INET, SERVER4), (socket.AF_INET6, SERVER6)):
        before = len(daemon.packets())
        server, client = net.udp("server", family, 9000), net.udp("client", family)
        client.sendto(b"f" * 4000, (address, 9000))
        assert server.recv(5000) == b"f" * 4000
        server.close()
        lengths = [len(data) for _, data in daemon.packets()[before:]]
        assert len(lengths) == 3
        assert max(lengths) <= 1500
    daemon.stop()


@in_namespaces
def test_fragments_may_be_left_to_conntrack(net: SmallNet) -> None:
    daemon = StubDaemon(accept, KernelPlan(track_fragments=True))
    server, client = net.udp("server", port=9000), net.udp("client")
    client.sendto(b"f" * 4000, (SERVER4, 9000))
    assert server.recv(5000) == b"f" * 4000
    assert [len(data) for _, data in daemon.packets()] == [4028]
    daemon.stop()


@in_namespaces
def test_a_fail_open_queue_lets_packets_pass_when_the_daemon_is_dead(net: SmallNet) -> None:
    daemon = StubDaemon(drop)
    daemon.kill()
    assert "hook forward" in run("nft list table inet gfwemu")
    _exchange(net)


@in_namespaces
def test_a_fail_closed_queue_lets_nothing_pass_when_the_daemon_is_dead(net: SmallNet) -> None:
    daemon = StubDaemon(accept, KernelPlan(fail_open=False), rules=RuleSet((), fail_open=False))
    _exchange(net)[1].close()
    daemon.kill()
    server, client = net.udp("server", port=9000), net.udp("client")
    client.sendto(b"lost", (SERVER4, 9000))
    assert _silent(server)


@in_namespaces
def test_a_full_fail_open_queue_lets_packets_pass(net: SmallNet) -> None:
    daemon = StubDaemon(accept)
    daemon.signal(signal.SIGSTOP)
    server, client = net.udp("server", port=9000), net.udp("client")
    with net.on("server"):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    queue_length = RuleSet(()).options.hold_packets + 4096
    for number in range(queue_length + 10):
        client.sendto(struct.pack("!I", number), (SERVER4, 9000))
    assert struct.unpack("!I", server.recv(100))[0] <= queue_length
    daemon.signal(signal.SIGCONT)
    daemon.stop()


@in_namespaces
def test_only_packets_between_the_two_interfaces_are_seen(net: SmallNet) -> None:
    daemon = StubDaemon(drop)
    local, client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), net.udp("client")
    local.settimeout(3)
    local.bind(("192.0.2.1", 9000))
    client.sendto(b"to the router itself", ("192.0.2.1", 9000))
    data, address = local.recvfrom(100)
    local.sendto(data, address)
    assert client.recv(100) == b"to the router itself"
    assert daemon.packets() == []
    daemon.stop()


@in_namespaces
def test_an_interface_made_anew_keeps_its_side(net: SmallNet) -> None:
    daemon = StubDaemon(accept)
    run(f"ip link delete {INSIDE}")
    net.plug("client")
    _exchange(net)
    assert [side for side, _ in daemon.packets()] == ["inside", "outside"]
    daemon.stop()
