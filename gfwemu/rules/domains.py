"""Sets of domain names: constant time for a million of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import lru_cache

from gfwemu.rules.compiled import Fact
from gfwemu.rules.patterns import Keywords, Regexes, check_regex
from gfwemu.rules.tree import shorten

NAME_LIMIT = 253
"""RFC 1035 section 2.3.4, in text form."""

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_ADDRESS = re.compile(r"[0-9]+(\.[0-9]+){3}(/[0-9]+)?|[0-9a-f]*:[0-9a-f:.]*:[0-9a-f:./]*")
_KINDS = ("domain", "full", "keyword", "regexp")


def normal_name(text: str) -> str:
    """Lower case, A-labels, no trailing dot. Raises ValueError with the reason."""
    name = text.strip().lower().removesuffix(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError(f"'{shorten(text)}' is not a domain name (IDNA)") from None
    if _NAME.fullmatch(name) and len(name) <= NAME_LIMIT:
        if _ADDRESS.fullmatch(name):
            raise ValueError(f"'{name}' is an address; match it with ip.server, or say format: cidr")
        return name
    if "://" in name or "/" in name:
        host = re.sub(r"^[a-z]*://", "", name).partition("/")[0]
        fix = f"; write {host}" if _NAME.fullmatch(host) else ""
        raise ValueError(f"'{shorten(text)}' is a URL, not a domain name{fix}")
    if _ADDRESS.fullmatch(name):
        raise ValueError(f"'{shorten(text)}' is an address; match it with ip.server, or say format: cidr")
    if name.startswith("."):
        bare = name.lstrip(".")
        raise ValueError(f"'{shorten(text)}': write {bare} (with its subdomains) or *.{bare} (without {bare} itself)")
    if "*" in name:
        raise ValueError(f"'{shorten(text)}': a star may only be the first label, as in *.example.com; or use regexp:")
    raise ValueError(f"'{shorten(text)}' is not a domain name")


@dataclass(slots=True)
class DomainBuilder:
    """Collects entries; `finish` makes the set."""

    suffixes: set[str] = field(default_factory=set)
    below: set[str] = field(default_factory=set)
    full: set[str] = field(default_factory=set)
    keywords: set[str] = field(default_factory=set)
    regexes: list[str] = field(default_factory=list)
    url_regexes: list[str] = field(default_factory=list)
    exceptions: set[str] = field(default_factory=set)

    def add(self, text: str) -> None:
        """`example.com` with its subdomains, `full:`, `*.`, `keyword:`, `regexp:`. Raises ValueError."""
        kind, colon, rest = text.partition(":")
        if colon and kind.strip().lower() in _KINDS:
            kind, text = kind.strip().lower(), rest.strip()
        else:
            kind, text = "domain", text.strip()
        match kind:
            case "keyword":
                if not text:
                    raise ValueError("'keyword:' needs a text; an empty one matches everything")
                self.keywords.add(text.lower())
            case "regexp":
                check_regex(text)
                self.regexes.append(text)
            case "full":
                self.full.add(normal_name(text))
            case _ if text.startswith("*."):
                self.below.add(normal_name(text[2:]))
            case _:
                self.suffixes.add(normal_name(text))

    def finish(self, source: str) -> DomainSet:
        """`source` names where the entries stand, as in `@news`. The set takes the builder's own: add no more."""
        return DomainSet(
            source,
            self.suffixes,
            self.below,
            self.full,
            Keywords(self.keywords),
            Regexes(self.regexes),
            Regexes(self.url_regexes),
            self.exceptions,
        )


@dataclass(frozen=True, slots=True, eq=False)
class DomainSet:
    """Names with their subdomains, subdomains alone, exact names, keywords and expressions, of one source.

    url_regexes see `http://NAME/` and `https://NAME/`. exceptions: names that, with their subdomains, never match.
    """

    source: str
    suffixes: AbstractSet[str] = frozenset()
    below: AbstractSet[str] = frozenset()
    full: AbstractSet[str] = frozenset()
    keywords: Keywords = field(default_factory=lambda: Keywords(()))
    regexes: Regexes = field(default_factory=lambda: Regexes(()))
    url_regexes: Regexes = field(default_factory=lambda: Regexes(()))
    exceptions: AbstractSet[str] = frozenset()

    def __len__(self) -> int:
        names = len(self.suffixes) + len(self.below) + len(self.full)
        return names + len(self.keywords) + len(self.regexes) + len(self.url_regexes)

    def match(self, value: Fact) -> str | None:
        if not isinstance(value, str):
            return None
        entry = self._entry(value.lower().removesuffix("."))
        if entry is None:
            return None
        return f"{entry} from {self.source}" if self.source else entry

    def _entry(self, name: str) -> str | None:
        if self.exceptions and any(parent in self.exceptions for parent in parents(name)):
            return None
        if name in self.full:
            return f"full:{name}"
        for parent in parents(name):
            if parent in self.suffixes:
                return parent
            if parent in self.below and parent != name:
                return f"*.{parent}"
        if (keyword := self.keywords.search(name)) is not None:
            return f"keyword:{keyword}"
        if (regex := self.regexes.search(name)) is not None:
            return f"regexp:{regex}"
        if self.url_regexes:
            for scheme in ("http", "https"):
                if (regex := self.url_regexes.search(f"{scheme}://{name}/")) is not None:
                    return f"/{regex}/"
        return None

    def covers(self, other: object) -> bool:
        """Whether everything that `other` matches, this matches, too. False where it cannot tell."""
        if not isinstance(other, DomainSet) or self.exceptions:
            return False
        if other is self:
            return True
        return (
            all(self._covers_tree(name) for name in other.suffixes)
            and all(self._covers_tree(name) or name in self.below for name in other.below)
            and all(self._entry(name) is not None for name in other.full)
            and all(self.keywords.search(keyword) for keyword in other.keywords.texts)
            and set(other.regexes.texts) <= set(self.regexes.texts)
            and set(other.url_regexes.texts) <= set(self.url_regexes.texts)
        )

    def _covers_tree(self, name: str) -> bool:
        """Whether the name and all its subdomains match."""
        return any(
            parent in self.suffixes or (parent in self.below and parent != name) for parent in parents(name)
        ) or bool(self.keywords.search(name))


def parents(name: str) -> Iterable[str]:
    """The name and every domain above it: `a.b.c`, `b.c`, `c`."""
    # Many rules ask for the same name one after the other. Longer names than DNS has (RFC 1035) are not worth keeping.
    return _kept_parents(name) if len(name) <= 255 else _parents(name)


def _parents(name: str) -> Iterator[str]:
    yield name
    dot = name.find(".")
    while dot >= 0:
        yield name[dot + 1 :]
        dot = name.find(".", dot + 1)


@lru_cache(maxsize=64)
def _kept_parents(name: str) -> tuple[str, ...]:
    return tuple(_parents(name))
