"""Forged answers, as dnslib and the published constants read them."""

from __future__ import annotations

import pytest
from dnslib import QTYPE, DNSRecord
from hypothesis import given
from hypothesis import strategies as st
from test_dissect_dns import query, wire_name

from gfwemu.dissect.dns_answer import build_answer
from gfwemu.dissect.dns_message import parse_query
from gfwemu.model import address_bytes

# dnslib refuses labels that are not ASCII.
ascii_labels = st.lists(st.integers(0, 127), min_size=1, max_size=20).map(bytes)

A, AAAA = address_bytes("192.0.2.7"), address_bytes("2001:db8::7")


def test_bytes_of_an_answer() -> None:
    """China's third injector: 0x8180, name pointer C00C (Wallbleed, NDSS 2025)."""
    question = b"\x03WwW\x07example\x00\x00\x01\x00\x01"
    answer = build_answer(parse_query(query(question)), [A], ttl=300)
    assert answer.hex() == (
        "12348180000100010000000003577757076578616d706c650000010001c00c000100010000012c0004c0000207"
    )


@pytest.mark.parametrize(
    ("rd", "authoritative", "recursion_available", "flags"),
    [
        (True, False, True, 0x8180),
        (True, True, True, 0x8580),
        (False, True, False, 0x8400),
        (False, False, False, 0x8000),
    ],
)
def test_flags(rd: bool, authoritative: bool, recursion_available: bool, flags: int) -> None:
    asked = parse_query(query(flags=0x0100 if rd else 0))
    answer = build_answer(asked, [A], ttl=1, authoritative=authoritative, recursion_available=recursion_available)
    assert int.from_bytes(answer[2:4], "big") == flags


def test_no_such_name() -> None:
    record = DNSRecord.parse(build_answer(parse_query(query()), [], ttl=60, rcode=3))
    assert record.header.rcode == 3
    assert record.rr == []


def test_the_extra_record_of_edns_is_dropped() -> None:
    asked = parse_query(query(counts=(1, 0, 0, 1), tail=b"\0\0\x29\x04\xd0\0\0\0\0\0\0"))
    record = DNSRecord.parse(build_answer(asked, [A], ttl=60))
    assert (len(record.questions), len(record.rr), len(record.ar)) == (1, 1, 0)


@given(
    st.lists(ascii_labels, min_size=1, max_size=6),
    st.lists(st.sampled_from([A, AAAA]), max_size=4),
    st.integers(0, 2**31 - 1),
    st.sampled_from([1, 28, 16, 65]),
)
def test_as_dnslib_reads_it(labels: list[bytes], addresses: list[bytes], ttl: int, qtype: int) -> None:
    payload = query(wire_name(*labels) + qtype.to_bytes(2, "big") + b"\0\1")
    record = DNSRecord.parse(build_answer(parse_query(payload), addresses, ttl=ttl))
    assert record.header.id == 0x1234
    assert [bytes(label) for label in record.q.qname.label] == labels
    assert record.q.qtype == qtype
    assert [rr.ttl for rr in record.rr] == [ttl] * len(addresses)
    assert [rr.rtype for rr in record.rr] == [QTYPE.A if len(address) == 4 else QTYPE.AAAA for address in addresses]
    assert [bytes(rr.rdata.data) for rr in record.rr] == addresses
    assert all(rr.rname == record.q.qname for rr in record.rr)
