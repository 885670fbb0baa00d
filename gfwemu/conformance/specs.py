"""The words of conformance cases: numbers, and the bytes that a script sends."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gfwemu.rules.models import Section
from gfwemu.rules.quantities import parse_quantity

Hex = Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2}\s*)*$")]
Port = Annotated[int, Field(ge=0, le=65535)]


def _flags(text: str) -> str:
    if text != "none" and not re.fullmatch("[FSRPAUEC]+", text):
        raise ValueError(f"'{text}' are not TCP flags: write letters of FSRPAUEC, as in 'RA', or 'none'")
    return "" if text == "none" else text


Flags = Annotated[str, AfterValidator(_flags)]


class Range(BaseModel):
    """Whole numbers from `low` to `high`, both included."""

    model_config = ConfigDict(frozen=True)
    low: int
    high: int

    def holds(self, number: int) -> bool:
        return self.low <= number <= self.high

    @property
    def in_hex(self) -> str:
        return f"{self.low:#06x}" if self.low == self.high else f"{self.low:#06x}-{self.high:#06x}"

    def __str__(self) -> str:
        if self.high == self.low:
            return str(self.low)
        return f"{self.low} or more" if self.high >= _ENDLESS else f"{self.low}-{self.high}"


_ENDLESS = 2**62
_NUMBER = r"(0x[0-9a-fA-F]+|\d+)"


def _range(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return Range(low=value, high=value)
    if isinstance(value, str):
        if found := re.fullmatch(rf"{_NUMBER}(?:-{_NUMBER})?", value):
            low = int(found[1], 0)
            return Range(low=low, high=int(found[2], 0) if found[2] else low)
        if found := re.fullmatch(rf"(?:>={_NUMBER}|{_NUMBER}\+)", value):
            return Range(low=int(found[1] or found[2], 0), high=_ENDLESS)
    if isinstance(value, Range):
        return value
    raise ValueError(f"'{value}' is not a number, a range (2-5) or an open one (2+)")


Numbers = Annotated[Range, BeforeValidator(_range)]


def _span(value: object) -> tuple[float, float]:
    """A range of durations, `10ms-500ms`."""
    if isinstance(value, tuple):
        return value
    first, dash, last = str(value).partition("-")
    if not dash:
        raise ValueError(f"'{value}' is not a range of durations, as in '10ms-500ms'")
    low, high = parse_quantity(first, "duration"), parse_quantity(last, "duration")
    if low > high:
        raise ValueError(f"the range '{value}' runs backwards")
    return low, high


Span = Annotated[tuple[float, float], BeforeValidator(_span)]


# -- payloads -----------------------------------------------------------------------------------------------------


class Tls(Section):
    """A ClientHello in its record or records.

    records: sizes of the first records, the rest goes into the last one; `sni`: cut in the middle of the name.
    """

    sni: str | None = None
    esni: bool = False
    esni_type: Annotated[int, Field(ge=0, le=65535)] = 0xFFCE
    ech: bool = False
    alpn: tuple[str, ...] = ("h2", "http/1.1")
    records: tuple[Annotated[int, Field(ge=1)], ...] | Literal["sni"] = ()
    record_version: Annotated[int, Field(ge=0, le=65535)] = 0x0301
    record_type: Annotated[int, Field(ge=0, le=255)] = 22
    version: Annotated[int, Field(ge=0, le=65535)] = 0x0303
    pad: Annotated[int, Field(ge=0, le=16000)] = 0
    pad_first: bool = False


class Http(Section):
    """A request; `headers` stand before Host, `after` behind it."""

    host: str | None = "www.allowed.example"
    path: str = "/"
    method: str = "GET"
    version: str = "1.1"
    headers: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    host_header: str = "Host"
    body: str = ""
    end: bool = True


class Dns(Section):
    """A query. Over TCP it gets its length in front. `pointer`: the name ends in a compression pointer to byte 12+n."""

    name: str
    type: str = "A"
    qclass: Annotated[int, Field(ge=0, le=65535)] = 1
    rd: bool = True
    response: bool = False
    qdcount: Annotated[int, Field(ge=0, le=65535)] = 1
    edns: bool = False
    pointer: bool = False
    trailing: Hex = ""
    length: int | None = None


class Quic(Section):
    """A client's Initial packet.

    split: sizes of the CRYPTO frames that come before the last one; `reversed` puts the last one first.
    version: of the header; `keys`: the version that gives the keys, if another. cut: bytes taken off the end.
    """

    sni: str | None = None
    alpn: tuple[str, ...] = ("h3",)
    ech: bool = False
    version: int = 1
    keys: int | None = None
    dcid: Annotated[int, Field(ge=0, le=255)] = 8
    scid: Annotated[int, Field(ge=0, le=255)] = 8
    token: Annotated[int, Field(ge=0, le=60)] = 0
    number_length: Annotated[int, Field(ge=1, le=4)] = 1
    split: tuple[Annotated[int, Field(ge=1)], ...] | Literal["sni"] = ()
    reversed: bool = False
    first: Literal["crypto", "padding", "ping"] = "crypto"
    size: Annotated[int, Field(ge=0, le=1400)] = 1200
    cut: Annotated[int, Field(ge=0)] = 0
    crypto_length: int | None = None
    bad_tag: bool = False


class Random(Section):
    """popcount: one-bits a byte; printable: share of printable bytes; run: of them in a row; prefix: counts, too."""

    length: Annotated[int, Field(ge=1, le=1400)]
    seed: int = 1
    popcount: Annotated[float, Field(ge=0, le=8)] | None = None
    printable: Annotated[float, Field(ge=0, le=1)] | None = None
    run: Annotated[int, Field(ge=0)] | None = None
    prefix: Hex | None = None
    text_prefix: str | None = None


class Fill(Section):
    byte: str = "X"
    length: Annotated[int, Field(ge=1, le=60000)]


class Payload(Section):
    """Exactly one kind of bytes."""

    tls: Tls | None = None
    http: Http | None = None
    dns: Dns | None = None
    quic: Quic | None = None
    random: Random | None = None
    fill: Fill | None = None
    hex: Hex | None = None
    text: str | None = None
    line: str | None = None
    lines: list[str] | None = None
    join: list[Payload] | None = None

    @model_validator(mode="after")
    def _one(self) -> Payload:
        given = self.model_fields_set
        if len(given) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"a payload is one of {known}; found {', '.join(sorted(given)) or 'nothing'}")
        return self


def _as_payload(value: object) -> object:
    return {"text": value} if isinstance(value, str) else value


AnyPayload = Annotated[Payload, BeforeValidator(_as_payload)]
