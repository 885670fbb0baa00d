"""Forged DNS answers: which addresses an injector gives for a query, and in what packet."""

from __future__ import annotations

from gfwemu.dissect.dns_answer import build_answer
from gfwemu.dissect.dns_message import Query
from gfwemu.engine.forge import Forged, InjectorState, Trigger, content_of, firing, moment
from gfwemu.model import FiveTuple, Transport, address_bytes
from gfwemu.rules.actions import Injector, NameGroup, Poison
from gfwemu.wire.build import build_udp

_A, _AAAA = 1, 28
_TCP = int(Transport.TCP)
_RCODES = {"noerror": 0, "servfail": 2, "nxdomain": 3, "refused": 5}
_TEREDO = bytes.fromhex("20010000") + bytes(8)
"""RFC 4380 section 2.6 puts server, flags and port between prefix and address; the forgeries have zeros there."""


def forge_answers(state: InjectorState, action: Poison, trigger: Trigger, query: Query) -> list[Forged]:
    """Forged answers to the query, one for each injector that acts."""
    group = _group_of(action, query.qname)
    forged: list[Forged] = []
    for injector, delay in firing(state, action.injectors, trigger):
        flags = injector.dns_flags if query.flags_rd else injector.dns_flags_no_rd
        answer = build_answer(
            query,
            _addresses(state, action, group, injector, query.qtype_number),
            ttl=injector.answer_ttl.sample_int(state.rng) if injector.answer_ttl is not None else action.answer_ttl,
            rcode=_RCODES[action.rcode],
            authoritative=injector.authoritative,
            flags=flags,
        )
        forged.extend(_packets(state, injector, trigger, answer, delay))
    return forged


def _group_of(action: Poison, name: str) -> NameGroup | None:
    for group in action.groups:
        if any(name == one or name.endswith(f".{one}") for one in group.names):
            return group
    return None


def _addresses(
    state: InjectorState, action: Poison, group: NameGroup | None, injector: Injector, qtype: int
) -> list[bytes]:
    """The one address of the answer, or none. A name's group counts before the injector's own pool, and that before the
    rule's."""
    if action.rcode != "noerror" or (qtype not in (_A, _AAAA) and action.other_types == "empty"):
        return []
    owners = [owner for owner in (group, injector, action) if owner is not None and (owner.a or owner.aaaa)]
    if not owners:
        return []
    owner = owners[0]
    if qtype == _AAAA and owner.aaaa != "teredo":
        return [address_bytes(_draw(state, action, owner, "aaaa", owner.aaaa))] if owner.aaaa else []
    pool = owner.a or action.a
    if not pool:
        return []
    if qtype == _AAAA:
        return [_TEREDO + address_bytes(_draw(state, action, owner, "teredo", pool))]
    return [address_bytes(_draw(state, action, owner, "a", pool))]


def _draw(
    state: InjectorState, action: Poison, owner: Poison | Injector | NameGroup, name: str, pool: tuple[str, ...]
) -> str:
    """Each pool of each owner has its own turn."""
    if action.order == "random":
        return state.rng.choice(pool)
    return pool[state.next_of(id(owner), name, 0) % len(pool)]


def _packets(state: InjectorState, injector: Injector, trigger: Trigger, answer: bytes, delay: float) -> list[Forged]:
    if trigger.packet.proto == _TCP:
        return content_of(state, injector, delay, trigger, len(answer).to_bytes(2, "big") + answer)
    burst = state.burst(injector, trigger.packet)
    packet = trigger.packet
    data = build_udp(
        FiveTuple(packet.proto, packet.dst, packet.dport, packet.src, packet.sport),
        answer,
        ttl=burst.header("ttl"),
        ip_id=burst.header("ip_id"),
        dont_fragment=injector.df,
    )
    towards = trigger.direction.opposite
    return [Forged(data, moment(state, injector, delay), towards) for _ in range(injector.count)]
