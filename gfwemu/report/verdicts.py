"""The verdict table: what the censor did to whom, at which packet, because of which bytes, and who measured it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gfwemu.engine.records import Evidence
from gfwemu.report.summary import HARMLESS, Endpoints, KernelRow, Row, Summary, summarise

_INDENT = 4
_GAP = 2
_NARROWEST_FLOW = 24
_LONGEST_VALUE = 96
_EXCERPT_BYTES = 8
_NAMES = 6
_DEGRADING = frozenset({"throttle", "delay", "lose"})


@dataclass(frozen=True, slots=True)
class VerdictTable:
    """One entry for each rule and group of like flows, and the rest in sums."""

    summary: Summary

    @classmethod
    def from_eve(cls, lines: Iterable[str]) -> VerdictTable:
        """Lines of an event log. Lines that cannot be read are counted, and said."""
        return cls(summarise(lines))

    def render(self, console: Console) -> None:
        """Prints the table, at the console's width; colour only where the console has it."""
        summary = self.summary
        if summary.rows:
            _print_rows(console, summary.rows)
            console.print()
        if summary.kernel:
            console.print(Text("Decided in the kernel:", style="bold"))
            for rule in summary.kernel:
                _print_detail(console, _kernel_text(rule))
            console.print()
        for line in _closing(summary):
            console.print(line)

    def as_json(self) -> dict[str, object]:
        """The same facts as plain JSON values."""
        summary = self.summary
        return {
            "touched": summary.touched,
            "rows": [_row_json(row) for row in summary.rows],
            "kernel": [
                {
                    "rule": rule.rule,
                    "action": rule.action,
                    "packets": rule.packets,
                    "bytes": rule.bytes,
                    "cite": rule.cite,
                }
                for rule in summary.kernel
            ],
            "flows": summary.flows,
            "passed": {"flows": summary.passed_flows, "names": list(summary.passed_names)},
            "injected": summary.injected,
            "dropped": summary.dropped,
            "faults": list(summary.faults),
            "unreadable_lines": summary.unreadable,
        }


