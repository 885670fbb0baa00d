"""`gfwemu check`, `schema`, `list` and `show`, as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result

from gfwemu.cli.main import cli
from gfwemu.rules.actions import ACTIONS
from gfwemu.rules.catalogue import profiles
from gfwemu.rules.fields import dissector_transports, rule_fields
from gfwemu.rules.jsonschema import rule_file_schema
from gfwemu.rules.load import load_rules

BAD_RULES = Path(__file__).parent.parent / "data" / "bad_rules"


def inside(*arguments: str) -> Result:
    """The command line without the wait for a new process."""
    return CliRunner().invoke(cli, list(arguments))


def gfwemu(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gfwemu", *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=cwd
    )


def told(*arguments: str) -> Any:
    result = inside(*arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_check_says_everything_that_is_wrong_and_exits_with_3() -> None:
    result = gfwemu("check", "subscribers.yaml", "tab.yaml", cwd=BAD_RULES)
    assert result.returncode == 3
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("gfwemu: subscribers.yaml:4:8: subscriber 'bob' has an address")
    assert lines[-1].endswith("tab.yaml:3:1: not YAML: indent with spaces, not with a tab")
    assert len(lines) == 6


def test_check_as_json_where_something_is_wrong() -> None:
    result = gfwemu("check", "--json", "tab.yaml", cwd=BAD_RULES)
    assert result.returncode == 3
    assert json.loads(result.stdout) == {
        "ok": False,
        "problems": [
            {"file": "tab.yaml", "line": 3, "column": 1, "message": "not YAML: indent with spaces, not with a tab"}
        ],
    }


def test_check_sums_up_what_is_right() -> None:
    result = inside("check", "china")
    assert result.exit_code == 0, result.output
    assert "china.yaml" in result.stdout
    assert "list china-tls: 23 entries, format domains" in result.stdout
    assert "dissectors: dns, ftp, http, quic, smtp, tls; seed 0" in result.stdout
    alone = inside("check", "ip-blacklist").stdout
    (line,) = [line for line in alone.splitlines() if line.startswith("ip-blacklist")]
    assert line.split() == ["ip-blacklist", "drop", "in-path", "once", "a", "flow", "kernel"]


def test_check_as_json() -> None:
    answer = told("check", "ip-blacklist", "sni-reset", "--json")
    assert answer["ok"]
    assert [(rule["name"], rule["kernel"]) for rule in answer["rules"]] == [
        ("ip-blacklist", True),
        ("sni-reset", False),
    ]
    assert answer["dissectors"] == ["tls"]
    assert [one["entries"] for one in answer["lists"]] == [2, 1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["check", "nowhere"], 2, "gfwemu: there is no profile 'nowhere'"),
        (["check"], 2, "Missing argument 'FILE...'"),
        (["list", "nothing"], 2, "'nothing' is not one of"),
        (["show", "resett"], 2, "there is no profile, field, action or dissector 'resett'; did you mean 'reset'?"),
        (["show", "nowhere.yaml"], 2, "there is no rule file 'nowhere.yaml'"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, message: str) -> None:
    result = gfwemu(*arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_lists() -> None:
    assert {entry["name"] for entry in told("list", "--json")} == set(profiles())
    assert [entry["name"] for entry in told("list", "fields", "--json")] == list(rule_fields())
    assert [entry["name"] for entry in told("list", "actions", "--json")] == list(ACTIONS)
    assert [entry["name"] for entry in told("list", "dissectors", "--json")] == list(dissector_transports())
    for what in ("profiles", "fields", "actions", "dissectors"):
        assert inside("list", what).stdout.splitlines()[0].split()[0] == "name"


def test_show() -> None:
    assert "  seq_offsets      list of whole number " in inside("show", "reset").stdout
    assert "must be given" in inside("show", "throttle").stdout
    assert "match: {tls.sni: www.example}" in inside("show", "tls.sni").stdout
    assert 'example    match: {packet.length: ">1200"}' in inside("show", "packet.length").stdout
    assert "over tcp and udp" in inside("show", "dns").stdout
    assert "version: 1" in inside("show", "sni-reset").stdout
    answer = told("show", "reset", "--json")
    names = [parameter["name"] for parameter in answer["nested"]["injector"]["parameters"]]
    assert {"ttl", "flags", "delay", "seq_offsets"} <= set(names)


@pytest.mark.parametrize("name", sorted(rule_fields()))
def test_the_example_of_every_field_is_a_rule(name: str, tmp_path: Path) -> None:
    (line,) = [line for line in inside("show", name).stdout.splitlines() if line.strip().startswith("example")]
    path = tmp_path / "rules.yaml"
    subscribers = "subscribers: {alice: {addresses: [192.0.2.1], groups: [foreign-sim]}}\n"
    match = line.split("match: ", 1)[1]
    path.write_text(f"version: 1\n{subscribers}rules:\n  - name: one\n    match: {match}\n    action: alert\n")
    (rule,) = load_rules([path]).rules
    assert [condition.field for condition in rule.conditions] == [name]


def test_the_schema_accepts_every_profile_and_refuses_typing_errors() -> None:
    schema = told("schema")
    assert schema == rule_file_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in profiles().values():
        assert [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text()))] == []
    rule = {"name": "a", "match": {"tls.snl": "a.example"}, "action": "drop"}
    wrong: list[dict[str, Any]] = [
        {"version": 1, "rulez": []},
        {"version": 1, "rules": [rule]},
        {"version": 1, "rules": [{**rule, "match": {"tls": {"snl": "a.example"}}}]},
        {"version": 1, "rules": [{**rule, "match": {"tls.sni": "a.example"}, "action": "resett"}]},
        {"version": 1, "rules": [{**rule, "match": {"tls.sni": "a.example"}, "with": {"towards": "both"}}]},
        {"version": 1, "rules": [{**rule, "match": {"tls.ech": "yes"}}]},
        {"version": 1, "rules": [{**rule, "match": {"transport": "sctp"}}]},
    ]
    for document in wrong:
        assert not validator.is_valid(document), document


@pytest.mark.parametrize("command", ["check", "schema", "list", "show"])
def test_help_has_examples(command: str) -> None:
    result = inside(command, "--help")
    assert result.exit_code == 0
    assert f"  gfwemu {command}" in result.stdout
