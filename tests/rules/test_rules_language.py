"""What rule files mean: values, operators, alternatives, defaults, includes, options."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from rule_files import load_text, matched, one_rule, problems_of

from gfwemu.errors import RulesError
from gfwemu.model import Placement, address_bytes
from gfwemu.rules.actions import Drop, Reset, Residual
from gfwemu.rules.compiled import Scope
from gfwemu.rules.fields import dissector_transports
from gfwemu.rules.load import load, load_rules
from gfwemu.rules.quantities import Varied


@pytest.mark.parametrize(
    ("match", "field", "value", "entry"),
    [
        ("{tls.sni: example.com}", "tls.sni", "www.Example.com", "example.com"),
        ("{tls.sni: example.com}", "tls.sni", "notexample.com", None),
        ("{tls.sni: EXAMPLE.com.}", "tls.sni", "example.com", "example.com"),
        ("{tls.sni: bücher.example}", "tls.sni", "www.xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("{tls.sni: '*.example.com'}", "tls.sni", "example.com", None),
        ("{tls.sni: 'full:example.com'}", "tls.sni", "www.example.com", None),
        ("{tls.sni: 'keyword:exam'}", "tls.sni", "an-example.org", "keyword:exam"),
        ("{tls.sni: 'regexp:^t\\.co$'}", "tls.sni", "t.co", "regexp:^t\\.co$"),
        ("{tls.sni: 'regexp:^t\\.co$'}", "tls.sni", "reddit.com", None),
        ("{tls.sni: {not: example.com}}", "tls.sni", "example.org", ""),
        ("{tls.sni: {not: example.com}}", "tls.sni", "www.example.com", None),
        ("{tls: {sni: example.com}}", "tls.sni", "example.com", "example.com"),
        ("{ip.server: [203.0.113.0/24, '2001:db8::/32']}", "ip.server", b"\xcb\x00\x71\x07", "203.0.113.0/24"),
        ("{ip.server: [203.0.113.0/24, '2001:db8::/32']}", "ip.server", address_bytes("2001:db8::7"), "2001:db8::/32"),
        ("{ip.server: 203.0.113.7}", "ip.server", address_bytes("::ffff:203.0.113.7"), None),
        ("{port.server: [443, 8000-8010]}", "port.server", 8005, "8000-8010"),
        ("{port.server: {not: [443, 80]}}", "port.server", 443, None),
        ("{payload.popcount: '>3.4 <4.6'}", "payload.popcount", 4.0, ">3.4 <4.6"),
        ("{payload.popcount: '>3.4 <4.6'}", "payload.popcount", 4.6, None),
        ("{tls.ech: true}", "tls.ech", True, "true"),
        ("{tls.ech: true}", "tls.ech", False, None),
        ("{tls.ech: false}", "tls.ech", False, "false"),
        ("{http.path: {prefix: /a, suffix: .html}}", "http.path", "/a/b.html", "prefix:/a"),
        ("{http.path: {prefix: /a, not: {suffix: .html}}}", "http.path", "/a/b.html", None),
        ("{http.path: {contains: [x, y]}}", "http.path", "/ay", "contains:y"),
        ("{http.path: {regex: '(?i)^/SEARCH'}}", "http.path", "/search?q=1", "regex:(?i)^/SEARCH"),
        ("{http.method: GET}", "http.method", "get", None),
        ("{http.method: GET}", "http.method", "GETS", None),
        ("{http.keyword: falun}", "http.keyword", "/?q=falun+x\nwww.example", "contains:falun"),
        ("{http.keyword: {not: falun}}", "http.keyword", "/?q=falun+x\nwww.example", None),
        ("{http.keyword: {not: falun}}", "http.keyword", "/?q=x\nwww.example", ""),
        ("{http.keyword: {is: falun}}", "http.keyword", "/?q=falun+x\nwww.example", None),
        ("{http.keyword: {is: falun}}", "http.keyword", "falun", "falun"),
        ("{tls.alpn: h2}", "tls.alpn", ("http/1.1", "h2"), "h2"),
        ("{tls.alpn: {not: h2}}", "tls.alpn", ("http/1.1", "h2"), None),
        ("{dns.qtype: aaaa}", "dns.qtype", "AAAA", "AAAA"),
        ("{tcp.flags: as}", "tcp.flags", "SA", "SA"),
        ("{transport: [tcp, udp]}", "transport", "udp", "udp"),
        ("{payload.bytes: {offset: 1, hex: 00 ?? 01}}", "payload.bytes", b"\xff\x00\xaa\x01", "00 ?? 01 at 1"),
        ("{payload.bytes: {offset: 1, hex: 00 ?? 01}}", "payload.bytes", b"\xff\x00\xaa", None),
        ("{payload.bytes: {offset: 0, hex: 16-17 03 00-09}}", "payload.bytes", b"\x17\x03\x09.", "16-17 03 00-09 at 0"),
        ("{payload.bytes: {offset: 0, hex: 16-17 03 00-09}}", "payload.bytes", b"\x18\x03\x09.", None),
        ("{payload.bytes: {offset: 0, hex: 16-17 03 00-09}}", "payload.bytes", b"\x15\x03\x09.", None),
        ("{payload.bytes: {offset: 0, hex: 16-17 03 00-09}}", "payload.bytes", b"\x16\x03\x0a.", None),
        ("{payload.bytes: {offset: 0-1, hex: 16-17 03}}", "payload.bytes", b"\x16\x16\x03", "16-17 03 at 0-1"),
        ("{payload.bytes: {offset: 0, text: 'GET '}}", "payload.bytes", b"GET /", "'GET ' at 0"),
        ("{payload.bytes: {offset: 1, text: 'GET '}}", "payload.bytes", b"GET /", None),
        ("{payload.bytes: {offset: 0, text: é}}", "payload.bytes", b"\xc3\xa9", "'é' at 0"),
        ("{payload.bytes: {offset: 0-5, hex: 1d 00}}", "payload.bytes", b"12345\x1d\x00", "1d 00 at 0-5"),
        ("{payload.bytes: {offset: 0-4, hex: 1d 00}}", "payload.bytes", b"12345\x1d\x00", None),
        ("{payload.contains: [falun, {hex: ff fe}]}", "payload.contains", b"a\xff\xfeb", "hex:ff fe"),
        ("{payload.contains: {not: falun}}", "payload.contains", b"falun", None),
    ],
)  # fmt: skip
def test_values(tmp_path: Path, match: str, field: str, value: object, entry: str | None) -> None:
    rules = one_rule(tmp_path, match.replace("00 ?? 01", '"00 ?? 01"'))
    found = matched(rules, **{field.replace(".", "__"): value})  # type: ignore[arg-type]
    if entry is None:
        assert found is None
    else:
        assert found is not None
        assert entry in found


def test_yaml_words_stay_text(tmp_path: Path) -> None:
    rules = one_rule(tmp_path, "{http.path: [no, on, 12:30, 0123, 1.50]}")
    for text in ("no", "on", "12:30", "0123", "1.50"):
        assert matched(rules, http__path=text) == [text]


def test_lists_tell_their_name_with_the_entry(tmp_path: Path) -> None:
    lists = "lists: {news: {entries: [example.com]}}\n"
    rules = one_rule(tmp_path, "{tls.sni: ['@news', b.example]}", extra=lists)
    assert matched(rules, tls__sni="www.example.com") == ["example.com from @news"]
    assert matched(rules, tls__sni="b.example") == ["b.example"]
    assert rules.lists == {"news": 1}


def test_any_makes_one_rule_for_each_alternative(tmp_path: Path) -> None:
    rules = one_rule(
        tmp_path, "{initiator: inside, any: [{tls.sni: a.example}, {quic.sni: a.example, quic.ech: true}]}"
    )
    assert [rule.name for rule in rules.rules] == ["one", "one"]
    assert [rule.index for rule in rules.rules] == [0, 1]
    assert [[one.field for one in rule.conditions] for rule in rules.rules] == [
        ["initiator", "tls.sni"],
        ["initiator", "quic.sni", "quic.ech"],
    ]
    assert rules.dissectors == {"tls", "quic"}


@pytest.mark.parametrize(
    ("match", "scope", "dissectors"),
    [
        ("{ip.server: 192.0.2.1}", Scope.FLOW, set()),
        ("{}", Scope.FLOW, set()),
        ("{ip.server: 192.0.2.1, tls.sni: a.example}", Scope.MESSAGE, {"tls"}),
        ("{protocol: [openvpn, wireguard]}", Scope.MESSAGE, {"openvpn", "wireguard"}),
        ("{protocol: unknown}", Scope.MESSAGE, set(dissector_transports())),
        ("{protocol: {not: tls}}", Scope.MESSAGE, set(dissector_transports())),
        ("{tls.sni: a.example, count.packets: '>5'}", Scope.PACKET, {"tls"}),
    ],
)
def test_scope_and_dissectors(tmp_path: Path, match: str, scope: Scope, dissectors: set[str]) -> None:
    rules = one_rule(tmp_path, match)
    assert rules.rules[0].scope is scope
    assert rules.dissectors == dissectors


def test_actions_of_tcp_make_the_rule_one_about_tcp(tmp_path: Path) -> None:
    (rule,) = one_rule(tmp_path, "{ip.server: 192.0.2.1}", "reset").rules
    assert rule.conditions[0].field == "transport"
    assert rule.conditions[0].matcher.match("tcp") == "tcp"
    assert rule.conditions[0].matcher.match("udp") is None
    (rule,) = one_rule(tmp_path, "{tls.sni: a.example}", "reset").rules
    assert [condition.field for condition in rule.conditions] == ["tls.sni"]


def test_a_whole_rule(tmp_path: Path) -> None:
    text = """
