"""`engine:` of the files as the engine's options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gfwemu.dissect.options import DissectOptions
from gfwemu.rules.compiled import EngineOptions, FlowOptions, FragmentOptions, TcpOptions
from gfwemu.rules.models import BoxSection

Tree = dict[str, Any]


def merged(sections: Iterable[BoxSection | Tree]) -> Tree:
    """What the sections set, the last one winning, nested as in the file."""
    result: Tree = {}
    for section in sections:
        _merge(result, section.model_dump(exclude_none=True) if isinstance(section, BoxSection) else section)
    return result


def _merge(into: Tree, other: Tree) -> None:
    for key, value in other.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def engine_options(tree: Tree) -> EngineOptions:
    """The options; where the tree is silent, their defaults."""
    tcp: Tree = dict(tree.get("tcp", {}))
    if "teardown" in tcp:
        tcp["teardown"] = frozenset(tcp["teardown"])
    limits: Tree = tree.get("limits", {})
    quic: Tree = tree.get("quic", {})
    dissect = {
        "tls_record_reassembly": tree.get("tls", {}).get("record_reassembly"),
        "quic_reassembly": quic.get("reassembly"),
        "quic_versions": tuple(quic["versions"]) if "versions" in quic else None,
        "openvpn_confirm": tree.get("openvpn", {}).get("confirm"),
        "wireguard_confirm": tree.get("wireguard", {}).get("confirm"),
        "stream_limit": limits.get("stream"),
    }
    return EngineOptions(
        tcp=TcpOptions(**_whole(tcp, "buffer", "inspect")),
        fragments=FragmentOptions(**tree.get("ip", {}).get("fragments", {})),
        flows=FlowOptions(**tree.get("flows", {})),
        dissect=DissectOptions(
            **_whole({key: value for key, value in dissect.items() if value is not None}, "stream_limit")
        ),
        **{key: value for key, value in limits.items() if key == "hold_packets"},
    )


def _whole(tree: Tree, *names: str) -> Tree:
    return {key: int(value) if key in names else value for key, value in tree.items()}
