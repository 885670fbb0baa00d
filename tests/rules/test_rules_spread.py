"""By what flows may be shared out among workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from gfwemu.rules.load import load_rules
from gfwemu.rules.spread import spread_of

NAMED = "subscribers: {alice: {addresses: [192.0.2.10, 192.0.2.11]}}\n"
SNI = "{name: sni, match: {tls.sni: blocked.example}, action: reset, residual: {key: 2tuple, seconds: 60}}"
SERVER = "{name: server, match: {tls.sni: b.example}, action: drop, residual: {key: server_port, seconds: 60}}"
ESCALATED = (
    "{name: wider, match: {tls.sni: c.example}, action: drop, "
    "residual: {key: 3tuple, seconds: 60, escalate: {key: server}}}"
)
RULE_BUCKET = "{name: slow, match: {port.server: 443}, action: throttle, with: {rate: 1mbit, per: rule}}"
BUCKETS = "{name: fair, match: {port.server: 443}, action: throttle, with: {rate: 1mbit, per: subscriber}}"
REDIRECT = "{name: away, match: {port.server: 80}, action: redirect, with: {address: [198.51.100.9]}}"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([SNI], ("pair", "")),
        ([SNI, SERVER], ("outside", "server")),
        ([ESCALATED], ("outside", "wider")),
        ([BUCKETS, SNI], ("inside", "fair")),
        ([SERVER, BUCKETS], ("one", "fair")),
        ([SNI, RULE_BUCKET], ("one", "slow")),
        ([REDIRECT], ("one", "away")),
    ],
)
def test_what_rules_ask_for(tmp_path: Path, rules: list[str], expected: tuple[str, str]) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("version: 1\nrules:\n" + "".join(f"  - {rule}\n" for rule in rules))
    assert spread_of(load_rules([path])) == expected


def test_a_subscriber_of_several_addresses_has_one_bucket(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(f"version: 1\n{NAMED}rules:\n  - {BUCKETS}\n")
    assert spread_of(load_rules([path])) == ("one", "fair")
