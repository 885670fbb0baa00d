"""Injectors, pools, odds and blocks as a rule file writes them: read, compiled, and known to the editor's schema."""

from __future__ import annotations

import datetime
from pathlib import Path

import jsonschema
import pytest
import yaml
from rule_files import load_text, problems_of

from gfwemu.model import Side, Verdict
from gfwemu.rules.actions import Poison, Reset
from gfwemu.rules.jsonschema import rule_file_schema
from gfwemu.rules.odds import Odds, parse_odds
from gfwemu.rules.plan import compile_plan
from gfwemu.rules.quantities import Rising
from gfwemu.rules.spread import spread_of
from gfwemu.testing.playbook import Playbook, TcpTalk

TEXT = """version: 1
defaults: {seed: 4}
lists: {google: {entries: [google.example]}, all: {entries: [google.example, listed.example]}}
rules:
  - name: injector-1
    match: {dns.qname: "@google", dns.response: false, transport: udp, port.server: 53}
    action: poison
    placement: on-path
    probability: {hours: {0: 1, 18: 0.97}, timezone: Asia/Shanghai}
    with:
      a: [203.0.113.250]
      other_types: a
      groups: [{names: [www.google.example], a: [203.0.113.249], aaaa: teredo}]
      injectors: [{ttl: increment, answer_ttl: 60, dns_flags: 0x8580}]
  - name: injector-2
    match: {dns.qname: "@all", dns.response: false, transport: udp, port.server: 53}
    action: poison
    placement: on-path
    probability: {value: 0.63, per: endpoints}
    with:
      a: [203.0.113.251, 203.0.113.252]
      aaaa: teredo
      injectors: [{df: true, a: [203.0.113.253], probability: {value: 0.9, per: flow}, jitter: 0-0.2ms}]
  - name: handshake
    match: {ip.server: 203.0.113.7, port.server: 443, tcp.flags: [S, SA]}
    action: reset
    placement: on-path
    repeat: true
    with:
      towards: client
      injectors: [{count: 3, ttl: {increment_from: 60-200}, window: {increment_from: [0, 900]}}]
  - name: proxy
    match: {tls.sni: proxy.example}
    action: reset
    residual:
      key: server_port
      seconds: 12h
      refresh: true
      action: reset
      probability: {value: 0.5, per: packet}
      syn: forged_synack
      towards: client
      injectors: [{flags: R}, {flags: RA}]
      escalate: {ports: 2, key: server, seconds: 1d}
  - name: border
    match: {initiator: inside}
    action: lose
    with: {probability: {hours: {0: 0, 19: 0.05, 23: 0}, timezone: "+08:00"}, direction: to_client}
"""


def test_what_is_written_is_what_the_engine_gets(tmp_path: Path) -> None:
    first, second, handshake, proxy, _ = load_text(tmp_path, TEXT).rules
    assert first.probability == 0.97
    assert first.odds is not None
    assert [first.odds.at(hour * 3600.0) for hour in (9, 10, 15, 16)] == [1, 0.97, 0.97, 1]
    assert second.odds == Odds((0.63,), "endpoints")
    assert isinstance(second.action, Poison)
    assert second.action.injectors[0].probability == Odds((0.9,), "flow")
    assert second.action.aaaa == "teredo"
    assert [rule.terminal for rule in (first, second, handshake, proxy)] == [False, False, False, True]
    assert isinstance(handshake.action, Reset)
    ttl = handshake.action.injectors[0].ttl
    assert isinstance(ttl, Rising)
    assert (ttl.increment_from.low, ttl.increment_from.high) == (60, 200)
    assert proxy.residual is not None
    assert proxy.residual.injectors is not None
    assert [one.flags for one in proxy.residual.injectors] == ["R", "RA"]


