"""Random rules and traffic through the real kernel: what arrives, and which rules fire, is as if the engine saw all."""

from __future__ import annotations

import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_net import INSIDE, OUTSIDE, SmallNet, in_namespaces, run
from random_daemon import Hit, RandomDaemon

from gfwemu.model import Side, Verdict
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.plan import KernelPlan, compile_plan

sys.path.append(str(Path(__file__).parent.parent / "engine"))

from plan_model import PlanModel
from test_engine_plan import DEEDS, LIVES, PAIRS, Talk, in_pieces, refusal, rule_set, steps_of, without_history

_SYNC = 0x88B5
"""An Ethernet type for experiments (IEEE 802): what follows a packet through the same cable has it behind it."""

_QUEUED = Path("/proc/net/netfilter/nfnetlink_queue")
_HOLDING = {deed["mode"] for _, deed in DEEDS if "mode" in deed}
_SAMPLED = ("offloaded", "followed_flow", "followed_client")
_CLIENTS = ("192.0.2.10", "192.0.2.11", "2001:db8:1::10")
_SERVERS = ("203.0.113.80", "203.0.113.53", "2001:db8:2::80")


def _rules(what: tuple[int, ...]) -> RuleSet:
    """Of a seed; the same without what counts what came before, where a second number says so."""
    if not what:
        return RuleSet(())
    made = rule_set(random.Random(what[0]))
    # Nothing is held back: the engine's clock stands still while the kernel's runs.
    kept = tuple(one for one in made.rules if getattr(one.action, "mode", "") not in _HOLDING)
    made = replace(made, rules=kept)
    return without_history(made) if len(what) > 1 else made


class _End:
    """Raw packets of one end, and those that arrive there."""

    def __init__(self, net: SmallNet, node: str) -> None:
        port = INSIDE if node == "client" else OUTSIDE
        with net.on(node):
            # Nobody lives here: no stack answers what arrives.
            run("ip addr flush dev eth0")
            self._out = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            self._in = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            self._in.bind(("eth0", 3))
            here = run("ip -o link show eth0").split("link/ether ")[1].split()[0]
        router = run(f"ip -o link show {port}").split("link/ether ")[1].split()[0]
        self._router = bytes.fromhex(router.replace(":", ""))
        for address in _CLIENTS if node == "client" else _SERVERS:
            run(f"ip neigh replace {address} lladdr {here} dev {port} nud permanent")
        self._sync = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_SYNC))
        self._sync.bind((port, _SYNC))
        self._sync.settimeout(5)
        self._in.setblocking(False)

    def send(self, data: bytes) -> None:
        """Comes back when the router's kernel has the packet behind it, or in the queue."""
        for text, kind in ((data, 0x86DD if data[0] >> 4 == 6 else 0x0800), (b"sync", _SYNC)):
            self._out.sendto(text, ("eth0", kind, 0, 0, self._router))
        assert self._sync.recv(100)[:4] == b"sync"

    def arrived(self) -> Iterator[bytes]:
        while True:
            try:
                data, address = self._in.recvfrom(65536)
            except BlockingIOError:
                return
            if address[2] == socket.PACKET_HOST and address[1] in (0x0800, 0x86DD):
                yield _plain(data)


def _plain(data: bytes) -> bytes:
    """Without what a router changes, and what Ethernet pads."""
    packet = bytearray(data)
    if packet[0] >> 4 == 6:
        packet[7] = 0
        return bytes(packet[: 40 + int.from_bytes(packet[4:6], "big")])
    packet[8], packet[10:12] = 0, b"\0\0"
    return bytes(packet[: int.from_bytes(packet[2:4], "big")])


