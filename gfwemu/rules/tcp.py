"""`tcp:` of `engine:` and of a box: how a censor follows connections.

Each key is a knob of `TcpOptions`. The description says who measured a censor that has it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from gfwemu.flow.options import LockOn, Resync, Teardown
from gfwemu.flow.stream import Overlap
from gfwemu.rules.protocols import KNOWN_KEYS_ONLY
from gfwemu.rules.quantities import Size, parse_varied

_Bytes = Annotated[Size, Field(ge=1, le=1_000_000_000)]
_Probability = Annotated[float, Field(ge=0, le=1)]


def _acceptance(value: object) -> float:
    words = {"accept": 1.0, "ignore": 0.0}
    if isinstance(value, str) and value in words:
        return words[value]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("expected accept, ignore, or the probability from 0 to 1 to accept it")
    return float(value)


_Acceptance = Annotated[float, BeforeValidator(_acceptance), Field(ge=0, le=1)]
"""`accept`, `ignore`, or how likely such a packet is accepted."""


def _range(value: object) -> tuple[float, float]:
    varied = parse_varied(value, "duration")
    return varied.low, varied.high


_Range = Annotated[tuple[float, float], BeforeValidator(_range)]
"""Seconds, from and to, written as `60m-90m`."""


class _Section(BaseModel):
    model_config = KNOWN_KEYS_ONLY


def _some(packets: list[LockOn]) -> list[LockOn]:
    if not packets:
        raise ValueError("name at least one kind of packet, as in [client_data]")
    return packets


def _by_flag(value: object) -> object:
    if isinstance(value, list) and all(isinstance(flag, str) for flag in value):
        return {flag: {} for flag in value}
    if not isinstance(value, dict | TeardownSection):
        raise ValueError("expected a list, as in [rst, fin], or a mapping, as in {rst: {probability: 0.8}}")
    return value


class TeardownEntry(_Section):
    """When a RST or FIN makes the censor forget the connection."""

    probability: _Probability = 1.0
    when: Literal["always", "opening", "established", "before_data", "after_data"] = "always"
    by: Literal["any", "client", "server"] = "any"
    sequence: Literal["any", "in_window", "exact"] = "any"


class TeardownSection(_Section):
    """`rst` and `fin` cover those with ACK, too, unless `rst_ack` and `fin_ack` say otherwise."""

    rst: TeardownEntry | None = None
    rst_ack: TeardownEntry | None = None
    fin: TeardownEntry | None = None
    fin_ack: TeardownEntry | None = None


class OverlapSection(_Section):
    """The probability of each reading, drawn once a connection; together they make 1."""

    first: _Probability = 0.0
    last: _Probability = 0.0
    left_equal_last: _Probability = 0.0

    @model_validator(mode="after")
    def _make_one(self) -> OverlapSection:
        total = self.first + self.last + self.left_equal_last
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"the probabilities must add up to 1, as in {{first: 0.7, last: 0.3}}; here {total:g}")
        return self


class ResyncEntry(_Section):
    """How likely the trigger makes the censor resynchronise, and to which packet."""

    probability: _Probability = 1.0
    lock_on: Annotated[list[LockOn], AfterValidator(_some)] = ["server_synack", "client_data"]


class ResyncSection(_Section):
    """What makes the censor distrust its sequence numbers and take those of a later packet (Wang et al., IMC 2017)."""

    multiple_syn: ResyncEntry | None = Field(
        default=None,
        description="A second SYN of the client (Wang et al., IMC 2017, NB2).",
    )
    syn_with_data: ResyncEntry | None = Field(
        default=None,
        description="A second SYN of the client that carries data (Wang et al., NDSS 2020, SymTCP, Table VI).",
    )
    multiple_synack: ResyncEntry | None = Field(
        default=None,
        description="A second SYN/ACK of the server (Wang et al., IMC 2017, NB2).",
    )
    synack_wrong_ack: ResyncEntry | None = Field(
        default=None,
        description="A SYN/ACK that acknowledges another number than the SYN's (Wang et al., IMC 2017, NB2); of FTP's"
        " box only in Bock et al., SIGCOMM 2020.",
    )
    server_payload_before_synack: ResyncEntry | None = Field(
        default=None,
        description="Payload of the server before the handshake is complete, on a packet that is no SYN/ACK (Bock et "
        "al., SIGCOMM 2020).",
    )
    rst: ResyncEntry | None = Field(
        default=None,
        description="A RST of the client, instead of the teardown, after the handshake (Wang et al., IMC 2017, NB3: "
        "about 20 %).",
    )
    rst_before_established: ResyncEntry | None = Field(
        default=None,
        description="The same before the handshake is complete (Bock et al., CCS 2019: about 50 %).",
    )
    server_rst: ResyncEntry | None = Field(
        default=None,
        description="A RST of the server, in any state (Bock et al., SIGCOMM 2020: about 50 %).",
    )


class TcpSection(_Section):
    """How this censor follows TCP connections."""

    create_on: Literal["syn", "synack", "both", "any"] | None = Field(
        default=None,
        description="What makes it remember a connection. In China the SYN alone in 2013 (Khattak et al., FOCI 2013),"
        " a SYN or a SYN/ACK in 2017 (Wang et al., IMC 2017, NB1); `any` packet in Henan (Wu et al., S&P "
        "2025).",
    )
    handshake: Literal["none", "syn", "full"] | None = Field(
        default=None,
        description="What of it must have been seen before payload of the client is read: the client's SYN for TLS in"
        " China (Wu et al., S&P 2025), all of it for ESNI (Bock et al., 2020).",
    )
    established_by: Literal["ack", "valid_ack"] | None = Field(
        default=None,
        description="What completes the handshake: in China the ACK flag alone, whatever the numbers (Bock et al., "
        "CCS 2019).",
    )
    reassembly: Literal["none", "first_segment", "full"] | None = Field(
        default=None,
        description="`none`: each segment is read alone, as in Henan (Wu et al., S&P 2025).",
    )
    overlap: Overlap | OverlapSection | None = Field(
        default=None,
        description="Which of two segments over a hole keeps the bytes of both. In China in 2013 the first one, "
        "except against a later one that begins at the same byte (Khattak et al., FOCI 2013); in 2017 the later one "
        "in some connections only (Wang et al., IMC 2017, Table 1). A mapping gives the probability of each, drawn "
        "once a connection.",
    )
    verify_checksum: bool | None = Field(
        default=None,
        description="Packets with a wrong TCP or UDP checksum are not read. China's censors read them (Bock et al., "
        "CCS 2019).",
    )
    verify_ip_checksum: bool | None = Field(
        default=None,
        description="Packets with a wrong IPv4 header checksum are not read; routers drop them anyway.",
    )
    teardown: Annotated[TeardownSection, BeforeValidator(_by_flag)] | None = Field(
        default=None,
        description="What makes it forget: in China RST and RST/ACK, a bare FIN in 2013 (Khattak et al., FOCI 2013), "
        "a FIN only with or after data in 2019 (SymTCP, NDSS 2020, Table VI). A list means `always`.",
    )
    resync: ResyncSection | None = None
    simultaneous_open: Literal["advance", "off_by_one"] | None = Field(
        default=None,
        description="A SYN/ACK of the client: `off_by_one` does not count its SYN, as in China (Bock et al., SIGCOMM "
        "2020).",
    )
    md5_option: _Acceptance | None = Field(
        default=None,
        description="Packets with an MD5 signature (RFC 2385) nobody asked for: servers ignore them, China's censors "
        "do not (Wang et al., IMC 2017, Table 3).",
    )
    old_timestamp: _Acceptance | None = Field(
        default=None,
        description="Packets whose timestamp (RFC 7323) is older than the latest one of that direction: accepted in "
        "China (Wang et al., IMC 2017, Table 3).",
    )
    bad_ack: _Acceptance | None = Field(
        default=None,
        description="Packets that acknowledge what was never sent: accepted in China (Wang et al., IMC 2017, Table 3).",
    )
    data_without_ack: _Acceptance | None = Field(
        default=None,
        description="Payload with flags, SYN and ACK not among them: accepted in China (SymTCP, NDSS 2020, Table VI).",
    )
    no_flags: _Acceptance | None = Field(
        default=None,
        description="Packets without any flag: accepted in China (Wang et al., IMC 2017, Table 3), with "
        "data that overlap in 48 % of the tries (Table 1).",
    )
    odd_flags: _Acceptance | None = Field(
        default=None,
        description="Packets with more than one of SYN, RST and FIN: accepted in China (Bock et al., CCS 2019, "
        "FRAPUN).",
    )
    bad_ip_length: _Acceptance | None = Field(
        default=None,
        description="Packets whose IP header promises more than there is: accepted in China (Wang et al., IMC 2017, "
        "Table 3).",
    )
    bad_data_offset: Literal["accept", "ignore", "read_header_as_payload"] | None = Field(
        default=None,
        description="A TCP header said to be shorter than 20 bytes, or longer than the segment. `accept` takes it for"
        " 20 bytes, as in China (Wang et al., IMC 2017, Table 3); `read_header_as_payload` begins where "
        "the field says.",
    )
    data_offset: Annotated[int, Field(ge=5, le=15)] | None = Field(
        default=None,
        description="Only segments with a header of that many words are read: 5, so no options, in Henan (Wu et al., "
        "S&P 2025).",
    )
    seq_before_isn: Literal["trim", "ignore"] | None = Field(
        default=None,
        description="A segment that begins at the client's SYN or before and reaches beyond: hosts take the rest "
        "(`trim`), China's censors do not (SymTCP, NDSS 2020, Table VI).",
    )
    small_segments: Annotated[Size, Field(ge=0, le=65_535)] | None = Field(
        default=None,
        description="Payloads of the client up to that many bytes are not read: 8 in China before the handshake is "
        "complete (SymTCP, NDSS 2020, Table VI).",
    )
    small_segments_when: Literal["opening", "always"] | None = Field(
        default=None,
        description="`always` for the device that sends RST/ACK, which ignores them in established connections, too "
        "(SymTCP, NDSS 2020, section VII).",
    )
    out_of_window: Literal["ignore", "follow"] | None = Field(
        default=None,
        description="Data more than `buffer` bytes ahead: `follow` goes on there. China's ignore it outside of "
        "resynchronisation (Wang et al., IMC 2017).",
    )
    buffer: _Bytes | None = Field(
        default=None,
        description="Bytes kept above a hole in one direction, counted from its beginning: 1 KB in China "
        "(Khattak et al., FOCI 2013).",
    )
    on_overflow: Literal["trim", "forget"] | None = Field(
        default=None,
        description="What lies beyond `buffer` is not kept, or the whole connection is forgotten (Khattak et al., "
        "2013).",
    )
    hole_lifetime: _Range | None = Field(
        default=None,
        description="How long a connection with a hole is remembered: 60 to 90 minutes in China (Khattak et al., FOCI"
        " 2013).",
    )
    inspect: _Bytes | None = Field(
        default=None,
        description="Bytes of a direction that are read at most: about 1 GB in China (Khattak et al., FOCI 2013).",
    )


def tcp_arguments(tree: dict[str, Any]) -> dict[str, Any]:
    """A `tcp:` section, as `model_dump` gives it, to the arguments of `TcpOptions`."""
    arguments = dict(tree)
    if "teardown" in tree:
        arguments["teardown"] = {flag: Teardown(**entry) for flag, entry in tree["teardown"].items()}
    if "resync" in tree:
        arguments["resync"] = {
            trigger: Resync(entry["probability"], tuple(entry["lock_on"])) for trigger, entry in tree["resync"].items()
        }
    for name in ("buffer", "inspect", "small_segments"):
        if name in tree:
            arguments[name] = int(tree[name])
    return arguments
