"""The flow table: found from both sides, bounded, least recently used out first, lifetimes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gfwemu.flow.flow import FlowState
from gfwemu.flow.options import FlowOptions
from gfwemu.flow.residual import Block, ResidualTable, residual_key
from gfwemu.flow.table import FlowTable
from gfwemu.model import Direction, FiveTuple, Side, address_bytes

SERVER = address_bytes("203.0.113.80")
CLIENT = address_bytes("192.0.2.10")


def key(port: int) -> FiveTuple:
    return FiveTuple(6, CLIENT, port, SERVER, 443)


def test_a_flow_is_found_from_both_directions() -> None:
    table = FlowTable(FlowOptions())
    flow, evicted = table.add(key(1), Side.INSIDE, 0.0, FlowState.OPENING)
    assert evicted == []
    assert table.find(key(1)) == (flow, Direction.TO_SERVER)
    assert table.find(key(1).reversed()) == (flow, Direction.TO_CLIENT)
    assert table.find(key(2)) is None


def test_a_replaced_server_still_finds_the_flow() -> None:
    table = FlowTable(FlowOptions())
    flow, _ = table.add(key(1), None, 0.0, FlowState.OPENING)
    alias = FiveTuple(6, CLIENT, 1, address_bytes("203.0.113.99"), 8443)
    table.add_alias(flow, alias)
    assert table.find(alias.reversed()) == (flow, Direction.TO_CLIENT)
    table.remove(flow)
    assert table.find(alias.reversed()) is None
    assert table.find(key(1)) is None


@given(st.lists(st.integers(1, 30), min_size=1, max_size=100), st.integers(1, 8))
def test_the_table_never_outgrows_its_bound_and_keeps_the_latest(ports: list[int], limit: int) -> None:
    table = FlowTable(FlowOptions(limit=limit))
    latest: list[int] = []
    for now, port in enumerate(ports):
        found = table.find(key(port))
        if found is None:
            table.add(key(port), None, float(now), FlowState.ESTABLISHED)
        else:
            found[0].last = float(now)
            table.touch(found[0], FlowState.ESTABLISHED)
        latest = [port, *[other for other in latest if other != port]][:limit]
        assert len(table) <= limit
    assert {flow.tuple.sport for flow in table} == set(latest)


def test_each_state_has_its_own_lifetime() -> None:
    table = FlowTable(FlowOptions(tcp_opening=10, tcp_established=100))
    opening, _ = table.add(key(1), None, 0.0, FlowState.OPENING)
    other, _ = table.add(key(2), None, 0.0, FlowState.OPENING)
    table.touch(other, FlowState.ESTABLISHED)
    assert table.sweep(10.0) == []
    assert table.sweep(10.1) == [opening]
    assert table.sweep(99.0) == []
    assert table.sweep(100.1) == [other]
    assert len(table) == 0


class _Rule:
    def __init__(self, name: str) -> None:
        self.name = name


def block(kind: str, flow: FiveTuple, begins: float, ends: float) -> Block:
    return Block(kind, residual_key(kind, flow), _Rule("r"), begins, ends, ends - begins)  # type: ignore[arg-type]


def test_keys_cover_what_their_name_says() -> None:
    same_server_other_port = key(1)._replace(dport=80)
    for kind, other_client_port, other_server_port in (("2tuple", 1, 1), ("3tuple", 1, 0), ("4tuple", 0, 0)):
        table = ResidualTable(10)
        assert table.add(block(kind, key(1), 0, 180), refresh=False)
        assert len(table.find(key(1), 1)) == 1
        assert len(table.find(key(2), 1)) == other_client_port
        assert len(table.find(same_server_other_port, 1)) == other_server_port
        assert table.find(key(1)._replace(dst=CLIENT), 1) == []


def test_a_block_begins_and_ends_and_is_not_renewed_unless_told() -> None:
    table = ResidualTable(10)
    assert table.add(block("3tuple", key(1), 10, 190), refresh=False)
    assert table.find(key(1), 9.9) == []
    assert len(table.find(key(1), 10)) == 1
    assert not table.add(block("3tuple", key(1), 100, 280), refresh=False)
    assert len(table.find(key(1), 189.9)) == 1
    assert table.find(key(1), 190) == []
    assert len(table) == 0
    assert table.add(block("3tuple", key(1), 0, 180), refresh=True)
    assert table.add(block("3tuple", key(1), 100, 280), refresh=True)
    assert len(table.find(key(1), 279)) == 1


def test_residual_blocks_are_bounded_and_follow_the_rules() -> None:
    table = ResidualTable(3)
    for port in range(10):
        table.add(block("4tuple", key(port + 1), 0, 180), refresh=False)
    assert len(table) == 3
    other = _Rule("r")
    table.rebind({"r": other})
    assert all(found.rule is other for found in table.find(key(10), 1))
    table.rebind({"other": other})
    assert len(table) == 0


def test_a_table_made_smaller_is_emptied_a_few_at_a_time() -> None:
    table = FlowTable(FlowOptions(limit=20))
    for port in range(1, 21):
        table.add(key(port), None, float(port), FlowState.UDP)
    table.resize(FlowOptions(limit=3))
    evicted = [
        flow.tuple.sport for port in range(101, 106) for flow in table.add(key(port), None, 200.0, FlowState.UDP)[1]
    ]
    assert evicted[:18] == list(range(1, 19))
    assert len(table) == 3


def test_another_alias_takes_the_place_of_the_old_one() -> None:
    table = FlowTable(FlowOptions())
    flow, _ = table.add(key(1), None, 0.0, FlowState.OPENING)
    old, new = (key(1)._replace(dst=address_bytes(text)) for text in ("203.0.113.98", "203.0.113.99"))
    table.add_alias(flow, old)
    table.add_alias(flow, new)
    assert table.find(old.reversed()) is None
    assert table.find(new.reversed()) == (flow, Direction.TO_CLIENT)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.sampled_from(list(FlowState)), st.floats(0, 30)), min_size=1, max_size=60)
)
def test_flows_end_when_their_lifetime_is_over(script: list[tuple[int, FlowState, float]]) -> None:
    """The sweep skips most packets; no flow may outlive its time for that."""
    lifetimes = {
        FlowState.OPENING: 20,
        FlowState.ESTABLISHED: 50,
        FlowState.CLOSING: 3,
        FlowState.UDP: 10,
        FlowState.OTHER: 7,
    }
    options = FlowOptions(tcp_opening=20, tcp_established=50, tcp_closing=3, udp=10, other=7)
    table, last, now = FlowTable(options), dict[int, tuple[float, FlowState]](), 0.0
    for port, state, after in script:
        now += after
        ended = {flow.tuple.sport for flow in table.sweep(now)}
        assert ended == {one for one, (seen, was) in last.items() if now - seen > lifetimes[was]}
        for one in ended:
            del last[one]
        found = table.find(key(port))
        flow = table.add(key(port), None, now, state)[0] if found is None else found[0]
        flow.last = now
        table.touch(flow, state)
        last[port] = (now, state)


def test_renewing_a_block_that_is_in_force_leaves_it_in_force() -> None:
    table = ResidualTable(10)
    table.add(block("3tuple", key(1), 0, 100), refresh=True)
    table.add(block("3tuple", key(1), 60, 160), refresh=True)
    assert len(table.find(key(1), 50)) == len(table.find(key(1), 150)) == 1


def test_every_block_that_a_flow_meets_is_found_widest_first() -> None:
    table = ResidualTable(10)
    for kind in ("4tuple", "2tuple", "3tuple"):
        table.add(block(kind, key(1), 0, 100), refresh=False)
    assert [found.kind for found in table.find(key(1), 1)] == ["2tuple", "3tuple", "4tuple"]
    assert [found.kind for found in table.find(key(2), 1)] == ["2tuple", "3tuple"]
