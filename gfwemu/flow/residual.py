"""Residual censorship: endpoints that stay blocked for a while after a rule fired."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gfwemu.model import FiveTuple

KeyKind = Literal["2tuple", "3tuple", "4tuple"]


class ResidualKey(NamedTuple):
    """Ports are None where the kind leaves them out; `proto` 0 stands for every protocol (2-tuple)."""

    proto: int
    client: bytes
    client_port: int | None
    server: bytes
    server_port: int | None


def residual_key(kind: KeyKind, flow: FiveTuple) -> ResidualKey:
    """The key of a flow whose tuple runs from client to server."""
    if kind == "2tuple":
        return ResidualKey(0, flow.src, None, flow.dst, None)
    if kind == "3tuple":
        return ResidualKey(flow.proto, flow.src, None, flow.dst, flow.dport)
    return ResidualKey(flow.proto, flow.src, flow.sport, flow.dst, flow.dport)


@dataclass(slots=True)
class Block:
    """One residual block, in force from `begins` to `ends` (the censor's clock). `rule` belongs to the engine."""

    kind: KeyKind
    key: ResidualKey
    rule: Any
    begins: float
    ends: float
    seconds: float


class ResidualTable:
    """Blocks by key, at most `limit`; the oldest goes first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._blocks: OrderedDict[ResidualKey, Block] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, block: Block, *, refresh: bool) -> bool:
        """Begins a block; False where one is in force already and further triggers do not renew it."""
        present = self._blocks.get(block.key)
        if present is not None and present.ends > block.begins and not refresh:
            return False
        self._blocks.pop(block.key, None)
        while len(self._blocks) >= self.limit:
            self._blocks.popitem(last=False)
        self._blocks[block.key] = block
        return True

    def find(self, flow: FiveTuple, now: float) -> Block | None:
        """The block that a packet of this flow meets; the widest key first."""
        if not self._blocks:
            return None
        for kind in ("2tuple", "3tuple", "4tuple"):
            key = residual_key(kind, flow)
            block = self._blocks.get(key)
            if block is None:
                continue
            if now >= block.ends:
                del self._blocks[key]
            elif now >= block.begins:
                return block
        return None

    def keep(self, names: frozenset[str]) -> None:
        """Forgets the blocks of rules that are gone."""
        for key in [key for key, block in self._blocks.items() if block.rule.name not in names]:
            del self._blocks[key]
