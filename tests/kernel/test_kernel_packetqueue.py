"""`PacketQueue` by itself, without a daemon: two sockets, cut packets, overruns, and what it leaves behind."""

from __future__ import annotations

import gc
import random
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_net import INSIDE, OUTSIDE, SERVER4, SmallNet, in_namespaces, run, wait_until
from netfilterqueue import NetfilterQueue, Packet

from gfwemu.errors import CapabilityError
from gfwemu.kernel.hop import set_xtables_hop
from gfwemu.kernel.netlink import NetfilterSocket
from gfwemu.kernel.nft import Nft, NftError
from gfwemu.kernel.queue import PacketQueue, QueueOptions, bound_queues, bulk_queue, queue_losses

QUEUE = 5
NORMAL_PORT, BULK_PORT = 9000, 9001


class _Bench:
    """A queue to whose two parts UDP packets go by their port; `seen` has (number, bytes, true length)."""

    def __init__(self, net: SmallNet, answer: Callable[[PacketQueue, int], None], **options: int) -> None:
        self.seen: list[tuple[int, bytes, int]] = []
        self.queue = PacketQueue(QUEUE, (INSIDE, OUTSIDE), self._receive, QueueOptions(**options))  # type: ignore[arg-type]
        self._answer = answer
        nft = Nft()
        nft.run("add table inet bench; add chain inet bench forward { type filter hook forward priority 0; }")
        for chain, port, number in (("one", NORMAL_PORT, QUEUE), ("two", BULK_PORT, bulk_queue(QUEUE))):
            nft.run(f"add chain inet bench {chain}; add rule inet bench forward udp dport {port} jump {chain}")
            try:
                nft.run(f"add rule inet bench {chain} queue num {number}")
            except NftError:
                set_xtables_hop(NetfilterSocket(), "bench", chain, number, False)
        self.client = net.udp("client")
        self.sinks = {port: net.udp("server", port=port) for port in (NORMAL_PORT, BULK_PORT)}

    def _receive(self, packet_id: int, data: bytes, _side: object, length: int) -> None:
        self.seen.append((packet_id, data, length))
        self._answer(self.queue, packet_id)

    def send(self, text: bytes, port: int = NORMAL_PORT) -> None:
        self.client.sendto(text, (SERVER4, port))

    def serve(self, packets: int) -> None:
        while packets > 0:
            ready = self.queue.backlog or select.select(self.queue.filenos(), [], [], 3)[0]
            assert ready, f"{packets} packets are missing"
            packets -= self.queue.read(64)
            self.queue.flush()


def _jumbo_frames(net: SmallNet, mtu: int) -> None:
    run(f"ip link set {INSIDE} mtu {mtu}; ip link set {OUTSIDE} mtu {mtu}")
    for node in ("client", "server"):
        with net.on(node):
            run(f"ip link set eth0 mtu {mtu}")


@in_namespaces
def test_a_packet_that_came_cut_is_never_rewritten(net: SmallNet) -> None:
    _jumbo_frames(net, 65535)
    bench = _Bench(net, lambda queue, packet_id: queue.accept(packet_id, bench.seen[-1][1]))
    text = bytes(range(256)) * 255
    for port, length in ((BULK_PORT, 1000), (BULK_PORT, 60_000), (NORMAL_PORT, 60_000), (NORMAL_PORT, 65_280)):
        bench.send(text[:length], port)
        bench.serve(1)
        assert bench.sinks[port].recv(1 << 16) == text[:length]
    assert [length for _, _, length in bench.seen] == [1028, 60_028, 60_028, 65_308]
    assert [len(data) for _, data, _ in bench.seen] == [256, 256, 60_028, 65_308]
    bench.queue.close()


@in_namespaces
def test_only_the_last_bytes_of_the_longest_packets_are_missing(net: SmallNet) -> None:
    _jumbo_frames(net, 65535)
    bench = _Bench(net, lambda queue, packet_id: queue.accept(packet_id, bench.seen[-1][1]))
    for size in (65_531, 65_532, 65_535):
        bench.send(bytes(size - 28))
        bench.serve(1)
        assert len(bench.sinks[NORMAL_PORT].recv(1 << 16)) == size - 28
    assert [len(data) for _, data, _ in bench.seen] == [65_531, 65_531, 65_531]
    assert [length for _, _, length in bench.seen] == [65_531, 65_532, 65_535]
    bench.queue.close()


@in_namespaces
def test_a_whole_packet_as_long_as_the_bulk_copy_is_not_cut(net: SmallNet) -> None:
    bench = _Bench(net, lambda queue, packet_id: queue.accept(packet_id))
    for size in (255, 256, 257):
        bench.send(bytes(size - 28), BULK_PORT)
        bench.serve(1)
    assert [(len(data), length) for _, data, length in bench.seen] == [(255, 255), (256, 256), (256, 257)]
    bench.queue.close()


