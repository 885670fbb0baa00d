from __future__ import annotations

import pytest

from gfwemu.model import FiveTuple, address_bytes
from gfwemu.report.community_id import community_id, known_community_id

# corelight/community-id-spec, baseline/baseline_deflt.json (seed 0). ICMP ports as that file maps them.
VECTORS = [
    (1, "192.168.0.89", "192.168.0.1", 8, 0, "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
    (1, "192.168.0.1", "192.168.0.89", 0, 8, "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
    (6, "128.232.110.120", "66.35.250.204", 34855, 80, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
    (6, "66.35.250.204", "128.232.110.120", 80, 34855, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
    (
        6,
        "2001:470:e5bf:dead:4957:2174:e82c:4887",
        "2607:f8b0:400c:c03::1a",
        63943,
        25,
        "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=",
    ),
    (17, "192.168.1.52", "8.8.8.8", 54585, 53, "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
    (17, "8.8.8.8", "192.168.1.52", 53, 54585, "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
    (46, "10.1.12.1", "10.1.12.2", 0, 0, "1:KHlLkgoJW7ifUTyTSgyVfkFHzKw="),
    (58, "fe80::200:86ff:fe05:80da", "fe80::260:97ff:fe07:69ea", 135, 136, "1:dGHyGvjMfljg6Bppwm3bg0LO8TY="),
    (132, "192.168.170.8", "192.168.170.56", 7, 7, "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs="),
]


@pytest.mark.parametrize(("proto", "src", "dst", "sport", "dport", "expected"), VECTORS)
def test_published_vectors(proto: int, src: str, dst: str, sport: int, dport: int, expected: str) -> None:
    assert community_id(FiveTuple(proto, address_bytes(src), sport, address_bytes(dst), dport)) == expected


def test_only_flows_with_known_ports_are_named() -> None:
    ends = (address_bytes("192.0.2.1"), 0, address_bytes("192.0.2.2"), 0)
    assert [known_community_id(FiveTuple(proto, *ends)) for proto in (1, 58, 132)] == ["", "", ""]
    assert known_community_id(FiveTuple(46, *ends)).startswith("1:")


def test_another_seed_gives_another_name() -> None:
    flow = FiveTuple(6, address_bytes("128.232.110.120"), 34855, address_bytes("66.35.250.204"), 80)
    assert community_id(flow, seed=1) == "1:3V71V58M3Ksw/yuFALMcW0LAHvc="
