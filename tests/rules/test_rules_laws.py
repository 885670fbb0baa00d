"""Matchers against naive readings of the same entries."""

from __future__ import annotations

import ipaddress
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.errors import Problem
from gfwemu.rules.conditions import Names
from gfwemu.rules.domains import DomainBuilder
from gfwemu.rules.draft import Draft, read_drafts
from gfwemu.rules.files import SourceFile
from gfwemu.rules.matchers import Numbers, parse_interval
from gfwemu.rules.networks import NetworkSet, network_text, parse_network
from gfwemu.rules.patterns import Keywords
from gfwemu.rules.shadow import _covers, shadowing
from gfwemu.rules.tree import Mapping, parse_tree

LABELS = st.sampled_from(["a", "b", "aa", "ab", "x-1", "com"])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
ENTRIES = st.builds(lambda kind, name: kind + name, st.sampled_from(["", "full:", "*.", "keyword:"]), NAMES)


def naive_domain(entry: str, name: str) -> bool:
    if entry.startswith("full:"):
        return name == entry.removeprefix("full:")
    if entry.startswith("*."):
        return name.endswith(entry[1:])
    if entry.startswith("keyword:"):
        return entry.removeprefix("keyword:") in name
    return name == entry or name.endswith("." + entry)


def domain_set(entries: list[str]) -> Any:
    builder = DomainBuilder()
    for entry in entries:
        builder.add(entry)
    return builder.finish("")


@given(st.lists(ENTRIES, max_size=6), NAMES)
def test_domains_match_as_the_naive_reading(entries: list[str], name: str) -> None:
    found = domain_set(entries).match(name)
    hits = [entry for entry in entries if naive_domain(entry, name)]
    assert (found is not None) == bool(hits)
    assert found is None or naive_domain(found, name)


@given(st.lists(ENTRIES, min_size=1, max_size=5), st.lists(ENTRIES, min_size=1, max_size=5), NAMES)
def test_a_covering_domain_set_matches_all_that_the_other_does(wide: list[str], narrow: list[str], name: str) -> None:
    one, other = domain_set(wide), domain_set(narrow)
    if one.covers(other) and other.match(name) is not None:
        assert one.match(name) is not None


@given(st.sets(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=200), st.text("abcd", max_size=40))
def test_keywords_few_or_many_are_found_as_by_in(texts: set[str], subject: str) -> None:
    found = Keywords(texts).search(subject)
    assert (found is not None) == any(text in subject for text in texts)
    assert found is None or found in subject


