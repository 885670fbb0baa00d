"""Expectations against what was seen."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from gfwemu.conformance.hand import FLAGS, Channel
from gfwemu.conformance.language import DnsAnswer, Expect, Forged
from gfwemu.conformance.specs import Numbers, Range
from gfwemu.conformance.stage import Ended, Stage
from gfwemu.conformance.trace import Seen
from gfwemu.model import Side, Transport
from gfwemu.wire.packet import Packet

_SPACE = 1 << 32


class Scene:
    """All that an expectation may ask about: what passed since packet number `mark`."""

    def __init__(self, stage: Stage, channels: Sequence[Channel], mark: int, ended: Ended | None) -> None:
        self.stage = stage
        self.channels = channels
        self.mark = mark
        self.ended = ended
        self._injected: dict[Side, list[Seen]] = {}

    @property
    def client_side(self) -> Side:
        return self.channels[-1].side if self.channels else Side.INSIDE

    def injected(self, side: Side) -> list[Seen]:
        if side not in self._injected:
            self._injected[side] = self.stage.trace.injected(side, self.mark)
        return self._injected[side]

    def sent(self, side: Side, *, everything: bool = False) -> list[Seen]:
        """What that end sent that carries data, or pieces of it; or everything that it sent."""
        flows = {channel.flow if side is channel.side else channel.flow.reversed() for channel in self.channels}
        pairs = {(flow.src, flow.dst) for flow in flows}
        return [
            one
            for one in self.stage.trace.packets[self.mark :]
            if one.sent
            and one.side is side
            and (
                one.packet.five_tuple in flows or (one.packet.is_fragment and (one.packet.src, one.packet.dst) in pairs)
            )
            and (everything or one.packet.payload)
        ]

    def channel_of(self, packet: Packet) -> Channel | None:
        for channel in self.channels:
            if packet.five_tuple in (channel.flow, channel.flow.reversed()):
                return channel
        return None

    def trigger(self, one: Seen) -> Seen | None:
        """The client's last packet before an injected one."""
        found = None
        for other in self.stage.trace.packets:
            if other.sent and other.side is self.client_side and other.at <= one.at:
                found = other
        return found

    def delay(self, one: Seen) -> float | None:
        cause = self.trigger(one)
        return None if cause is None else one.at - cause.at


def mismatches(expect: Expect, scene: Scene) -> list[str]:
    """What is not as expected, each in a few words."""
    wrong: list[str] = []
    client = scene.client_side
    for place, side, forged in (
        ("client", client, expect.at_client),
        ("server", client.opposite, expect.at_server),
    ):
        if forged is not None:
            wrong += _compare(place, forged, scene.injected(side), scene)
    for what, side, share, everything in _shares(expect, client):
        wrong += _share(what, share, scene.sent(side, everything=everything), scene)
    if expect.server_reads is not None and scene.channels:
        channel = scene.channels[-1]
        got = scene.stage.received(channel.flow)
        if (got == channel.stream) is not expect.server_reads:
            wrong.append(
                f"the server has read {len(got)} bytes of {len(channel.stream)}"
                + (" or others" * (len(got) == len(channel.stream)))
            )
    if expect.connection is not None and scene.channels:
        outcome = scene.channels[-1].outcome or "timeout"
        blocked = expect.connection == "blocked" and outcome in ("reset", "timeout")
        if outcome != expect.connection and not blocked:
            wrong.append(f"the connection is to be {expect.connection} and was {outcome}")
    if expect.probes is not None and not expect.probes.holds(scene.stage.trace.probes()):
        wrong.append(f"{scene.stage.trace.probes()} probes instead of {expect.probes}")
    if expect.suspected is not None and expect.suspected is not scene.stage.trace.suspected:
        wrong.append("no probes were ordered" if expect.suspected else "probes were ordered")
    if expect.real_answer is not None:
        wrong += _real_answer(expect.real_answer, scene)
    if expect.exit is not None:
        codes = expect.exit if isinstance(expect.exit, list) else [expect.exit]
        if scene.ended is None or scene.ended.exit not in codes:
            wrong.append(f"exit code {scene.ended.exit if scene.ended else None} instead of {expect.exit}")
    if expect.took is not None and (scene.ended is None or not expect.took[0] <= scene.ended.seconds <= expect.took[1]):
        wrong.append(f"the program took {scene.ended.seconds if scene.ended else 0:.1f} s")
    if expect.output is not None and (scene.ended is None or expect.output not in scene.ended.output):
        wrong.append(f"'{expect.output}' is not in the output")
    return wrong


