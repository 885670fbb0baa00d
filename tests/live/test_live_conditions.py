"""Lists in every format, schedules, hooks, seeds, order and includes, as the traffic feels them."""

from __future__ import annotations

import base64
import datetime
from pathlib import Path

import pytest
from live_drive import ECHOES, V4, V6, Drive
from live_kit import TOPOLOGY, Client
from live_nodes import Node
from live_tcp import Wire
from live_tls import outcome
from mmdb_writer import mmdb

from gfwemu.netlab.lab import Lab
from gfwemu.netlab.topology import load_topology

pytestmark = pytest.mark.kernel

RULES = "version: 1\nrules: [{name: none, match: {ip.server: 198.51.100.1}, action: alert}]\n"
LAB = {"services": ECHOES}


@pytest.fixture(scope="module")
def drive(client: Client, client_node: Node, internet_node: Node, wire: Wire) -> Drive:
    return Drive(client, client_node, internet_node, wire)


FILES = {
    "names.txt": "# names\nplain.example\nfull:only.example\nkeyword:needle\n*.below.example\n",
    "hosts": "127.0.0.1 localhost\n0.0.0.0 hosts.example www.hosts.example # a comment\n",
    "dnsmasq.conf": "address=/dnsmasq.example/192.0.2.1\nserver=/other-dnsmasq.example/1.1.1.1\n",
    "gfwlist.txt": base64.encodebytes(
        b"[AutoProxy 0.2.9]\n! comment\n||gfwlist.example\n@@||fine.gfwlist.example\n|http://one.gfwexact.example\n"
    ).decode(),
    "v2fly": "domain:v2fly.example\nfull:exact.v2full.example @cn\ninclude:included\n",
    "included": "keyword:v2key\n",
    "regexes": "^ads[0-9]+\\.\n",
    "networks": "203.0.113.24/32\n2001:db8:f::20/123 # sites\n",
    "words": "/exact\n/other\n",
}
# list: its format, a name that it holds, and one that it does not hold.
DOMAIN_LISTS = {
    "names": ("names.txt", "domains", ["a.plain.example", "only.example", "a-needle.test", "x.below.example"],
              ["notplain.example", "www.only.example", "below.example"]),
    "hosts": ("hosts", "hosts", ["hosts.example", "www.hosts.example"], ["a.hosts.example", "localhost"]),
    "dnsmasq": ("dnsmasq.conf", "dnsmasq", ["a.dnsmasq.example", "other-dnsmasq.example"], ["xdnsmasq.example"]),
    "gfwlist": ("gfwlist.txt", "gfwlist", ["a.gfwlist.example", "one.gfwexact.example"],
                ["fine.gfwlist.example", "two.gfwexact.example"]),
    "v2fly": ("v2fly", "v2fly", ["a.v2fly.example", "exact.v2full.example", "my-v2key.test"], ["v2full.example"]),
    "regex": ("regexes", "regex", ["ads17.example"], ["noads17.example", "ads.example"]),
}  # fmt: skip


def write_files(directory: Path) -> None:
    for name, text in FILES.items():
        (directory / name).write_text(text)
    (directory / "countries.mmdb").write_bytes(mmdb({"203.0.113.32/29": "XA", "2001:db8:f::30/124": "XB"}))


def test_lists_of_every_format(drive: Drive) -> None:
    write_files(drive.client.directory)
    lists = "".join(
        f"  {name}: {{file: {file}, format: {form}}}\n" for name, (file, form, _, _) in DOMAIN_LISTS.items()
    )
    rules = "".join(f"  - {{name: {name}, match: {{dns.qname: '@{name}'}}, action: alert}}\n" for name in DOMAIN_LISTS)
    drive.client.load(f"version: 1\nlists:\n{lists}rules:\n{rules}")
    for _, _, held, missing in DOMAIN_LISTS.values():
        for name in (*held, *missing):
            drive.dns(name)
    for rule, (_, _, held, _) in DOMAIN_LISTS.items():
        met = {hit["censor"]["facts"]["dns.qname"] for hit in drive.client.wait_for_hit(rule)}
        assert met == set(held), rule
        entries = {evidence["entry"] for hit in drive.client.hits(rule) for evidence in hit["censor"]["evidence"]}
        assert all(entry.endswith(f"from @{rule}") for entry in entries)