NETWORKS = st.one_of(
    st.builds(lambda n, p: ipaddress.ip_network((n, p), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(
        lambda n, p: ipaddress.ip_network((n, p), strict=False), st.integers(2**127, 2**128 - 1), st.integers(0, 128)
    ),
)
ADDRESSES = st.one_of(
    st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address), st.integers(2**127, 2**128 - 1).map(ipaddress.IPv6Address)
)


@given(st.lists(NETWORKS, max_size=8), st.lists(ADDRESSES, max_size=8))
def test_networks_match_as_the_standard_library_says(networks: list[Any], addresses: list[Any]) -> None:
    matcher = NetworkSet("@nets", [parse_network(str(network)) for network in networks])
    probes = [*addresses, *(network.network_address for network in networks), *(n.broadcast_address for n in networks)]
    for address in probes:
        hits = [network for network in networks if address in network]
        found = matcher.match(address.packed)
        if not hits:
            assert found is None
        else:
            longest = max(hits, key=lambda network: network.prefixlen)
            assert found == f"{longest} from @nets"
    assert sorted(map(network_text, matcher)) == sorted({str(network) for network in networks})


@given(st.lists(NETWORKS, min_size=1, max_size=4), st.lists(NETWORKS, min_size=1, max_size=4))
def test_overlap_and_cover_agree_with_the_standard_library(left: list[Any], right: list[Any]) -> None:
    one, other = (NetworkSet("", [parse_network(str(n)) for n in nets]) for nets in (left, right))
    assert one.overlaps(other) == any(a.version == b.version and a.overlaps(b) for a in left for b in right)
    assert one.covers(other) == all(any(a.version == b.version and b.subnet_of(a) for a in left) for b in right)


BOUNDS = st.integers(0, 30)
COMPARISONS = st.one_of(
    st.builds(lambda sign, n: f"{sign}{n}", st.sampled_from([">", ">=", "<", "<=", "=", ""]), BOUNDS),
    st.builds(lambda a, b: f"{min(a, b)}-{max(a, b)}", BOUNDS, BOUNDS),
    st.builds(lambda a, b: f">{min(a, b)} <={max(a, b) + 1}", BOUNDS, BOUNDS),
).filter(lambda text: text != "<0")
COMPARISON_LISTS = st.lists(COMPARISONS, min_size=1, max_size=4)


def naive_number(text: str, number: int) -> bool:
    if "-" in text:
        low, _, high = text.partition("-")
        return int(low) <= number <= int(high)

    def holds(part: str) -> bool:
        sign = part.rstrip(string.digits)
        bound = int(part[len(sign) :])
        return {
            ">": number > bound,
            ">=": number >= bound,
            "<": number < bound,
            "<=": number <= bound,
            "=": number == bound,
            "": number == bound,
        }[sign]

    return all(holds(part) for part in text.split())


@given(COMPARISON_LISTS, st.integers(0, 40))
def test_numbers_match_as_the_naive_reading(texts: list[str], number: int) -> None:
    matcher = Numbers(tuple(parse_interval(text) for text in texts))
    found = matcher.match(number)
    assert (found is not None) == any(naive_number(text, number) for text in texts)
    if matcher.exhausted(number):
        assert not any(naive_number(text, larger) for text in texts for larger in range(number, 80))


@given(COMPARISON_LISTS, COMPARISON_LISTS)
def test_covering_numbers_match_all_that_the_others_do(wide: list[str], narrow: list[str]) -> None:
    one, other = (Numbers(tuple(parse_interval(text) for text in texts)) for texts in (wide, narrow))
    if one.covers(other):
        assert all(one.match(n) is not None for n in range(60) if other.match(n) is not None)


MATCHES = st.fixed_dictionaries(
    {},
    optional={
        "tls.sni": st.lists(ENTRIES, min_size=1, max_size=3),
        "port.server": st.lists(st.sampled_from(["1", "2", "1-3", ">=2"]), min_size=1, max_size=2),
        "ip.server": st.lists(
            st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "::/0"]), min_size=1, max_size=2
        ),
        "transport": st.sampled_from(["tcp", "udp", ["tcp", "udp"], {"not": "udp"}]),
        "tcp.flags": st.sampled_from(["S", {"prefix": "S"}, ["S", "SA"]]),
    },
)


@given(st.lists(MATCHES, min_size=2, max_size=5))
def test_the_index_of_rules_finds_what_comparing_all_pairs_finds(matches: list[dict[str, Any]]) -> None:
    drafts = [draft_of(index, match) for index, match in enumerate(matches)]
    if all(drafts):
        found = {problem.message.split("'")[1] for problem in shadowing(drafts)}  # type: ignore[arg-type]
        assert found == set(naive_shadowing(drafts))  # type: ignore[arg-type]


def draft_of(index: int, match: dict[str, Any]) -> Draft | None:
    """A rule that drops; None where its match is impossible for other reasons."""
    text = yaml.safe_dump({"rules": [{"name": f"r{index}", "match": match, "action": "drop"}]})
    tree, _ = parse_tree(text.encode(), f"{index}.yaml")
    assert isinstance(tree, Mapping)
    problems: list[Problem] = []
    source = SourceFile(Path("x"), "x", tree, None)
    drafts = read_drafts(source, Names({}, frozenset(), frozenset(), Path()), problems)
    return drafts[0] if not problems else None


def naive_shadowing(drafts: list[Draft]) -> Iterator[str]:
    seen: list[Draft] = []
    for draft in drafts:
        (later,) = draft.alternatives
        if any(_covers((one, one.alternatives[0]), (draft, later)) for one in seen):
            yield draft.name
        else:
            seen.append(draft)
