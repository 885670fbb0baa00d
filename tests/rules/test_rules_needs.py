"""What user space must see under some rules, and who says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rule_files import load_text

from gfwemu.rules.plan import KernelPlan, Spared, Unseen, compile_plan

ALL = Spared(True, True, True, True)
BOTH_ENDS = Spared(True, False, True, True)
BOTH_ENDS_AND_DNS = replace(BOTH_ENDS, answers=True)
FROM_THE_BEGINNING = replace(BOTH_ENDS, handshake=False)
NO_SYNACK = replace(ALL, handshake=False)
NO_FIRST_ACK = replace(ALL, first_ack=False)
NOTHING = Spared()


def plan_of(directory: Path, *rules: str, engine: str = "{}") -> KernelPlan:
    numbered = "".join(f"  - {{name: r{index}, {rule}}}\n" for index, rule in enumerate(rules))
    return compile_plan(load_text(directory, f"version: 1\nengine: {engine}\nrules:\n{numbered}"))


@pytest.mark.parametrize(
    ("rule", "spared", "why"),
    [
        ("match: {tls.sni: a.example}, action: drop", ALL, ""),
        ("match: {http.host: a.example}, action: reset", ALL, ""),
        ("match: {tls.sni: a.example}, action: throttle, with: {rate: 1mbit}", ALL, ""),
        ("match: {tls.sni: a.example}, action: freeze, with: {packets: 9, payload_only: true}", ALL, ""),
        ("match: {payload.contains: x, direction: to_server, transport: tcp}, action: drop", ALL, ""),
        ("match: {tcp.flags: [R, RA]}, action: drop", ALL, ""),
        ("match: {tcp.flags: [R, RA]}, action: reset", BOTH_ENDS, "may forge what follows a packet of the server"),
        ("match: {tcp.flags: SA, direction: to_client}, action: drop", NO_SYNACK, "matches a SYN/ACK"),
        ("match: {tcp.flags: A}, action: drop", NOTHING, "matches packets without payload"),
        ("match: {packet.length: '>1200'}, action: drop", FROM_THE_BEGINNING, "matches packets of the server"),
        ("match: {packet.length: '>50'}, action: drop", NOTHING, "matches packets without payload"),
        ("match: {payload.contains: x}, action: drop", BOTH_ENDS, "matches packets of the server"),
        ("match: {dns.qname: a.example}, action: drop", BOTH_ENDS_AND_DNS, "dns is read in both directions"),
        ("match: {protocol: openvpn}, action: drop", BOTH_ENDS, "openvpn is read in both directions"),
        (
            "match: {count.packets: '>9', tls.sni: a.example}, action: drop",
            NOTHING,
            "counts every packet (count.packets)",
        ),
        ("match: {ip.server: 192.0.2.1}, action: freeze, with: {packets: 9}", ALL, ""),
        ("match: {tls.sni: a.example}, action: freeze, with: {packets: 9}", NOTHING, "counts every packet before"),
        ("match: {tls.sni: a.example}, action: delay, with: {time: 9ms}", NOTHING, "holds packets"),
        ("match: {ip.server: 192.0.2.1}, action: drop, schedule: {days: [mon]}", NOTHING, "begins by its schedule"),
    ],
)
def test_what_passes_unseen_and_who_forbids_it(tmp_path: Path, rule: str, spared: Spared, why: str) -> None:
    plan = plan_of(tmp_path, rule)
    assert plan.needs is not None
    reasons = [*plan.needs.every_packet, *plan.needs.handshake, *plan.needs.server_payload]
    if spared != ALL:
        assert [reason.who for reason in reasons if why in reason.why] == ["r0"]
    else:
        assert not reasons
    assert plan.spared == spared


@pytest.mark.parametrize(
    ("knobs", "spared", "who"),
    [
        ("{teardown: [rst], overlap: last, verify_checksum: true}", ALL, ""),
        ("{create_on: synack}", NO_SYNACK, "tcp.create_on"),
        ("{established_by: valid_ack}", NOTHING, "tcp.established_by"),
        ("{hole_lifetime: 60m-90m}", FROM_THE_BEGINNING, "tcp.hole_lifetime"),
        ("{resync: {multiple_synack: {}}}", NO_SYNACK, "tcp.resync"),
        ("{resync: {multiple_syn: {}}}", ALL, ""),
        ("{resync: {rst_before_established: {}}}", NO_FIRST_ACK, "tcp.resync"),
        ("{teardown: {rst: {when: opening}}}", NO_FIRST_ACK, "tcp.teardown"),
        ("{small_segments: 9}", NO_FIRST_ACK, "tcp.small_segments"),
        ("{handshake: full}", Spared(True, True, False, False), "tcp.handshake"),
    ],
)
def test_knobs_ask_for_packets(tmp_path: Path, knobs: str, spared: Spared, who: str) -> None:
    plan = plan_of(tmp_path, "match: {tls.sni: a.example}, action: drop", engine=f"{{tcp: {knobs}}}")
    assert plan.needs is not None
    reasons = [*plan.needs.every_packet, *plan.needs.handshake, *plan.needs.server_payload, *plan.needs.first_ack]
    assert {reason.who for reason in reasons} == ({who} if who else set())
    assert plan.spared == spared


def test_foreign_transports_and_ports_pass_unseen(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "match: {dns.qname: a.example, transport: udp, port.server: 53}, action: drop")
    assert set(plan.unseen) == {
        *(Unseen(name) for name in ("icmp", "icmpv6", "tcp", "other")),
        Unseen("udp", ((53, 53),)),
    }
    two = plan_of(
        tmp_path,
        "match: {tls.sni: a.example, port.server: 443}, action: drop",
        "match: {http.host: a.example, port.server: [80, 8000-8080]}, action: drop",
    )
    assert Unseen("tcp", ((80, 80), (443, 443), (8000, 8080))) in two.unseen


@pytest.mark.parametrize("key", ["2tuple", "server"])
def test_a_block_that_meets_any_port_has_every_port_seen(tmp_path: Path, key: str) -> None:
    rule = f"match: {{tls.sni: a.example, port.server: 443}}, action: reset, residual: {{key: {key}}}"
    assert plan_of(tmp_path, rule).unseen == ()


def test_a_block_meets_other_ports_of_the_client(tmp_path: Path) -> None:
    alone = plan_of(tmp_path, "match: {tls.sni: a.example, port.client: 7}, action: drop")
    assert Unseen("tcp", ((7, 7),)) in alone.unseen
    blocking = plan_of(tmp_path, "match: {tls.sni: a.example, port.client: 7}, action: drop, residual: {key: 3tuple}")
    assert "tcp" not in {one.transport for one in blocking.unseen}


def test_all_queued_leaves_nothing_to_the_kernel(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "match: {ip.server: 192.0.2.1}, action: drop").all_queued()
    assert (plan.rules, plan.unseen, plan.spared, plan.offload) == ((), (), NOTHING, False)
