from __future__ import annotations

import io
import json
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from captures import Record, pcap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR
from scapy.utils import PcapNgReader

import gfwemu.cli.replay
from gfwemu.cli.main import main
from gfwemu.model import FiveTuple, address_bytes
from gfwemu.wire.build import build_tcp, build_udp
from gfwemu.wire.packet import TcpFlags

SYN, ACK, PUSH = TcpFlags.SYN, TcpFlags.ACK, TcpFlags.PSH
START = 1_767_323_045.0

RULES = """\
version: 1
rules:
  - name: sni-news
    match: {tls.sni: blocked.example}
    action: reset
    placement: on-path
    with: {towards: both, injectors: [{delay: 5ms}]}
    residual: {key: 3tuple, seconds: 180}
    cite: "Wu et al., S&P 2025"
  - name: dns-forged
    match: {dns.qname: blocked.example}
    action: poison
    with: {a: [192.0.2.66]}
"""

Run = Callable[..., tuple[int, str, str]]


def hello(name: str) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def connection(port: int, name: str, start: float) -> list[Record]:
    """The handshake and the ClientHello, 10 ms apart."""
    up = FiveTuple(6, address_bytes("192.0.2.2"), port, address_bytes("198.51.100.7"), 443)
    segments = (
        build_tcp(up, seq=100, ack=0, flags=SYN),
        build_tcp(up.reversed(), seq=500, ack=101, flags=SYN | ACK),
        build_tcp(up, seq=101, ack=501, flags=ACK),
        build_tcp(up, seq=101, ack=501, flags=PUSH | ACK, payload=hello(name)),
    )
    return [(start + 0.01 * number, segment) for number, segment in enumerate(segments)]


def query(name: str, start: float) -> list[Record]:
    up = FiveTuple(17, address_bytes("192.0.2.2"), 5353, address_bytes("198.51.100.53"), 53)
    return [(start, build_udp(up, bytes(DNS(rd=1, qd=DNSQR(qname=name)))))]


