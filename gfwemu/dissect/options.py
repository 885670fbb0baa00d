"""How this censor's dissectors read: the knobs of `engine:` that concern protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DissectOptions:
    """One knob for each key under `tls`, `quic`, `http`, `dns`, `openvpn` and `wireguard` of `engine:`.

    Defaults are those of a dissector that reads everything its RFC allows, unless said otherwise. Whose reading a knob
    imitates stands in `gfwemu.rules.protocols`. stream_limit: bytes of one direction of a stream that a session keeps
    at most.
    """

    tls_record_reassembly: bool = False
    quic_reassembly: bool = True
    quic_versions: tuple[int, ...] = (0x00000001, 0x6B3343CF)
    quic_datagrams: int = 16
    quic_min_datagram: int = 0
    quic_cid_limit: int = 20
    quic_crypto_length: Literal["honour", "ignore"] = "honour"
    quic_crypto_first: bool = False
    http_header_name_limit: int = 0
    http_uri_limit: int = 0
    http_keyword_window: int = 0
    http_pipelined: Literal["all", "first_only"] = "all"
    http_percent_decoding: bool = True
    dns_header: Literal["plausible", "ignored"] = "plausible"
    dns_names: Literal["rfc", "flat"] = "rfc"
    dns_name_buffer: int = 126
    openvpn_confirm: Literal["client_reset", "server_reset", "control"] = "server_reset"
    wireguard_confirm: Literal["initiation", "response", "data"] = "response"
    stream_limit: int = 65_536
