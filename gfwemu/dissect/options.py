"""How this censor's dissectors read: the knobs of `engine:` that concern protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DissectOptions:
    """Defaults are those of a dissector that reads everything its RFC allows, unless said otherwise.

    tls_record_reassembly: a ClientHello that is split over TLS records is put together. False by default: the
    national firewall of China did not do it through 2024-10 (Wu et al., S&P 2025).
    quic_reassembly: CRYPTO frames are put together over several frames and datagrams.
    quic_versions: the versions whose Initial packets are read.
    quic_datagram_limit: the client's datagrams that are looked at for its ClientHello. The default is a guess.
    openvpn_confirm / wireguard_confirm: the message at which the protocol counts as recognised.
    stream_limit: bytes of one direction of a stream that a session keeps at most.
    """

    tls_record_reassembly: bool = False
    quic_reassembly: bool = True
    quic_versions: tuple[int, ...] = (0x00000001, 0x6B3343CF)
    quic_datagram_limit: int = 16
    openvpn_confirm: Literal["client_reset", "server_reset", "control"] = "server_reset"
    wireguard_confirm: Literal["initiation", "response", "data"] = "response"
    stream_limit: int = 65_536