def test_the_schema_of_editors_knows_all_of_it() -> None:
    validator = jsonschema.Draft202012Validator(rule_file_schema())
    # YAML 1.1, which this reader speaks, reads nothing here otherwise.
    assert list(validator.iter_errors(yaml.safe_load(TEXT))) == []
    for wrong in ("repeat: yes please", "escalate: {prots: 2}", "syn: wrong"):
        key = wrong.partition(":")[0]
        text = "\n".join(
            line[: len(line) - len(line.lstrip())] + wrong if line.lstrip().startswith(f"{key}:") else line
            for line in TEXT.split("\n")
        )
        assert text != TEXT
        assert list(validator.iter_errors(yaml.safe_load(text)))


def test_flows_of_a_server_block_stay_with_one_worker_and_in_user_space(tmp_path: Path) -> None:
    rules = load_text(tmp_path, TEXT)
    assert spread_of(rules) == ("outside", "proxy")
    assert not compile_plan(rules).rules


@pytest.mark.parametrize("extra", ["repeat: true", "probability: {value: 1, per: endpoints}"])
def test_a_rule_that_always_fires_and_ends_a_flow_shadows_and_others_do_not(tmp_path: Path, extra: str) -> None:
    text = f"""version: 1
rules:
  - name: one
    match: {{tls.sni: a.example}}
    action: reset
    placement: on-path
    {extra}
  - {{name: two, match: {{tls.sni: a.example}}, action: drop}}
"""
    assert bool(problems_of(tmp_path, text)) is (extra != "repeat: true")


def test_two_on_path_answers_to_one_name_are_no_mistake(tmp_path: Path) -> None:
    def text(placement: str) -> str:
        rule = f"match: {{dns.qname: a.example}}, action: poison, placement: {placement}, with: {{a: [203.0.113.1]}}"
        return f"version: 1\nrules:\n  - {{name: one, {rule}}}\n  - {{name: two, {rule}}}\n"

    assert problems_of(tmp_path, text("on-path")) == []
    assert len(problems_of(tmp_path, text("in-path"))) == 1


def test_the_bottleneck_is_of_one_direction_and_of_some_hours(tmp_path: Path) -> None:
    """Inbound packets only are lost, more in the evening (Zhu et al., SIGMETRICS 2020)."""
    text = """version: 1
rules:
  - name: slow
    match: {initiator: inside}
    action: throttle
    with: {rate: 1mbit, burst: 1500B, per: rule, direction: to_client}
    schedule: {hours: "19:00-24:00", timezone: "+08:00"}
  - name: lossy
    match: {initiator: inside}
    action: lose
    with: {probability: {hours: {0: 0, 19: 0.2}, timezone: "+08:00"}, direction: to_client}
"""
    rules = load_text(tmp_path, text)

    def lost(hour: int, talk: TcpTalk, *, to_client: bool) -> int:
        start = datetime.datetime(2026, 3, 3, hour, tzinfo=datetime.timezone(datetime.timedelta(hours=8))).timestamp()
        book = Playbook(rules, start_time=start)
        book.packet(talk.syn(), came_from=Side.INSIDE)
        packet = talk.to_client(b"x" * 1000) if to_client else talk.to_server(b"x" * 1000)
        side = Side.OUTSIDE if to_client else Side.INSIDE
        return sum(book.packet(packet, after=0.05, came_from=side).verdict is Verdict.DROP for _ in range(300))

    assert lost(12, TcpTalk(), to_client=True) == 0
    assert 35 < lost(20, TcpTalk(), to_client=True) < 90
    assert lost(20, TcpTalk(), to_client=False) == 0


@pytest.mark.parametrize(
    ("written", "hours"),
    [
        ({3: 0.5}, [0.5] * 24),
        ({0: 0, 12: 1}, [0] * 12 + [1] * 12),
        ({"6": 0.25, 22: 0.75}, [0.75] * 6 + [0.25] * 16 + [0.75] * 2),
    ],
)
def test_an_hour_lasts_until_the_next_one_named(written: dict[object, float], hours: list[float]) -> None:
    odds = parse_odds({"hours": written})
    assert [odds.at(hour * 3600 + 1800.0) for hour in range(24)] == hours
