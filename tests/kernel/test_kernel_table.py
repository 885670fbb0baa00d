"""What the kernel decides alone, and what installing and removing leaves alone."""

from __future__ import annotations

import ipaddress
import itertools
import re
import signal
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_net import CLIENT4, INSIDE, OUTSIDE, SERVER4, SERVER6, SmallNet, in_namespaces, run, wait_until
from stub_daemon import StubDaemon, accept, offload_accept

from gfwemu.kernel.intervals import ranges
from gfwemu.kernel.marks import CONNECTION_BITS, GENERATIONS, PACKET_BITS, next_generation
from gfwemu.kernel.nft import Nft, NftError
from gfwemu.kernel.ruleset import WATCH_LIMIT, Ends, Lifetimes, content_text
from gfwemu.kernel.table import Table, table_name
from gfwemu.model import address_bytes
from gfwemu.rules.needs import merged_spans
from gfwemu.rules.plan import KernelPlan, KernelRule

LISTED = ("198.51.100.0/28", "198.51.100.10/32", "2001:db8:2::/64")


def _connect(net: SmallNet, family: int = socket.AF_INET, port: int = 80, timeout: float = 0.5) -> str:
    """What a client sees: "" or the error's name."""
    client = net.tcp(family, timeout)
    try:
        client.connect((SERVER4 if family == socket.AF_INET else SERVER6, port))
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return type(error).__name__ if type(error) is not OSError else str(error.strerror)
    finally:
        client.close()
    return ""


def _rule(verdict: str, **more: object) -> KernelPlan:
    return KernelPlan((KernelRule(0, "the rule", verdict, **more),))  # type: ignore[arg-type]


@in_namespaces
def test_a_blacklist_drops_both_families_in_the_kernel_and_counts(net: SmallNet) -> None:
    daemon = StubDaemon(accept, _rule("drop", servers=LISTED))
    _listeners = net.listen(), net.listen(socket.AF_INET6, 81)
    assert _connect(net) == "timeout"
    assert _connect(net, socket.AF_INET6, 81) == "timeout"
    assert daemon.packets() == []
    daemon.stop()
    found = re.fullmatch(r"the rule drop ([0-9]+)", daemon.notes()[0])
    assert found
    assert int(found.group(1)) >= 2
    assert _connect(net) == ""
    assert _connect(net, socket.AF_INET6, 81) == ""


@in_namespaces
def test_packets_from_a_listed_server_are_dropped_too(net: SmallNet) -> None:
    daemon = StubDaemon(accept, _rule("drop", servers=LISTED, direction="to_client"))
    server, client = net.udp("server", port=9000), net.udp("client")
    client.sendto(b"out", (SERVER4, 9000))
    data, address = server.recvfrom(100)
    assert data == b"out"
    server.sendto(b"back", address)
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.recv(100)
    # The rule decides its flows in both directions, though it drops in one.
    assert daemon.packets() == []
    daemon.stop()


@in_namespaces
def test_ports_transports_and_clients_narrow_a_rule(net: SmallNet) -> None:
    plan = KernelPlan(
        (
            KernelRule(0, "web", "drop", servers=LISTED, ports=((80, 82), (81, 90)), transports=("tcp",)),
            KernelRule(1, "others", "drop", clients=("192.0.2.128/25",), ports=((443, 443),)),
        )
    )
    daemon = StubDaemon(accept, plan)
    _listeners = [net.listen(port=port) for port in (79, 85, 443)]
    assert _connect(net, port=79) == ""
    assert _connect(net, port=85) == "timeout"
    assert _connect(net, port=443) == ""
    server, client = net.udp("server", port=85), net.udp("client")
    client.sendto(b"UDP is another matter", (SERVER4, 85))
    assert server.recv(100)
    daemon.stop()


@in_namespaces
def test_a_kernel_accept_bypasses_the_queue_and_comes_before_later_rules(net: SmallNet) -> None:
    plan = KernelPlan(
        (
            KernelRule(0, "spared", "accept", servers=(f"{SERVER4}/32",), ports=((80, 80),)),
            KernelRule(1, "blocked", "drop", servers=LISTED),
        )
    )
    daemon = StubDaemon(accept, plan)
    _listeners = net.listen(), net.listen(port=81)
    assert _connect(net) == ""
    assert _connect(net, port=81) == "timeout"
    assert daemon.packets() == []
    daemon.stop()


@in_namespaces
def test_a_kernel_reset_refuses_tcp_at_once_and_drops_udp(net: SmallNet) -> None:
    daemon = StubDaemon(accept, _rule("reset", servers=LISTED))
    _listeners = net.listen(), net.listen(socket.AF_INET6, 81)
    assert _connect(net) == "ConnectionRefusedError"
    assert _connect(net, socket.AF_INET6, 81) == "ConnectionRefusedError"
    server, client = net.udp("server", port=9000), net.udp("client")
    client.sendto(b"lost", (SERVER4, 9000))
    server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        server.recv(100)
    daemon.stop()


