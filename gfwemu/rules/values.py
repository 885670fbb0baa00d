"""The value of a field under `match:` as a matcher."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Mapping as MappingType

from gfwemu.dissect.fields import FieldKind
from gfwemu.errors import Place, Problem
from gfwemu.rules.domains import DomainBuilder, DomainSet
from gfwemu.rules.fields import RuleField
from gfwemu.rules.lists import LoadedList
from gfwemu.rules.matchers import (
    AnyOf,
    BytesAnywhere,
    BytesAt,
    CoveringMatcher,
    ExactSet,
    Flag,
    Interval,
    Numbers,
    TextPattern,
    parse_interval,
)
from gfwemu.rules.networks import NetworkSet, parse_network
from gfwemu.rules.patterns import BytePattern, check_regex
from gfwemu.rules.tree import Items, Mapping, Node, Scalar, shorten
from gfwemu.rules.validate import describe, suggestion

TEXT_OPERATORS = ("prefix", "suffix", "contains", "regex")

_SPELLINGS: dict[str, Callable[[str], str]] = {
    "dns.qtype": str.upper,
    "dns.qclass": str.upper,
    "tls.ciphers": str.lower,
    "tls.ja3": str.lower,
    "tls.ja4": str.lower,
    "quic.ja4": str.lower,
    "ftp.command": str.upper,
    "smtp.command": str.upper,
    "smtp.mail_from": str.lower,
    "smtp.rcpt_to": str.lower,
}
"""How dissectors spell these; rule files may spell them as they like."""

_FLAG_ORDER = "FSRPAUEC"
_LARGEST_OFFSET = 65_535
_DOMAIN_FORMATS = "domains, hosts, dnsmasq, gfwlist, v2fly or regex"


class ValueReader:
    """Reads values of any kind of field. `choices`: known values by field name, where the file defines them."""

    def __init__(
        self,
        lists: MappingType[str, LoadedList],
        choices: MappingType[str, frozenset[str]],
        problems: list[Problem],
    ) -> None:
        self._lists = lists
        self._choices = choices
        self._problems = problems

    def matcher(self, entry: RuleField, node: Node, operator: str) -> CoveringMatcher | None:
        """The matcher for a value or a list of values, or None with problems added."""
        nodes = node.items if isinstance(node, Items) else (node,)
        before = len(self._problems)
        if not nodes:
            self._problem(node.place, f"'{entry.name}': an empty list matches nothing")
            return None
        matcher = _READERS[entry.kind](self, entry, nodes, operator)
        return matcher if len(self._problems) == before else None

    def _problem(self, place: Place, message: str) -> None:
        self._problems.append(Problem(place, message))

    def _scalars(self, entry: RuleField, nodes: tuple[Node, ...], expected: str) -> list[Scalar]:
        scalars: list[Scalar] = []
        for node in nodes:
            if isinstance(node, Scalar) and node.value is not None and node.text:
                scalars.append(node)
            else:
                self._problem(node.place, f"'{entry.name}': expected {expected}, found {describe(node)}")
        return scalars

    def _split(
        self, entry: RuleField, scalars: list[Scalar], content: type, formats: str
    ) -> tuple[list[Scalar], list[CoveringMatcher]]:
        """The values written out, and the contents of the lists that are named by `@list`."""
        values: list[Scalar] = []
        contents: list[CoveringMatcher] = []
        for scalar in scalars:
            if not scalar.text.startswith("@"):
                values.append(scalar)
                continue
            found = self._list(scalar)
            if found is None:
                continue
            if not isinstance(found.content, content):
                self._problem(
                    scalar.place,
                    f"'{entry.name}' needs a list of format {formats}, and '{scalar.text}' has format {found.format}",
                )
            elif found.size == 0:
                self._problem(scalar.place, f"the list '{scalar.text}' is empty; fill it or take the rule out")
            elif isinstance(found.content, (DomainSet, NetworkSet, ExactSet)):
                contents.append(found.content)
        return values, contents

    def _list(self, scalar: Scalar) -> LoadedList | None:
        name = scalar.text[1:]
        found = self._lists.get(name)
        if found is None:
            near = suggestion(name, self._lists) or "; define it under 'lists:'"
            self._problem(scalar.place, f"unknown list '{shorten(scalar.text)}'{near}")
            return None
        found.used = True
        return found if found.content is not None else None

    def _domains(self, entry: RuleField, nodes: tuple[Node, ...], operator: str) -> CoveringMatcher | None:
        scalars = self._scalars(entry, nodes, "a domain name or '@list'")
        values, parts = self._split(entry, scalars, DomainSet, _DOMAIN_FORMATS)
        builder = DomainBuilder()
        for scalar in values:
            self._attempt(scalar, entry, builder.add)
        return _together([builder.finish("")] if values else [], parts)

    def _attempt(self, scalar: Scalar, entry: RuleField, read: Callable[[str], object]) -> None:
        try:
            read(scalar.text)
        except ValueError as error:
            self._problem(scalar.place, f"'{entry.name}': {error}")

    def _addresses(self, entry: RuleField, nodes: tuple[Node, ...], operator: str) -> CoveringMatcher | None:
        scalars = self._scalars(entry, nodes, "an address, a network or '@list'")
        values, parts = self._split(entry, scalars, NetworkSet, "cidr or mmdb")
        networks: list[tuple[bytes, int]] = []
        for scalar in values:
            self._attempt(scalar, entry, lambda text: networks.append(parse_network(text)))
        return _together([NetworkSet("", networks)] if values else [], parts)

    def _texts(self, entry: RuleField, nodes: tuple[Node, ...], operator: str) -> CoveringMatcher | None:
        scalars = self._scalars(entry, nodes, "text")
        values, parts = self._split(entry, scalars, ExactSet, "text")
        texts = frozenset(self._checked_text(entry, scalar, operator) for scalar in values)
        if operator == "is":
            return _together([ExactSet("", texts)] if texts else [], parts)
        patterns: list[CoveringMatcher] = (
            [TextPattern.make("", operator, texts)] if texts and self._sound(operator, values, entry) else []
        )
        for part in parts:
            if isinstance(part, ExactSet) and self._sound_list(operator, part, scalars[0], entry):
                patterns.append(TextPattern.make(part.source, operator, part.texts))
        return _together(patterns, [])

    def _sound(self, operator: str, values: list[Scalar], entry: RuleField) -> bool:
        before = len(self._problems)
        if operator == "regex":
            for scalar in values:
                self._attempt(scalar, entry, check_regex)
        return len(self._problems) == before

    def _sound_list(self, operator: str, part: ExactSet, scalar: Scalar, entry: RuleField) -> bool:
        if operator != "regex":
            return True
        for text in sorted(part.texts):
            try:
                check_regex(text)
            except ValueError as error:
                self._problem(scalar.place, f"'{entry.name}': {part.source}: {error}")
                return False
        return True

    def _checked_text(self, entry: RuleField, scalar: Scalar, operator: str) -> str:
        text = scalar.text
        if operator != "is":
            return text
        if entry.name == "tcp.flags":
            flags = text.upper()
            if not flags or set(flags) - set(_FLAG_ORDER) or len(set(flags)) != len(flags):
                self._problem(
                    scalar.place,
                    f"'tcp.flags': '{shorten(text)}' are not flags; write letters of {_FLAG_ORDER}, as in SA",
                )
            return "".join(sorted(flags, key=lambda flag: _FLAG_ORDER.find(flag)))
        text = _SPELLINGS.get(entry.name, str)(text)
        choices = self._choices.get(entry.name)
        known = sorted(choices) if choices is not None else list(entry.field.choices)
        if (known or choices is not None) and text not in known:
            near = suggestion(text, known)
            allowed = f"; known: {', '.join(known)}" if known else "; there are none under 'subscribers:'"
            self._problem(scalar.place, f"'{entry.name}': unknown value '{shorten(text)}'{near or allowed}")
        return text

    def _numbers(self, entry: RuleField, nodes: tuple[Node, ...], operator: str) -> CoveringMatcher | None:
        intervals: list[Interval] = []
        for scalar in self._scalars(entry, nodes, "a number, a range or a comparison"):
            try:
                interval = parse_interval(scalar.text)
            except ValueError as error:
                self._problem(scalar.place, f"'{entry.name}': {error}")
                continue
            intervals.append(interval)
            low, high = interval.low, interval.high
            if entry.kind is FieldKind.PORT and (low > 65_535 or 65_535 < high < math.inf):
                self._problem(scalar.place, f"'{entry.name}': {shorten(scalar.text)} is not a port; ports end at 65535")
            if entry.name == "ip.version" and (low != high or low not in (4, 6)):
                self._problem(scalar.place, f"'ip.version': {shorten(scalar.text)} is not an IP version; write 4 or 6")
        return Numbers(tuple(intervals)) if intervals else None

    def _flag(self, entry: RuleField, nodes: tuple[Node, ...], operator: str) -> CoveringMatcher | None:
        node = nodes[0]
        if len(nodes) == 1 and isinstance(node, Scalar) and isinstance(node.value, bool):
            return Flag(node.value)
        found = describe(node) if len(nodes) == 1 else "a list"
        self._problem(node.place, f"'{entry.name}': expected true or false, found {found}")
        return None

    def _bytes(self, entry: RuleField, nodes: tuple[Node, ...], operator: str) -> CoveringMatcher | None:
        if entry.name == "payload.bytes":
            patterns = [pattern for node in nodes if (pattern := self._pattern(entry, node)) is not None]
            return BytesAt(tuple(patterns)) if patterns else None
        needles = [needle for node in nodes if (needle := self._needle(entry, node)) is not None]
        return BytesAnywhere(tuple(needles)) if needles else None

    def _keys(self, entry: RuleField, node: Mapping, known: tuple[str, ...]) -> bool:
        for key, _ in node.entries:
            if key.text not in known:
                near = suggestion(key.text, known) or f"; known: {', '.join(known)}"
                self._problem(key.place, f"'{entry.name}': unknown key '{shorten(key.text)}'{near}")
                return False
        return True

    def _pattern(self, entry: RuleField, node: Node) -> BytePattern | None:
        if not isinstance(node, Mapping):
            self._problem(node.place, f"'{entry.name}': expected {{offset: 0, hex: 16 03 ??}}, found {describe(node)}")
            return None
        if not self._keys(entry, node, ("offset", "hex", "text")):
            return None
        offset, hex_text, text = node.get("offset"), node.get("hex"), node.get("text")
        content = text if hex_text is None else hex_text
        if not isinstance(offset, Scalar) or not isinstance(content, Scalar) or None not in (hex_text, text):
            self._problem(
                node.place,
                f"'{entry.name}' needs 'offset' and one of 'hex' and 'text', as in {{offset: 0, hex: 16 03 ??}}",
            )
            return None
        try:
            where = parse_interval(offset.text)
            if where.low_open or where.high > _LARGEST_OFFSET or where.low % 1 or where.high % 1:
                raise ValueError(f"'{shorten(offset.text)}' is not an offset; write 0 to {_LARGEST_OFFSET}, or a range")
            if hex_text is None and not content.text:
                raise ValueError("an empty text stands everywhere")
            read = BytePattern.of_text if hex_text is None else BytePattern.parse
            return read(content.text, int(where.low), int(where.high))
        except ValueError as error:
            self._problem(node.place, f"'{entry.name}': {error}")
            return None

    def _needle(self, entry: RuleField, node: Node) -> tuple[bytes, str] | None:
        if isinstance(node, Scalar) and node.value is not None and node.text:
            return node.text.encode(), node.text
        hex_text = node.get("hex") if isinstance(node, Mapping) and self._keys(entry, node, ("hex",)) else None
        if not isinstance(hex_text, Scalar):
            if not isinstance(node, Mapping) or not node.entries:
                self._problem(node.place, f"'{entry.name}': expected text or {{hex: ...}}, found {describe(node)}")
            return None
        try:
            needle = bytes.fromhex(hex_text.text)
        except ValueError:
            needle = b""
        if not needle:
            self._problem(
                hex_text.place, f"'{entry.name}': '{shorten(hex_text.text)}' is not hex: write pairs of digits"
            )
            return None
        return needle, f"hex:{needle.hex(' ')}"


# Not in the reader itself, which would keep it and its lists alive until a garbage collection.
_READERS: dict[FieldKind, Callable[[ValueReader, RuleField, tuple[Node, ...], str], CoveringMatcher | None]] = {
    FieldKind.DOMAIN: ValueReader._domains,
    FieldKind.ADDRESS: ValueReader._addresses,
    FieldKind.TEXT: ValueReader._texts,
    FieldKind.TEXTS: ValueReader._texts,
    FieldKind.ENUM: ValueReader._texts,
    FieldKind.NUMBER: ValueReader._numbers,
    FieldKind.PORT: ValueReader._numbers,
    FieldKind.FLAG: ValueReader._flag,
    FieldKind.BYTES: ValueReader._bytes,
}


def _together(inline: list[CoveringMatcher], lists: list[CoveringMatcher]) -> CoveringMatcher | None:
    """One matcher for what is written out and for the lists."""
    parts = (*inline, *lists)
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else AnyOf(parts)