def _shares(expect: Expect, client: Side) -> list[tuple[str, Side, str | int, bool]]:
    asked = [
        ("delivered", client, expect.delivered, False),
        ("answered", client.opposite, expect.answered, False),
        ("packets delivered", client, expect.packets_delivered, True),
        ("packets answered", client.opposite, expect.packets_answered, True),
    ]
    return [(what, side, share, everything) for what, side, share, everything in asked if share is not None]


def _share(what: str, share: str | int, sent: Sequence[Seen], scene: Scene) -> list[str]:
    arrived = sum(scene.stage.trace.arrived(one) for one in sent)
    text = str(share)
    if text == "all":
        good = arrived == len(sent) > 0
    elif text == "none":
        good = arrived == 0 < len(sent)
    else:
        least, _, whole = text.partition(" of ")
        good = arrived == int(least) and (not whole or len(sent) == int(whole))
    return [] if good else [f"{what} {arrived} of {len(sent)} instead of {share}"]


def _real_answer(wanted: str, scene: Scene) -> list[str]:
    side = scene.client_side
    forged = scene.injected(side)
    arrivals = [one for one in scene.stage.trace.packets[scene.mark :] if one.side is side and not one.sent]
    real = [
        one for one in arrivals if one not in forged and one.packet.proto == Transport.UDP and one.packet.sport == 53
    ]
    if wanted == "none":
        return ["the resolver's own answer arrived"] if real else []
    if not real:
        return ["the resolver's own answer never arrived"]
    if wanted == "last" and any(one.at > real[-1].at for one in forged):
        return ["a forged answer came after the resolver's own"]
    return []


# -- injected packets -----------------------------------------------------------------------------------------------


def _compare(place: str, wanted: list[Forged] | Range, found: list[Seen], scene: Scene) -> list[str]:
    if isinstance(wanted, Range):
        return [] if wanted.holds(len(found)) else [f"{len(found)} injected at the {place} instead of {wanted}"]
    kinds = [[one for one in found if _is(kind, one, scene)] for kind in wanted]
    if _assign(wanted, kinds, found):
        return []
    return [f"at the {place}: {_tell(found, scene)}"]


def _assign(wanted: Sequence[Forged], kinds: Sequence[list[Seen]], found: Sequence[Seen]) -> bool:
    """Whether every packet can be given to one kind that it fits, so that the counts come out.

    Groups that must go together are tried first; each kind takes the packets that fit the fewest other kinds.
    """

    def search(number: int, left: list[Seen]) -> bool:
        if number == len(wanted):
            return not left
        kind = wanted[number]
        candidates = [one for one in kinds[number] if one in left]
        candidates.sort(key=lambda one: sum(one in other for other in kinds[number + 1 :]))
        sizes = [size for size in range(len(candidates), -1, -1) if kind.count.holds(size)]
        for size in sizes:
            for start in range(len(candidates) - size + 1):
                group = candidates[start : start + size]
                if _coherent(kind, group) and search(number + 1, [one for one in left if one not in group]):
                    return True
        return False

    return search(0, list(found))


def _coherent(kind: Forged, group: Sequence[Seen]) -> bool:
    def values(name: str) -> list[int]:
        names = {"ttl": "ttl", "window": "window", "id": "ip_id", "seq": "seq"}
        return [getattr(one.packet, names[name]) for one in group]

    for name in kind.increment:
        numbers = sorted(values(name))
        if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            return False
    return all(len(set(values(name))) <= 1 for name in kind.same)


