"""Chance, from one seed: thrown anew, or settled once for a flow or for a pair of endpoints."""

from __future__ import annotations

import random
from hashlib import blake2b

from gfwemu.model import FiveTuple
from gfwemu.rules.odds import Odds


class Dice:
    """`seed` settles what is the same for ever; `rng` is what is thrown anew.

    Endpoints share one draw among all rules: a path that one of them spares, another of the same probability spares,
    too, since whole paths are censored or are not (Bhaskar and Pearce, USENIX Security 2022).
    """

    def __init__(self, rng: random.Random, seed: int) -> None:
        self.rng = rng
        self._key = seed.to_bytes(16, "big", signed=True) if seed.bit_length() < 128 else str(seed).encode()[:64]

    def throw(self, odds: Odds, flow: FiveTuple, flow_id: int, censor_now: float, owner: str) -> bool:
        """Whether it happens. `flow` runs from client to server; `owner` tells draws for the same flow apart."""
        chance = odds.at(censor_now)
        if chance >= 1.0 or chance <= 0.0:
            return chance >= 1.0
        match odds.per:
            case "flow":
                return self._share(b"%d/" % flow_id + owner.encode()) < chance
            case "endpoints":
                return self._share(flow.src + flow.sport.to_bytes(2, "big") + flow.dst) < chance
            case "addresses":
                return self._share(flow.src + flow.dst) < chance
        return self.rng.random() < chance

    def _share(self, what: bytes) -> float:
        """A number from 0 to 1 that depends on nothing but `what` and the seed."""
        return int.from_bytes(blake2b(what, digest_size=8, key=self._key).digest(), "big") / 2**64
