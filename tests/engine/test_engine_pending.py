"""The index of rules against one condition after another."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rulekit import AtMost, Hours, rule

from gfwemu.engine.facts import FLOW_FIELDS, PACKET_FIELDS, FlowFacts
from gfwemu.engine.matching import match_condition
from gfwemu.engine.pending import Prospects
from gfwemu.flow.flow import Flow, FlowState
from gfwemu.model import FiveTuple, Side, address_bytes
from gfwemu.rules.compiled import CompiledRule, Condition, Scope, Subscriber
from gfwemu.rules.domains import DomainBuilder
from gfwemu.rules.fields import rule_fields
from gfwemu.rules.matchers import AnyOf, ExactSet, Flag, Numbers, TextPattern, parse_interval
from gfwemu.rules.networks import NetworkSet, parse_network

LABELS = ["a", "b", "aa", "x-1", "com"]
NAMES = st.lists(st.sampled_from(LABELS), min_size=1, max_size=4).map(".".join)
ENTRIES = st.builds(lambda kind, name: kind + name, st.sampled_from(["", "full:", "*.", "keyword:", "regexp:"]), NAMES)


def domains(entries: list[str], exceptions: list[str]) -> Any:
    builder = DomainBuilder()
    for entry in entries:
        builder.add(entry)
    builder.exceptions.update(exceptions)
    return builder.finish("@list")


DOMAINS = st.builds(domains, st.lists(ENTRIES, min_size=1, max_size=4), st.lists(NAMES, max_size=1))
SOME_DOMAINS = st.shared(st.lists(DOMAINS, min_size=1, max_size=3), key="lists")
NAME_MATCHERS = st.one_of(
    SOME_DOMAINS.flatmap(st.sampled_from),
    st.builds(lambda *parts: AnyOf(parts), DOMAINS, DOMAINS),
    st.builds(lambda texts: TextPattern.make("", "prefix", texts), st.frozensets(st.sampled_from(LABELS), min_size=1)),
)
NUMBERS = st.sampled_from(["53", "443", ">443", "1-1000", "<80"]).map(lambda text: Numbers((parse_interval(text),)))
NETWORKS = st.sampled_from(["203.0.113.0/24", "203.0.113.80", "192.0.2.0/25", "2001:db8::/32"]).map(
    lambda text: NetworkSet("", [parse_network(text)])
)


def texts(*values: str) -> st.SearchStrategy[ExactSet]:
    return st.sets(st.sampled_from(values), min_size=1).map(lambda some: ExactSet("", frozenset(some)))


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "ip.server": NETWORKS,
    "ip.any": NETWORKS,
    "ip.version": st.sampled_from(["4", "6"]).map(lambda text: Numbers((parse_interval(text),))),
    "port.server": NUMBERS,
    "port.client_above_server": st.booleans().map(Flag),
    "transport": texts("tcp", "udp", "other"),
    "initiator": texts("inside", "outside"),
    "subscriber": texts("alice", "bob"),
    "subscriber.group": texts("staff", "guests"),
    "tls.sni": NAME_MATCHERS,
    "tls.alpn": texts("h2", "http/1.1"),
    "tls.ech": st.booleans().map(Flag),
    "dns.qname": NAME_MATCHERS,
    "dns.qtype": texts("A", "AAAA"),
    "protocol": texts("tls", "dns", "unknown"),
    "count.packets": st.integers(1, 4).map(AtMost),
    "direction": texts("to_server"),
}


@st.composite
def rules(draw: st.DrawFn, number: int) -> CompiledRule:
    fields = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=3))
    conditions = tuple(Condition(field, draw(FIELDS[field]), draw(st.booleans())) for field in fields)
    action = draw(st.sampled_from(["drop", "alert", "reset"]))
    made = rule(action, dict.fromkeys(fields), name=f"rule-{draw(st.integers(0, number))}")
    schedule = draw(st.sampled_from([None, None, Hours(0, 24)]))
    return dataclasses.replace(made, conditions=conditions, schedule=schedule)


RULES = st.integers(0, 12).flatmap(lambda count: st.tuples(*(rules(number) for number in range(count))))
SUBSCRIBERS = (Subscriber("alice", ((address_bytes("192.0.2.10"), 32),), frozenset({"staff"})),)


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    wide = draw(st.booleans())
    client = address_bytes("2001:db8::1" if wide else draw(st.sampled_from(["192.0.2.10", "192.0.2.200"])))
    server = address_bytes("2001:db9::1" if wide else draw(st.sampled_from(["203.0.113.80", "198.51.100.1"])))
    proto = draw(st.sampled_from([1, 6, 17]))
    ports = (0, 0) if proto == 1 else (draw(st.sampled_from([60, 50_000])), draw(st.sampled_from([53, 443])))
    side = draw(st.sampled_from([None, *Side]))
    flow = Flow(1, FiveTuple(proto, client, ports[0], server, ports[1]), side, 0.0, FlowState.OTHER)
    flow.packets_to_server = draw(st.integers(0, 5))
    return flow


MESSAGES = st.one_of(
    st.fixed_dictionaries(
        {"protocol": st.just("tls"), "tls.ech": st.booleans()},
        optional={"tls.sni": NAMES, "tls.alpn": st.sampled_from([(), ("h2",), ("http/1.1", "h2")])},
    ),
    st.fixed_dictionaries({"protocol": st.just("dns"), "dns.qname": NAMES, "dns.qtype": st.sampled_from(["A", "MX"])}),
    st.just({"protocol": "unknown"}),
)


def holds(condition: Condition, facts: Any) -> bool:
    value = facts.get(condition.field)
    return value is not None and match_condition(condition, value) is not None


def on_transport(one: CompiledRule, proto: int) -> bool:
    known = [rule_fields()[condition.field].transports for condition in one.conditions]
    return all(not transports or proto in transports for transports in known)


def of_message(one: CompiledRule) -> list[Condition]:
    return [entry for entry in one.conditions if entry.field not in FLOW_FIELDS and entry.field not in PACKET_FIELDS]


@settings(max_examples=250)
@given(RULES, flows(), st.lists(MESSAGES, max_size=3), st.booleans())
def test_the_index_agrees_with_one_condition_after_another(
    some: tuple[CompiledRule, ...], flow: Flow, messages: list[dict[str, Any]], over: bool
) -> None:
    prospects = Prospects(some)
    facts = FlowFacts(flow, SUBSCRIBERS)
    naive = [
        one
        for one in some
        if on_transport(one, flow.tuple.proto)
        and all(holds(condition, facts) for condition in one.conditions if condition.field in FLOW_FIELDS)
    ]
    for _ in range(2):  # the second time from what is kept
        pending = prospects.opening(facts)
        assert [one.rule for one in pending.candidates] == naive

        touched = [
            one.rule
            for one in pending.candidates
            if not one.by_message
            or any(all(holds(condition, message) for condition in of_message(one.rule)) for message in messages)
        ]
        assert [one.rule for one in prospects.touched(pending, messages)] == touched
        assert pending.whole == any(not one.by_message for one in pending.candidates)

        flow.facts = {key: value for message in messages for key, value in message.items()}
        left = [
            one.rule
            for one in pending.candidates
            if (one.rule.scope is not Scope.FLOW or one.rule.schedule is not None)
            and not (over and (one.by_message or not all(holds(entry, flow.facts) for entry in of_message(one.rule))))
            and not one.exhausted(flow)
        ]
        remaining = prospects.remaining(pending, flow, messages_over=over)
        assert [one.rule for one in remaining.candidates] == left
        assert bool(remaining) == bool(left)
        for name in {one.name for one in some}:
            without = prospects.without(remaining, name)
            assert [one.rule for one in without.candidates] == [one for one in left if one.name != name]


@given(RULES, flows())
def test_flows_in_the_same_situation_share_their_set_of_rules(some: tuple[CompiledRule, ...], flow: Flow) -> None:
    prospects = Prospects(some)
    first = prospects.opening(FlowFacts(flow, ()))
    assert prospects.opening(FlowFacts(flow, ())) is first
    assert prospects.remaining(first, flow, messages_over=True) is prospects.remaining(first, flow, messages_over=True)


def test_rules_that_share_a_list_are_all_found() -> None:
    """Alone on the field, beside the negation of the list, and beside other lists."""
    shared, others = domains(["a.com"], []), [domains([f"{label}.com"], []) for label in "bcd"]
    some = [rule("drop", {"tls.sni": shared}, name="first"), rule("drop", {"tls.sni": shared}, name="second")]
    for more in ([], [rule("drop", {"tls.sni": ("not", shared)}, name="not")], others):
        rest = [one if isinstance(one, CompiledRule) else rule("drop", {"tls.sni": one}, name="other") for one in more]
        prospects = Prospects([*some, *rest])
        key = FiveTuple(6, address_bytes("192.0.2.10"), 1, address_bytes("203.0.113.80"), 443)
        pending = prospects.opening(FlowFacts(Flow(1, key, None, 0.0, FlowState.OPENING), ()))
        assert [one.rule for one in prospects.touched(pending, [{"tls.sni": "www.a.com"}])] == some
        unlisted = [one.rule.name for one in prospects.touched(pending, [{"tls.sni": "e.com"}])]
        assert unlisted == [one.name for one in rest if one.name == "not"]
