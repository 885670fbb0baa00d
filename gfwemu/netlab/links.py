"""Links: rate, delay and loss by name, and the pipes that the shaper makes of them."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from gfwemu.errors import UsageError


@dataclass(frozen=True, slots=True)
class Pipe:
    """One direction of a link.

    `rate`: bytes a second of IP packets, None for no limit. `delay`: seconds, one way. `loss`: a fraction.
    `buffer`: how many seconds of traffic wait for the rate before the tail is dropped (at least ten packets do).
    """

    name: str
    rate: float | None = None
    delay: float = 0.0
    loss: float = 0.0
    buffer: float = 0.5

    @property
    def shapes(self) -> bool:
        return self.rate is not None or self.delay > 0 or self.loss > 0


@dataclass(frozen=True, slots=True)
class Link:
    """A subscriber's access line. Rates in kbit/s (tc's 1000), the round trip in ms, loss in both directions."""

    down_kbit: float
    up_kbit: float
    rtt_ms: float
    loss: float = 0.0

    def pipe(self, name: str, *, down: bool) -> Pipe:
        kbit = self.down_kbit if down else self.up_kbit
        return Pipe(name, rate=kbit * 125, delay=self.rtt_ms / 2000, loss=self.loss)

    def __str__(self) -> str:
        loss = f", {self.loss:.1%} lost" if self.loss else ""
        return f"{self.down_kbit:g}/{self.up_kbit:g} kbit/s down/up, {self.rtt_ms:g} ms{loss}"


# The names and figures of sitespeed.io's throttle, which people already know.
LINKS: dict[str, Link] = {
    "3g": Link(1600, 768, 150),
    "3gfast": Link(1600, 768, 75),
    "3gslow": Link(400, 400, 200),
    "2g": Link(280, 256, 400),
    "4g": Link(9000, 9000, 85),
    "lte": Link(12000, 12000, 35),
    "edge": Link(240, 200, 420),
    "cable": Link(5000, 1000, 14),
    "dsl": Link(1500, 384, 25),
    "dial": Link(49, 30, 60),
    "fois": Link(20000, 5000, 2),
}
_CUSTOM = re.compile(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)(?:/(\d+(?:\.\d+)?)%)?")


def find_link(text: str) -> Link:
    """A link by name, or by figures: `DOWN/UP/RTT` in kbit/s and ms, `/LOSS%` where packets get lost.

    Raises UsageError.
    """
    if text in LINKS:
        return LINKS[text]
    found = _CUSTOM.fullmatch(text)
    if found is None:
        near = difflib.get_close_matches(text, LINKS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"the names are {', '.join(LINKS)}; or write 1600/768/150/1%."
        raise UsageError(f"There is no link '{text}'; {hint}")
    down, up, rtt, loss = (float(part) if part else 0.0 for part in found.groups())
    if not down or not up or loss >= 100:
        raise UsageError(f"The link '{text}' carries nothing; its rates must be above 0 and its loss below 100%.")
    return Link(down, up, rtt, loss / 100)
