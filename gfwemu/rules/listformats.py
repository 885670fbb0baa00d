"""One parser for each format of a domain list: a line goes in, entries go to the builder.

Each raises ValueError with the reason where the line is garbage. Comments and empty lines never get here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from gfwemu.rules.domains import DomainBuilder, normal_name
from gfwemu.rules.patterns import check_regex
from gfwemu.rules.tree import shorten


@dataclass(slots=True)
class ListReading:
    """What a list's lines have said so far.

    attributes: of a v2fly list, only entries with one of these count (empty: all). includes: v2fly files that it
    names. skipped: entries that are understood, but that concern more than a name (URL paths of a gfwlist).
    """

    builder: DomainBuilder = field(default_factory=DomainBuilder)
    attributes: frozenset[str] = frozenset()
    includes: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    skipped: int = 0


LineParser = Callable[[str, ListReading], None]


def domains_line(line: str, reading: ListReading) -> None:
    """One entry, as under `match:`."""
    reading.builder.add(line)


def hosts_line(line: str, reading: ListReading) -> None:
    """hosts(5): an address and exact names."""
    address, *names = line.split()
    if not re.fullmatch(r"[0-9.]+|[0-9a-fA-F:.]+(%\w+)?", address) or not names:
        raise ValueError(f"'{shorten(line)}' is not a line of a hosts file: an address, then names")
    for name in names:
        if name.lower() not in _OWN_NAMES:
            reading.builder.full.add(normal_name(name))


_OWN_NAMES = frozenset(
    {"localhost", "localhost.localdomain", "local", "broadcasthost", "ip6-localhost", "ip6-loopback", "ip6-localnet"}
    | {"ip6-mcastprefix", "ip6-allnodes", "ip6-allrouters", "ip6-allhosts", "0.0.0.0"}
)


def dnsmasq_line(line: str, reading: ListReading) -> None:
    """dnsmasq.conf(5): `address=/a/b/1.2.3.4`, `server=/a/1.1.1.1`, `local=`, `ipset=`, `nftset=`."""
    found = re.fullmatch(r"(address|server|local|ipset|nftset)\s*=\s*/(.+)/([^/]*)", line)
    if not found:
        raise ValueError(f"'{shorten(line)}' is not a dnsmasq line such as address=/example.com/192.0.2.1")
    for name in found[2].split("/"):
        if name.startswith("*."):
            reading.builder.below.add(normal_name(name[2:]))
        else:
            reading.builder.suffixes.add(normal_name(name.removeprefix(".")))


def regex_line(line: str, reading: ListReading) -> None:
    """One regular expression."""
    check_regex(line)
    reading.builder.regexes.append(line)


def v2fly_line(line: str, reading: ListReading) -> None:
    """v2fly/domain-list-community: `domain:`, `full:`, `keyword:`, `regexp:`, `include:`, `@attribute`."""
    entry, *marks = line.split()
    attributes = {mark[1:].lower() for mark in marks if mark.startswith("@") and len(mark) > 1}
    if len(attributes) != len([mark for mark in marks if not mark.startswith("&")]):
        raise ValueError(f"'{shorten(line)}': after the entry only @attributes may stand")
    if entry.startswith("include:"):
        name = entry.removeprefix("include:")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9!_-]*", name):
            raise ValueError(f"'{name[:60]}' is not the name of a v2fly list")
        reading.includes.append((name, frozenset(attributes)))
        return
    kind, colon, rest = entry.partition(":")
    if colon and kind not in ("domain", "full", "keyword", "regexp"):
        raise ValueError(f"unknown kind '{kind[:30]}:'; known: domain:, full:, keyword:, regexp:, include:")
    if not reading.attributes or attributes & reading.attributes:
        reading.builder.add(rest if kind == "domain" and colon else entry)


def gfwlist_line(line: str, reading: ListReading) -> None:
    """Adblock-like lines of gfwlist. A line that concerns a path or a keyword of a URL is skipped, not stretched."""
    exception = line.startswith("@@")
    body = line.removeprefix("@@")
    if body.startswith("/") and body.endswith("/") and len(body) > 2:
        if exception:
            reading.skipped += 1
            return
        text = body[1:-1].replace("\\/", "/")
        check_regex(text)
        reading.builder.url_regexes.append(text)
        return
    host = _gfwlist_host(body)
    if host is None:
        reading.skipped += 1
    elif exception:
        reading.builder.exceptions.add(host)
    elif body.startswith("|") and not body.startswith("||"):
        reading.builder.full.add(host)
    else:
        reading.builder.suffixes.add(host)


def _gfwlist_host(body: str) -> str | None:
    """The host that a line names, or None where it names none as a whole. Raises ValueError on garbage."""
    if not body.isprintable() or " " in body:
        raise ValueError(f"'{shorten(body)}' is not a gfwlist line")
    text = re.sub(r"^(\|\||\|)?([a-z]+://)?", "", body).lstrip(".")
    host, slash, path = text.partition("/")
    host = re.sub(r"^\*\.|:[0-9]+$", "", host.rstrip("^|"))
    if (slash and path not in ("", "*")) or "*" in host or "%" in host or "." not in host:
        return None
    return normal_name(host)


def gfwlist_text(text: str) -> str:
    """The list itself, which is usually published in base64 (RFC 4648). Raises ValueError where that is broken."""
    head = text.lstrip()[:100]
    if head.startswith(("[AutoProxy", "!", "|", "@", "/", "[Adblock")) or not re.fullmatch(r"[A-Za-z0-9+/=\s]+", text):
        return text
    try:
        decoded = base64.b64decode(re.sub(r"\s", "", text), validate=True)
    except binascii.Error:
        return text
    try:
        return decoded.decode()
    except UnicodeDecodeError:
        raise ValueError("the list looks like base64, but does not decode to text") from None


# A name that `normal_name` would give back as it is, and that is no address. Others are names, too, but need a look.
_NAME = r"((?!-)(?:[a-z0-9_-]{1,30}\.){0,6}[a-z][a-z0-9_-]{0,30})"
_DOTTED = r"((?!-|localhost\.)(?:[a-z0-9_-]{1,30}\.){1,6}[a-z][a-z0-9_-]{0,30})"


@dataclass(frozen=True, slots=True)
class PlainLines:
    """Lines that need no look: `pattern` finds their one name (see `ListText.other_lines`), which goes to `into`."""

    pattern: re.Pattern[str]
    into: Literal["suffixes", "full"]


def _plain(pattern: str, into: Literal["suffixes", "full"]) -> PlainLines:
    return PlainLines(re.compile(f"^{pattern}$", re.MULTILINE), into)


@dataclass(frozen=True, slots=True)
class ListFormat:
    """How the lines of a format are read. plain: None where every line needs a look."""

    parse: LineParser
    comments: tuple[str, ...]
    inline_comments: bool
    plain: PlainLines | None = None


FORMATS: dict[str, ListFormat] = {
    "domains": ListFormat(domains_line, ("#",), True, _plain(_NAME, "suffixes")),
    "hosts": ListFormat(hosts_line, ("#",), True, _plain(rf"[0-9.]+[ \t]+{_DOTTED}", "full")),
    "dnsmasq": ListFormat(
        dnsmasq_line, ("#",), True, _plain(rf"(?:address|server|local|ipset|nftset)=/{_NAME}/[^/#\n]*", "suffixes")
    ),
    "gfwlist": ListFormat(gfwlist_line, ("!", "["), False, _plain(rf"\|\|{_DOTTED}", "suffixes")),
    "v2fly": ListFormat(v2fly_line, ("#",), True, _plain(rf"(?:domain:)?{_NAME}", "suffixes")),
    "regex": ListFormat(regex_line, ("# ",), False),
}