@in_namespaces
def test_icmp_unreachable_reaches_the_client_with_its_code(net: SmallNet) -> None:
    for code, seen4, seen6 in (
        ("network", "Network is unreachable", "Network is unreachable"),
        ("host", "No route to host", "No route to host"),
        ("port", "ConnectionRefusedError", "ConnectionRefusedError"),
        ("admin_prohibited", "No route to host", "PermissionError"),
    ):
        daemon = StubDaemon(accept, _rule("icmp_unreachable", servers=LISTED, code=code))
        assert _connect(net, timeout=2) == seen4
        assert _connect(net, socket.AF_INET6, timeout=2) == seen6
        daemon.stop()


@in_namespaces
def test_rules_of_one_name_count_together_and_reloads_tell_what_was_counted(net: SmallNet) -> None:
    rules = (
        KernelRule(3, "either", "drop", servers=("198.51.100.0/24",)),
        KernelRule(3, "either", "drop", clients=("192.0.2.0/24",)),
    )
    daemon = StubDaemon(accept, lambda: KernelPlan(rules))
    client = net.udp("client")
    client.sendto(b"x", (SERVER4, 9))
    client.sendto(b"x", ("203.0.113.9", 9))
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "reloaded" in daemon.notes(), "the reload")
    client.sendto(b"x", (SERVER4, 9))
    daemon.stop()
    assert [note for note in daemon.notes() if note.startswith("either")] == ["either drop 1", "either drop 1"]


@in_namespaces
def test_rules_of_others_survive_installation_reload_and_removal() -> None:
    run(
        "nft 'add table inet others; add chain inet others forward { type filter hook forward priority 0; };"
        "add rule inet others forward meta mark 0x42 counter';"
        "iptables-nft -t mangle -A FORWARD -m mark --mark 7 -j ACCEPT; ip6tables-nft -A INPUT -p tcp --dport 9 -j DROP"
    )
    before = run("nft list ruleset; iptables-save; ip6tables-save")
    daemon = StubDaemon(accept, _rule("drop", servers=LISTED))
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "reloaded" in daemon.notes(), "the reload")
    daemon.stop()
    assert _without_times(run("nft list ruleset; iptables-save; ip6tables-save")) == _without_times(before)


def _without_times(text: str) -> str:
    return re.sub(r"#.*\n", "", text)


@in_namespaces
def test_another_marks_user_keeps_his_bits_of_packets_and_connections(net: SmallNet) -> None:
    run(
        "nft 'add table inet others; add chain inet others early { type filter hook forward priority -200; };"
        "add chain inet others late { type filter hook forward priority 0; };"
        "add rule inet others early meta mark set 0x42 ct mark set 0x17;"
        "add rule inet others late meta mark 0x42 ct mark & 0xff == 0x17 counter'"
    )
    daemon = StubDaemon(offload_accept)
    server, client = net.udp("server", port=9000), net.udp("client")
    for _ in range(3):
        client.sendto(b"x", (SERVER4, 9000))
        server.recv(100)
    assert "counter packets 3" in run("nft list chain inet others late")
    daemon.stop()


@in_namespaces
def test_tables_of_killed_daemons_go_and_those_of_living_ones_stay() -> None:
    first = StubDaemon(accept, queue=1)
    second = StubDaemon(accept, queue=2)
    first.kill()
    third = StubDaemon(accept, queue=3)
    tables = run("nft list tables")
    assert "inet gfwemu_1" not in tables
    assert "inet gfwemu_2" in tables
    assert "inet gfwemu_3" in tables
    second.stop()
    third.stop()
    assert "gfwemu" not in run("nft list tables")


@in_namespaces
def test_a_plan_that_the_kernel_refuses_leaves_no_table() -> None:
    table = Table(Nft(), Ends(INSIDE, 'name"with a quote'))
    with pytest.raises(NftError, match="nftables: Error: syntax error"):
        table.install(_rule("drop", servers=LISTED))
    assert run("nft list tables") == ""


@in_namespaces
def test_a_plan_that_the_kernel_refuses_leaves_the_old_one_in_force() -> None:
    table = Table(Nft(), Ends(INSIDE, OUTSIDE))
    table.install(_rule("drop", servers=LISTED))
    before = run("nft list table inet gfwemu")
    with pytest.raises(NftError):
        table.replace(_rule("drop", servers=LISTED, transports=("no such transport",)))
    assert run("nft list table inet gfwemu") == before
    table.replace(_rule("accept", servers=LISTED))
    assert table.counters()[0].verdict == "accept"
    table.close()


