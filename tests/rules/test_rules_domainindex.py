"""Several sets of names in one table, against one set after another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.rules.compiled import Matcher
from gfwemu.rules.domainindex import DomainIndex, is_indexed
from gfwemu.rules.domains import DomainBuilder, DomainSet
from gfwemu.rules.matchers import AnyOf, ExactSet

NAMES = st.lists(st.sampled_from(["a", "b", "aa", "com"]), min_size=1, max_size=4).map(".".join)
ENTRIES = st.builds(lambda kind, name: kind + name, st.sampled_from(["", "full:", "*."]), NAMES)


def domains(entries: list[str], exceptions: list[str]) -> DomainSet:
    builder = DomainBuilder()
    for entry in entries:
        builder.add(entry)
    builder.exceptions.update(exceptions)
    return builder.finish("@list")


SETS = st.builds(domains, st.lists(ENTRIES, max_size=5), st.lists(NAMES, max_size=2))
OPEN_SETS = st.builds(domains, st.lists(ENTRIES, max_size=5), st.just([]))
MATCHERS: st.SearchStrategy[Matcher] = st.one_of(SETS, st.builds(lambda *parts: AnyOf(parts), OPEN_SETS, OPEN_SETS))


@given(st.lists(MATCHERS, max_size=6), NAMES, st.sampled_from([str, str.upper, lambda name: name + "."]))
def test_the_table_finds_what_the_sets_find(matchers: list[Matcher], name: str, spelt: type[str]) -> None:
    index = DomainIndex((1 << number, matcher) for number, matcher in enumerate(matchers))
    value = spelt(name)
    found = index.matching(value)
    assert [bool(found >> number & 1) for number in range(len(matchers))] == [
        matcher.match(value) is not None for matcher in matchers
    ]


def test_what_the_table_cannot_hold() -> None:
    plain, excepted = domains(["a.com"], []), domains(["com"], ["a.com"])
    assert is_indexed(plain)
    assert is_indexed(excepted)
    assert is_indexed(AnyOf((plain, plain)))
    # `a.com` is an exception of one part, and listed by the other.
    refused = [
        AnyOf((plain, excepted)),
        domains(["keyword:a"], []),
        domains(["a.com", "regexp:a"], []),
        AnyOf((plain, ExactSet("", frozenset({"a.com"})))),
        ExactSet("", frozenset({"a.com"})),
        domains([f"name{number}.example" for number in range(20_001)], []),
    ]
    assert not any(is_indexed(matcher) for matcher in refused)
    with pytest.raises(ValueError, match="no plain set of names"):
        DomainIndex([(1, refused[0])])