version: 1
description: all of it
defaults: {seed: 7}
rules:
  - name: whole
    match: {tls.sni: a.example}
    action: reset
    with: {towards: client, injectors: [{ttl: 10-20, delay: 5ms}]}
    residual: {key: 4tuple, seconds: 2m, refresh: true}
    probability: 0.5
    placement: on-path
    schedule: {hours: "18:00-02:00"}
    cite: a paper
    observed: 2025
"""
    rules = load_text(tmp_path, text)
    (rule,) = rules.rules
    assert isinstance(rule.action, Reset)
    assert rule.action.injectors[0].ttl == Varied(((0.0, 10.0), (1.0, 20.0)))
    assert rule.action.injectors[0].delay == Varied.constant(0.005)
    assert rule.residual == Residual(key="4tuple", seconds=Varied.constant(120.0), refresh=True)
    assert (rule.probability, rule.placement) == (0.5, Placement.ON_PATH)
    assert rule.schedule is not None
    assert (rule.cite, rule.observed) == ("a paper", "2025")
    assert (rule.place.line, rule.place.column) == (6, 5)
    assert (rules.seed, rules.description) == (7, "all of it")
    assert load_rules([tmp_path / "rules.yaml"], seed=9).seed == 9


def test_defaults_reach_the_rules_of_their_own_file_only(tmp_path: Path) -> None:
    (tmp_path / "included.yaml").write_text(
        "version: 1\nrules:\n- {name: first, match: {tls.sni: a.example}, action: reset}\n"
    )
    text = """
