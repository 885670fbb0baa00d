"""A small client that says in one word what became of a request.

    python -m gfwemu.netlab.probe KIND TARGET [options]

`http URL`, `https URL`, `h3 URL`, `quic NAME[:PORT]` and `tls NAME[:PORT]` (handshake only), `tcp NAME:PORT`,
`dns NAME`, `dns-tcp NAME`, `dot NAME`, `doh NAME` (the last four ask `--resolver`).

Prints one JSON object; its `outcome` also decides the exit code (`OUTCOMES`). `failed` is what none of the others
names, such as a certificate that nobody vouches for; `detail` says what.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from typing import Any

from gfwemu.netlab.probe.outcome import OUTCOMES, Options
from gfwemu.netlab.probe.run import KINDS, probe


def parse(argv: Sequence[str] | None) -> tuple[str, Options]:
    parser = argparse.ArgumentParser(
        prog="python -m gfwemu.netlab.probe", description="Ask for something, and say in one word what became of it."
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("target", help="URL, NAME or NAME:PORT")
    add = parser.add_argument
    add("--timeout", type=float, default=10.0, metavar="SECONDS")
    add("--address", default="", help="talk to this address instead of resolving the name")
    add("--local-port", type=int, default=0, metavar="PORT")
    add("--authority", default="", metavar="FILE", help="trusted certificates, PEM (default: $SSL_CERT_FILE)")
    add("--insecure", action="store_true", help="believe any certificate")
    add("--sni", default="", metavar="NAME", help="name for TLS, when not the target's")
    add("--alpn", action="append", default=[], metavar="PROTOCOL")
    add("--quic-version", type=int, choices=(1, 2), default=1)
    add("--resolver", default="", metavar="ADDR[:PORT]", help="whom to ask (default: the first of /etc/resolv.conf)")
    add("--resolver-name", default="", metavar="NAME", help="the resolver's name for TLS (default: its address)")
    add("--query-type", default="A", metavar="TYPE")
    add("--expect", action="append", default=[], metavar="ADDR", help="the true answer; any other is `poisoned`")
    add("--listen", type=float, default=0.0, metavar="SECONDS", help="wait for further DNS answers")
    add("--slow-below", type=float, default=0.0, metavar="KBIT/S", help="below this speed the outcome is `slow`")
    add("--blockpage-text", default="", metavar="TEXT", help="a page with this text is a blockpage")
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in vars(parser.parse_args(argv)).items()
    }
    kind = str(given.pop("kind"))
    return kind, Options(**given)


def main(argv: Sequence[str] | None = None) -> int:
    kind, options = parse(argv)
    result = asyncio.run(probe(kind, options))
    print(json.dumps({"probe": kind, "target": options.target, **result.as_json()}))
    return OUTCOMES[result.outcome]


if __name__ == "__main__":
    raise SystemExit(main())