class _Censor:
    """The real one between two ends, and the engine that sees everything beside it."""

    def __init__(self, net: SmallNet) -> None:
        run(f"ip route add 203.0.113.0/24 dev {OUTSIDE}")
        self._ends = {Side.INSIDE: _End(net, "client"), Side.OUTSIDE: _End(net, "server")}
        self.daemon = RandomDaemon(_rules, Path(tempfile.mkdtemp()))
        self.plan = KernelPlan()
        self._model: PlanModel | None = None
        self._sent: list[tuple[bytes, Side]] = []
        self._ours: set[bytes] = set()

    def begin(self) -> None:
        """A new example: no rule is in force, and nobody remembers anything."""
        self._model, self._sent = None, []
        self.plan = compile_plan(_rules(()))
        self.daemon.load((), anew=True)
        names = [f"watch{length}_v{version}" for length in range(5) for version in (4, 6)]
        run("; ".join(f"nft flush set inet gfwemu {name}" for name in names) + "; conntrack -F 2>/dev/null")
        self.daemon.hits()

    def load(self, what: tuple[int, ...]) -> None:
        if self._model is None:
            # Schedules ask for the hour.
            self.daemon.now = RandomDaemon.START
        self.daemon.load(what, anew=self._model is None)
        rules = _rules(what)
        self.plan = compile_plan(rules)
        if self._model is None:
            self._model, self._sent = PlanModel(rules, None), []
        else:
            self._model.replace(rules)

    def packet(self, data: bytes, side: Side, after: float) -> bool:
        """Sends it, and waits until all arrived that the engine lets go; whether this one did."""
        if after:
            self._pass_time(after)
        number = len(self._sent)
        self._sent.append((data, side))
        self._ours.add(_plain(data))
        if self._model is None:
            let_go: list[tuple[bytes, Side]] = [(data, side)]
            waiting = 0
        else:
            fates = self._model.outcome.fates
            known = set(fates)
            self._model.packet(number, data, after, side)
            decided = sorted(fates.keys() - known)
            through = [one for one in decided if fates[one][0] is Verdict.ACCEPT]
            let_go = [(fates[one][1] or self._sent[one][0], self._sent[one][1]) for one in through]
            waiting = len(self._sent) - len(fates)
        wanted = sorted((_plain(text), from_side.opposite.value) for text, from_side in let_go)
        self._ours.update(text for text, _ in wanted)
        self._ends[side].send(data)
        self._await(wanted, waiting)
        return any(text is data for text, _ in let_go)

    def hits(self) -> tuple[list[Hit], list[Hit]]:
        """Of the engine beside, and of the one behind the kernel, without those of rules that the kernel decides."""
        assert self._model is not None
        in_kernel = {one.name for one in self.plan.rules}
        both = self._model.hits, self.daemon.hits()
        first, second = ([hit for hit in hits if hit[0] not in in_kernel] for hits in both)
        return first, second

    def _pass_time(self, seconds: float) -> None:
        self.daemon.pass_time(seconds)
        if seconds > LIVES.udp / 10:
            # What would have run out in the kernel by then.
            run("; ".join(f"nft flush set inet gfwemu {name}" for name in _SAMPLED))

    def _await(self, wanted: list[tuple[bytes, str]], waiting: int) -> None:
        arrived: list[tuple[bytes, str]] = []
        deadline = time.monotonic() + 3
        while True:
            held = _queue_length()
            for side, end in self._ends.items():
                # What nobody here sent is forged.
                arrived += [(data, side.value) for data in end.arrived() if data in self._ours]
            if sorted(arrived) == wanted and held == waiting:
                return
            if len(arrived) > len(wanted):
                pytest.fail(f"arrived {arrived}, wanted {wanted}; {self.plan}", pytrace=False)
            if time.monotonic() > deadline:
                pytest.fail(
                    f"arrived {arrived}, wanted {wanted}, {held} of {waiting} wait, {self._sent[-1]}; {self.plan}",
                    pytrace=False,
                )
            time.sleep(0.0005)


def _queue_length() -> int:
    """Packets that wait, in all queues."""
    return sum(int(line.split()[2]) for line in _QUEUED.read_text().splitlines())


def _spoken(talk: Talk, kind: str, word: bytes, plan: KernelPlan) -> list[tuple[bytes, Side]]:
    if kind not in ("fragments", "icmp"):
        return talk.packets(kind, word)
    spoken = talk.packets("client-say", word)[:1] if talk.began or talk.tuple.proto == 17 else []
    if kind == "icmp":
        return [(refusal(data), Side.OUTSIDE) for data, _ in spoken if talk.heard]
    if plan.track_fragments:
        # The kernel puts them together, and sends on what it makes of that.
        return spoken
    return [(piece, side) for data, side in spoken for piece in in_pieces(data)]


def _play(censor: _Censor, seed: int) -> None:
    rng = random.Random(seed)
    what = (rng.getrandbits(32),)
    later = rng.choice([None, None, (rng.getrandbits(32), 1)])
    steps = steps_of(rng)
    before = rng.choice([0, 0, 4])
    censor.begin()
    talks = [Talk(*pair) for pair in PAIRS]
    for place, (which, kind, word, after) in enumerate(steps):
        reloaded = later is not None and place == max(before, len(steps) // 2)
        if place == before:
            censor.load(what)
        if reloaded and later is not None:
            unknown = censor.plan.unseen or censor.plan.rules
            censor.load(later)
            if unknown:
                # Of flows that passed unseen the engine knows nothing; in their place others begin.
                talks = [Talk(pair[0], pair[1], pair[2] + 10, *pair[3:]) for pair in PAIRS]
        if after > LIVES.udp or reloaded or place == before:
            # Of a UDP flow that is new to it, user space takes who speaks first for the client.
            for one in talks:
                one.heard = one.heard and one.tuple.proto == 6
        talk = talks[which]
        for data, side in _spoken(talk, kind, word, censor.plan):
            if talk.may_say(data, side):
                talk.told(data, side, censor.packet(data, side, after))
                after = 0.0
    if later is None and len(steps) > before:
        beside, behind = censor.hits()
        assert behind == beside


def _examples(first: int, count: int) -> None:
    def several(net: SmallNet) -> None:
        # The kernel keeps packets of one processor in their order.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        censor = _Censor(net)

        @settings(max_examples=count, deadline=None, derandomize=True, database=None)
        @given(st.integers(first << 32, (first + 1 << 32) - 1))
        def play(seed: int) -> None:
            _play(censor, seed)

        play()
        censor.daemon.stop()

    in_namespaces(several)()


@pytest.mark.kernel
def test_the_kernel_lets_go_what_the_engine_lets_go() -> None:
    _examples(0, 25)


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 9))
def test_so_it_does_under_many_more_rules(first: int) -> None:
    _examples(first, 25)
