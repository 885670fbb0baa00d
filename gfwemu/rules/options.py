"""`engine:` of the files as the engine's options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gfwemu.dissect.options import DissectOptions
from gfwemu.rules.compiled import EngineOptions, FlowOptions, FragmentOptions, TcpOptions
from gfwemu.rules.models import BoxSection
from gfwemu.rules.protocols import PROTOCOLS
from gfwemu.rules.tcp import tcp_arguments

Tree = dict[str, Any]


_WHOLE = frozenset({"teardown", "overlap"})
"""A knob although it is a mapping: what sets it sets all of it."""


def merged(sections: Iterable[BoxSection | Tree]) -> Tree:
    """What the sections set, the last one winning, nested as in the file."""
    result: Tree = {}
    for section in sections:
        _merge(result, section.model_dump(exclude_none=True) if isinstance(section, BoxSection) else section)
    return result


def _merge(into: Tree, other: Tree) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and key not in _WHOLE:
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def engine_options(tree: Tree) -> EngineOptions:
    """The options; where the tree is silent, their defaults."""
    limits: Tree = tree.get("limits", {})
    dissect = {f"{section}_{knob}": value for section in PROTOCOLS for knob, value in tree.get(section, {}).items()}
    if "quic_versions" in dissect:
        dissect["quic_versions"] = tuple(dissect["quic_versions"])
    if "stream" in limits:
        dissect["stream_limit"] = limits["stream"]
    return EngineOptions(
        tcp=TcpOptions(**tcp_arguments(tree.get("tcp", {}))),
        fragments=FragmentOptions(**tree.get("ip", {}).get("fragments", {})),
        flows=FlowOptions(**tree.get("flows", {})),
        dissect=DissectOptions(**_whole(dissect, "stream_limit")),
        **{key: value for key, value in limits.items() if key == "hold_packets"},
    )


def _whole(tree: Tree, *names: str) -> Tree:
    return {key: int(value) if key in names else value for key, value in tree.items()}
