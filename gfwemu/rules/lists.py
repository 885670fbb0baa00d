"""Lists: names, networks or texts from a file or written out, loaded once and shared by every rule that names them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import maxminddb

from gfwemu.errors import Place, Problem
from gfwemu.rules.listformats import FORMATS, ListReading, gfwlist_text
from gfwemu.rules.listtext import Line, ListText
from gfwemu.rules.matchers import CoveringMatcher, ExactSet
from gfwemu.rules.models import ListEntry
from gfwemu.rules.networks import Network, NetworkSet, parse_network
from gfwemu.rules.tree import Items, Mapping, Node

LIST_LIMIT = 128 << 20
"""Bytes of one list file."""
PROBLEM_LIMIT = 20
"""Problems told of one list; a file of another format would give one for each line."""
INCLUDE_LIMIT = 2000
"""Files that a v2fly list may include, all told."""


@dataclass(slots=True)
class LoadedList:
    """A list by name. `content` is None where it could not be read; rules that name it set `used`."""

    name: str
    place: Place
    format: str
    content: CoveringMatcher | None = None
    skipped: int = 0
    used: bool = False

    @property
    def size(self) -> int:
        return 0 if self.content is None else len(self.content)


class _Problems:
    """Collects the problems of one list, up to a limit."""

    def __init__(self, problems: list[Problem]) -> None:
        self._problems = problems
        self.count = 0

    def add(self, place: Place, message: str) -> None:
        self.count += 1
        if self.count <= PROBLEM_LIMIT:
            self._problems.append(Problem(place, message))
        elif self.count == PROBLEM_LIMIT + 1:
            self._problems.append(Problem(place, "... and more like these: is the list's format right?"))


def load_list(
    name: str, entry: ListEntry, node: Mapping, directory: Path, shown: Path, problems: list[Problem]
) -> LoadedList:
    """Reads a list. `directory` is where its rule file lies, `shown` how messages call that directory."""
    loaded = LoadedList(name, node.place, entry.format)
    found = _Problems(problems)
    if not _consistent(name, entry, node, found):
        return loaded
    path = None if entry.file is None else directory / entry.file
    label = str(shown / entry.file) if entry.file is not None else ""
    source = f"@{name}"
    if entry.format == "mmdb":
        assert path is not None
        loaded.content = _from_mmdb(path, entry, node, source, found)
        return loaded
    lines = _inline_lines(node) if path is None else _file_text(path, label, entry.format, node, found)
    if lines is None:
        return loaded
    if entry.format == "cidr":
        loaded.content = NetworkSet(source, _networks(_each(lines), found))
    elif entry.format == "text":
        loaded.content = ExactSet(source, frozenset(text for _, text in _each(lines)))
    else:
        reading = ListReading(attributes=frozenset(mark.lower().lstrip("@") for mark in entry.attributes or ()))
        _read_domains(lines, entry.format, reading, found)
        if reading.includes and path is not None:
            _read_includes(path.parent, Path(label).parent, reading, node, found)
        elif reading.includes:
            found.add(node.place, "'include:' needs a list that is a file, beside the files that it includes")
        loaded.content = reading.builder.finish(source)
        loaded.skipped = reading.skipped
    return loaded if found.count == 0 else LoadedList(name, node.place, entry.format)


def _consistent(name: str, entry: ListEntry, node: Mapping, found: _Problems) -> bool:
    """Whether the keys of the entry go together."""
    before = found.count
    if (entry.file is None) == (entry.entries is None):
        found.add(node.place, f"list '{name}' needs either 'file' or 'entries'")
    if entry.format == "mmdb" and (entry.file is None or not entry.country):
        found.add(node.place, f"list '{name}': format mmdb needs 'file' and 'country', as in country: [RU]")
    if entry.format != "mmdb" and entry.country is not None:
        found.add(_at(node, "country"), "'country' belongs to format: mmdb")
    if entry.format != "v2fly" and entry.attributes is not None:
        found.add(_at(node, "attributes"), "'attributes' belongs to format: v2fly")
    return found.count == before


def _at(node: Mapping, key: str) -> Place:
    found = node.get(key)
    return found.place if found is not None else node.place


def _inline_lines(node: Mapping) -> list[Line]:
    entries: Node | None = node.get("entries")
    assert isinstance(entries, Items)
    return [(item.place, getattr(item, "text", "").strip()) for item in entries.items]


def _file_text(path: Path, label: str, form: str, node: Mapping, found: _Problems) -> ListText | None:
    try:
        if not path.is_file():
            found.add(_at(node, "file"), f"there is no list file '{label}'")
            return None
        if path.stat().st_size > LIST_LIMIT:
            found.add(_at(node, "file"), f"the list file '{label}' is larger than {LIST_LIMIT >> 20} MiB")
            return None
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        found.add(_at(node, "file"), f"cannot read the list file '{label[:200]}': {_reason(error)}")
        return None
    try:
        text = data.decode("utf-8-sig")
        if form == "gfwlist":
            text = gfwlist_text(text)
    except UnicodeDecodeError as error:
        found.add(Place(label, data.count(b"\n", 0, error.start) + 1), f"not UTF-8: byte 0x{data[error.start]:02x}")
        return None
    except ValueError as error:
        found.add(Place(label), str(error))
        return None
    comments: tuple[str, ...] = ("#",)
    inline = True
    if form in FORMATS:
        comments, inline = FORMATS[form].comments, FORMATS[form].inline_comments
    elif form == "text":
        inline = False
    return ListText(text.replace("\r\n", "\n"), label, comments, inline)


def _each(lines: ListText | list[Line]) -> Iterable[Line]:
    return lines.lines() if isinstance(lines, ListText) else lines


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _networks(lines: Iterable[Line], found: _Problems) -> Iterator[Network]:
    for place, line in lines:
        try:
            yield parse_network(line)
        except ValueError as error:
            found.add(place, str(error))


def _read_domains(lines: ListText | list[Line], form: str, reading: ListReading, found: _Problems) -> None:
    read = FORMATS[form]
    left = _each(lines)
    if isinstance(lines, ListText) and read.plain is not None and not reading.attributes:
        left = lines.other_lines(read.plain.pattern, getattr(reading.builder, read.plain.into).update)
    for place, line in left:
        try:
            read.parse(line, reading)
        except ValueError as error:
            found.add(place, str(error))


def _read_includes(directory: Path, shown: Path, reading: ListReading, node: Mapping, found: _Problems) -> None:
    """The files that a v2fly list includes, each once, from the directory of the list."""
    seen: set[tuple[str, frozenset[str]]] = set()
    wanted = reading.attributes
    while reading.includes:
        name, attributes = reading.includes.pop()
        if (name, attributes) in seen:
            continue
        seen.add((name, attributes))
        if len(seen) > INCLUDE_LIMIT:
            found.add(node.place, f"the list includes more than {INCLUDE_LIMIT} files")
            return
        lines = _file_text(directory / name, str(shown / name), "v2fly", node, found)
        if lines is not None:
            reading.attributes = attributes or wanted
            _read_domains(lines, "v2fly", reading, found)
    reading.attributes = wanted


def _from_mmdb(path: Path, entry: ListEntry, node: Mapping, source: str, found: _Problems) -> NetworkSet | None:
    """The networks of some countries, from a MaxMind database (MaxMind DB format 2.0)."""
    countries = {code.upper() for code in entry.country or ()}
    try:
        with maxminddb.open_database(str(path), maxminddb.MODE_MEMORY) as database:
            return NetworkSet(source, _mmdb_networks(database, countries))
    except OSError as error:
        found.add(_at(node, "file"), f"cannot read the list file '{entry.file}': {_reason(error)}")
    except Exception:  # on garbage the reader raises whatever its own reading runs into, RecursionError included
        found.add(_at(node, "file"), f"'{entry.file}' is not a MaxMind database")
    return None


def _mmdb_networks(database: Any, countries: set[str]) -> Iterator[Network]:
    for network, record in database:
        if isinstance(record, dict) and _country(record) in countries:
            yield network.network_address.packed, network.prefixlen


def _country(record: dict[str, Any]) -> str:
    """GeoIP2 nests the code; some other publishers write it flat."""
    country = record.get("country", record.get("country_code", ""))
    code = country.get("iso_code", "") if isinstance(country, dict) else country
    return str(code).upper()
