"""What probers send, when and from where: the published numbers (Alice et al., IMC 2020, sections 3.2 to 4.2)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.engine.commands import SendProbes
from gfwemu.model import address_bytes
from gfwemu.prober.plan import Request, Type, choose, contents, delays, is_lab_address, prepare
from gfwemu.rules.actions import Probe
from gfwemu.rules.quantities import Varied

PAYLOAD = bytes(range(200))
DRAWS = 6000


def request(payload: bytes = PAYLOAD, server: str = "203.0.113.80", **changes: object) -> Request:
    order = SendProbes(7, "suspect", Probe(), address_bytes(server), 443, payload)
    return replace(Request.of(order), **changes)  # type: ignore[arg-type]


def type_of(name: str) -> Type:
    return next(one for one in request().types if one.name == name)


def changed(name: str, payload: bytes, seed: int = 1) -> list[int]:
    sent = contents(type_of(name), payload, random.Random(seed))
    assert len(sent) == len(payload)
    return [offset for offset, byte in enumerate(sent) if byte != payload[offset]]


@pytest.mark.parametrize(
    ("name", "offsets"),
    [("R1", []), ("R2", [0]), ("R3", [*range(8), 62, 63]), ("R4", [16]), ("R5", [6, 16])],
)
@given(payload=st.binary(min_size=64, max_size=700), seed=st.integers(0, 1000))
def test_replays_change_these_bytes_and_no_others(name: str, offsets: list[int], payload: bytes, seed: int) -> None:
    assert changed(name, payload, seed) == offsets


@given(payload=st.binary(min_size=1, max_size=20))
def test_a_short_payload_is_changed_as_far_as_it_goes(payload: bytes) -> None:
    assert changed("R3", payload) == list(range(min(8, len(payload))))


def test_random_probes_have_the_published_lengths_alike_often() -> None:
    rng = random.Random(3)
    lengths = Counter(len(contents(type_of("NR1"), b"", rng)) for _ in range(DRAWS))
    assert set(lengths) == {middle + step for middle in (8, 12, 16, 22, 33, 41, 49) for step in (-1, 0, 1)}
    assert max(lengths.values()) < 1.5 * min(lengths.values())
    assert {len(contents(type_of("NR2"), b"", rng)) for _ in range(50)} == {221}


def shares(answered: set[str]) -> Counter[str]:
    rng = random.Random(5)
    found = [choose(request(), answered, rng) for _ in range(DRAWS)]
    return Counter(one.name for one in found if one is not None)


def test_three_of_221_bytes_come_to_one_of_the_short_ones() -> None:
    """2306 to 778 in the paper; neighbours such as 2 or 4 to 1 would not pass."""
    seen = shares(set())
    assert seen["NR2"] / seen["NR1"] == pytest.approx(3, rel=0.12)


@pytest.mark.parametrize(
    ("answered", "staged"), [(set(), False), ({"NR1", "NR2"}, False), ({"R1"}, True), ({"R2"}, True)]
)
def test_r3_to_r5_come_only_after_an_answer_to_a_replay(answered: set[str], staged: bool) -> None:
    seen = shares(answered)
    assert {"R1", "R2", "NR1", "NR2"} <= set(seen)
    assert ({"R3", "R4", "R5"} <= set(seen)) is staged
    assert bool({"R3", "R4", "R5"} & set(seen)) is staged


def test_without_a_payload_there_are_no_replays() -> None:
    rng = random.Random(1)
    found = {one.name for _ in range(300) if (one := choose(request(b""), {"R1"}, rng)) is not None}
    assert found == {"NR1", "NR2"}


def test_delays_follow_the_published_quantiles() -> None:
    rng = random.Random(11)
    drawn = sorted(delay for _ in range(DRAWS // 200) for delay in delays(request(count=Varied.constant(200)), rng))
    assert drawn[0] >= 0.45
    assert drawn[-1] <= 1302
    for quantile, seconds in ((0.05, 0.58), (0.2, 0.86), (0.5, 37.0), (0.75, 884.0), (0.9, 1156.0)):
        share = sum(delay <= seconds for delay in drawn) / len(drawn)
        assert share == pytest.approx(quantile, abs=0.02)


def test_packets_look_as_published() -> None:
    rng = random.Random(13)
    attempts = [one for _ in range(DRAWS) if (one := prepare(request(), type_of("NR2"), rng)) is not None]
    assert len(attempts) == DRAWS
    assert Counter(one.ttl for one in attempts).keys() == {46, 47, 48, 49, 50}
    ports = [one.port for one in attempts]
    assert min(ports) >= 1212
    assert sum(32768 <= port <= 60999 for port in ports) / DRAWS == pytest.approx(0.9, abs=0.02)
    assert all(ip_address(one.source) in ip_network("192.0.2.192/26") for one in attempts)
    assert len({one.source for one in attempts}) == 62
    assert all(one.timeout < 10 for one in attempts)


def test_the_prober_s_address_is_of_the_server_s_family() -> None:
    attempt = prepare(request(server="2001:db8:f::80"), type_of("R1"), random.Random(1))
    assert attempt is not None
    assert ip_address(attempt.source) in ip_network("2001:db8:9::/64")
    only_v4 = request(server="2001:db8:f::80", pool=("192.0.2.192/26",))
    assert prepare(only_v4, type_of("R1"), random.Random(1)) is None


@given(seed=st.integers(0, 10_000))
def test_a_seed_settles_everything(seed: int) -> None:
    def campaign() -> list[object]:
        rng = random.Random(seed)
        drawn: list[object] = list(delays(request(), rng))
        kind = choose(request(), (), rng)
        assert kind is not None
        return [*drawn, kind.name, prepare(request(), kind, rng)]

    assert campaign() == campaign()


@given(payload=st.binary(max_size=300))
def test_a_request_travels_as_one_line(payload: bytes) -> None:
    line = request(payload).to_line()
    assert line.count(b"\n") == 1
    assert Request.from_line(line) == request(payload)


@pytest.mark.parametrize(
    ("address", "is_lab"),
    [
        ("192.0.2.1", True),
        ("203.0.113.255", True),
        ("198.51.100.7", True),
        ("2001:db8::1", True),
        ("203.0.114.1", False),
        ("10.0.0.1", False),
        ("127.0.0.1", False),
        ("2001:db9::1", False),
        ("::ffff:203.0.113.1", False),
    ],
)
def test_probes_go_to_documentation_addresses_only(address: str, is_lab: bool) -> None:
    assert is_lab_address(address) is is_lab
