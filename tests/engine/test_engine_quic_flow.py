"""QUIC by the rules of Zohaib et al. (USENIX Security 2025): first datagram of a flow, ports, a minute of memory."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from gfwemu.model import Side, Verdict
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.load import load_rules
from gfwemu.testing.playbook import Playbook, UdpTalk

DATA = Path(__file__).parents[3] / "shared" / "facts" / "data"

TEXT = """
version: 1
engine:
  quic: {reassembly: false, versions: [1], datagrams: 1, crypto_length: ignore, crypto_first: true}
  flows: {udp: 60s}
rules:
  - name: quic-sni
    match: {quic.sni: [google.com, blocked.example], port.client_above_server: true, initiator: inside}
    action: drop
    with: {direction: to_server, trigger: false}
    residual: {key: 3tuple, seconds: 180, action: drop, direction: to_server}
"""


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> RuleSet:
    path = tmp_path_factory.mktemp("quic") / "rules.yaml"
    path.write_text(TEXT)
    return load_rules([path])


def initial(name: str) -> bytes:
    connection = QuicConnection(
        configuration=QuicConfiguration(is_client=True, server_name=name, alpn_protocols=["h3"])
    )
    connection.connect(("203.0.113.80", 443), now=0.0)
    return connection.datagrams_to_send(now=0.0)[0][0]


def blocks(rules: RuleSet, *datagrams: tuple[float, bytes], client_port: int = 50_000, port: int = 443) -> bool:
    """Whether the flow's next datagram vanishes after these, each so many seconds behind the one before."""
    book = Playbook(rules)
    talk = UdpTalk(client_port=client_port, port=port)
    for after, datagram in datagrams:
        assert book.packet(talk.to_server(datagram), came_from=Side.INSIDE, after=after).verdict is Verdict.ACCEPT
    return book.packet(talk.to_server(b"follow-up"), came_from=Side.INSIDE).verdict is Verdict.DROP


BLOCKED = initial("www.blocked.example")


def test_the_first_datagram_alone_is_read(rules: RuleSet) -> None:
    assert blocks(rules, (0, BLOCKED))
    assert not blocks(rules, (0, initial("www.allowed.example")))
    assert not blocks(rules, (0, b"junk"), (0, BLOCKED))
    assert not blocks(rules, (0, initial("www.allowed.example")), (0, BLOCKED))


def test_after_a_minute_of_silence_the_next_datagram_is_the_first(rules: RuleSet) -> None:
    assert not blocks(rules, (0, b"junk"), (59, BLOCKED))
    assert blocks(rules, (0, b"junk"), (62, BLOCKED))
    assert not blocks(rules, (0, b"junk"), (40, b"junk"), (40, BLOCKED)), "each datagram keeps the memory"


@pytest.mark.parametrize(
    ("client_port", "port", "blocked"), [(444, 443, True), (443, 443, False), (442, 443, False), (6127, 6126, True)]
)
def test_only_where_the_clients_port_is_the_higher_one(
    rules: RuleSet, client_port: int, port: int, blocked: bool
) -> None:
    assert blocks(rules, (0, BLOCKED), client_port=client_port, port=port) == blocked


def rows() -> list[dict[str, str]]:
    try:
        with (DATA / "gfw_quic_triggers.tsv").open(newline="") as table:
            return list(csv.DictReader(table, delimiter="\t"))
    except FileNotFoundError:
        return []


@pytest.mark.skipif(not rows(), reason="needs the published payloads beside the checkout")
@pytest.mark.parametrize("row", rows(), ids=lambda row: row["payload"])
def test_the_published_payloads_come_out_as_they_did(rules: RuleSet, row: dict[str, str]) -> None:
    assert blocks(rules, (0, (DATA / row["file"]).read_bytes())) == (row["gfw_blocked"] == "yes")
