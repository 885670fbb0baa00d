"""Expectations against scripted traffic: what a censor of a few lines does, told as it is and not otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from insertion_packets import IGNORED, SHAPES

from gfwemu.conformance.cases import load_cases
from gfwemu.conformance.replay import replay_cases
from gfwemu.conformance.result import FAIL, GAP, INCONCLUSIVE, PASS, Result
from gfwemu.rules.load import load_rules

HEAD = "version: 1\ndescription: d\nrules:\n"


def resetting(*injectors: str) -> str:
    """A censor that sends these to both ends for a listed name."""
    return f"""{HEAD}
  - name: r
    match: {{tls.sni: blocked.example}}
    action: reset
    placement: on-path
    with: {{injectors: [{", ".join(injectors)}]}}
"""


def poison(placement: str = "on-path", delay: str = "0ms") -> str:
    return f"""{HEAD}
  - name: r
    match: {{dns.qname: blocked.example}}
    action: poison
    placement: {placement}
    with: {{a: [203.0.113.250], injectors: [{{ttl: mirror, authoritative: true, answer_ttl: 77, delay: {delay}}}]}}
"""


REST = "{flags: RA, count: 3, df: true, ttl: {increment_from: 60-200}, window: {increment_from: 0-5000}, delay: 20ms}"
RESETS = resetting("{flags: R, ttl: 107, ip_id: 7, window: 99}", REST)
SAME = resetting("{flags: RA, count: 3, ttl: 107, window: 5, ip_id: 9}")
CHANCE = HEAD + (
    "  - {name: r, match: {tls.sni: blocked.example}, action: reset, placement: on-path, probability: 0.5}\n"
)
DROPS = HEAD + (
    "  - {name: r, match: {tls.sni: blocked.example}, action: drop, residual: {key: 3tuple, seconds: 60}}\n"
)
ONE_WAY = HEAD + "  - {name: r, match: {port.server: 443}, action: drop, with: {direction: to_client}}\n"
SYN_RESETS = f"""{HEAD}
  - name: r
    match: {{port.server: 443, tcp.flags: [S, SA]}}
    action: reset
    placement: on-path
    repeat: true
    with:
      towards: client
      injectors: [{{count: 3, ttl: {{increment_from: 60-200}}, window: {{increment_from: 0-5000}}}}]