version: 1
include: [included.yaml]
defaults: {placement: on-path, residual: {key: 3tuple, seconds: 60, action: reset}, probability: 0.5}
rules:
  - {name: second, match: {tls.sni: b.example}, action: reset}
  - {name: third, match: {tls.sni: c.example}, action: reset, residual: none, placement: in-path, probability: 1}
  - {name: fourth, match: {dns.qname: d.example}, action: poison}
"""
    first, second, third, fourth = load_text(tmp_path, text).rules
    assert (first.placement, first.residual, first.probability) == (Placement.IN_PATH, None, 1.0)
    assert (second.placement, second.probability) == (Placement.ON_PATH, 0.5)
    assert second.residual == Residual(key="3tuple", seconds=Varied.constant(60.0), action="reset")
    assert (third.placement, third.residual, third.probability) == (Placement.IN_PATH, None, 1.0)
    assert fourth.residual is None


def test_includes_come_first_and_can_be_changed(tmp_path: Path) -> None:
    (tmp_path / "included.yaml").write_text(
        """
version: 1
description: included
lists: {names: {entries: [a.example]}}
engine: {tcp: {overlap: last, reassembly: none}}
rules:
  - {name: first, match: {tls.sni: "@names"}, action: reset}
  - {name: second, match: {http.host: "@names"}, action: reset}
"""
    )
    text = """
version: 1
include: [included.yaml]
disable: [second]
lists: {names: {entries: [b.example, c.example]}}
engine: {tcp: {reassembly: full}}
rules:
  - {name: third, match: {dns.qname: "@names"}, action: drop}
