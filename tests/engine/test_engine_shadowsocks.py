"""The length and entropy of a connection's first packet as rules (Alice et al., IMC 2020, section 4)."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.engine.facts import entropy
from gfwemu.engine.records import RuleHit
from gfwemu.model import Direction
from gfwemu.rules.compiled import CompiledRule
from gfwemu.rules.load import load_rules
from gfwemu.testing.playbook import Playbook, TcpTalk

RULES = load_rules([Path(__file__).parent.parent / "data" / "rules" / "china-shadowsocks.yaml"])


def hits(payload: bytes, seed: int) -> list[str]:
    book = Playbook(RULES, seed=seed)
    talk = TcpTalk()
    for packet in talk.handshake():
        book.packet(packet)
    told = book.packet(talk.to_server(payload)).told(RuleHit)
    return [hit.rule for hit in told if isinstance(hit, RuleHit)]


def of_entropy(bits: float, length: int) -> bytes:
    """Random bytes of 2 ** bits values."""
    return bytes(random.Random(length).choices(range(int(2**bits)), k=length))


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"\x07", 0.0),
        (b"a" * 100, 0.0),
        (b"ab" * 50, 1.0),
        (bytes(range(16)) * 3, 4.0),
        (bytes(range(256)), 8.0),
        (b"aab", math.log2(3) - 2 / 3),
    ],
)
def test_entropy_is_shannon_s(payload: bytes, expected: float) -> None:
    assert entropy(payload) == pytest.approx(expected)


@given(st.binary(min_size=1, max_size=300))
def test_entropy_has_its_bounds(payload: bytes) -> None:
    assert -1e-9 <= entropy(payload) <= math.log2(min(256, len(payload))) + 1e-9


def probability_of(payload: bytes) -> float:
    """That of the one rule whose conditions hold for a first packet; 0 where none does."""
    book = Playbook(RULES)
    talk = TcpTalk()
    for packet in talk.handshake():
        book.packet(packet)
    facts = {
        "transport": "tcp",
        "direction": Direction.TO_SERVER.value,
        "payload.number": 1,
        "payload.length": len(payload),
        "payload.length_mod16": len(payload) % 16,
        "payload.entropy": entropy(payload),
    }

    def holds(rule: CompiledRule) -> bool:
        return all(condition.matcher.match(facts[condition.field]) is not None for condition in rule.conditions)

    found = [rule.probability for rule in RULES.rules if holds(rule)]
    assert len(found) <= 1, "the classes do not overlap"
    return float(found[0]) if found else 0.0


def shares(lengths: range) -> dict[int, float]:
    """By remainder modulo 16, its share of what triggers among first packets of all these lengths."""
    weights = dict.fromkeys(range(16), 0.0)
    for length in lengths:
        weights[length % 16] += probability_of(of_entropy(8, length))
    total = sum(weights.values())
    return {remainder: weight / total for remainder, weight in weights.items()}


@pytest.mark.parametrize(
    ("lengths", "remainder", "share"),
    [
        (range(168, 264), 9, 0.72),
        (range(264, 376), 9, 0.37),
        (range(264, 376), 2, 0.32),
        (range(384, 688), 2, 0.96),
    ],
)
def test_lengths_trigger_in_the_published_shares(lengths: range, remainder: int, share: float) -> None:
    assert len(lengths) % 16 == 0
    assert shares(lengths)[remainder] == pytest.approx(share, abs=0.01)


def test_high_entropy_triggers_four_times_as_often() -> None:
    high, low = of_entropy(8, 201), of_entropy(3, 201)
    assert entropy(high) > 6.9
    assert entropy(low) < 3.0
    assert probability_of(high) == pytest.approx(4 * probability_of(low))


@pytest.mark.parametrize("length", [1, 100, 167, 688, 1400])
def test_other_lengths_never_trigger(length: int) -> None:
    assert probability_of(of_entropy(8, length)) == 0


def test_the_engine_throws_these_dice() -> None:
    seen = [hits(of_entropy(8, 201), seed) for seed in range(300)]
    assert {name for names in seen for name in names} == {"shadowsocks-168-263-9-high"}
    assert 0.75 - 0.08 < sum(map(len, seen)) / 300 < 0.75 + 0.08