"""
QUERY: list[Any] = [
    {"udp": {"port": 53, "server": "resolver"}},
    {"send": {"dns": {"name": "www.blocked.example"}}},
]
HELLO: list[Any] = [
    {"connect": {"port": 443, "server": "silent", "handshake": "blind"}},
    {"send": {"tls": {"sni": "blocked.example"}}},
]
ANSWERED: list[Any] = [{"connect": 443}, {"send": {"tls": {"sni": "blocked.example"}}}]
ONE = {"flags": "R", "ttl": 100, "id": 7, "window": 99, "df": False}
THREE = {"count": 3, "flags": "RA", "df": True, "increment": ["ttl", "window"]}


def play(tmp_path: Path, rules: str, steps: list[Any], expect: object = None, **more: object) -> Result:
    """One case against one censor."""
    case = {"id": "c", "behaviour": "b", "cite": "c", "evidence": "found", "rule": "r", "steps": steps, **more}
    if expect is not None:
        case["expect"] = expect
    file = {"version": 1, "mechanism": "m", "profiles": ["p"], "cases": [case]}
    cases, censor = tmp_path / "cases.yaml", tmp_path / "rules.yaml"
    cases.write_text(json.dumps(file))
    censor.write_text(rules)
    (result,) = replay_cases(load_rules([censor]), load_cases("p", [cases]))
    return result


@pytest.mark.parametrize("expect", [
    {"at_client": [ONE, THREE], "at_server": 4, "delivered": "all"},
    {"at_client": [THREE, ONE]},
    {"at_client": [{"count": 4}]},
    {"at_client": [{"count": "2+", "df": True}, {"count": "0-1", "flags": "R"}]},
    {"at_client": "3-4", "delivered": "1 of 1"},
    {"at_client": [{**ONE, "delay": "0ms-1ms"}, {**THREE, "delay": "19ms-22ms"}]},
    {"at_client": [ONE, {**THREE, "seq": 0, "ack": 0}]},
    {"at_server": [{"flags": "R", "ttl": 99, "id": 7}, THREE]},
    "resets",
])  # fmt: skip
def test_what_is_so_passes(tmp_path: Path, expect: object) -> None:
    result = play(tmp_path, RESETS, HELLO, expect)
    assert (result.verdict, result.wrong) == (PASS, [])


@pytest.mark.parametrize("expect", [
    {"at_client": [ONE]},
    {"at_client": [THREE]},
    {"at_client": [ONE, ONE, THREE]},
    {"at_client": [{**ONE, "ttl": "101-255"}, THREE]},
    {"at_client": [{**ONE, "id": 8}, THREE]},
    {"at_client": [{**ONE, "window": 98}, THREE]},
    {"at_client": [{**ONE, "df": True}, THREE]},
    {"at_client": [{**ONE, "length": "1+"}, THREE]},
    {"at_client": [ONE, {**THREE, "same": ["ttl"]}]},
    {"at_client": [ONE, {**THREE, "seq": 1}]},
    {"at_client": [ONE, {**THREE, "ack": 1}]},
    {"at_client": [ONE, {**THREE, "delay": "0ms-10ms"}]},
    {"at_client": [ONE, {**THREE, "flags": "R"}]},
    {"at_client": "none"},
    {"at_client": 5},
    {"at_server": "5+"},
    {"delivered": "none"},
    {"delivered": "1 of 2"},
    {"server_reads": True},
    "passes",
    "evades",
    "dropped",
])  # fmt: skip
def test_what_is_not_so_fails(tmp_path: Path, expect: object) -> None:
    result = play(tmp_path, RESETS, HELLO, expect)
    assert result.verdict == FAIL
    assert result.wrong


def test_a_drop_and_its_residual_block(tmp_path: Path) -> None:
    steps = [*ANSWERED, {"expect": "dropped"}, {"try": "same", "outcome": "timeout"}, {"at": 50}]
    steps += [{"try": "same", "outcome": "blocked"}, {"try": 444, "outcome": "free"}]
    steps += [{"try": "same", "server": "other", "outcome": "free"}, {"at": 65}, {"try": "same", "outcome": "free"}]
    result = play(tmp_path, DROPS, steps)
    assert (result.verdict, result.wrong) == (PASS, [])


@pytest.mark.parametrize(("seconds", "outcome", "said"), [
    (50, "free", "a later flow is to be free and was timeout"),
    (50, "reset", "a later flow is to be reset and was timeout"),
    (65, "timeout", "a later flow is to be timeout and was free"),
    (65, "blocked", "a later flow is to be blocked and was free"),
])  # fmt: skip
def test_a_residual_block_at_another_time(tmp_path: Path, seconds: int, outcome: str, said: str) -> None:
    result = play(tmp_path, DROPS, [*ANSWERED, {"at": seconds}, {"try": "same", "outcome": outcome}])
    assert (result.verdict, result.wrong) == (FAIL, [said])


def test_what_a_later_flow_met_is_not_looked_at_again(tmp_path: Path) -> None:
    rules = RESETS + "    residual: {key: 3tuple, seconds: 60}\n"
    steps = [*ANSWERED, {"expect": "resets"}, {"try": "same", "outcome": "reset"}, {"expect": {"at_client": 0}}]
    result = play(tmp_path, rules, steps)
    assert (result.verdict, result.wrong) == (PASS, [])


def test_overlapping_segments_hold_bytes_twice(tmp_path: Path) -> None:
    spy = HEAD + "  - {name: r, match: {payload.length: 7}, action: drop}\n"
    plain = [{"connect": 443}, {"send": "0123456789abcd", "cut": [10]}]
    twice = [{"connect": 443}, {"send": "0123456789abcd", "cut": [10], "overlap": 3}]
    assert play(tmp_path, spy, plain, {"delivered": "2 of 2"}).verdict == PASS
    assert play(tmp_path, spy, twice, {"delivered": "1 of 2"}).verdict == PASS


def test_a_rate_is_measured(tmp_path: Path) -> None:
    rate = {"published": 0.5, "tolerance": 0.12, "not": [0.3, 0.7]}
    good = play(tmp_path, CHANCE, HELLO, "resets", repeat=250, rate=rate)
    assert good.verdict == PASS
    assert good.observed.endswith("%)")
    other = {"published": 0.75, "tolerance": 0.12}
    assert play(tmp_path, CHANCE, HELLO, "resets", repeat=250, rate=other).verdict == FAIL
    assert play(tmp_path, CHANCE, HELLO, "resets", repeat=20).wrong[-1].endswith("of 20 repetitions")


def test_delays_are_measured(tmp_path: Path) -> None:
    rules = resetting("{flags: R, delay: 30ms}", REST)
    good = play(tmp_path, rules, HELLO, "resets", repeat=50, delays={"p50": "19ms-22ms"})
    assert good.verdict == PASS
    bad = play(tmp_path, rules, HELLO, "resets", repeat=50, delays={"p50": "30ms-40ms"})
    assert bad.verdict == FAIL
    assert "not within 30 to 40" in bad.wrong[0]


def test_a_gap_is_told(tmp_path: Path) -> None:
    result = play(tmp_path, RESETS, HELLO, "passes", gap="not yet")
    assert result.verdict == GAP
    assert play(tmp_path, RESETS, HELLO, "resets", gap="not yet").verdict == PASS


@pytest.mark.parametrize(("steps", "said"), [
    ([{"send": "x"}], "the script sends before it connects"),
    ([{"connect": 443}, {"at": 5}], "'at' comes before the first 'send'"),
    ([*HELLO, {"answer": "x"}], "the server has no such connection to answer on"),
    ([{"connect": {"port": 443, "server": "silent"}}, {"send": "x"}], "the handshake never ended"),
    ([{"curl": "https://a.example/"}], "curl needs a lab: programs are not replayed"),
])  # fmt: skip
def test_what_cannot_be_played_is_inconclusive(tmp_path: Path, steps: list[Any], said: str) -> None:
    result = play(tmp_path, RESETS, steps, "resets")
    assert (result.verdict, result.observed) == (INCONCLUSIVE, said)


@pytest.mark.parametrize(("packet", "reads"), IGNORED)
def test_the_model_server_ignores_what_linux_ignores(tmp_path: Path, packet: dict[str, Any], reads: bool) -> None:
    steps = [{"connect": 443}, packet, {"send": "what the client means to say"}]
    result = play(tmp_path, DROPS, steps, {"server_reads": reads})
    assert (result.verdict, result.wrong) == (PASS, [])


@pytest.mark.parametrize("shape", SHAPES)
def test_however_it_is_cut_the_server_reads_it(tmp_path: Path, shape: dict[str, Any]) -> None:
    steps = [{"connect": 443}, {"send": "what the client means to say, in one piece or in many", **shape}]
    result = play(tmp_path, DROPS, steps, "evades")
    assert (result.verdict, result.wrong) == (PASS, [])


def test_resets_that_a_syn_triggers(tmp_path: Path) -> None:
    three = {"count": 3, "flags": "RA", "increment": ["ttl", "window"], "ack": 0}
    expect = {"connection": "reset", "at_client": [{**three, "raw_seq": 0}, {**three, "raw_seq": "1+"}]}
    result = play(tmp_path, SYN_RESETS, [{"connect": 443}], expect)
    assert (result.verdict, result.wrong) == (PASS, [])
    assert play(tmp_path, SYN_RESETS, [{"connect": 443}], {"connection": "ok"}).verdict == FAIL


def test_bare_packets_are_counted(tmp_path: Path) -> None:
    expect = {"connection": "timeout", "packets_delivered": "1 of 1", "packets_answered": "0 of 1", "at_client": 0}
    result = play(tmp_path, ONE_WAY, [{"connect": 443}], expect)
    assert (result.verdict, result.wrong) == (PASS, [])
    expect = {"connection": "timeout", "packets_answered": "all"}
    result = play(tmp_path, ONE_WAY, [{"connect": 443}], expect)
    assert result.wrong == ["packets answered 0 of 1 instead of all"]


@pytest.mark.parametrize(("field", "verdict"), [("increment", FAIL), ("same", PASS)])
@pytest.mark.parametrize("name", ["ttl", "window", "id"])
def test_equal_ones_do_not_increase(tmp_path: Path, field: str, verdict: str, name: str) -> None:
    expect = {"at_client": [{"count": 3, "flags": "RA", field: [name]}]}
    assert play(tmp_path, SAME, HELLO, expect).verdict == verdict


def test_all_of_nothing_is_not_all(tmp_path: Path) -> None:
    result = play(tmp_path, SAME, [{"connect": 443}], {"delivered": "all"})
    assert result.wrong == ["delivered 0 of 0 instead of all"]
    assert play(tmp_path, SAME, [{"connect": 443}], {"delivered": "none"}).verdict == FAIL


@pytest.mark.parametrize(("rules", "wanted", "verdict"), [
    (poison(), "last", PASS), (poison(), "arrives", PASS), (poison(), "none", FAIL),
    (poison(delay="300ms"), "last", FAIL), (poison(delay="300ms"), "arrives", PASS),
    (poison("in-path"), "none", PASS), (poison("in-path"), "arrives", FAIL), (poison("in-path"), "last", FAIL),
])  # fmt: skip
def test_the_race_with_the_real_answer(tmp_path: Path, rules: str, wanted: str, verdict: str) -> None:
    assert play(tmp_path, rules, QUERY, {"at_client": 1, "real_answer": wanted}).verdict == verdict


@pytest.mark.parametrize(("answer", "verdict"), [
    ({"aa": True, "ttl": 77, "type": "A", "pool": ["203.0.113.248/29"], "answers": 1, "rcode": 0}, PASS),
    ({"flags": 0x8580, "questions": 1, "additional": 0, "ra": True, "rd": True}, PASS),
    ({"aa": False}, FAIL), ({"ttl": 78}, FAIL), ({"type": "AAAA"}, FAIL), ({"pool": ["203.0.113.0/28"]}, FAIL),
    ({"answers": 2}, FAIL), ({"rcode": 3}, FAIL), ({"flags": 0x8180}, FAIL), ({"questions": 0}, FAIL),
    ({"additional": 1}, FAIL), ({"ra": False}, FAIL), ({"rd": False}, FAIL),
])  # fmt: skip
def test_forged_answers(tmp_path: Path, answer: dict[str, Any], verdict: str) -> None:
    assert play(tmp_path, poison(), QUERY, {"at_client": [{"dns": answer}]}).verdict == verdict


@pytest.mark.parametrize(("ttl", "verdict"), [("mirrored", PASS), (49, PASS), (50, FAIL)])
def test_a_copied_ttl(tmp_path: Path, ttl: object, verdict: str) -> None:
    assert play(tmp_path, poison(), QUERY, {"at_client": [{"ttl": ttl}]}).verdict == verdict
