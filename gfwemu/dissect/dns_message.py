"""Header and first question of a DNS message (RFC 1035 section 4.1). EDNS and everything else behind it is not read."""

from __future__ import annotations

import struct

from gfwemu.dissect.dns_name import read_flat_name, read_name, read_plain_name
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.reader import MalformedBytes, Reader
from gfwemu.model import record

HEADER_LENGTH = 12
_HEADER = struct.Struct("!6H")
_TYPE_AND_CLASS = struct.Struct("!HH")
# Header, root name, type and class.
SHORTEST_MESSAGE = 17

FLAG_RESPONSE = 0x8000
FLAG_AUTHORITATIVE = 0x0400
FLAG_RECURSION_DESIRED = 0x0100
FLAG_RECURSION_AVAILABLE = 0x0080
_OPCODE = 0x7800
_RESERVED = 0x0040
_RCODE = 0x000F
_UNUSUAL = _OPCODE | _RESERVED | _RCODE

# Random bytes mostly hold more. Published evasions put smaller numbers into a query (32 answers, Nourin et al., WWW
# 2023), and 255 addresses fill a response of 4 KiB. The bound is a guess.
_LARGEST_COUNT = 255

# IANA "DNS Parameters": resource record types and classes that occur in queries; the others are TYPEn and CLASSn
# (RFC 3597 section 5).
QTYPES: dict[int, str] = {
    **{1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 10: "NULL", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT", 17: "RP"},
    **{24: "SIG", 25: "KEY", 28: "AAAA", 29: "LOC", 33: "SRV", 35: "NAPTR", 37: "CERT", 39: "DNAME", 43: "DS"},
    **{44: "SSHFP", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 51: "NSEC3PARAM", 52: "TLSA", 53: "SMIMEA"},
    **{59: "CDS", 60: "CDNSKEY", 61: "OPENPGPKEY", 64: "SVCB", 65: "HTTPS", 99: "SPF", 108: "EUI48", 109: "EUI64"},
    **{249: "TKEY", 250: "TSIG", 251: "IXFR", 252: "AXFR", 255: "ANY", 256: "URI", 257: "CAA"},
}
QCLASSES: dict[int, str] = {1: "IN", 3: "CH", 4: "HS", 254: "NONE", 255: "ANY"}


_EVERYTHING = DissectOptions()


@record
class Query:
    """What an answer must echo. `question_bytes` is the first question as it stood: name, type, class.

    Where a lenient reading ran over the message's end, they go on with the zeros that it took for the rest.

    `flags_rd`: recursion desired. `qname`: lower case, without trailing dot, "." for the root.
    """

    id: int
    flags_rd: bool
    question_bytes: bytes
    qname: str
    qtype_number: int
    qclass: int


@record
class Header:
    """The fixed part; `questions` is QDCOUNT."""

    id: int
    flags: int
    questions: int

    @property
    def response(self) -> bool:
        return bool(self.flags & FLAG_RESPONSE)


def read_header(reader: Reader, options: DissectOptions) -> Header:
    """Raises MalformedBytes unless it is the header of a standard query (opcode 0) or of its response.

    The four counts must be plausible, because DNS has no magic number and the port does not decide. They need not
    agree with what follows: servers answer queries whose counts lie, and such queries are known evasions. An open
    end raises OutOfBytes only where the bytes so far are plausible. With `dns_header` ignored, whatever has a header
    and is not a response passes.
    """
    ident, flags = reader.u16(), reader.u16()
    if options.dns_header == "ignored":
        if flags & FLAG_RESPONSE:
            raise MalformedBytes("DNS header: a response")
        questions = reader.u16()
        reader.skip(6)
        return Header(ident, flags, questions)
    if flags & (_OPCODE | _RESERVED):
        raise MalformedBytes("DNS header: not a standard query")
    if not flags & FLAG_RESPONSE and flags & _RCODE:
        raise MalformedBytes("DNS header: a query with a response code")
    questions = reader.u16()
    if not 1 <= questions <= _LARGEST_COUNT:
        raise MalformedBytes("DNS header: implausible number of questions")
    for _section in ("answer", "authority", "additional"):
        if reader.u16() > _LARGEST_COUNT:
            raise MalformedBytes("DNS header: implausible number of records")
    return Header(ident, flags, questions)


def parse_query(payload: bytes, options: DissectOptions = _EVERYTHING) -> Query:
    """The first question of a DNS message without TCP length prefix. Raises MalformedBytes where there is none."""
    return read_start(payload, options)[1]


def read_start(message: bytes, options: DissectOptions) -> tuple[Header, Query]:
    """Header and first question of a message without TCP length prefix. Raises MalformedBytes."""
    usual = _read_usual(message) if options.dns_header == "plausible" and options.dns_names == "rfc" else None
    if usual is not None:
        return usual
    reader = Reader(message, "DNS message")
    header = read_header(reader, options)
    return header, read_question(reader, message, header, options)


def _read_usual(message: bytes) -> tuple[Header, Query] | None:
    """What the careful reading makes of it, in a third of the time; None for what has to be read with care."""
    if len(message) < SHORTEST_MESSAGE:
        return None
    ident, flags, questions, answers, authorities, additional = _HEADER.unpack_from(message)
    if flags & _UNUSUAL or questions != 1 or answers | authorities | additional > _LARGEST_COUNT:
        return None
    name = read_plain_name(message, HEADER_LENGTH)
    if name is None or name[1] + 4 > len(message):
        return None
    qname, end = name
    qtype, qclass = _TYPE_AND_CLASS.unpack_from(message, end)
    question = message[HEADER_LENGTH : end + 4]
    header = Header(ident, flags, questions)
    return header, Query(ident, flags & FLAG_RECURSION_DESIRED != 0, question, qname, qtype, qclass)


def read_question(reader: Reader, message: bytes, header: Header, options: DissectOptions) -> Query:
    """The question at the reader's position, behind the header."""
    start = reader.position
    if options.dns_names == "flat":
        qname, end = read_flat_name(message, start, options.dns_name_buffer)
        question = message[start : end + 4].ljust(end + 4 - start, b"\0")
        qtype, qclass = struct.unpack("!HH", question[-4:])
    else:
        qname = read_name(reader, message)
        qtype, qclass = reader.u16(), reader.u16()
        question = message[start : reader.position]
    return Query(header.id, bool(header.flags & FLAG_RECURSION_DESIRED), question, qname, qtype, qclass)