def test_lists_of_networks_countries_and_texts(drive: Drive) -> None:
    write_files(drive.client.directory)
    drive.client.load("""version: 1
lists:
  networks: {file: networks, format: cidr}
  xa: {file: countries.mmdb, format: mmdb, country: [XA]}
  xb: {file: countries.mmdb, format: mmdb, country: [xb]}
  words: {file: words, format: text}
  inline: {format: cidr, entries: [203.0.113.41]}
rules:
  - {name: networks, match: {ip.server: "@networks"}, action: alert}
  - {name: xa, match: {ip.server: "@xa"}, action: alert}
  - {name: xb, match: {ip.server: "@xb"}, action: alert}
  - {name: inline, match: {ip.server: "@inline"}, action: alert}
  - {name: words, match: {http.path: "@words"}, action: alert}
""")
    servers = {
        "networks": {"203.0.113.24", "2001:db8:f::24", "2001:db8:f::32", "2001:db8:f::33", "2001:db8:f::34"},
        "xa": {"203.0.113.32", "203.0.113.33", "203.0.113.34"},
        "xb": {"2001:db8:f::32", "2001:db8:f::33", "2001:db8:f::34"},
        "inline": {"203.0.113.41"},
    }
    for address in sorted(set().union(*servers.values()) | {V4, V6}):
        drive.http(address=address)
    for path in ("/exact", "/exactly", "/other"):
        drive.http(path=path)
    for rule, expected in servers.items():
        assert {hit["dest_ip"] for hit in drive.client.wait_for_hit(rule)} == expected, rule
    assert {hit["http"]["url"] for hit in drive.client.wait_for_hit("words")} == {"/exact", "/other"}


def test_a_changed_list_holds_after_a_reload(drive: Drive) -> None:
    names = drive.client.directory / "changing.txt"
    names.write_text("before.example\n")
    drive.client.load("""version: 1
lists: {changing: {file: changing.txt}}
rules: [{name: changing, match: {dns.qname: "@changing", dns.response: false}, action: alert}]
""")
    for name in ("before.example", "after.example"):
        drive.dns(name)
    names.write_text("after.example\n")
    drive.client.lab.reload()
    for name in ("before.example", "after.example"):
        drive.dns(name)
    hits = [hit["censor"]["facts"]["dns.qname"] for hit in drive.client.wait_for_hit("changing")]
    assert hits == ["before.example", "after.example"]


def test_schedules(drive: Drive) -> None:
    now = datetime.datetime.now(datetime.UTC)
    hour, day = datetime.timedelta(hours=1), datetime.timedelta(days=1)

    def span(start: datetime.datetime, end: datetime.datetime) -> str:
        return f"{start:%H:%M}-{end:%H:%M}"

    def name(moment: datetime.datetime) -> str:
        return f"{moment:%a}".lower()

    today, yesterday, tomorrow = f"{now:%Y-%m-%d}", f"{now - day:%Y-%m-%d}", f"{now + day:%Y-%m-%d}"
    schedules = {
        "hours-now": f"{{hours: '{span(now - hour, now + hour)}'}}",
        "hours-over": f"{{hours: '{span(now - 3 * hour, now - 2 * hour)}'}}",
        "hours-later": f"{{hours: '{span(now + 2 * hour, now + 3 * hour)}'}}",
        "hours-elsewhere": f"{{hours: '{span(now + 4 * hour, now + 6 * hour)}', timezone: '+05:00'}}",
        "days-now": f"{{days: [{name(now)}, {name(now + day)}]}}",
        "days-later": f"{{days: [{name(now + 2 * day)}]}}",
        "dates-now": f"{{dates: {yesterday}..{tomorrow}}}",
        "dates-later": f"{{dates: {now + 2 * day:%Y-%m-%d}..2099-12-31}}",
        "both": f"{{dates: {today}..{tomorrow}, hours: '{span(now + 2 * hour, now + 3 * hour)}'}}",
    }
    rules = "".join(
        f"  - {{name: {rule}, match: {{dns.qname: scheduled.example}}, action: alert, schedule: {schedule}}}\n"
        for rule, schedule in schedules.items()
    )
    drive.client.load(f"version: 1\nrules:\n{rules}")
    drive.dns("scheduled.example")
    fired = {rule for rule in schedules if drive.client.hits(rule)}
    assert fired == {"hours-now", "hours-elsewhere", "days-now", "dates-now"}


