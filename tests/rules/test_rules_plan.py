"""What of a rule file the kernel decides."""

from __future__ import annotations

from pathlib import Path

import pytest
from rule_files import load_text

from gfwemu.rules.plan import KernelPlan, KernelRule, compile_plan


def plan_of(directory: Path, *rules: str, lists: str = "{}") -> KernelPlan:
    numbered = "".join(f"  - {{name: r{index}, {rule}}}\n" for index, rule in enumerate(rules))
    text = f"version: 1\nlists: {lists}\nrules:\n{numbered}" if rules else "version: 1\n"
    return compile_plan(load_text(directory, text))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("match: {ip.server: 203.0.113.7}, action: drop",
         [KernelRule(0, "r0", "drop", servers=("203.0.113.7/32",))]),
        ("match: {ip.server: [203.0.113.0/24, '2001:db8::/32'], ip.client: 192.0.2.0/25}, action: drop",
         [KernelRule(0, "r0", "drop", servers=("2001:db8::/32", "203.0.113.0/24"), clients=("192.0.2.0/25",))]),
        ("match: {ip.any: 203.0.113.7}, action: drop",
         [KernelRule(0, "r0", "drop", servers=("203.0.113.7/32",)),
          KernelRule(0, "r0", "drop", clients=("203.0.113.7/32",))]),
        ("match: {port.server: [853, '>=65000', 10-20, '>3 <6']}, action: drop",
         [KernelRule(0, "r0", "drop", ports=((853, 853), (65000, 65535), (10, 20), (4, 5)))]),
        ("match: {transport: [udp, tcp], port.server: 443}, action: drop",
         [KernelRule(0, "r0", "drop", ports=((443, 443),), transports=("tcp", "udp"))]),
        ("match: {ip.server: 203.0.113.7}, action: reset",
         [KernelRule(0, "r0", "reset", servers=("203.0.113.7/32",), transports=("tcp",))]),
        ("match: {ip.server: 203.0.113.7}, action: pass",
         [KernelRule(0, "r0", "accept", servers=("203.0.113.7/32",))]),
        ("match: {ip.server: 203.0.113.7}, action: icmp_unreachable, with: {code: port}",
         [KernelRule(0, "r0", "icmp_unreachable", servers=("203.0.113.7/32",), code="port")]),
        ("match: {ip.server: 203.0.113.7}, action: drop, with: {direction: to_client}",
         [KernelRule(0, "r0", "drop", servers=("203.0.113.7/32",), direction="to_client")]),
        ("match: {}, action: drop", [KernelRule(0, "r0", "drop")]),
        ("match: {ip.server: 203.0.113.7, any: [{port.server: 1}, {port.server: 2}]}, action: drop",
         [KernelRule(0, "r0", "drop", servers=("203.0.113.7/32",), ports=((1, 1),)),
          KernelRule(1, "r0", "drop", servers=("203.0.113.7/32",), ports=((2, 2),))]),
    ],
)  # fmt: skip
def test_what_the_kernel_decides(tmp_path: Path, rule: str, expected: list[KernelRule]) -> None:
    assert list(plan_of(tmp_path, rule).rules) == expected


@pytest.mark.parametrize(
    "rule",
    [
        "match: {tls.sni: a.example}, action: drop",
        "match: {ip.server: 203.0.113.7, initiator: inside}, action: drop",
        "match: {ip.server: 203.0.113.7, packet.length: '>100'}, action: drop",
        "match: {ip.server: {not: 203.0.113.7}}, action: drop",
        "match: {ip.server: 203.0.113.7}, action: drop, probability: 0.5",
        "match: {ip.server: 203.0.113.7}, action: drop, schedule: {days: [mon]}",
        "match: {ip.server: 203.0.113.7}, action: drop, residual: {key: 3tuple}",
        "match: {ip.server: 203.0.113.7}, action: drop, with: {after: 1s}",
        "match: {ip.server: 203.0.113.7}, action: drop, with: {trigger: false}",
        "match: {ip.server: 203.0.113.7}, action: reset, placement: on-path",
        "match: {ip.server: 203.0.113.7}, action: reset, with: {injectors: [{ttl: 7}]}",
        "match: {ip.server: 203.0.113.7}, action: reset, with: {towards: client}",
        "match: {ip.server: 203.0.113.7}, action: throttle, with: {rate: 1mbit}",
        "match: {ip.server: 203.0.113.7}, action: alert",
        "match: {ip.server: 203.0.113.7}, action: freeze, with: {packets: 25}",
        "match: {transport: icmp}, action: drop",
    ],
)
def test_what_user_space_decides(tmp_path: Path, rule: str) -> None:
    assert plan_of(tmp_path, rule).rules == ()


BLOCK = "match: {ip.server: 203.0.113.7}, action: drop"
WEB = "match: {port.server: 443}"
PAIRS = "action: reset, residual: {key: 2tuple}"


@pytest.mark.parametrize(
    ("first", "second", "in_kernel"),
    [
        ("match: {ip.server: 203.0.113.0/24}, action: alert", BLOCK, False),
        ("match: {ip.server: 198.51.100.0/24}, action: alert", BLOCK, True),
        ("match: {packet.length: '>9'}, action: pass", BLOCK, False),
        (
            "match: {port.server: 1-99, packet.length: '>9'}, action: pass",
            "match: {port.server: 443}, action: drop",
            True,
        ),
        ("match: {transport: udp, packet.length: '>9'}, action: pass", BLOCK.replace("drop", "reset"), True),
        ("match: {transport: udp, packet.length: '>9'}, action: pass", BLOCK, False),
        ("match: {tls.sni: a.example}, action: pass", BLOCK, True),
        ("match: {dns.qname: a.example}, action: pass", BLOCK, False),
        ("match: {dns.qname: a.example}, action: pass", BLOCK.replace("drop", "reset"), True),
        ("match: {ip.server: {not: 203.0.113.9}}, action: alert", BLOCK, False),
        (f"match: {{tls.sni: a.example}}, {PAIRS}", "match: {port.server: 80}, action: drop", False),
        (f"match: {{tls.sni: a.example}}, {PAIRS}", BLOCK, True),
    ],
)
def test_the_first_match_stays_the_first(tmp_path: Path, first: str, second: str, in_kernel: bool) -> None:
    plan = plan_of(tmp_path, first, second)
    assert [rule.name for rule in plan.rules] == (["r1"] if in_kernel else [])


def test_switches(tmp_path: Path) -> None:
    assert plan_of(tmp_path).track_fragments
    assert plan_of(tmp_path, "match: {ip.server: 203.0.113.7}, action: drop").track_fragments
    assert not plan_of(tmp_path, "match: {tls.sni: a.example}, action: drop").track_fragments
    closed = load_text(tmp_path, "version: 1\nengine: {fail_open: false}\n")
    assert not compile_plan(closed).fail_open


def test_a_very_big_list_is_fine(tmp_path: Path) -> None:
    (tmp_path / "nets").write_text("".join(f"198.51.{n // 256}.{n % 256}\n" for n in range(50_000) if n // 256 < 100))
    plan = plan_of(tmp_path, 'match: {ip.server: "@nets"}, action: drop', lists="{nets: {file: nets, format: cidr}}")
    assert len(plan.rules[0].servers) == 25_600
