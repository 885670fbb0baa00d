"""What is right in form and wrong in sense: rules that can never fire, and parameters that would do nothing."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Any

from gfwemu.errors import Place, Problem
from gfwemu.model import TRANSPORT_NAMES, Placement, Transport
from gfwemu.rules.actions import (
    NOT_TERMINAL,
    ON_PATH_ABLE,
    REPEATABLE,
    Escalation,
    Freeze,
    Injector,
    Lose,
    NameGroup,
    Poison,
    Probe,
    Redirect,
    Residual,
)
from gfwemu.rules.compile import allowed_transports, clause_transports, needs_tcp
from gfwemu.rules.conditions import Alternative, Clause
from gfwemu.rules.draft import RESIDUAL_SAME, Draft
from gfwemu.rules.lists import LoadedList
from gfwemu.rules.matchers import AnyOf
from gfwemu.rules.networks import NetworkSet
from gfwemu.rules.quantities import Rising, Varied
from gfwemu.rules.shadow import shadowing
from gfwemu.rules.tree import shorten
from gfwemu.rules.validate import unknown

_PROTOCOL_ACTIONS: dict[str, str] = {"poison": "dns", "blockpage": "http", "tls_alert": "tls"}
"""The protocol whose message an action answers."""

_RESETS = frozenset({"reset", "fin"})
_OF_ANSWERS = frozenset({"authoritative", "answer_ttl", "a", "aaaa", "dns_flags", "dns_flags_no_rd"})
_IGNORED_KNOBS: dict[str, frozenset[str]] = {
    **dict.fromkeys(_RESETS, _OF_ANSWERS),
    "poison": frozenset({"flags", "seq_offsets", "payload", "towards"}),
    **dict.fromkeys(
        ("blockpage", "redirect", "tls_alert"), _OF_ANSWERS | {"seq_offsets", "payload", "count", "jitter"}
    ),
}
"""Injector parameters that would do nothing with that action."""

Say = Callable[[Place, str], None]


def lint(drafts: Sequence[Draft], lists: Sequence[LoadedList], problems: list[Problem]) -> None:
    """Adds what is wrong with the rules, each alone and all together, and with the lists."""
    complete = not problems
    for draft in drafts:
        say = _speaker(draft, problems)
        for check in _CHECKS:
            check(draft, say)
    _duplicates(drafts, problems)
    if complete and not problems:
        problems.extend(shadowing(drafts))
    if complete:
        _unused(lists, problems)


def _speaker(draft: Draft, problems: list[Problem]) -> Say:
    return lambda place, message: problems.append(Problem(place, f"rule '{draft.name}': {message}"))


def _duplicates(drafts: Sequence[Draft], problems: list[Problem]) -> None:
    first: dict[str, Draft] = {}
    for draft in drafts:
        earlier = first.setdefault(draft.name, draft)
        if earlier is not draft:
            fix = (
                "rename one" if draft.place.file == earlier.place.file else "rename one, or 'disable' the included one"
            )
            message = f"a rule named '{draft.name}' is already at {earlier.place}; {fix}"
            problems.append(Problem(draft.place_of("name"), message))


def _unused(lists: Sequence[LoadedList], problems: list[Problem]) -> None:
    for loaded in lists:
        if not loaded.used:
            message = f"no rule uses the list '{loaded.name}'; write \"@{loaded.name}\" in a rule, or take the list out"
            problems.append(Problem(loaded.place, message))


def _combination(draft: Draft, say: Say) -> None:
    """Fields that are never known together, or never on a transport that the rule allows."""
    for alternative in draft.alternatives:
        clauses = alternative.clauses
        protocols = {clause.field.dissector: clause for clause in clauses if clause.field.dissector}
        if len(protocols) > 1:
            first, second, *_ = protocols.values()
            say(
                second.place,
                f"'{first.field.name}' and '{second.field.name}' are never known of one message; make two rules",
            )
            continue
        for clause in clauses:
            if clause.field.name == "protocol" and protocols:
                (name, other), *_ = protocols.items()
                if (clause.matcher.match(name) is not None) == clause.negated:
                    say(clause.place, f"'{other.field.name}' is only known where the protocol is {name}")
        _transports(alternative, say)
        _versions(clauses, say)


def _transports(alternative: Alternative, say: Say) -> None:
    allowed = None
    for clause in alternative.clauses:
        mine = clause_transports(clause)
        if not mine:
            say(clause.place, f"'{clause.field.name}' leaves no transport over")
            return
        if allowed is not None and not allowed & mine:
            say(
                clause.place,
                f"'{clause.field.name}' needs {_names(mine)}, and the rest of the match needs {_names(allowed)}",
            )
            return
        allowed = mine if allowed is None else allowed & mine


def _names(transports: frozenset[int]) -> str:
    return " or ".join(sorted(TRANSPORT_NAMES.get(number, "another protocol") for number in transports))


def _versions(clauses: Sequence[Clause], say: Say) -> None:
    """Addresses of one IP version next to addresses, or a version, of the other."""
    allowed = frozenset({4, 6})
    for clause in clauses:
        mine = allowed
        if clause.negated:
            continue
        if clause.field.name == "ip.version":
            mine = frozenset(version for version in (4, 6) if clause.matcher.match(version) is not None)
        elif clause.field.name in ("ip.client", "ip.server", "ip.any"):
            parts = clause.matcher.parts if isinstance(clause.matcher, AnyOf) else (clause.matcher,)
            mine = frozenset().union(*(part.versions() for part in parts if isinstance(part, NetworkSet)))
        if not mine & allowed:
            say(clause.place, f"'{clause.field.name}' is of the other IP version than the rest of the match")
            return
        allowed &= mine


def _action_fits(draft: Draft, say: Say) -> None:
    """The action answers a message, or exists on TCP only, and the match must allow that."""
    place = draft.place_of("action")
    wanted = _PROTOCOL_ACTIONS.get(draft.action_name)
    if isinstance(draft.action, Redirect) and draft.action.location:
        wanted = "http"
    for alternative in draft.alternatives:
        if wanted is not None and not _only(alternative, wanted):
            say(
                place,
                f"'{draft.action_name}' answers {wanted} messages only; "
                f"match a {wanted}.* field or 'protocol: {wanted}'",
            )
            return
        if needs_tcp(draft) and Transport.TCP not in allowed_transports(alternative):
            say(place, f"'{draft.action_name}' exists on TCP only, and this match never holds on TCP; use 'drop'")
            return


def _only(alternative: Alternative, protocol: str) -> bool:
    for clause in alternative.clauses:
        if clause.field.dissector == protocol:
            return True
        if clause.field.name == "protocol" and not clause.negated:
            others = (name for name in clause.field.field.choices if name != protocol)
            return all(clause.matcher.match(name) is None for name in others)
    return False


def _placement(draft: Draft, say: Say) -> None:
    if draft.placement is not Placement.ON_PATH:
        return
    place = draft.place_of("placement")
    if draft.action_name not in ON_PATH_ABLE or (isinstance(draft.action, Redirect) and not draft.action.location):
        say(
            place,
            f"'{draft.action_name}' is not possible on-path, where the packet has passed; write 'placement: in-path'",
        )
    if draft.residual is not None and draft.residual.action == "drop":
        say(
            draft.place_of("residual"),
            "a residual 'drop' is not possible on-path; write 'placement: in-path' or 'action: reset'",
        )


def _residual(draft: Draft, say: Say) -> None:
    residual = draft.residual
    if residual is None:
        return
    place = draft.place_of("residual")
    if draft.action_name in NOT_TERMINAL - {"probe"} or draft.action_name == "pass":
        say(place, f"'{draft.action_name}' blocks nothing, so there is no residual block; take 'residual' out")
    elif residual.action == "same" and draft.action_name not in RESIDUAL_SAME:
        say(
            place,
            f"'{draft.action_name}' cannot be repeated on other flows; "
            "write 'action: drop' or 'action: reset' under 'residual'",
        )
    elif residual.action == "reset" and not any(Transport.TCP in allowed_transports(one) for one in draft.alternatives):
        say(place, "a residual 'reset' exists on TCP only, and this match never holds on TCP; write 'action: drop'")
    if residual.seconds.high <= 0:
        say(draft.place_of("residual", "seconds"), "a residual block of no seconds does nothing; take 'residual' out")
    if residual.probability.high <= 0:
        say(draft.place_of("residual", "probability"), "a residual block with probability 0 does nothing; take it out")
    _residual_resets(draft, residual, say)
    if residual.escalate is not None:
        _escalation(draft, residual, residual.escalate, say)


def _residual_resets(draft: Draft, residual: Residual, say: Say) -> None:
    resets = residual.action == "reset" or (residual.action == "same" and draft.action_name in _RESETS)
    for name in ("injectors", "syn", "towards"):
        if name in residual.model_fields_set and not resets:
            say(draft.place_of("residual", name), f"'{name}' needs a residual block that resets; write 'action: reset'")
    if residual.injectors is not None:
        _check_injectors(residual.injectors, "reset", draft.place_of("residual", "injectors"), say)


def _escalation(draft: Draft, residual: Residual, wider: Escalation, say: Say) -> None:
    place = draft.place_of("residual", "escalate")
    if residual.key not in ("3tuple", "4tuple", "server_port"):
        say(place, f"the key '{residual.key}' holds all ports already, so nothing widens; take 'escalate' out")
    elif residual.key == "server_port" and wider.key == "2tuple":
        say(place, "a block of a server's port for all clients widens to 'key: server'")
    if wider.seconds is not None and wider.seconds.high <= 0:
        say(place, "a block of no seconds does nothing; take 'escalate' out")


def _probability(draft: Draft, say: Say) -> None:
    if draft.odds.high <= 0:
        say(draft.place_of("probability"), "with probability 0 the rule can never fire")


def _repeat(draft: Draft, say: Say) -> None:
    if not draft.entry.repeat:
        return
    able = draft.action_name in REPEATABLE and (not isinstance(draft.action, Redirect) or bool(draft.action.location))
    if not able:
        say(
            draft.place_of("repeat"),
            f"'repeat' does nothing with '{draft.action_name}'; it is for {', '.join(sorted(REPEATABLE))}",
        )


def _parameters(draft: Draft, say: Say) -> None:
    """Parameters that would make the action do nothing."""
    action: Any = draft.action
    place = draft.place_of("with")
    match action:
        case Probe():
            _probe(draft, action, say)
        case Freeze(packets=None, bytes=None):
            say(place, "'freeze' needs 'packets' or 'bytes'")
        case Redirect(location="", address=()):
            say(place, "'redirect' needs 'location' (HTTP) or 'address' (any protocol)")
        case Redirect(location=location, address=address) if location and address:
            say(place, "'redirect' takes either 'location' or 'address', not both")
        case Redirect(location=location, port=int()) if location:
            say(place, "'port' belongs to 'address'; write the port into 'location'")
        case Redirect():
            _addresses(action.address, draft, "address", None, say)
        case Poison(rcode=rcode, a=a, aaaa=aaaa):
            if rcode != "noerror" and (a or aaaa):
                say(place, f"an answer '{rcode}' carries no addresses; take 'a' and 'aaaa' or 'rcode' out")
            _pool(action, action, draft, say)
            if action.other_types == "a" and not (rcode == "noerror" and _has_pool(action)):
                say(draft.place_of("with", "other_types"), "'other_types: a' needs addresses under 'a'")
            owners: tuple[NameGroup | Injector, ...] = (*action.groups, *action.injectors)
            for owner in owners:
                _pool(owner, action, draft, say)
            if any(not group.names or not (group.a or group.aaaa) for group in action.groups):
                say(draft.place_of("with", "groups"), "a group needs 'names', and addresses under 'a' or 'aaaa'")
        case Lose(probability=odds) if odds.per not in ("match", "packet"):
            say(draft.place_of("with", "probability"), "'lose' throws for each packet; take 'per' out")
    if draft.action_name == "lose" and action.probability.high <= 0:
        say(place, "'lose' with probability 0 does nothing")
    if draft.action_name == "throttle" and action.rate <= 0:
        say(place, "a rate of 0 lets nothing pass; use 'drop'")
    if draft.action_name == "throttle" and action.burst < 1:
        say(place, "a burst of 0 lets nothing pass; write at least one packet, as in 'burst: 1500B'")


def _has_pool(action: Poison) -> bool:
    return bool(action.a) or all(injector.a for injector in action.injectors)


def _pool(owner: Poison | NameGroup | Injector, action: Poison, draft: Draft, say: Say) -> None:
    """The false addresses of an action, of a group of names, or of an injector."""
    _addresses(owner.a, draft, "a", 4, say)
    if owner.aaaa == "teredo":
        if not (owner.a or action.a):
            say(draft.place_of("with", "aaaa"), "'aaaa: teredo' is made of the addresses under 'a', and there are none")
    else:
        _addresses(owner.aaaa, draft, "aaaa", 6, say)


def _addresses(texts: Sequence[str], draft: Draft, key: str, version: int | None, say: Say) -> None:
    for text in texts:
        try:
            if version in (None, ipaddress.ip_address(text).version):
                continue
        except ValueError:
            pass
        what = f"an IPv{version} address" if version else "an address"
        say(draft.place_of("with", key), f"'{text[:60]}' under '{key}' is not {what}")


def _injectors(draft: Draft, say: Say) -> None:
    injectors: Sequence[Injector] | None = getattr(draft.action, "injectors", None)
    if injectors is not None:
        _check_injectors(injectors, draft.action_name, draft.place_of("with", "injectors"), say)


def _probe(draft: Draft, action: Probe, say: Say) -> None:
    names = [one.name for one in action.types]
    place = draft.place_of("with", "types")
    for key in ("types", "pool"):
        if not getattr(action, key):
            say(draft.place_of("with", key), f"without '{key}' no probe can be sent")
    for name in sorted({name for name in names if names.count(name) > 1}):
        say(place, f"there are two types of probes named '{name}'; rename one")
    for one in action.types:
        for earlier in one.after:
            if earlier not in names or earlier == one.name:
                say(place, f"'{one.name}' comes after '{shorten(earlier)}', which is no other type of probe here")
        if one.changed and one.send != "replay":
            say(place, f"'changed' of '{one.name}' does nothing without 'send: replay'; take it out")
        if "length" in one.model_fields_set and one.send != "random":
            say(place, f"'length' of '{one.name}' does nothing without 'send: random'; take it out")
    for name in sorted({name for wanted in action.blocks_when for name in wanted if name not in names}):
        say(draft.place_of("with", "blocks_when"), unknown("type of probe", name, names))
    if any(not wanted or not all(wanted.values()) for wanted in action.blocks_when):
        say(draft.place_of("with", "blocks_when"), "each entry needs types of probes, and each of these reactions")
    if draft.residual is not None and not action.blocks_when:
        say(draft.place_of("residual"), "the block never begins; say under 'with' which reactions it 'blocks_when'")
    if action.blocks_when and draft.residual is None:
        say(draft.place_of("with", "blocks_when"), "there is no block; write one under 'residual'")


def _check_injectors(injectors: Sequence[Injector], action_name: str, place: Place, say: Say) -> None:
    if not injectors:
        say(place, "'injectors' is empty, so nothing is sent; leave it out for the usual one")
    for injector in injectors:
        idle = sorted(injector.model_fields_set & _IGNORED_KNOBS.get(action_name, frozenset()))
        if idle:
            say(place, f"'{idle[0]}' of an injector does nothing with '{action_name}'; take it out")
        if not injector.seq_offsets:
            say(place, "'seq_offsets' is empty, so nothing is sent; leave it out for the usual [0]")
        if injector.probability.high <= 0:
            say(place, "an injector with probability 0 never sends; take it out")
        if any(abs(offset) >= 1 << 32 for offset in injector.seq_offsets):
            say(place, "a sequence offset lies within 32 bits")
        if injector.authoritative and injector.dns_flags is not None:
            say(place, "'dns_flags' says all flags, 'authoritative' included; take one of them out")
        if any(word is not None and word & 0xF for word in (injector.dns_flags, injector.dns_flags_no_rd)):
            say(place, "the last digit of 'dns_flags' is the response code; write 0 there, and use 'rcode'")
        for name, limit in (("ttl", 255), ("window", 65_535), ("ip_id", 65_535)):
            value = getattr(injector, name)
            if isinstance(value, Rising):
                packets = injector.count * len(injector.seq_offsets)
                if value.increment_from.high + packets - 1 > limit:
                    say(place, f"'{name}' of an injector is at most {limit}, and its burst of {packets} counts beyond")
            elif isinstance(value, Varied) and value.high > limit:
                say(place, f"'{name}' of an injector is at most {limit}")


_CHECKS: tuple[Callable[[Draft, Say], None], ...] = (
    _combination,
    _action_fits,
    _placement,
    _residual,
    _probability,
    _repeat,
    _parameters,
    _injectors,
)
