"""Rules are freed behind the back of those who used them, and the garbage collector leaves new ones alone."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from pathlib import Path

from gfwemu.daemon.reload import retire, unhurried
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.load import load_rules

NAMES = 50_000
PATIENCE = 20.0


class Tracked(str):
    """A name that tells when it is freed."""

    __slots__ = ("__weakref__",)


def large_rules(folder: Path) -> tuple[RuleSet, weakref.ref[Tracked]]:
    (folder / "names").write_text("".join(f"name{number}.example\n" for number in range(NAMES)))
    (folder / "rules.yaml").write_text(
        "version: 1\nlists: {n: {file: names}}\nrules: [{name: r, match: {tls.sni: '@n'}, action: drop}]\n"
    )
    rules = load_rules([folder / "rules.yaml"])
    (condition,) = (one for one in rules.rules[0].conditions if one.field == "tls.sni")
    tracked = Tracked("tracked.example")
    condition.matcher.suffixes.add(tracked)  # type: ignore[attr-defined]
    return rules, weakref.ref(tracked)


def test_large_sets_are_freed_once_nobody_else_has_them(tmp_path: Path) -> None:
    rules, tracked = large_rules(tmp_path)
    before = set(threading.enumerate())
    retire(rules)
    (thread,) = set(threading.enumerate()) - before
    del rules
    assert tracked() is not None
    thread.join(PATIENCE)
    assert tracked() is None


def test_small_rules_need_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("version: 1\nrules: [{name: r, match: {tls.sni: a.example}, action: drop}]\n")
    before = threading.enumerate()
    retire(load_rules([path]))
    assert threading.enumerate() == before


def test_loading_takes_short_turns_and_leaves_nothing_to_the_collector(tmp_path: Path) -> None:
    turn, frozen = sys.getswitchinterval(), gc.get_freeze_count()
    try:
        with unhurried():
            assert sys.getswitchinterval() < turn
            assert not gc.isenabled()
            rules, _ = large_rules(tmp_path)
        assert sys.getswitchinterval() == turn
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
        young = {id(one) for one in gc.get_objects()}
        assert id(rules.rules) not in young
    finally:
        gc.unfreeze()


def test_packets_thread_goes_on_while_large_lists_are_loaded(tmp_path: Path) -> None:
    large_rules(tmp_path)

    def load() -> None:
        with unhurried():
            for _ in range(5):
                load_rules([tmp_path / "rules.yaml"])

    loader = threading.Thread(target=load)
    turns = 0
    loader.start()
    while loader.is_alive():
        time.sleep(0.001)
        turns += 1
    gc.unfreeze()
    assert turns > 20
