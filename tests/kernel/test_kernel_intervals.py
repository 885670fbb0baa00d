"""Large address sets: filled in several transactions, and made ready beside a table at work."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest
from kernel_net import INSIDE, OUTSIDE, in_namespaces, run

from gfwemu.kernel.intervals import fill, ranges
from gfwemu.kernel.netlink import NetfilterSocket
from gfwemu.kernel.nft import Nft, NftError
from gfwemu.kernel.ruleset import Ends
from gfwemu.kernel.table import Table
from gfwemu.rules.plan import KernelPlan, KernelRule

COUNT = 3000
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Counting(NetfilterSocket):
    """Counts transactions."""

    sent = 0

    def send(self, messages: Sequence[bytes]) -> None:
        self.sent += 1
        super().send(messages)


def plan(*servers: str) -> KernelPlan:
    return KernelPlan((KernelRule(0, "listed", "drop", servers=servers),))


@in_namespaces
def test_every_ipv4_interval_gets_into_the_set() -> None:
    for longest, transactions in ((1 << 20, 1), (100_000, 2), (100, 4)):
        assert _filled("ipv4_addr", ipaddress.IPv4Address, longest) == transactions


@in_namespaces
def test_every_ipv6_interval_gets_into_the_set() -> None:
    for longest, transactions in ((1 << 20, 1), (100_000, 3), (100, 4)):
        assert _filled("ipv6_addr", ipaddress.IPv6Address, longest) == transactions


def _filled(kind: str, address: type[Address], longest: int) -> int:
    """Fills a set up to the last address of all and looks at it. Returns in how many transactions."""
    last = int(address(bytes([255]) * (4 if kind == "ipv4_addr" else 16))) + 1
    step = last >> 13
    spans = [(last - step * number, last - step * number + step // 2) for number in range(COUNT, 1, -1)]
    spans.append((last - step // 2, last))
    run(f"nft add table inet t; nft add set inet t s '{{ type {kind}; flags interval; }}'")
    netfilter = Counting()
    netfilter.longest = longest
    fill(netfilter, "t", "s", spans, 4 if kind == "ipv4_addr" else 16)
    netfilter.close()
    listed = run("nft list set inet t s")
    run("nft delete table inet t")
    assert listed.count("/") == COUNT
    for first, end in (spans[0], spans[799], spans[800], spans[-2], spans[-1]):
        assert f"{address(first)}/{(last // (end - first)).bit_length() - 1}" in listed
    return netfilter.sent


def test_ranges_of_any_order_are_sorted() -> None:
    networks = ["255.0.0.0/8", "0.0.0.0/8", "9.0.0.0/9", "8.0.0.0/8", "9.128.0.0/9"]
    assert ranges(networks, 4) == [(0, 1 << 24), (8 << 24, 10 << 24), (255 << 24, 1 << 32)]


@in_namespaces
def test_what_was_prepared_takes_force_without_being_made_again() -> None:
    table = Table(Nft(), Ends(INSIDE, OUTSIDE))
    table.install(plan("198.51.100.0/24"))
    new = plan("203.0.113.0/24")
    table.prepare(new)
    assert "198.51.100.0/24" in run("nft list set inet gfwemu rule0_g1_servers4")
    # A mark in the prepared set: it would not survive another making.
    run("nft add element inet gfwemu rule0_g2_servers4 { 192.0.2.7 }")
    table.replace(new)
    listed = run("nft list table inet gfwemu")
    assert "192.0.2.7" in listed
    assert "rule0_g1" not in listed
    table.close()


@in_namespaces
def test_what_was_prepared_in_vain_is_taken_away() -> None:
    table = Table(Nft(), Ends(INSIDE, OUTSIDE))
    table.install(plan("198.51.100.0/24"))
    before = run("nft list table inet gfwemu")
    table.prepare(plan("203.0.113.0/24"))
    table.forget()
    assert run("nft list table inet gfwemu") == before
    table.prepare(plan("203.0.113.0/24"))
    table.replace(plan("192.0.2.0/24"))
    assert "203.0.113" not in run("nft list table inet gfwemu")
    table.close()


@in_namespaces
def test_a_plan_that_cannot_be_prepared_leaves_nothing() -> None:
    table = Table(Nft(), Ends(INSIDE, OUTSIDE))
    table.install(plan("198.51.100.0/24"))
    run("nft add set inet gfwemu rule0_g2_servers4 '{ type ipv6_addr; flags interval; }'")
    with pytest.raises(NftError):
        table.prepare(plan("203.0.113.0/24"))
    assert "rule0_g2" not in run("nft list table inet gfwemu")
    table.close()