@in_namespaces
def test_what_waits_in_the_queue_comes_before_what_waits_in_its_bulk_queue(net: SmallNet) -> None:
    bench = _Bench(net, lambda queue, packet_id: queue.accept(packet_id))
    for number in range(20):
        bench.send(b"%d" % number, BULK_PORT if number % 2 else NORMAL_PORT)
    bench.serve(20)
    assert [int(data[28:]) for _, data, _ in bench.seen] == [*range(0, 20, 2), *range(1, 20, 2)]
    assert len({packet_id for packet_id, _, _ in bench.seen}) == 20
    bench.queue.close()


@in_namespaces
def test_packets_are_held_and_let_go_in_another_order(net: SmallNet) -> None:
    bench = _Bench(net, lambda _queue, _packet_id: None)
    for number in range(40):
        bench.send(b"%d" % number, BULK_PORT if number % 2 else NORMAL_PORT)
    bench.serve(40)
    assert len(bench.queue.open_packets()) == 40
    for packet_id in reversed(bench.queue.open_packets()):
        bench.queue.accept(packet_id)
    bench.queue.flush()
    assert [int(bench.sinks[NORMAL_PORT].recv(9)) for _ in range(20)] == [*range(38, -1, -2)]
    assert [int(bench.sinks[BULK_PORT].recv(9)) for _ in range(20)] == [*range(39, 0, -2)]
    bench.queue.close()


@in_namespaces
def test_verdicts_wait_for_flush(net: SmallNet) -> None:
    bench = _Bench(net, lambda queue, packet_id: queue.accept(packet_id))
    bench.send(b"text")
    wait_until(lambda: bench.queue.read(64) == 1, "the packet")
    assert not select.select([bench.sinks[NORMAL_PORT]], [], [], 0.1)[0]
    bench.queue.flush()
    assert bench.sinks[NORMAL_PORT].recv(9) == b"text"
    bench.queue.close()


@in_namespaces
def test_what_receive_raises_comes_out_and_the_next_packets_are_served(net: SmallNet) -> None:
    def answer(queue: PacketQueue, packet_id: int) -> None:
        queue.accept(packet_id)
        if bench.seen[-1][1][28:] == b"1":
            raise ZeroDivisionError

    bench = _Bench(net, answer)
    for number in range(3):
        bench.send(b"%d" % number)
    with pytest.raises(ZeroDivisionError):
        bench.serve(3)
    bench.serve(1)
    assert [bench.sinks[NORMAL_PORT].recv(9) for _ in range(3)] == [b"0", b"1", b"2"]
    bench.queue.close()


@in_namespaces
def test_no_packet_is_kept_after_its_verdict(net: SmallNet) -> None:
    bench = _Bench(net, lambda queue, packet_id: (queue.drop if packet_id % 2 else queue.accept)(packet_id))
    for _ in range(10):
        for _ in range(50):
            bench.send(bytes(400), BULK_PORT)
            bench.send(bytes(400))
        bench.serve(100)
    assert bench.queue.open_packets() == ()
    assert not [one for one in gc.get_objects() if isinstance(one, Packet)]
    bench.queue.close()


@in_namespaces
def test_overruns_of_a_small_socket_are_counted(net: SmallNet) -> None:
    bench = _Bench(net, lambda queue, packet_id: queue.accept(packet_id), buffer=4096, fail_open=False)
    for _ in range(300):
        bench.send(bytes(1000))
    lost = queue_losses()[QUEUE].full_socket
    assert 0 < lost < 300
    bench.serve(300 - lost)
    assert bench.queue.overruns == 1
    bench.queue.close()


@in_namespaces
def test_a_full_socket_that_nobody_empties_can_be_closed(net: SmallNet) -> None:
    bench = _Bench(net, lambda queue, packet_id: queue.accept(packet_id), buffer=200_000, fail_open=False)
    for _ in range(1000):
        bench.send(bytes(1000))
    lost = queue_losses()[QUEUE].full_socket
    assert 0 < lost < 900
    # The overrun is told, and the socket stays full for the kernel until it is empty.
    assert [bench.queue.read(1), bench.queue.overruns] == [1, 1]
    began = time.monotonic()
    bench.queue.close()
    assert time.monotonic() - began < 5
    assert bound_queues() == set()


