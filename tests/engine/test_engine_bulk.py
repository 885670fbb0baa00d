"""Flows of which only sizes count: when their packets may come unsplit, and what those count as."""

from __future__ import annotations

import pytest
from rulekit import rule, ruleset

from gfwemu.engine.commands import SetVerdict
from gfwemu.engine.events import PacketArrived, Stopping
from gfwemu.engine.records import FlowEnded
from gfwemu.model import Side, Verdict
from gfwemu.rules.compiled import RuleSet, TcpOptions
from gfwemu.testing.playbook import Playbook, TcpTalk

SERVER = {"ip.server": "203.0.113.80"}
SEGMENT = 1000
HEADERS = 40


def _opened(book: Playbook, talk: TcpTalk, answers: int = 40) -> list[SetVerdict]:
    """The handshake, a request and so many full segments; their verdicts."""
    packets = [*talk.handshake(), talk.to_server(b"GET")]
    packets += [talk.to_client(bytes(SEGMENT)) for _ in range(answers)]
    verdicts = [book.packet(packet).own for packet in packets]
    assert all(verdicts)
    return [verdict for verdict in verdicts if verdict is not None]


def _unsplit(book: Playbook, talk: TcpTalk, payload: int) -> SetVerdict:
    """So many payload bytes in packets of at most 60 segments, of which 256 bytes are handed over; the last verdict."""
    while True:
        size = min(payload, 60 * SEGMENT)
        payload -= size
        data = talk.to_client(bytes(size))
        number = 1_000_000 + payload
        book.waiting.add(number)
        commands = book.send(PacketArrived(number, data[:256], book.now, Side.OUTSIDE, None, len(data))).commands
        if not payload:
            return next(command for command in commands if isinstance(command, SetVerdict))


def test_a_flow_is_bulk_once_it_is_known_and_while_its_end_is_far() -> None:
    book, talk = Playbook(ruleset(rule("freeze", SERVER, packets=10_000))), TcpTalk()
    verdicts = _opened(book, talk)
    assert [verdict.bulk for verdict in verdicts] == [False] * 31 + [True] * (len(verdicts) - 31)
    near = _unsplit(book, talk, 5990 * SEGMENT)
    assert (near.verdict, near.bulk) == (Verdict.ACCEPT, False)


def test_unsplit_packets_count_as_their_segments() -> None:
    book, talk = Playbook(ruleset(rule("freeze", SERVER, packets=10_000))), TcpTalk()
    seen = len(_opened(book, talk))
    _unsplit(book, talk, 45 * SEGMENT + 1)
    book.wait(1.0)
    (ended,) = (record for record in book.send(Stopping(book.now)).told(FlowEnded) if isinstance(record, FlowEnded))
    assert ended.packets_to_server + ended.packets_to_client == seen + 46
    # SYN/ACK, 40 segments that were seen, 46 that were not.
    assert ended.bytes_to_client == 87 * HEADERS + 40 * SEGMENT + 45 * SEGMENT + 1


@pytest.mark.parametrize(
    ("parameters", "payload"),
    [
        ({"bytes": "6MB", "counting": "to_client", "payload_only": True}, 6_000_000 - 40 * SEGMENT),
        ({"packets": 6000, "counting": "to_client", "payload_only": True}, 5960 * SEGMENT),
    ],
)
def test_the_end_comes_where_it_would_on_the_wire(parameters: dict[str, object], payload: int) -> None:
    book, talk = Playbook(ruleset(rule("freeze", SERVER, **parameters))), TcpTalk()
    assert _opened(book, talk)[-1].bulk
    assert _unsplit(book, talk, payload).verdict is Verdict.ACCEPT
    assert book.packet(talk.to_client(b"x")).verdict is Verdict.DROP


@pytest.mark.parametrize(
    "rules",
    [
        ruleset(rule("freeze", SERVER, packets=4000)),
        ruleset(rule("freeze", SERVER, bytes="4MB")),
        ruleset(rule("delay", SERVER, time=0.1), rule("freeze", SERVER, packets=10_000)),
        ruleset(rule("throttle", SERVER, rate="1mbit"), rule("freeze", SERVER, packets=10_000)),
        ruleset(
            rule("freeze", SERVER, packets=10_000),
            tcp=TcpOptions(verify_checksum=True),
        ),
    ],
)
def test_a_flow_whose_real_packets_matter_is_never_bulk(rules: RuleSet) -> None:
    book, talk = Playbook(rules), TcpTalk()
    packets = [*talk.handshake(), *(talk.to_client(bytes(SEGMENT)) for _ in range(40))]
    commands = [command for packet in packets for command in book.packet(packet).commands]
    assert not any(command.bulk for command in commands if isinstance(command, SetVerdict))


def test_without_offload_no_flow_is_bulk() -> None:
    book, talk = Playbook(ruleset(rule("freeze", SERVER, packets=10_000)), offload=False), TcpTalk()
    assert not any(verdict.bulk for verdict in _opened(book, talk))