def _is(kind: Forged, one: Seen, scene: Scene) -> bool:
    packet = one.packet
    checks: list[tuple[Any, bool]] = [
        (kind.flags, _flags_fit(kind.flags, packet)),
        (kind.ttl, _ttl_fits(kind, one, scene)),
        (kind.id, _holds(kind.id, packet.ip_id)),
        (kind.df, packet.dont_fragment is kind.df),
        (kind.window, _holds(kind.window, packet.window)),
        (kind.length, _holds(kind.length, len(packet.payload))),
        (kind.payload, packet.payload == bytes.fromhex(kind.payload or "")),
        (kind.contains, (kind.contains or "").encode() in packet.payload),
        (kind.seq, kind.seq is None or _relative(one, scene, "seq") in kind.seq),
        (kind.raw_seq, _holds(kind.raw_seq, packet.seq)),
        (kind.raw_ack, _holds(kind.raw_ack, packet.ack)),
        (kind.ack, _relative(one, scene, "ack") == kind.ack),
        (kind.delay, _delay_fits(kind, one, scene)),
        (kind.dns, kind.dns is None or _dns_fits(kind.dns, packet)),
    ]
    return all(wanted is None or good for wanted, good in checks)


def _holds(numbers: Numbers | None, value: int) -> bool:
    return numbers is None or numbers.holds(value)


def _flags_fit(flags: str | None, packet: Packet) -> bool:
    return flags is None or packet.flags == sum(FLAGS[letter] for letter in flags)


def _ttl_fits(kind: Forged, one: Seen, scene: Scene) -> bool:
    if not isinstance(kind.ttl, str):
        return _holds(kind.ttl, one.packet.ttl)
    cause = scene.trigger(one)
    if cause is None:
        return False
    # Copied at the censor, itself a router on the way there, and once more as far back.
    return one.packet.ttl == cause.packet.ttl - 2 * scene.stage.path.towards(one.side) - 1


def _delay_fits(kind: Forged, one: Seen, scene: Scene) -> bool:
    delay = scene.delay(one)
    return kind.delay is None or (delay is not None and kind.delay[0] <= delay <= kind.delay[1])


def _relative(one: Seen, scene: Scene, which: str) -> int | None:
    """Of an injected packet: how far its number is from what the other side would have written there."""
    channel = scene.channel_of(one.packet)
    if channel is None:
        return None
    to_client = one.side is channel.side
    base = {
        ("seq", True): channel.ack,
        ("ack", True): channel.seq,
        ("seq", False): channel.seq,
        ("ack", False): channel.ack,
    }
    value = one.packet.seq if which == "seq" else one.packet.ack
    return (value - base[which, to_client] + (_SPACE >> 1)) % _SPACE - (_SPACE >> 1)


# -- DNS --------------------------------------------------------------------------------------------------------


def _dns_fits(wanted: DnsAnswer, packet: Packet) -> bool:
    answer = read_answer(packet.payload)
    if answer is None:
        return False
    flags = answer["flags"]
    checks = [
        (wanted.aa, bool(flags & 0x0400) is wanted.aa),
        (wanted.ra, bool(flags & 0x0080) is wanted.ra),
        (wanted.rd, bool(flags & 0x0100) is wanted.rd),
        (wanted.flags, _holds(wanted.flags, flags)),
        (wanted.rcode, _holds(wanted.rcode, flags & 15)),
        (wanted.questions, _holds(wanted.questions, answer["counts"][0])),
        (wanted.answers, _holds(wanted.answers, answer["counts"][1])),
        (wanted.additional, _holds(wanted.additional, answer["counts"][3])),
        (wanted.ttl, all(_holds(wanted.ttl, ttl) for ttl, _ in answer["records"])),
        (wanted.type, all(len(data) == (4 if wanted.type == "A" else 16) for _, data in answer["records"])),
        (wanted.pool, all(_in_pool(data, wanted.pool or []) for _, data in answer["records"])),
    ]
    return all(asked is None or good for asked, good in checks)


def _in_pool(data: bytes, pool: Sequence[str]) -> bool:
    return len(data) in (4, 16) and any(ip_address(data) in ip_network(network, strict=False) for network in pool)


