"""Fragments in the engine: how long they wait."""

from __future__ import annotations

from rulekit import rule, ruleset

from gfwemu.engine.commands import SetVerdict
from gfwemu.flow.options import FragmentOptions
from gfwemu.model import Verdict, address_bytes
from gfwemu.testing.playbook import Playbook
from gfwemu.wire.build import build_ip

CLIENT, SERVER = address_bytes("192.0.2.10"), address_bytes("203.0.113.80")


def test_a_shorter_timeout_holds_for_fragments_that_wait_already() -> None:
    rules = rule("drop", {"tls.sni": "www.blocked.example"})
    book = Playbook(ruleset(rules, fragments=FragmentOptions(timeout=30)))
    lone = build_ip(CLIENT, SERVER, 17, bytes(16), ip_id=1, more_fragments=True)
    assert book.packet(lone).held
    book.replace_rules(ruleset(rules, fragments=FragmentOptions(timeout=1)))
    assert book.wait(0.9).commands == []
    verdicts = [command for command in book.wait(0.2).commands if isinstance(command, SetVerdict)]
    assert [verdict.verdict for verdict in verdicts] == [Verdict.DROP]
