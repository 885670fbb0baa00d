"""Residual censorship: endpoints that stay blocked for a while after a rule fired."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from gfwemu.model import FiveTuple

KeyKind = Literal["server", "2tuple", "server_port", "3tuple", "4tuple"]


class ResidualKey(NamedTuple):
    """Ports are None where the kind leaves them out; `proto` 0 stands for every protocol, an empty `client` for all."""

    proto: int
    client: bytes
    client_port: int | None
    server: bytes
    server_port: int | None


def residual_key(kind: KeyKind, flow: FiveTuple) -> ResidualKey:
    """The key of a flow whose tuple runs from client to server."""
    if kind == "server":
        return ResidualKey(0, b"", None, flow.dst, None)
    if kind == "server_port":
        return ResidualKey(flow.proto, b"", None, flow.dst, flow.dport)
    if kind == "2tuple":
        return ResidualKey(0, flow.src, None, flow.dst, None)
    if kind == "3tuple":
        return ResidualKey(flow.proto, flow.src, None, flow.dst, flow.dport)
    return ResidualKey(flow.proto, flow.src, flow.sport, flow.dst, flow.dport)


@dataclass(slots=True)
class Block:
    """One residual block, in force from `begins` to `ends` (the censor's clock).

    `rule` and `watched` (until when the kernel queues its packets) belong to the engine.
    """

    kind: KeyKind
    key: ResidualKey
    rule: Any
    begins: float
    ends: float
    seconds: float
    watched: float = 0.0


class ResidualTable:
    """Blocks by key, at most `limit`; the oldest goes first."""

    __slots__ = ("_blocks", "_kinds", "_ports", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._blocks: OrderedDict[ResidualKey, Block] = OrderedDict()
        self._kinds: dict[KeyKind, int] = dict.fromkeys(get_args(KeyKind), 0)
        self._ports: OrderedDict[tuple[str, bytes, bytes], dict[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, block: Block, *, refresh: bool) -> bool:
        """Begins a block; False where one is in force already and further triggers do not renew it."""
        present = self._blocks.get(block.key)
        if present is not None and present.ends > block.begins:
            if not refresh:
                return False
            block.begins = min(block.begins, present.begins)
        if present is not None:
            self._forget(present)
        while self._blocks and len(self._blocks) >= self.limit:
            self._forget(next(iter(self._blocks.values())))
        self._blocks[block.key] = block
        self._kinds[block.kind] += 1
        return True

    def find(self, flow: FiveTuple, now: float) -> list[Block]:
        """The blocks that a packet of this flow meets; the widest key first."""
        met: list[Block] = []
        for kind, count in self._kinds.items():
            block = self._blocks.get(residual_key(kind, flow)) if count else None
            if block is None:
                continue
            if now >= block.ends:
                self._forget(block)
            elif now >= block.begins:
                met.append(block)
        return met

    def ports_blocked(self, block: Block, flow: FiveTuple, now: float) -> int:
        """Notes that the rule of the block fired for this port; for how many ports of the server it did in blocks that
        still last."""
        key = (block.rule.name, block.key.client, block.key.server)
        ports = self._ports.pop(key, {})
        ports[flow.dport] = self._blocks.get(block.key, block).ends
        self._ports[key] = ports = {port: ends for port, ends in ports.items() if ends > now}
        if len(self._ports) > self.limit:
            self._ports.popitem(last=False)
        return len(ports)

    def rebind(self, rules: Mapping[str, Any]) -> None:
        """Puts other rules in the place of those of the same name; the blocks of rules that are gone are forgotten."""
        for block in tuple(self._blocks.values()):
            if block.rule.name in rules:
                block.rule = rules[block.rule.name]
            else:
                self._forget(block)

    def _forget(self, block: Block) -> None:
        del self._blocks[block.key]
        self._kinds[block.kind] -= 1
