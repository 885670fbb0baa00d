from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from samples import (
    DNS,
    DOWN,
    HELLO_FACTS,
    HTTP,
    PING,
    RECORDS,
    START,
    TLS,
    TLS_AGAIN,
    UP,
    ended,
    hit,
    log_of,
)

from gfwemu.engine.records import EngineFault, Evidence, MessageSeen, PacketDropped, Record, ResidualHit
from gfwemu.report.eve import EveWriter
from gfwemu.report.summary import HARMLESS
from gfwemu.report.verdicts import VerdictTable, printable


def rendered(lines: list[str], width: int = 80, *, colour: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=colour, color_system="standard" if colour else None)
    VerdictTable.from_eve(lines).render(console)
    return stream.getvalue()


def facts(*records: Record, strict: bool = False) -> dict[str, Any]:
    table = VerdictTable.from_eve(log_of(records, strict=strict)).as_json()
    return json.loads(json.dumps(table))


def test_the_whole_table_at_80_columns() -> None:
    lines = log_of(
        [
            MessageSeen(START + 0.03, TLS, UP, HELLO_FACTS),
            hit(),
            hit(TLS_AGAIN, time=START + 0.5),
            ResidualHit(START + 1, TLS_AGAIN, "sni-news", "reset", "3tuple", 179.0, "Wu et al., S&P 2025"),
            MessageSeen(START, DNS, UP, {"dns.qname": "a.example", "dns.qtype": "A", "dns.response": False}),
            ended(TLS, injected=2, rules=("sni-news",)),
            ended(TLS_AGAIN, dropped=3, injected=1, rules=("sni-news",)),
            ended(DNS),
            ended(HTTP),
        ]
    )
    assert rendered(lines) == (
        "    when  flow                               rule      action  packet\n"
        "+0.031 s  tls www.blocked.example (2 flows)  sni-news  reset        4\n"
        "    192.0.2.2 -> 198.51.100.7:443, tcp, 557 bytes to server, on-path\n"
        "    tls.sni = www.blocked.example, matches blocked.example from @news\n"
        '    bytes 127 to 145 of the stream: 77 77 77 2e 62 6c 6f 63 ... "www.bloc..."\n'
        "    then blocked for 180 s\n"
        "    3 packets injected, 3 dropped\n"
        "    Wu et al., S&P 2025; observed 2024-10; sample.yaml:4:7\n"
        "+1.000 s  tls www.blocked.example            sni-news  reset        -\n"
        "    192.0.2.2:40113 -> 198.51.100.7:443, tcp\n"
        "    met a residual block (3tuple), 179 s left\n"
        "    1 packet injected, 3 dropped\n"
        "    Wu et al., S&P 2025\n"
        "\n"
        "2 flows passed, 1 name: a.example.\n"
        "In all 3 packets injected, 3 dropped.\n"
    )


def test_innocent_traffic_is_said_to_be_untouched() -> None:
    messages = [MessageSeen(START, DNS, UP, {"dns.qname": f"n{n}.example", "dns.qtype": "A"}) for n in range(2)]
    assert rendered(log_of([messages[0], ended(DNS), ended(HTTP)])) == (
        "Nothing was touched.\n2 flows passed, 1 name: n0.example.\n"
    )


def test_an_empty_log() -> None:
    assert rendered([]) == "Nothing was touched.\nNo flow was seen.\n"


def test_pass_and_alert_rules_touch_nothing() -> None:
    found = facts(hit(action="alert"), hit(HTTP, rule="let", action="pass"), ended(TLS), ended(HTTP))
    assert [row["action"] for row in found["rows"]] == ["alert", "pass"]
    assert found["touched"] is False
    assert found["passed"] == {"flows": 2, "names": ["www.blocked.example"]}


def test_kernel_rules_are_told_with_their_counters() -> None:
    stream = io.StringIO()
    writer = EveWriter(stream)
    writer.kernel_rule(START, "block-ip", "drop", 12, 720, cite="A paper")
    writer.kernel_rule(START, "block-net", "drop", 0, 0)
    text = rendered(stream.getvalue().splitlines())
    assert "Decided in the kernel:\n    block-ip: drop, 12 packets, 720 bytes (A paper)\n" in text
    assert "Nothing was touched" not in text
    found = VerdictTable.from_eve(stream.getvalue().splitlines()).as_json()
    assert found["touched"] is True
    assert found["kernel"] == [
        {"rule": "block-ip", "action": "drop", "packets": 12, "bytes": 720, "cite": "A paper"},
        {"rule": "block-net", "action": "drop", "packets": 0, "bytes": 0, "cite": ""},
    ]


def test_a_kernel_rule_that_met_no_packet_touched_nothing() -> None:
    stream = io.StringIO()
    EveWriter(stream).kernel_rule(START, "block-ip", "drop", 0, 0)
    assert VerdictTable.from_eve(stream.getvalue().splitlines()).summary.touched is False


