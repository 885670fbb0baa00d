"""How a censor's dissectors read: the sections of `engine:` (and of a box) that concern protocols.

Each key is a knob of `DissectOptions`, named `section_key` there. The description says whose reading it imitates.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gfwemu.dissect.options import DissectOptions

KNOWN_KEYS_ONLY = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)
_LONGEST_DATAGRAM = 65_535


def _readable_version(number: int) -> int:
    if number not in DissectOptions().quic_versions:
        known = " and ".join(f"{version:#x}" for version in DissectOptions().quic_versions)
        raise ValueError(f"QUIC version {number:#x} cannot be read; {known} can")
    return number


class _Section(BaseModel):
    model_config = KNOWN_KEYS_ONLY


class TlsSection(_Section):
    """How this censor reads TLS."""

    record_reassembly: bool | None = Field(
        default=None,
        description="A ClientHello over several records is put together. Not so in China through 2024-10 (Wu et al., "
        "S&P 2025, Table 3).",
    )


class QuicSection(_Section):
    """How this censor reads QUIC. Versions are numbers: 1, and 0x6b3343cf for QUIC v2 (RFC 9369).

    What is said of China is from Zohaib et al., USENIX Security 2025, and the payloads published with it.
    """

    reassembly: bool | None = Field(
        default=None,
        description="A ClientHello over several CRYPTO frames or datagrams is put together. In China both pass.",
    )
    versions: list[Annotated[int, AfterValidator(_readable_version)]] | None = Field(
        default=None,
        description="The versions whose Initial packets are read. In China 1 alone: a genuine version 2 passes.",
    )
    datagrams: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None,
        description="The client's datagrams of a flow that are looked at. In China the first one alone. The default of "
        "16 is a guess.",
    )
    min_datagram: Annotated[int, Field(ge=0, le=_LONGEST_DATAGRAM)] | None = Field(
        default=None,
        description="Shorter datagrams are not read. RFC 9000 section 14.1 asks clients for 1200 bytes; in China 95 "
        "bytes are enough.",
    )
    cid_limit: Annotated[int, Field(ge=0, le=255)] | None = Field(
        default=None,
        description="The longest connection ID that is read: 20 bytes in RFC 9000 section 17.2. In China a length of 0 "
        "is read, and a length of 255 is not.",
    )
    crypto_length: Literal["honour", "ignore"] | None = Field(
        default=None,
        description="`ignore`: a CRYPTO frame goes on to the end of its packet, whatever its length says. In China "
        "a length field of two zero bytes does not hide the ClientHello behind it.",
    )
    crypto_first: bool | None = Field(
        default=None,
        description="An Initial packet is read only where it begins with a CRYPTO frame. For China inferred from "
        "one payload: PING and PADDING before CRYPTO pass.",
    )


class HttpSection(_Section):
    """How this censor reads HTTP/1 requests."""

    header_name_limit: Annotated[int, Field(ge=0, le=_LONGEST_DATAGRAM)] | None = Field(
        default=None,
        description="A header name of so many bytes or more ends the search for the Host header; `http.keyword` still "
        "sees it. 0: no name does. In China 64 (Harrity et al., USENIX Security 2022, section 5.2).",
    )
    uri_limit: Annotated[int, Field(ge=0, le=_LONGEST_DATAGRAM)] | None = Field(
        default=None,
        description="Bytes of the request target that `http.keyword` sees; 0: all. In China 2048 (Khattak et al., FOCI "
        "2013).",
    )
    keyword_window: Annotated[int, Field(ge=0, le=_LONGEST_DATAGRAM)] | None = Field(
        default=None,
        description="A Host value that begins so many bytes or more behind the request line is not in "
        "`http.keyword`; 0: every one is. In China 1281, where the last header is longer than 128 bytes, "
        "too (Harrity et al., USENIX Security 2022); that second condition is not modelled.",
    )
    pipelined: Literal["all", "first_only"] | None = Field(
        default=None,
        description="`first_only`: of requests that do not wait for the server's answer, the first alone is read, as "
        "in China (Khattak et al., FOCI 2013).",
    )
    percent_decoding: bool | None = Field(
        default=None,
        description="`http.keyword` holds the request target decoded, too, as China's filter does (Rambert et al., WWW "
        "2021).",
    )


class DnsSection(_Section):
    """How this censor reads DNS. What is said of injector 3 is from Fan et al., "Wallbleed", NDSS 2025.

    A reading as lenient as injector 3's takes most datagrams for DNS: give its rules a box of their own.
    """

    header: Literal["plausible", "ignored"] | None = Field(
        default=None,
        description="`ignored`: 12 bytes with QR = 0 are a query of one question, whatever opcode and counts say, as "
        "for China's injector 3. `plausible`: opcode and counts must be those of queries and responses.",
    )
    names: Literal["rfc", "flat"] | None = Field(
        default=None,
        description="`flat`: as China's injector 3 reads names. Labels are copied behind each other with dots between, "
        "a dot inside a label separates, a NUL ends the text, and a compression pointer is the length of a label.",
    )
    name_buffer: Annotated[int, Field(ge=2, le=1024)] | None = Field(
        default=None,
        description="With `names: flat`, the size of the buffer that takes the name and a final NUL: 126 bytes in "
        "China's injector 3.",
    )


class OpenvpnSection(_Section):
    """The message at which OpenVPN counts as recognised."""

    confirm: Literal["client_reset", "server_reset", "control"] | None = None


class WireguardSection(_Section):
    """The message at which WireGuard counts as recognised."""

    confirm: Literal["initiation", "response", "data"] | None = None


PROTOCOLS: tuple[str, ...] = ("tls", "quic", "http", "dns", "openvpn", "wireguard")
"""The sections of this file, as `engine:` names them."""