def printable(text: str, limit: int = _LONGEST_VALUE) -> str:
    """Text from packets, safe for a terminal: control and other unprintable characters escaped, cut at `limit`."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def count_of(number: int, noun: str) -> str:
    """`1 flow`, `2 flows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def endpoint(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _print_rows(console: Console, rows: list[Row]) -> None:
    width = console.width
    cells = [("when", "flow", "rule", "action", "packet")]
    for hit in rows:
        what = f"{hit.protocol or hit.ends.proto.lower()} {printable(hit.name) or endpoint(*_server(hit.ends))}"
        if len(hit.flows) > 1:
            what += f" ({len(hit.flows)} flows)"
        number = str(hit.packet_number) if hit.packet_number else "-"
        cells.append((f"+{hit.when:.3f} s", what, printable(hit.rule), printable(hit.action), number))
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    widths[2] = min(widths[2], max(8, width // 4))
    room = width - widths[0] - sum(widths[2:]) - 4 * _GAP
    entries: tuple[Row | None, ...] = (None, *rows)
    for row, line in zip(entries, cells, strict=True):
        style = _style(row.action) if row else "bold"
        if room >= _NARROWEST_FLOW:
            console.print(_headline(line, (widths[0], min(widths[1], room), *widths[2:]), style))
        else:
            console.print(Text("  ".join(line), style=style))
        for text in _details(row) if row else ():
            _print_detail(console, text)


def _headline(cells: tuple[str, ...], widths: tuple[int, ...], style: str) -> Table:
    line = Table.grid(padding=(0, _GAP, 0, 0))
    for column, width in enumerate(widths):
        line.add_column(width=width, overflow="fold", justify="right" if column in (0, 4) else "left")
    line.add_row(*(Text(cell, style=style if column != 1 else "bold") for column, cell in enumerate(cells)))
    return line


def _print_detail(console: Console, text: str) -> None:
    """One indented paragraph, without the blanks that rich would fill its lines up with."""
    for line in Text(text).wrap(console, max(1, console.width - _INDENT), overflow="fold"):
        line.rstrip()
        console.print(Text(" " * _INDENT) + line)


def _style(action: str) -> str:
    return "green" if action in HARMLESS else "yellow" if action in _DEGRADING else "red"


def _details(row: Row) -> Iterator[str]:
    client = row.ends.client if len(row.flows) > 1 else endpoint(row.ends.client, row.ends.client_port)
    facts = [f"{client} -> {endpoint(*_server(row.ends))}", row.ends.proto.lower()]
    if row.packet_length:
        facts.append(f"{row.packet_length} bytes {row.direction.replace('_', ' ')}")
    if row.placement:
        facts.append(row.placement)
    yield printable(", ".join(facts), 200)
    for evidence in row.evidence:
        yield from _evidence_lines(evidence, "datagram" if row.ends.proto == "UDP" else "stream")
    if row.kind == "probe":
        yield f"{count_of(row.hits, 'reaction')} to probes"
    elif row.kind == "residual":
        yield f"met a residual block ({printable(row.residual_key)}), {_seconds(row.residual_seconds)} left"
    elif row.residual_seconds:
        yield f"then blocked for {_seconds(row.residual_seconds)}"
    if row.injected or row.dropped:
        yield f"{count_of(row.injected, 'packet')} injected, {row.dropped} dropped"
    observed = f"observed {row.observed}" if row.observed else ""
    source = "; ".join(text for text in (row.cite, observed, PurePath(row.place).name) if text)
    if source:
        yield printable(source, 400)


def _evidence_lines(evidence: Evidence, where: str) -> Iterator[str]:
    line = f"{printable(evidence.field)} = {printable(evidence.value)}"
    if evidence.entry and evidence.entry != evidence.value:
        line += f", matches {printable(evidence.entry)}"
    yield line
    if evidence.offset is not None and evidence.length:
        place = f"bytes {evidence.offset} to {evidence.offset + evidence.length - 1} of the {where}"
    elif evidence.offset is not None:
        place = f"at byte {evidence.offset} of the {where}"
    else:
        place = "bytes"
    if evidence.excerpt:
        shown = evidence.excerpt[:_EXCERPT_BYTES]
        more = "..." if len(evidence.excerpt) > len(shown) or (evidence.length or 0) > len(shown) else ""
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in shown)
        yield f'{place}: {shown.hex(" ")}{" " if more else ""}{more} "{text}{more}"'
    elif evidence.offset is not None:
        yield place


def _kernel_text(rule: KernelRow) -> str:
    text = f"{rule.rule}: {rule.action}, {count_of(rule.packets, 'packet')}, {count_of(rule.bytes, 'byte')}"
    return printable(f"{text} ({rule.cite})" if rule.cite else text, 400)


def _closing(summary: Summary) -> Iterator[Text]:
    if not summary.touched:
        yield Text("Nothing was touched.", style="bold green")
    if summary.passed_flows:
        line = f"{count_of(summary.passed_flows, 'flow')} passed"
        if summary.passed_names:
            names = ", ".join(printable(name) for name in summary.passed_names[:_NAMES])
            more = ", ..." if len(summary.passed_names) > _NAMES else ""
            line += f", {count_of(len(summary.passed_names), 'name')}: {names}{more}"
        yield Text(f"{line}.")
    elif not summary.flows and not summary.kernel:
        yield Text("No flow was seen.")
    if summary.injected or summary.dropped:
        yield Text(f"In all {count_of(summary.injected, 'packet')} injected, {summary.dropped} dropped.")
    if summary.faults:
        failed = count_of(len(summary.faults), "time")
        yield Text(f"The engine failed {failed}; please report it: {printable(summary.faults[0], 400)}", style="red")
    if summary.unreadable:
        yield Text(f"{count_of(summary.unreadable, 'line')} of the event log could not be read.", style="yellow")


def _server(ends: Endpoints) -> tuple[str, int]:
    return ends.server, ends.server_port


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.3g} s"


def _row_json(row: Row) -> dict[str, object]:
    return {
        "when": round(row.when, 6),
        "kind": row.kind,
        "rule": row.rule,
        "action": row.action,
        "placement": row.placement,
        "proto": row.ends.proto,
        "client": row.ends.client,
        "client_port": row.ends.client_port,
        "server": row.ends.server,
        "server_port": row.ends.server_port,
        "protocol": row.protocol,
        "name": row.name,
        "flows": len(row.flows),
        "hits": row.hits,
        "direction": row.direction,
        "packet_number": row.packet_number,
        "packet_length": row.packet_length,
        "evidence": [
            {
                "field": item.field,
                "value": item.value,
                "entry": item.entry,
                "offset": item.offset,
                "length": item.length,
                "excerpt": item.excerpt.hex(),
            }
            for item in row.evidence
        ],
        "residual_seconds": row.residual_seconds,
        "residual_key": row.residual_key,
        "injected": row.injected,
        "dropped": row.dropped,
        "cite": row.cite,
        "observed": row.observed,
        "place": row.place,
    }
