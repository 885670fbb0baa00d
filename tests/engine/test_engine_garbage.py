"""The engine leaves nothing to the garbage collector, which therefore need not look at its many flows."""

from __future__ import annotations

import gc

from hypothesis import given, settings
from hypothesis import strategies as st
from rulekit import ruleset
from test_engine_laws import SCRIPTS, rules

from gfwemu.engine.engine import Engine
from gfwemu.engine.events import PacketArrived, RulesReplaced, Stopping, TimerFired
from gfwemu.flow.options import FlowOptions
from gfwemu.rules.compiled import CompiledRule


@settings(max_examples=60)
@given(st.lists(rules(), max_size=4), SCRIPTS)
def test_flows_that_are_gone_leave_no_cycles(some: list[CompiledRule], script: list[tuple[bytes, float]]) -> None:
    rule_set = ruleset(*some, flows=FlowOptions(limit=3))
    engine = Engine(rule_set, seed=1)
    # Looks at nothing that was there before, garbage or not, which is much.
    gc.freeze()
    gc.disable()
    try:
        now = 1_000_000.0
        for number, (data, after) in enumerate(script):
            now += after
            engine.handle(PacketArrived(number, data, now))
        engine.handle(TimerFired(now))
        engine.handle(RulesReplaced(rule_set, now))
        engine.handle(Stopping(now))
        assert gc.collect() == 0
    finally:
        gc.enable()
        gc.unfreeze()
