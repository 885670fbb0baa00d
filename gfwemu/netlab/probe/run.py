"""The kinds of probes, and how their trouble becomes an outcome."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from importlib import import_module

from gfwemu.netlab.probe.outcome import Options, Result

Ask = Callable[[Options, Result], Awaitable[None]]

# As text, since each kind needs libraries that are slow to import.
KINDS = {
    "tcp": "gfwemu.netlab.probe.tcp:probe_tcp",
    "tls": "gfwemu.netlab.probe.tcp:probe_tls",
    "http": "gfwemu.netlab.probe.tcp:probe_http",
    "https": "gfwemu.netlab.probe.tcp:probe_http",
    "h3": "gfwemu.netlab.probe.quic:probe_h3",
    "quic": "gfwemu.netlab.probe.quic:probe_quic",
    "dns": "gfwemu.netlab.probe.dns:probe_dns",
    "dns-tcp": "gfwemu.netlab.probe.dns:probe_dns_tcp",
    "dot": "gfwemu.netlab.probe.dns:probe_dot",
    "doh": "gfwemu.netlab.probe.dns:probe_doh",
}
# A page that still moved in the last part of the time is slow; one that did not is frozen.
STILL_MOVING = 0.5


async def probe(kind: str, options: Options) -> Result:
    """Run one probe. Network trouble is an outcome, never an exception."""
    module, function = KINDS[kind].split(":")
    ask: Ask = getattr(import_module(module), function)
    result = Result()
    try:
        async with asyncio.timeout(options.timeout):
            await ask(options, result)
    except TimeoutError:
        _judge_unfinished(options, result)
    except ConnectionRefusedError:
        result.end("refused")
    except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
        result.end("reset")
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        # ValueError: a target that no library takes for a name or URL.
        result.end("failed", str(error))
    result.seconds = result.elapsed()
    return result


def _judge_unfinished(options: Options, result: Result) -> None:
    if not result.received:
        result.end("timeout")
    elif result.last_byte > options.timeout * STILL_MOVING:
        result.end("slow", f"unfinished after {result.received} bytes")
    else:
        result.end("frozen", f"after {result.received} bytes")