def test_a_python_hook_decides_with_the_rest_of_the_match(drive: Drive) -> None:
    (drive.client.directory / "hook.py").write_text(
        "def odd(facts):\n    return facts.get('payload.length', 0) % 2 == 1 and facts['transport'] == 'udp'\n"
        "def met(facts):\n    return facts.get('dns.qname', '').startswith('met')\n"
    )
    drive.client.load("""version: 1
rules:
  - {name: odd, match: {port.server: 7, python: "hook.py:odd"}, action: drop}
  - {name: met, match: {python: "hook.py:met"}, action: alert}
""")
    drive.udp(b"even")
    drive.tcp(b"odd")
    assert outcome(lambda: drive.udp(b"odd", timeout=0.4)) == "timeout"
    for name in ("met.example", "unmet.example"):
        drive.dns(name)
    drive.flush()
    assert {hit["proto"] for hit in drive.client.hits("odd")} == {"UDP"}
    assert {hit["censor"]["facts"]["dns.qname"] for hit in drive.client.hits("met")} == {"met.example"}


def test_the_first_rule_that_decides_wins(drive: Drive) -> None:
    drive.client.load("""version: 1
rules:
  - {name: told, match: {http.host: example}, action: alert}
  - {name: spared, match: {http.host: spared.example}, action: pass}
  - {name: first, match: {http.path: {prefix: /first}}, action: reset}
  - {name: second, match: {http.host: met.example}, action: drop}
""")
    drive.http("spared.example", "/first")
    assert outcome(lambda: drive.http("met.example", "/first")) == "reset"
    drive.flush()
    assert len(drive.client.hits("told")) == 2
    assert [len(drive.client.hits(rule)) for rule in ("spared", "first", "second")] == [1, 1, 0]


def test_included_rules_come_first_and_can_be_left_out(drive: Drive) -> None:
    (drive.client.directory / "base.yaml").write_text("""version: 1
rules:
  - {name: kept, match: {http.host: kept.example}, action: reset}
  - {name: left-out, match: {http.host: left-out.example}, action: reset}
""")
    drive.client.load("""version: 1
include: [base.yaml]
disable: [left-out]
rules:
  - {name: mine, match: {http.host: example}, action: alert}
""")
    assert outcome(lambda: drive.http("kept.example")) == "reset"
    drive.http("left-out.example")
    drive.flush()
    assert len(drive.client.hits("kept")) == 1
    assert len(drive.client.hits("mine")) == 1


def test_the_same_seed_gives_the_same_fates(tmp_path: Path) -> None:
    """Same traffic in the same order, in labs of their own."""
    rules = tmp_path / "rules.yaml"
    rules.write_text("version: 1\nrules: [{name: some, match: {transport: tcp}, action: reset, probability: 0.5}]\n")
    fates = []
    for seed in (1, 1, 2):
        with Lab(load_topology(str(TOPOLOGY)), rules=[rules], seed=seed) as lab, Node(lab, "client") as node:
            fates.append([outcome(lambda node=node: node.connect(V4, 80).close()) for _ in range(20)])  # type: ignore[misc]
    assert fates[0] == fates[1] != fates[2]
    assert set(fates[0]) == {"ok", "refused"}
