"""Knobs of TCP and boxes in rule files: what includes do to them, and what of them the kernel may decide."""

from __future__ import annotations

from pathlib import Path

import pytest

from gfwemu.flow.options import Resync, Teardown
from gfwemu.rules.catalogue import PROFILE_DIRECTORIES
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.load import load_rules
from gfwemu.rules.plan import compile_plan

RULES = PROFILE_DIRECTORIES[0]


def load_text(directory: Path, text: str, base: str = "version: 1\n") -> RuleSet:
    (directory / "base.yaml").write_text(base)
    (directory / "rules.yaml").write_text(text)
    return load_rules([directory / "rules.yaml"])


def test_teardown_is_replaced_as_a_whole_and_triggers_one_by_one(tmp_path: Path) -> None:
    base = """
version: 1
engine:
  tcp:
    teardown: [rst, fin]
    resync: {multiple_syn: {}, rst: {probability: 0.3, lock_on: [client_ack]}}
"""
    text = """
version: 1
include: [base.yaml]
engine:
  tcp:
    teardown: {rst_ack: {probability: 0.5, when: after_data, by: client, sequence: exact}}
    resync: {rst: {probability: 0}, server_rst: {lock_on: [client_packet]}}
"""
    tcp = load_text(tmp_path, text, base).options.tcp
    assert tcp.teardown == {"rst_ack": Teardown(0.5, "after_data", "client", "exact")}
    assert tcp.resync == {
        "multiple_syn": Resync(),
        "rst": Resync(0.0),
        "server_rst": Resync(1.0, ("client_packet",)),
    }


def test_the_reading_of_overlaps_may_be_left_to_chance(tmp_path: Path) -> None:
    drawn, fixed = "{left_equal_last: 0.4, first: 0.6}", "last"
    for own, included in ((drawn, fixed), (drawn, "{last: 1}"), (fixed, drawn)):
        text = f"version: 1\ninclude: [base.yaml]\nengine: {{tcp: {{overlap: {own}}}}}\n"
        tcp = load_text(tmp_path, text, f"version: 1\nengine: {{tcp: {{overlap: {included}}}}}\n").options.tcp
        assert tcp.overlap == (fixed if own is fixed else {"first": 0.6, "last": 0.0, "left_equal_last": 0.4})


def test_odd_packets_are_accepted_ignored_or_left_to_chance(tmp_path: Path) -> None:
    text = """
version: 1
engine: {tcp: {md5_option: ignore, bad_ack: accept, no_flags: 0.25, hole_lifetime: 60m-90m, small_segments: 8}}
"""
    tcp = load_text(tmp_path, text).options.tcp
    assert (tcp.md5_option, tcp.bad_ack, tcp.no_flags, tcp.odd_flags) == (0.0, 1.0, 0.25, 1.0)
    assert (tcp.hole_lifetime, tcp.small_segments) == ((3600.0, 5400.0), 8)


@pytest.mark.parametrize("path", sorted((RULES / "tcp").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_knobs_load_and_say_where_they_are_from(path: Path) -> None:
    rules = load_rules([path])
    assert rules.rules == ()
    assert rules.options.tcp.teardown
    sources = ("FOCI 2013", "IMC 2017", "CCS 2019", "NDSS 2020", "SIGCOMM 2020", "S&P 2025")
    assert any(source in path.read_text() for source in sources)


def test_boxes_of_several_files_stand_in_the_order_of_their_first_mention(tmp_path: Path) -> None:
    base = """
version: 1
boxes: {one: {tcp: {overlap: last}}, two: {}}
rules:
  - {name: b1, box: one, match: {tls.sni: a.example}, action: drop}
  - {name: b2, box: two, match: {tls.sni: a.example}, action: drop}
"""
    text = """
version: 1
include: [base.yaml]
disable: [b2]
boxes: {three: {}, one: {tcp: {buffer: 1KiB}}}
rules:
  - {name: c3, box: three, match: {tls.sni: a.example}, action: drop}
  - {name: c1, box: one, match: {tls.sni: b.example}, action: drop}
  - {name: c0, match: {tls.sni: a.example}, action: drop}
"""
    rules = load_text(tmp_path, text, base)
    assert [rule.name for rule in rules.rules] == ["c0", "b1", "c1", "c3"]
    assert [box.name for box in rules.boxes] == ["", "one", "three"]
    one = rules.split()[1]
    assert (one.options.tcp.overlap, one.options.tcp.buffer) == ("last", 1024)


DROP_ALL = "match: {ip.server: 203.0.113.0/24}, action: drop"


@pytest.mark.parametrize(
    ("rules", "decided"),
    [
        (f"[{{name: a, {DROP_ALL}}}, {{name: b, box: two, match: {{tls.sni: a.example}}, action: alert}}]", ["a"]),
        (f"[{{name: a, match: {{tls.sni: a.example}}, action: alert}}, {{name: b, box: two, {DROP_ALL}}}]", []),
        (
            f"[{{name: a, match: {{ip.server: 192.0.2.0/24}}, action: alert}}, {{name: b, box: two, {DROP_ALL}}}]",
            ["b"],
        ),
        (
            "[{name: a, match: {ip.server: 203.0.113.0/24}, action: pass},"
            " {name: b, box: two, match: {tls.sni: a.example}, action: alert}]",
            [],
        ),
    ],
    ids=["a drop ends it", "an earlier box looks first", "at other flows", "pass is of one box"],
)
def test_the_kernel_decides_only_what_no_other_box_could_see_first(
    tmp_path: Path, rules: str, decided: list[str]
) -> None:
    loaded = load_text(tmp_path, f"version: 1\nboxes: {{two: {{}}}}\nrules: {rules}\n")
    assert [one.name for one in compile_plan(loaded).rules] == decided