SESSION = [
    *query("www.blocked.example", START),
    *connection(40000, "www.blocked.example", START + 1),
    *connection(40001, "ok.example", START + 2),
    *connection(40002, "ok.example", START + 300),
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `gfwemu replay ...` here; gives the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("rules.yaml").write_text(RULES)
    Path("session.pcap").write_bytes(pcap(SESSION))

    def go(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gfwemu", "replay", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return go


def test_the_verdict_table_of_a_session(run: Run) -> None:
    code, out, err = run("session.pcap", "--rules", "rules.yaml")
    assert (code, err) == (0, "")
    assert out.startswith("session.pcap: 13 IP packets, rules rules.yaml, seed 0\n\n    when  flow")
    assert "+0.000 s  dns www.blocked.example  dns-forged  poison       1\n" in out
    assert "+1.030 s  tls www.blocked.example  sni-news    reset        4\n" in out
    assert "    tls.sni = www.blocked.example, matches blocked.example\n" in out
    assert "    then blocked for 180 s\n" in out
    assert "    Wu et al., S&P 2025; rules.yaml:3:5\n" in out
    assert "+2.000 s  tcp 198.51.100.7:443     sni-news    reset        -\n" in out
    assert "    met a residual block (3tuple), 179 s left\n" in out
    assert "1 flow passed, 1 name: ok.example.\n" in out
    assert "A capture cannot react" in out


def test_json_has_the_same_verdicts(run: Run) -> None:
    code, out, _ = run("session.pcap", "--rules", "rules.yaml", "--json")
    told = json.loads(out)
    assert code == 0
    assert [(row["rule"], row["kind"]) for row in told["rows"]] == [
        ("dns-forged", "rule"),
        ("sni-news", "rule"),
        ("sni-news", "residual"),
    ]
    assert (told["touched"], told["passed"]) == (True, {"flows": 1, "names": ["ok.example"]})
    assert told["totals"]["packets"] == 13
    assert (told["capture"], told["rules"]) == ("session.pcap", "rules.yaml")


def test_the_event_log_is_eve(run: Run) -> None:
    run("session.pcap", "--rules", "rules.yaml", "--eve", "eve.json")
    events = [json.loads(line) for line in Path("eve.json").read_text().splitlines()]
    kinds = [event["event_type"] for event in events]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"dns": 1, "tls": 2, "alert": 3, "drop": 1, "flow": 4}
    alert = next(event for event in events if event["event_type"] == "alert" and event["proto"] == "TCP")
    assert alert["timestamp"] == "2026-01-02T03:04:06.030000+0000"
    assert alert["tls"]["sni"] == "www.blocked.example"


def test_the_capture_holds_what_was_forged_and_says_what_was_dropped(run: Run) -> None:
    run("session.pcap", "--rules", "rules.yaml", "--pcap", "out.pcapng", "--inside", "192.0.2.0/24")
    with PcapNgReader("out.pcapng") as reader:
        packets = list(reader)
    originals = [packet for packet in packets if packet.sniffed_on != "injected"]
    assert [bytes(packet) for packet in originals] == [data for _, data in SESSION]
    assert [packet.sniffed_on for packet in originals[1:4]] == ["inside", "outside", "inside"]
    assert [bool(packet.comments) for packet in originals] == [True] + [False] * 12
    assert originals[0].comments[0].startswith(b"dropped (dns-forged")
    forged = [packet for packet in packets if packet.sniffed_on == "injected"]
    assert all(packet.comments for packet in forged)
    resets = [packet for packet in forged if packet.haslayer("TCP")]
    assert float(resets[0].time) == pytest.approx(START + 1.035, abs=1e-6)


def test_its_own_capture_gives_the_same_verdicts(run: Run) -> None:
    run("session.pcap", "--rules", "rules.yaml", "--pcap", "out.pcapng")
    _, first, _ = run("session.pcap", "--rules", "rules.yaml", "--json")
    _, second, _ = run("out.pcapng", "--rules", "rules.yaml", "--json")
    assert json.loads(first)["rows"] == json.loads(second)["rows"]
    _, text, _ = run("out.pcapng", "--rules", "rules.yaml")
    assert "packets forged by an earlier run of gfwemu left out.\n" in text


def test_innocent_names_pass(run: Run) -> None:
    Path("ok.pcap").write_bytes(pcap(connection(40000, "ok.example", START)))
    code, out, _ = run("ok.pcap", "--rules", "rules.yaml")
    assert code == 0
    assert out.endswith("\n\nNothing was touched.\n1 flow passed, 1 name: ok.example.\n")


def test_a_shipped_profile_by_name(run: Run) -> None:
    code, out, _ = run("session.pcap", "--profile", "open", "--json")
    assert code == 0
    assert json.loads(out)["touched"] is False


def test_remarks_on_the_capture(run: Run) -> None:
    records = connection(40000, "ok.example", START)
    records[2] = (START - 9, records[2][1])
    Path("odd.pcap").write_bytes(pcap([*records, (START, b"\x00arp")], cut=1))
    _, out, _ = run("odd.pcap", "--rules", "rules.yaml")
    assert "1 frame held no IP packet (ARP and such).\n" in out
    assert "4 packets cut by the capture's snap length: what was cut could not be judged.\n" in out
    assert "1 timestamp ran backwards; the clock stood still meanwhile.\n" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["session.pcap"], 2, "say which censor: --profile NAME (`gfwemu list profiles` shows them) or --rules FILE"),
        (["none.pcap", "--rules", "rules.yaml"], 2, "none.pcap: No such file or directory"),
        ([".", "--rules", "rules.yaml"], 2, ".: Is a directory"),
        (["session.pcap", "--profile", "sni-rest"], 2, "there is no profile 'sni-rest'; did you mean 'sni-reset'?"),
        (["session.pcap", "--rules", "bad.yaml"], 3, "bad.yaml:1:10: 'version'"),
        (
            ["session.pcap", "--rules", "rules.yaml", "--inside", "here"],
            2,
            "--inside: 'here' is not a network; write it as in 192.0.2.0/24",
        ),
        (
            ["session.pcap", "--rules", "rules.yaml", "--pcap", "session.pcap"],
            2,
            "session.pcap is the capture itself; write to another file",
        ),
        (
            ["session.pcap", "--rules", "rules.yaml", "--eve", "none/eve.json"],
            2,
            "none/eve.json: No such file or directory",
        ),
        (["rules.yaml", "--rules", "rules.yaml"], 2, "rules.yaml: at byte 0: neither pcap nor pcapng"),
        (["wifi.pcap", "--rules", "rules.yaml"], 2, "wifi.pcap: at byte 24: link type 105 is not supported"),
    ],
)
def test_errors_are_one_sentence(run: Run, arguments: list[str], code: int, message: str) -> None:
    Path("bad.yaml").write_text("version: 7\n")
    Path("wifi.pcap").write_bytes(pcap([(START, b"x")], link=105))
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith(f"gfwemu: {message}")
    assert "Traceback" not in err