def test_json_holds_the_same_facts() -> None:
    found = facts(hit(), ended(TLS, injected=2, dropped=1), ended(DNS))
    (row,) = found.pop("rows")
    assert row == {
        "when": 0.031,
        "kind": "rule",
        "rule": "sni-news",
        "action": "reset",
        "placement": "on-path",
        "proto": "TCP",
        "client": "192.0.2.2",
        "client_port": 40112,
        "server": "198.51.100.7",
        "server_port": 443,
        "protocol": "tls",
        "name": "www.blocked.example",
        "flows": 1,
        "hits": 1,
        "direction": "to_server",
        "packet_number": 4,
        "packet_length": 557,
        "evidence": [
            {
                "field": "tls.sni",
                "value": "www.blocked.example",
                "entry": "blocked.example from @news",
                "offset": 127,
                "length": 19,
                "excerpt": b"www.blocked.example".hex(),
            }
        ],
        "residual_seconds": 180.0,
        "residual_key": "",
        "injected": 2,
        "dropped": 1,
        "cite": "Wu et al., S&P 2025",
        "observed": "2024-10",
        "place": "rules/sample.yaml:4:7",
    }
    assert found == {
        "touched": True,
        "kernel": [],
        "flows": 2,
        "passed": {"flows": 1, "names": []},
        "injected": 2,
        "dropped": 1,
        "faults": [],
        "unreadable_lines": 0,
    }


def test_a_strict_log_still_tells_rule_action_and_citation() -> None:
    (row,) = facts(hit(), ended(TLS), strict=True)["rows"]
    assert (row["rule"], row["action"], row["placement"]) == ("sni-news", "reset", "on-path")
    assert (row["cite"], row["observed"], row["name"]) == ("Wu et al., S&P 2025", "2024-10", "www.blocked.example")


def test_different_names_servers_and_actions_are_different_rows() -> None:
    other = hit(HTTP, facts={"http.host": "b.example"})
    again = hit(TLS, rule="sni-other")
    down = hit(TLS_AGAIN, direction=DOWN)
    found = facts(hit(), other, again, down)
    assert [(row["rule"], row["name"], row["flows"]) for row in found["rows"]] == [
        ("sni-news", "www.blocked.example", 2),
        ("sni-news", "b.example", 1),
        ("sni-other", "www.blocked.example", 1),
    ]


def test_hits_to_the_client_keep_client_and_server_apart() -> None:
    (row,) = facts(hit(PING, direction=DOWN, facts={}))["rows"]
    assert (row["client"], row["server"], row["direction"]) == ("192.0.2.2", "203.0.113.10", "to_client")


def test_a_log_without_flow_records_still_counts_a_drop() -> None:
    found = facts(PacketDropped(START, TLS, "sni-news", DOWN, 40, 63, "x"))
    assert (found["dropped"], found["touched"], found["passed"]["flows"]) == (1, True, 0)


def test_faults_and_unreadable_lines_are_said() -> None:
    lines = [*log_of([EngineFault(START, "ZeroDivisionError: x")]), '{"timestamp": "2026-01', "[]", "7", "", '{"a":1}']
    text = rendered(lines, 200)
    assert "The engine failed 1 time; please report it: ZeroDivisionError: x\n" in text
    assert "4 lines of the event log could not be read.\n" in text


def test_what_packets_hold_cannot_drive_the_terminal() -> None:
    nasty = "a\x1b]0;x\x07[red]b\nc\u202e.example"
    evidence = Evidence("tls.sni", nasty, nasty, 0, 9, nasty.encode())
    text = rendered(log_of([hit(evidence=(evidence,), facts={"tls.sni": nasty})]), 200)
    assert "a\\x1b]0;x\\x07[red]b\\nc\\u202e.example" in text
    assert not {"\x1b", "\x07", "\u202e"} & set(text)


def test_colour_only_on_a_terminal() -> None:
    lines = log_of(RECORDS)
    assert "\x1b[" not in rendered(lines)
    assert "\x1b[31m" in rendered(lines, colour=True)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 132, 200])
def test_no_line_is_wider_than_the_console(width: int) -> None:
    text = rendered(log_of(RECORDS), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert not any(line.startswith("    ") and line.endswith(" ") for line in text.splitlines())
    assert "".join(text.split()).count("www.blocked.example,matchesblocked.example") == 2


@given(st.lists(st.sampled_from(RECORDS)), st.integers(min_value=30, max_value=200))
def test_any_log_renders_and_its_flows_add_up(records: list[Record], width: int) -> None:
    lines = log_of(records)
    rendered(lines, width)
    summary = VerdictTable.from_eve(lines).summary
    touched = {number for row in summary.rows if row.action not in HARMLESS for number in row.flows}
    assert summary.passed_flows + len(touched) <= summary.flows
    assert summary.unreadable == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "timestamp",
    "event_type",
    "flow_id",
    "alert",
    "censor",
    "src_ip",
    "dest_ip",
    "proto",
    "flow",
    "direction",
    "tls",
)


@given(st.sampled_from(log_of(RECORDS)), st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3), st.text())
def test_spoilt_logs_are_read_as_far_as_they_go(line: str, changes: dict[str, Any], rubbish: str) -> None:
    lines = [rubbish.replace("\n", " "), json.dumps({**json.loads(line), **changes}), line[: len(line) // 2]]
    rendered(lines)


@given(st.text(), st.integers(min_value=8, max_value=40))
def test_printable_is_printable_and_short(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
