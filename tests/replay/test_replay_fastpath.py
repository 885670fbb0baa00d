"""What a replay tells, with packets that are only booked and without."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from captures import Record, pcap
from hypothesis import given, settings
from hypothesis import strategies as st

from gfwemu.cli.replay import _Outputs
from gfwemu.engine.engine import Engine
from gfwemu.replay.capture import read_capture
from gfwemu.replay.run import Replay, Totals
from gfwemu.report.verdicts import VerdictTable
from gfwemu.rules.catalogue import find_profile
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.load import load_rules
from gfwemu.testing.playbook import TcpTalk, UdpTalk

CAPTURES = sorted((Path(__file__).parents[1] / "data" / "captures").glob("*.pcap"))
START = 1_767_323_045.0
RULES = """\
version: 1
inside: [192.0.2.0/24]
engine: {flows: {tcp_established: 100s, udp: 20s}}
rules:
  - name: blocked
    match: {http.host: blocked.example}
    action: reset
    with: {injectors: [{delay: 50ms}]}
    residual: {key: 3tuple, seconds: 30}
  - {name: watched, match: {http.host: watched.example}, action: drop, with: {direction: to_client}}
  - {name: secure, match: {tls.sni: blocked.example}, action: reset}
"""
HOSTS = ("unknown", "unknown", "watched", "blocked")
Told = tuple[str, str, Totals]


class Counted:
    """A fast path that counts what it takes."""

    def __init__(self, engine: Engine) -> None:
        assert engine.fast_path is not None
        self._inner = engine.fast_path
        self.taken = 0

    def takes(self, data: bytes, now: float) -> bool:
        taken = self._inner.takes(data, now)
        self.taken += taken
        return taken


def told(capture: bytes, rules: RuleSet, *, quick: bool) -> tuple[Told, int]:
    """The event log, the summary and the totals; and how many packets the fast path took."""
    log = io.StringIO()
    sink = _Outputs(log, None)
    engine = Engine(rules, offload=False)
    fast_path = Counted(engine)
    run = Replay(engine, sink, inside=rules.inside, fast_path=fast_path if quick else None)
    run.run(read_capture(io.BytesIO(capture), "x.pcap"), "x.pcap")
    sink.flush()
    summary = json.dumps(VerdictTable(sink.summary.finish()).as_json())
    return (log.getvalue(), summary, run.totals), fast_path.taken


def talks(number: int, host: str, sizes: list[int]) -> list[bytes]:
    """A request, or what no dissector knows; answers of these sizes, acknowledged; the end."""
    server = ("192.0.2.10", "203.0.113.80") if number % 3 else ("2001:db8::10", "2001:db8:1::80")
    talk = TcpTalk(*server, client_port=1000 + number)
    request = b"\x8f" * 90 if host == "unknown" else f"GET / HTTP/1.1\r\nHost: {host}.example\r\n\r\n".encode()
    packets = [*talk.handshake(), talk.to_server(request)]
    for size in sizes:
        packets += [talk.to_client(b"a" * size), talk.to_server()]
    return [*packets, talk.to_server(flags=0x11), talk.to_client(flags=0x11), talk.to_server()]


@st.composite
def traffic(draw: st.DrawFn) -> list[Record]:
    """Some connections and a UDP flow, mixed, each in its own order."""
    sizes = st.lists(st.sampled_from([0, 1, 900]), max_size=6)
    flows = [talks(number, draw(st.sampled_from(HOSTS)), draw(sizes)) for number in range(draw(st.integers(1, 3)))]
    sound = UdpTalk(port=4000)
    flows.append([sound.to_server(b"y" * 40), sound.to_client(b"z" * 40)] * draw(st.integers(0, 4)))
    records, now = [], START
    while flows := [flow for flow in flows if flow]:
        now += draw(st.sampled_from([0.0, 0.001, 0.001, 0.1, 9.0]))
        records.append((now, draw(st.sampled_from(flows)).pop(0)))
    return records


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> RuleSet:
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(RULES)
    return load_rules([path])


@settings(max_examples=150)
@given(records=traffic(), cut=st.sampled_from([0, 0, 0, 10]))
def test_random_traffic_gives_the_same_log_and_summary(rules: RuleSet, records: list[Record], cut: int) -> None:
    capture = pcap(records, cut=cut)
    assert told(capture, rules, quick=True)[0] == told(capture, rules, quick=False)[0]


def test_the_fast_path_of_that_law_is_taken(rules: RuleSet) -> None:
    packets = talks(1, "unknown", [900] * 20)
    records = [(START + 0.01 * number, data) for number, data in enumerate(packets)]
    quick, taken = told(pcap(records), rules, quick=True)
    assert quick == told(pcap(records), rules, quick=False)[0]
    assert taken > 30
    assert json.loads(quick[0].splitlines()[-1])["flow"]["pkts_toclient"] == 22


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
@pytest.mark.parametrize("profile", ["sni-reset", "openvpn-block", "open"])
def test_recorded_traffic_gives_the_same_log_and_summary(capture: Path, profile: str) -> None:
    rules = load_rules([find_profile(profile)])
    data = capture.read_bytes()
    assert told(data, rules, quick=True)[0] == told(data, rules, quick=False)[0]
