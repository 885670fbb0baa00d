"""DNS queries and responses over UDP and TCP (RFC 1035, RFC 7766).

A message is recognised by its header and first question; further questions are not read. Every message of a flow is
reported. What follows the question (answers, EDNS) is not read, and need not agree with the header's counts. Each
message carries the query that a forged answer must echo.
"""

from __future__ import annotations

from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.dns_message import HEADER_LENGTH, QCLASSES, QTYPES, SHORTEST_MESSAGE, read_header, read_start
from gfwemu.dissect.fields import Field, FieldKind
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import NEED_MORE, Confirm, Message, Outcome, Reject, Span
from gfwemu.dissect.reader import MalformedBytes, OutOfBytes, Reader
from gfwemu.model import Direction, Transport

FIELDS = (
    Field(
        "dns.qname",
        FieldKind.DOMAIN,
        "The name asked for, of the first question; other than printable bytes are \\DDD, the root is '.'.",
        "www.example.com",
    ),
    Field("dns.qtype", FieldKind.TEXT, "The record type asked for; TYPEn where it has no name.", "AAAA"),
    Field("dns.qclass", FieldKind.TEXT, "The class asked for; CLASSn where it has no name.", "IN"),
    Field("dns.rd", FieldKind.FLAG, "Recursion desired.", "true"),
    Field("dns.response", FieldKind.FLAG, "It is a response, and the facts are those of its question.", "false"),
    Field("dns.questions", FieldKind.NUMBER, "The number of questions that the header announces (QDCOUNT).", "1"),
)

_LENGTH_PREFIX = 2


def read_message(payload: bytes, options: DissectOptions, offset: int = 0) -> Message:
    """The facts of a message without TCP length prefix; `offset` is where it stood. Raises MalformedBytes."""
    header, query = read_start(payload, options)
    name_length = len(query.question_bytes) - 4
    question = offset + HEADER_LENGTH
    return Message(
        {
            "dns.qname": query.qname,
            "dns.qtype": QTYPES.get(query.qtype_number) or f"TYPE{query.qtype_number}",
            "dns.qclass": QCLASSES.get(query.qclass) or f"CLASS{query.qclass}",
            "dns.rd": query.flags_rd,
            "dns.response": header.response,
            "dns.questions": header.questions,
        },
        {
            "dns.qname": Span(question, name_length),
            "dns.qtype": Span(question + name_length, 2),
            "dns.qclass": Span(question + name_length + 2, 2),
        },
        query,
    )


class DnsUdpSession:
    """One message a datagram. The first one decides; later ones that cannot be read are passed over."""

    __slots__ = ("_confirmed", "_options")

    def __init__(self, options: DissectOptions) -> None:
        self._options = options
        self._confirmed = False

    def feed(self, direction: Direction, data: bytes) -> Outcome:
        try:
            message = read_message(data, self._options)
        except MalformedBytes as problem:
            return NEED_MORE if self._confirmed else Reject(str(problem))
        self._confirmed = True
        return Confirm((message,), final=False)


class _Half:
    """One direction of a connection: the bytes of the message that is not complete yet."""

    __slots__ = ("_buffer", "_options", "_position")

    def __init__(self, options: DissectOptions) -> None:
        self._buffer = bytearray()
        self._options = options
        self._position = 0

    def feed(self, data: bytes, messages: list[Message]) -> None:
        """Appends the messages that `data` completes. Raises MalformedBytes at the first that cannot be read."""
        self._buffer += data
        options = self._options
        shortest = HEADER_LENGTH if options.dns_names == "flat" else SHORTEST_MESSAGE
        while True:
            reader = Reader(self._buffer, "DNS over TCP", open_end=True)
            try:
                length = reader.u16()
                if not shortest <= length <= options.stream_limit:
                    raise MalformedBytes("DNS over TCP: implausible length")
                # What is not DNS must not be waited for: its first bytes may announce 64 KiB.
                read_header(Reader(self._buffer, "DNS header", open_end=True, start=_LENGTH_PREFIX), options)
                message = reader.take(length)
            except OutOfBytes:
                return
            messages.append(read_message(message, options, self._position + _LENGTH_PREFIX))
            del self._buffer[: reader.position]
            self._position += reader.position


class DnsTcpSession:
    """Messages behind two bytes of length (RFC 1035 section 4.2.2), several on a connection, in both directions."""

    __slots__ = ("_confirmed", "_halves")

    def __init__(self, options: DissectOptions) -> None:
        self._halves = {direction: _Half(options) for direction in Direction}
        self._confirmed = False

    def feed(self, direction: Direction, data: bytes) -> Outcome:
        messages: list[Message] = []
        try:
            self._halves[direction].feed(data, messages)
        except MalformedBytes as problem:
            if not self._confirmed and not messages:
                return Reject(str(problem))
            return Confirm(tuple(messages), final=True)
        if not messages:
            return NEED_MORE
        self._confirmed = True
        return Confirm(tuple(messages), final=False)


DNS_UDP = Dissector("dns", frozenset({Transport.UDP}), FIELDS, DnsUdpSession)
DNS_TCP = Dissector("dns", frozenset({Transport.TCP}), FIELDS, DnsTcpSession)