@in_namespaces
def test_a_list_of_twenty_thousand_networks_is_installed_and_replaced() -> None:
    networks = [f"198.{18 + n // 65536}.{n // 256 % 256}.{n % 256}/32" for n in range(0, 40_000, 2)]
    table = Table(Nft(), Ends(INSIDE, OUTSIDE))
    for generation in (1, 2):
        plan = _rule("drop", servers=(*networks, "198.18.0.0/24", "2001:db8::/33", "2001:db8:8000::/33"))
        table.install(plan) if generation == 1 else table.replace(plan)
        listed = run(f"nft list set inet gfwemu rule0_g{generation}_servers4")
        assert listed.count("198.") == 20_000 - 128 + 1
        assert "2001:db8::/32" in run(f"nft list set inet gfwemu rule0_g{generation}_servers6")
    assert "rule0_g1" not in run("nft list table inet gfwemu")
    table.close()


@in_namespaces
def test_watching_again_starts_the_time_anew() -> None:
    table = Table(Nft(), Ends(INSIDE, OUTSIDE))
    table.install(KernelPlan())
    for seconds, shown in ((60, "1m"), (5, "5s"), (600, "10m")):
        assert table.watch(address_bytes(CLIENT4), address_bytes(SERVER4), 6, 443, None, seconds)
        listed = run("nft list set inet gfwemu watch3_v4")
        assert f"{CLIENT4} . {SERVER4} . tcp . 443 timeout {shown} expires" in listed
        assert listed.count("timeout ") == 1
    table.close()


@in_namespaces
def test_a_full_watch_set_refuses_and_counts() -> None:
    table = Table(Nft(), Ends(INSIDE, OUTSIDE))
    table.install(KernelPlan())
    refused = 0
    for number in range(WATCH_LIMIT + 10):
        refused += not table.watch(number.to_bytes(4, "big"), address_bytes(SERVER4), 6, 443, None, 600)
    assert refused == table.watches_refused > 0
    table.close()


def test_generations_follow_each_other_and_never_are_zero() -> None:
    seen, generation = [], 0
    for _ in range(GENERATIONS + 1):
        generation = next_generation(generation)
        seen.append(generation)
    assert seen == [*range(1, GENERATIONS + 1), 1]


def test_marks_keep_clear_of_each_other_and_of_others() -> None:
    assert PACKET_BITS & 0x000FFFFF == 0
    assert CONNECTION_BITS & ~PACKET_BITS == 0


@in_namespaces
def test_a_plan_that_is_prepared_too_late_does_not_bring_the_table_back() -> None:
    table = Table(Nft(), Ends(INSIDE, OUTSIDE))
    for plan in (KernelPlan(), _rule("drop", servers=LISTED)):
        table.install(plan)
        table.prepare(plan)
        table.remove()
        for late in (KernelPlan(), _rule("drop"), _rule("drop", servers=LISTED)):
            if late.rules:
                with pytest.raises(NftError):
                    table.prepare(late)
            else:
                table.prepare(late)
            assert run("nft list ruleset") == ""


def test_tables_of_different_queues_have_different_names() -> None:
    assert table_name(0) == "gfwemu"
    assert table_name(7) == "gfwemu_7"


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)).map(lambda pair: (min(pair), max(pair)))))
def test_merged_ports_are_the_same_ports_without_overlap(ports: list[tuple[int, int]]) -> None:
    merged = merged_spans(tuple(ports))
    assert {port for low, high in merged for port in range(low, high + 1)} == {
        port for low, high in ports for port in range(low, high + 1)
    }
    assert all(left[1] + 1 < right[0] for left, right in itertools.pairwise(merged))


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32))))
def test_ranges_hold_the_addresses_of_their_networks(pairs: list[tuple[int, int]]) -> None:
    networks = [ipaddress.IPv4Network((address, length), strict=False) for address, length in pairs]
    expected = ipaddress.collapse_addresses(networks)
    found = ranges([f"{ipaddress.IPv4Address(address)}/{length}" for address, length in pairs], 4)
    assert sum(end - first for first, end in found) == sum(network.num_addresses for network in expected)
    assert all(any(first <= int(net[0]) and int(net[-1]) < end for first, end in found) for net in networks)
    assert all(left[1] < right[0] for left, right in itertools.pairwise(found))


def test_a_rule_on_one_family_only_says_nothing_about_the_other() -> None:
    text = content_text("gfwemu", _rule("drop", servers=("192.0.2.0/24",)), 1, Lifetimes())
    assert "ip daddr @rule0_g1_servers4" in text
    assert "ip6 daddr @rule0" not in text
