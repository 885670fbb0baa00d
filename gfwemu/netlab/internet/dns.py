"""DNS answers from the table of names: bytes in, bytes out (RFC 1035, RFC 6891, RFC 9460)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dnslib import AAAA, EDNS0, OPCODE, PTR, QTYPE, RCODE, RD, RR, A, DNSError, DNSHeader, DNSRecord

from gfwemu.errors import UsageError
from gfwemu.netlab.internet.names import Names
from gfwemu.netlab.internet.plan import Resolver, Site

# RFC 1035 section 4.2.1: without EDNS a UDP message holds at most 512 bytes.
UDP_LIMIT = 512
# RFC 6891 section 6.2.5 asks for a size that avoids fragments; 1,232 is the DNS flag day's value.
OUR_UDP_LIMIT = 1232
TCP_LIMIT = 65535
HEADER_LENGTH = 12
ECH = r"(?<= )ech="

Owner = Site | Resolver


def _https(owner: Owner) -> list[RD]:
    texts = owner.https_records if isinstance(owner, Site) else ()
    return [_read_https(text) for text in texts]


def _read_https(text: str) -> RD:
    # dnslib calls parameter 5 by its name in a draft; RFC 9848 calls it "ech".
    return RR.fromZone(f". IN HTTPS {re.sub(ECH, 'echconfig=', text)}")[0].rdata


RECORDS: dict[int, Callable[[Owner], list[RD]]] = {
    QTYPE.A: lambda owner: [A(text) for text in owner.v4],
    QTYPE.AAAA: lambda owner: [AAAA(text) for text in owner.v6],
    QTYPE.HTTPS: _https,
}


@dataclass(frozen=True, slots=True)
class Answerer:
    """Answers for a table of names; records live `ttl` seconds."""

    names: Names
    ttl: int = 60

    def answer(self, query: bytes, *, udp: bool) -> bytes | None:
        """The answer to one message; `None` for what deserves none (too short, or itself an answer)."""
        if len(query) < HEADER_LENGTH or query[2] & 0x80:
            return None
        try:
            request = DNSRecord.parse(query)
        except DNSError:
            return bytes(DNSRecord(DNSHeader(id=int.from_bytes(query[:2]), qr=1, ra=1, rcode=RCODE.FORMERR)).pack())
        reply = request.reply(ra=1, aa=0)
        edns = next((record for record in request.ar if record.rtype == QTYPE.OPT), None)
        if edns is not None:
            reply.add_ar(EDNS0(udp_len=OUR_UDP_LIMIT))
        if request.header.opcode != OPCODE.QUERY:
            reply.header.rcode = RCODE.NOTIMP
        elif len(request.questions) != 1:
            reply.header.rcode = RCODE.FORMERR
        else:
            self._fill(reply, request)
        limit = TCP_LIMIT
        if udp:
            limit = min(max(edns.edns_len, UDP_LIMIT), OUR_UDP_LIMIT) if edns is not None else UDP_LIMIT
        wire = bytes(reply.pack())
        if len(wire) > limit:
            reply.rr = []
            reply.header.tc = 1
            wire = bytes(reply.pack())
        return wire

    def _fill(self, reply: DNSRecord, request: DNSRecord) -> None:
        name, qtype = str(request.q.qname).rstrip(".").lower(), request.q.qtype
        if name.endswith((".in-addr.arpa", ".ip6.arpa")):
            target = self.names.reverse.get(name)
            records = [PTR(target)] if target is not None and qtype == QTYPE.PTR else []
            known = target is not None
        else:
            owner = self.names.lookup(name)
            records = RECORDS[qtype](owner) if owner is not None and qtype in RECORDS else []
            known = owner is not None
        if not known:
            reply.header.rcode = RCODE.NXDOMAIN
        # The name goes back as it was asked: clients that mix upper and lower case check that.
        reply.add_answer(*(RR(request.q.qname, qtype, rdata=record, ttl=self.ttl) for record in records))


def check_https_records(sites: Iterable[Site]) -> None:
    """Raises `UsageError` for the first HTTPS record that cannot be read."""
    for site in sites:
        for text in site.https_records:
            try:
                _read_https(text)
            except Exception as error:  # dnslib raises whatever its reader met
                raise UsageError(
                    f"the HTTPS record {text!r} of {', '.join(site.names)} cannot be read: {error}"
                ) from None