"""
    loaded = load([_write(tmp_path, text)])
    assert [rule.name for rule in loaded.rules.rules] == ["first", "third"]
    assert matched(loaded.rules, tls__sni="a.example") is None
    assert matched(loaded.rules, tls__sni="b.example") == ["b.example from @names"]
    assert (loaded.rules.options.tcp.overlap, loaded.rules.options.tcp.reassembly) == ("last", "full")
    assert loaded.rules.dissectors == {"tls", "dns"}
    assert [Path(name).name for name in loaded.files] == ["included.yaml", "rules.yaml"]


def _write(directory: Path, text: str) -> Path:
    path = directory / "rules.yaml"
    path.write_text(text)
    return path


def test_profiles_are_included_by_name(tmp_path: Path) -> None:
    rules = load_text(tmp_path, "version: 1\ninclude: [sni-reset]\n")
    assert [rule.name for rule in rules.rules] == ["sni-reset"]


def test_several_files_are_tried_in_their_order(tmp_path: Path) -> None:
    paths = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"version: 1\nrules: [{{name: {name}, match: {{tls.sni: {name}.example}}, action: drop}}]\n")
        paths.append(path)
    assert [rule.name for rule in load_rules(paths).rules] == ["one", "two"]


def test_engine_options(tmp_path: Path) -> None:
    text = """
version: 1
engine:
  tcp: {create_on: any, reassembly: first_segment, overlap: last, verify_checksum: true, teardown: [],
        buffer: 1KiB, inspect: 2KB}
  tls: {record_reassembly: true}
  quic: {reassembly: false, versions: [1]}
  ip: {fragments: {reassemble: false, limit: 45, timeout: 5s, on_overlap: first, datagrams: 7}}
  flows: {limit: 9, tcp_opening: 1s, tcp_established: 2m, tcp_closing: 3, udp: 4, other: 5, residual_limit: 6}
  openvpn: {confirm: control}
  wireguard: {confirm: data}
  limits: {hold_packets: 11, stream: 12KB}
  on_error: drop
  fail_open: false
inside: [192.0.2.0/25]
subscribers:
  alice: {addresses: [192.0.2.1, "2001:db8::/64"], groups: [home]}
"""
    rules = load_text(tmp_path, text)
    options = rules.options
    assert (options.tcp.create_on, options.tcp.reassembly, options.tcp.overlap) == ("any", "first_segment", "last")
    assert (options.tcp.verify_checksum, options.tcp.teardown) == (True, {})
    assert (options.tcp.buffer, options.tcp.inspect) == (1024, 2000)
    assert (options.dissect.tls_record_reassembly, options.dissect.quic_reassembly) == (True, False)
    assert (options.dissect.quic_versions, options.dissect.stream_limit) == ((1,), 12_000)
    assert (options.dissect.openvpn_confirm, options.dissect.wireguard_confirm) == ("control", "data")
    fragments = options.fragments
    assert (fragments.reassemble, fragments.limit, fragments.timeout) == (False, 45, 5.0)
    assert (fragments.on_overlap, fragments.datagrams) == ("first", 7)
    flows = options.flows
    assert (flows.limit, flows.tcp_opening, flows.tcp_established, flows.tcp_closing) == (9, 1.0, 120.0, 3.0)
    assert (flows.udp, flows.other, flows.residual_limit) == (4.0, 5.0, 6)
    assert (options.hold_packets, rules.on_error, rules.fail_open) == (11, "drop", False)
    assert rules.inside == ((b"\xc0\x00\x02\x00", 25),)
    (alice,) = rules.subscribers
    assert alice.name == "alice"
    assert alice.networks == ((b"\xc0\x00\x02\x01", 32), (address_bytes("2001:db8::"), 64))
    assert alice.groups == {"home"}


def test_silence_means_the_documented_defaults(tmp_path: Path) -> None:
    from gfwemu.rules.compiled import EngineOptions

    rules = load_text(tmp_path, "version: 1\n")
    assert rules.options == EngineOptions()
    assert (rules.on_error, rules.fail_open, rules.seed, rules.rules) == ("accept", True, 0, ())


def test_hooks_are_functions_beside_the_rule_file(tmp_path: Path) -> None:
    (tmp_path / "hook.py").write_text("def odd(facts):\n    return facts['payload.length'] % 2 == 1\n")
    (rule,) = one_rule(tmp_path, "{transport: udp, python: 'hook.py:odd'}").rules
    assert rule.scope is Scope.PACKET
    assert [hook({"payload.length": 3}) for hook in rule.hooks] == [True]
    assert [hook({"payload.length": 4}) for hook in rule.hooks] == [False]


def test_later_rules_are_not_shadowed_by_ones_that_may_let_go(tmp_path: Path) -> None:
    for extra in ("probability: 0.5", "schedule: {days: [mon]}", "placement: in-path"):
        first = f"{{name: first, match: {{tls.sni: a.example}}, action: drop, {extra}}}"
        second = "{name: second, match: {tls.sni: www.a.example}, action: reset}"
        found = problems_of(tmp_path, f"version: 1\nrules:\n- {first}\n- {second}\n")
        assert bool(found) == (extra == "placement: in-path"), extra
    alert = "version: 1\nrules:\n- {name: a, match: {}, action: alert}\n- {name: b, match: {}, action: drop}\n"
    assert problems_of(tmp_path, alert) == []


def test_a_tcp_action_does_not_shadow_the_same_match_on_udp(tmp_path: Path) -> None:
    text = """