def test_a_damaged_capture_still_tells_what_came_before(run: Run) -> None:
    Path("torn.pcap").write_bytes(pcap(SESSION)[:-5])
    code, out, err = run("torn.pcap", "--rules", "rules.yaml")
    assert code == 2
    assert "+1.030 s  tls www.blocked.example" in out
    assert err.startswith("gfwemu: torn.pcap: at byte ")
    assert "the file ends inside frame 13: " in err


def test_standard_input(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    done = subprocess.run(
        [sys.executable, "-m", "gfwemu", "replay", "-", "--rules", str(rules), "--json"],
        input=pcap(SESSION),
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["rows"][0]["rule"] == "dns-forged"


def test_the_censor_clock_may_run_faster_and_start_elsewhere(run: Run) -> None:
    """The capture's second connection comes a second after the first, whose block lasts for 180."""

    def met(*options: str) -> int:
        run("session.pcap", "--rules", "rules.yaml", "--eve", "eve.json", *options)
        return Path("eve.json").read_text().count('"kind":"residual"')

    assert met() == 1
    assert met("--time-scale", "1000") == 0
    night = 'schedule: {dates: 2025-08-20, hours: "00:34-01:48", timezone: "+08:00"}'
    Path("rules.yaml").write_text(RULES.replace("    action: reset", f"    {night}\n    action: reset"))
    assert met() == 0
    assert met("--start-time", "2025-08-20T00:40+08:00") == 1
    code, _, err = run("session.pcap", "--rules", "rules.yaml", "--start-time", "soon")
    assert code == 2
    assert "'soon' is no moment; write it as in 2025-08-20T00:30+08:00" in err


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--time-scale", "nan", "'nan' is not a number"),
        ("--time-scale", "inf", "inf is not in the range"),
        ("--time-scale", "1e-9", "1e-09 is not in the range"),
        ("--start-time", "1969-12-31", "'1969-12-31' is not in the years 1970 to 2999"),
        ("--start-time", "1970-01-01T00:00+08:00", "is not in the years 1970 to 2999"),
        ("--start-time", "9999-12-31T23:59", "is not in the years 1970 to 2999"),
    ],
)
def test_a_clock_that_leaves_the_calendar_is_refused(run: Run, option: str, value: str, said: str) -> None:
    code, out, err = run("session.pcap", "--rules", "rules.yaml", option, value)
    assert (code, out) == (2, "")
    assert said in err


def test_the_same_seed_gives_the_same_log(run: Run) -> None:
    Path("dice.yaml").write_text(RULES.replace("    action: reset", "    probability: 0.5\n    action: reset"))
    sessions = [connection(41000 + n, "www.blocked.example", START + 200 * n) for n in range(40)]
    Path("many.pcap").write_bytes(pcap([record for session in sessions for record in session]))
    hits = []
    for seed in ("1", "1", "2"):
        _, out, _ = run("many.pcap", "--rules", "dice.yaml", "--seed", seed, "--eve", f"eve{seed}.json")
        assert f"rules dice.yaml, seed {seed}\n" in out
        hits.append(Path(f"eve{seed}.json").read_text())
    assert hits[0] == hits[1] != hits[2]
    assert 5 < hits[0].count('"kind":"rule"') < 35


def test_a_long_replay_shows_its_progress_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(gfwemu.cli.replay, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(gfwemu.cli.replay, "_FRAMES_BETWEEN_LOOKS", 1)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    code, out, _ = run("session.pcap", "--rules", "rules.yaml", "--json")
    assert code == 0
    assert "Replaying" in terminal.getvalue()
    assert json.loads(out)["totals"]["packets"] == 13


SPOILT = pcap(SESSION)
CHANGES = st.lists(
    st.tuples(st.integers(min_value=0, max_value=len(SPOILT) - 1), st.integers(min_value=0, max_value=255)), max_size=12
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES, st.integers(min_value=1, max_value=len(SPOILT)))
def test_whatever_the_capture_holds_there_is_no_traceback(run: Run, changes: list[tuple[int, int]], end: int) -> None:
    data = bytearray(SPOILT)
    for at, value in changes:
        data[at] = value
    Path("spoilt.pcap").write_bytes(bytes(data[:end]))
    code, out, err = run("spoilt.pcap", "--rules", "rules.yaml", "--eve", "eve.json", "--pcap", "out.pcapng", "--json")
    assert code in (0, 2)
    assert err == "" if code == 0 else err.startswith("gfwemu: spoilt.pcap: at byte ")
    assert "faults" not in out or json.loads(out)["faults"] == []


def test_help_has_examples(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "gfwemu replay session.pcapng --profile china" in out
    assert "A capture cannot react" in out