@in_namespaces
def test_where_another_holds_the_bulk_queue_nothing_stays_bound() -> None:
    other = NetfilterQueue()
    other.bind(bulk_queue(QUEUE), print)
    with pytest.raises(CapabilityError, match=f"queue {bulk_queue(QUEUE)} belongs to another"):
        _idle()
    assert bound_queues() == {bulk_queue(QUEUE)}
    other.unbind()
    _idle().close()
    assert bound_queues() == set()


def _idle() -> PacketQueue:
    return PacketQueue(QUEUE, (INSIDE, OUTSIDE), lambda _id, _data, _side, _length: None, QueueOptions())


@in_namespaces
def test_the_socket_has_the_buffer_that_was_asked_for_or_all_that_the_user_may_have(net: SmallNet) -> None:
    bench = _Bench(net, lambda queue, packet_id: queue.accept(packet_id), buffer=100_000)
    for fd in bench.queue.filenos():
        with socket.socket(fileno=socket.dup(fd)) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 200_000
    bench.queue.close()


@in_namespaces
def test_no_more_is_read_than_asked_for_and_what_was_fetched_is_told(net: SmallNet) -> None:
    bench = _Bench(net, lambda queue, packet_id: queue.accept(packet_id))
    for _ in range(50):
        bench.send(b"text")
        bench.send(b"text", BULK_PORT)
    assert [bench.queue.read(24), len(bench.seen), bench.queue.backlog] == [24, 24, 76]
    bench.serve(76)
    assert bench.queue.backlog == 0
    bench.queue.close()


@in_namespaces
def test_each_packet_has_the_verdict_that_was_meant_for_it_among_others(net: SmallNet) -> None:
    chooser = random.Random(1)
    expected: dict[int, list[int]] = {NORMAL_PORT: [], BULK_PORT: []}
    holding = False

    def answer(queue: PacketQueue, packet_id: int) -> None:
        if not (holding and chooser.random() < 0.1):
            decide(queue, packet_id)

    def decide(queue: PacketQueue, packet_id: int) -> None:
        data = next(data for number, data, _ in reversed(bench.seen) if number == packet_id)
        if chooser.random() < 0.1:
            queue.drop(packet_id)
            return
        text = data[28:]
        expected[int.from_bytes(data[22:24], "big")].append(int(text))
        kind = chooser.randrange(12)
        queue.accept(packet_id, data if kind == 0 else None, queue_all=kind in (1, 2), bulk=kind == 3)

    bench = _Bench(net, answer)
    sent = 0
    for turn in range(42):
        holding = turn % 3 == 0
        count = chooser.randrange(1, 40)
        for _ in range(count):
            bench.send(b"%d" % sent, chooser.choice((NORMAL_PORT, NORMAL_PORT, BULK_PORT)))
            sent += 1
        bench.serve(count)
        if turn % 6 == 5:
            for packet_id in bench.queue.open_packets():
                decide(bench.queue, packet_id)
            bench.queue.flush()
        for port, sink in bench.sinks.items():
            assert [int(sink.recv(9)) for _ in expected[port]] == expected[port]
            assert not select.select([sink], [], [], 0)[0]
            expected[port].clear()
    assert bench.queue.open_packets() == ()
    assert _waiting() == 0
    bench.queue.close()


@in_namespaces
def test_what_is_held_waits_though_later_packets_pass(net: SmallNet) -> None:
    bench = _Bench(net, lambda queue, packet_id: queue.accept(packet_id) if packet_id != 4 else None)
    for number in range(1, 11):
        bench.send(b"%d" % number)
    bench.serve(10)
    assert [int(bench.sinks[NORMAL_PORT].recv(9)) for _ in range(9)] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert _waiting() == 1
    bench.queue.accept(4)
    bench.queue.flush()
    assert bench.sinks[NORMAL_PORT].recv(9) == b"4"
    bench.queue.close()


@in_namespaces
def test_where_packets_come_alone_none_waits_for_another(net: SmallNet) -> None:
    bench = _Bench(net, lambda queue, packet_id: queue.accept(packet_id))
    normal, _ = bench.queue.filenos()
    for count in (1, 1, 1, 1, 1, 1, 30, 1, 1, 5):
        for number in range(count):
            bench.send(b"%d" % number)
        for number in range(count):
            while not select.select([bench.sinks[NORMAL_PORT]], [], [], 0)[0]:
                assert bench.queue.backlog or select.select([normal], [], [], 3)[0] == [normal]
                assert bench.queue.read(64, bulk=False)
                bench.queue.flush()
            assert int(bench.sinks[NORMAL_PORT].recv(9)) == number
    assert _waiting() == 0
    bench.queue.close()


def _waiting() -> int:
    """Packets without a verdict, of both queues."""
    return sum(int(line.split()[2]) for line in Path("/proc/net/netfilter/nfnetlink_queue").read_text().splitlines())