version: 1
rules:
  - {name: tcp, match: {ip.server: 192.0.2.1}, action: reset}
  - {name: rest, match: {ip.server: 192.0.2.1}, action: drop}
"""
    assert problems_of(tmp_path, text) == []


def test_a_directory_or_a_device_is_no_rule_file(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero"), tmp_path / "none.yaml", Path("x" * 190), Path("x" * 5000)):
        with pytest.raises(RulesError) as caught:
            load_rules([path])
        assert f": there is no rule file '{str(path)[:180]}" in str(caught.value)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(RulesError) as caught:
        load_rules([path])
    assert "larger than 1000000 bytes; put long lists into list files" in str(caught.value)


def test_too_many_values_are_refused(tmp_path: Path) -> None:
    (found,) = problems_of(tmp_path, "version: 1\ninside: [" + "a," * 50_000 + "]\n")
    assert found == "2 more than 50000 values; put long lists into list files (lists: file:)"


def test_drop_takes_its_parameters(tmp_path: Path) -> None:
    (rule,) = one_rule(
        tmp_path, "{tls.sni: a.example}", extra="    with: {direction: to_server, trigger: false, after: 1s}\n"
    ).rules
    assert rule.action == Drop(direction="to_server", trigger=False, after=Varied.constant(1.0))


def test_thousands_of_rules_are_checked_in_reasonable_time(tmp_path: Path) -> None:
    count = 1500
    lines = [
        f"- {{name: r{n}, match: {{tls.sni: n{n}.example, port.server: 443}}, action: drop}}" for n in range(count)
    ]
    lines.append("- {name: last, match: {tls.sni: www.n700.example, port.server: 443}, action: drop}")
    start = time.perf_counter()
    (found,) = problems_of(tmp_path, "version: 1\nrules:\n" + "\n".join(lines))
    assert time.perf_counter() - start < 20
    assert found.startswith(f"{count + 3} rule 'last' can never fire: 'r700' at")


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("{offset: 0, hex: 09-00}", "the range '09-00' runs backwards"),
        ("{offset: 0, hex: 0-9}", "'0-9' is not hex: write pairs of digits, or ?? for any byte"),
        (
            "{offset: 0, hex: 00, text: a}",
            "needs 'offset' and one of 'hex' and 'text', as in {offset: 0, hex: 16 03 ??}",
        ),
        ("{offset: 0, text: ''}", "an empty text stands everywhere"),
    ],
)
def test_byte_patterns_that_cannot_be(tmp_path: Path, pattern: str, problem: str) -> None:
    text = f"version: 1\nrules:\n  - {{name: one, match: {{payload.bytes: {pattern}}}, action: drop}}\n"
    (found,) = problems_of(tmp_path, text)
    assert found.endswith(problem)


def test_the_cipher_suites_of_tor_are_one_entry_of_a_list(tmp_path: Path) -> None:
    suites = Path(__file__).parents[2] / "rules" / "lists" / "china-tor-ciphers.txt"
    lists = f"lists: {{tor: {{file: {suites}, format: text}}}}\n"
    rules = one_rule(tmp_path, '{tls.ciphers: "@tor"}', extra=lists)
    (line,) = [line for line in suites.read_text().splitlines() if not line.startswith("#")]
    assert len(line.split("-")) == 29
    assert matched(rules, tls__ciphers=line) == [f"{line} from @tor"]
    assert matched(rules, tls__ciphers=line.removesuffix("-00ff")) is None
