"""Where netem puts the pipes, and in which words. That it then delays is for the tests of links to measure."""

from __future__ import annotations

from dataclasses import replace

from gfwemu.netlab import netem
from gfwemu.netlab.blueprint import Blueprint
from gfwemu.netlab.design import design_nodes
from gfwemu.netlab.links import LINKS, Link, Pipe
from gfwemu.netlab.topology import load_topology


def laid(link: Link) -> dict[str, list[str]]:
    """What tc is told on each node of the default topology."""
    nodes = design_nodes(load_topology("default"), None, link, ipv6=True)
    blueprint = Blueprint(name="test", directory="/nowhere", nodes=nodes, services=(), owner=0, seed=0)
    return {node.name: lines for node in nodes if (lines := netem.plan_of(node, blueprint))}


def test_each_pipe_is_on_the_interface_that_its_packets_leave_by() -> None:
    told = laid(LINKS["3g"])
    assert told == {
        "client": ["qdisc add dev eth0 root netem delay 75000us rate 768000bit limit 47"],
        "access": ["qdisc add dev inside root netem delay 75000us rate 1600000bit limit 87"],
        "transit": ["qdisc add dev outside root netem delay 30000us limit 20000"],
        "internet": ["qdisc add dev eth0 root netem delay 30000us limit 20000"],
    }


def test_lossy_pipes_stay_in_user_space() -> None:
    assert set(laid(replace(LINKS["3g"], loss=0.01))) == {"transit", "internet"}


def test_a_pipe_without_a_rate_only_delays() -> None:
    assert netem.describe(Pipe("p", delay=0.0301)) == "delay 30100us limit 20000"
