"""Idle flows keep nothing of rules that were replaced but what they need of them."""

from __future__ import annotations

import gc
from pathlib import Path

from gfwemu.engine.engine import Engine
from gfwemu.engine.events import PacketArrived, RulesReplaced
from gfwemu.model import FiveTuple, Side, Transport
from gfwemu.rules.compiled import Condition
from gfwemu.rules.load import load_rules
from gfwemu.wire.build import build_udp

KEY = FiveTuple(Transport.UDP, bytes([192, 0, 2, 9]), 5000, bytes([203, 0, 113, 1]), 4000)
RULES = """
version: 1
rules:
  - {name: quic, match: {quic.sni: [a.example, b.example]}, action: drop}
  - {name: count, match: {transport: udp}, action: freeze, with: {packets: 100}}
"""


def test_an_idle_flow_does_not_keep_the_lists_of_old_rules(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    rules = load_rules([path])
    engine = Engine(rules)
    engine.handle(PacketArrived(1, build_udp(KEY, b"\x80\x60" + bytes(100)), 1.0, Side.INSIDE))
    assert engine.flow_count == 1
    (matcher,) = (one.matcher for one in rules.rules[0].conditions if one.field == "quic.sni")
    engine.handle(RulesReplaced(load_rules([path]), 2.0))
    del rules
    assert [one for one in gc.get_referrers(matcher) if isinstance(one, Condition)] == []