def read_answer(message: bytes) -> dict[str, Any] | None:
    """Flags, the four counts, and TTL and data of each answer (RFC 1035 section 4.1). None where it is no message."""
    try:
        _, flags, *counts = struct.unpack_from("!HHHHHH", message)
        at = 12
        for _ in range(counts[0]):
            at = _skip_name(message, at) + 4
        records = []
        for _ in range(counts[1]):
            at = _skip_name(message, at)
            _, _, ttl, length = struct.unpack_from("!HHIH", message, at)
            records.append((ttl, message[at + 10 : at + 10 + length]))
            at += 10 + length
    except (struct.error, IndexError):
        return None
    return {"flags": flags, "counts": counts, "records": records}


def _skip_name(message: bytes, at: int) -> int:
    while message[at]:
        if message[at] >= 0xC0:
            return at + 2
        at += message[at] + 1
    return at + 1


# -- telling --------------------------------------------------------------------------------------------------------


def describe(expect: Expect, scene: Scene) -> str:
    """What was seen, of that which was asked for."""
    parts = []
    client = scene.client_side
    for place, side, forged in (("client", client, expect.at_client), ("server", client.opposite, expect.at_server)):
        if forged is not None:
            found = scene.injected(side)
            told = _count(found) if isinstance(forged, Range) else _tell(found, scene)
            parts.append(f"at the {place}: {told}")
    for what, side, _, everything in _shares(expect, client):
        sent = scene.sent(side, everything=everything)
        parts.append(f"{what} {sum(scene.stage.trace.arrived(one) for one in sent)} of {len(sent)}")
    if expect.server_reads is not None and scene.channels:
        channel = scene.channels[-1]
        whole = scene.stage.received(channel.flow) == channel.stream
        parts.append("the server read all" if whole else "the server did not read all")
    if expect.connection is not None and scene.channels:
        parts.append(f"connection {scene.channels[-1].outcome or 'timeout'}")
    if expect.probes is not None:
        parts.append(f"{scene.stage.trace.probes()} probes")
    if expect.suspected is not None:
        parts.append("probes ordered" if scene.stage.trace.suspected else "no probes ordered")
    if expect.real_answer is not None:
        parts.append("; ".join(_real_answer(expect.real_answer, scene)) or f"real answer {expect.real_answer}")
    return "; ".join(parts)


def _count(found: Sequence[Seen]) -> str:
    kinds = Counter(_letters(one.packet) if one.packet.proto == Transport.TCP else "datagram" for one in found)
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())) or "nothing injected"


def _letters(packet: Packet) -> str:
    return "".join(letter for letter, flag in FLAGS.items() if packet.flags & flag)


def _tell(found: Sequence[Seen], scene: Scene) -> str:
    told = Counter(_one(one, scene) for one in found)
    return ", ".join(f"{count} x {text}" if count > 1 else text for text, count in told.items()) or "nothing injected"


def _one(one: Seen, scene: Scene) -> str:
    packet = one.packet
    if packet.proto != Transport.TCP:
        answer = read_answer(packet.payload)
        if answer is None:
            return f"datagram of {len(packet.payload)} bytes"
        data = " ".join(str(ip_address(data)) for _, data in answer["records"] if len(data) in (4, 16))
        told = [f"flags {answer['flags']:#06x}", *(f"RR TTL {ttl}" for ttl, _ in answer["records"])]
        told += [f"IP TTL {packet.ttl}", f"id {packet.ip_id:#x}", *["DF"] * packet.dont_fragment]
        return f"answer {data or 'without address'} ({', '.join(told)})"
    flags = _letters(packet)
    told = [f"TTL {packet.ttl}", f"id {packet.ip_id:#x}", *["DF"] * packet.dont_fragment, f"window {packet.window}"]
    seq, ack, delay = _relative(one, scene, "seq"), _relative(one, scene, "ack"), scene.delay(one)
    if seq is None:
        told.append("of another flow")
    else:
        told += [f"seq {seq:+d}", *([f"ack {ack:+d}"] if "A" in flags else [])]
    if packet.payload:
        told.append(f"{len(packet.payload)} bytes")
    if delay is not None:
        told.append(f"after {delay * 1000:.0f} ms")
    return f"{flags} ({', '.join(told)})"
