"""A worker: a process with a queue and an engine of its own. What it has to tell, the daemon writes.

Over a socket the daemon sends orders of one byte, and the worker sends frames: the name of a channel ("" for answers to
orders) and some bytes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import threading
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import asdict

from gfwemu.daemon.censor import Censor, say
from gfwemu.daemon.parts import DaemonOptions, Outputs, Parts
from gfwemu.daemon.reload import retire, unhurried
from gfwemu.errors import GfwemuError
from gfwemu.kernel.hop import Queues
from gfwemu.kernel.nft import Nft
from gfwemu.kernel.ruleset import Ends
from gfwemu.kernel.sandbox import die_with_parent
from gfwemu.kernel.table import Table
from gfwemu.rules.compiled import RuleSet

LOAD, PAUSE, KEEP, APPLY_OPEN, APPLY_CLOSED, END = (b"l", b"p", b"k", b"o", b"c", b"e")
READY, REFUSED, LOADED, NOT_LOADED, PAUSED, BEAT = "ready", "refused", "loaded", "not loaded", "paused", "beat"

_FRAME = struct.Struct("!BI")
_SECOND = 1.0


class FrameReader:
    """Cuts what arrives into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        self._data += data
        while len(self._data) >= _FRAME.size:
            name, size = _FRAME.unpack_from(self._data)
            end = _FRAME.size + name + size
            if len(self._data) < end:
                return
            frame = bytes(self._data[_FRAME.size : end])
            del self._data[:end]
            yield frame[:name].decode(), frame[name:]


def frame(channel: str, data: bytes) -> bytes:
    name = channel.encode()
    return _FRAME.pack(len(name), len(data)) + name + data


def likeness(rules: RuleSet) -> str:
    """The same for the same rules. Files may change while several processes read them."""
    told = [
        [(rule.name, rule.action_name, repr(rule.action), repr(rule.residual)) for rule in rules.rules],
        repr(rules.options),
        sorted(rules.lists.items()),
    ]
    return f"{zlib.crc32(repr(told).encode()):08x}"


def work(
    number: int,
    options: DaemonOptions,
    parts: Parts,
    rules: RuleSet,
    outputs: Outputs,
    sock: socket.socket,
    fail_open: bool,
) -> None:
    """The worker's whole life, in a process that has just been forked. Never returns."""
    status = 1
    try:
        die_with_parent()
        signal.set_wakeup_fd(-1)
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # A terminal and a service manager send them to all processes; the daemon alone obeys.
            signal.signal(one, signal.SIG_IGN)
        worker = _Worker(number, options, parts, rules, outputs, sock)
        try:
            worker.open(fail_open)
        except GfwemuError as error:
            worker.answer(REFUSED, str(error))
        else:
            worker.answer(READY)
            worker.run()
        status = 0
    except BaseException:
        say(f"worker {number + 1} failed; please report this:\n{traceback.format_exc()}")
    finally:
        os._exit(status)


class _Worker:
    def __init__(
        self, number: int, options: DaemonOptions, parts: Parts, rules: RuleSet, outputs: Outputs, sock: socket.socket
    ) -> None:
        self._number = number
        self._options = options
        self._parts = parts
        self._rules = rules
        self._outputs = outputs.in_worker(self._post)
        self._socket = sock
        self._lock = threading.Lock()
        self._loaded: RuleSet | None = None

    def open(self, fail_open: bool) -> None:
        options = self._options
        queues = Queues(options.queue, options.workers)
        # It only watches; the table itself is the daemon's.
        table = Table(Nft(), Ends(options.inside, options.outside), queues, "nft")
        parts, rules = self._parts, self._rules
        self._censor = Censor(
            options.queue + self._number,
            options,
            rules,
            parts.engine(rules, self._number),
            parts.widened,
            table,
            self._outputs,
            fail_open=fail_open,
            prober=lambda given: parts.prober(given, self._number),
        )

    def run(self) -> None:
        self._censor.loop(self._socket.fileno(), self._ordered, self._beat, _SECOND)
        self._censor.drain()
        self._censor.output(self._outputs.close)
        self._beat(0.0)
        for loss in self._censor.losses():
            say(f"worker {self._number + 1}: {loss}")
        self._censor.close()

    def answer(self, what: str, text: str = "") -> None:
        self._post("", json.dumps([what, text]).encode())

    def _post(self, channel: str, data: bytes) -> None:
        with self._lock:
            self._socket.sendall(frame(channel, data))

    def _beat(self, now: float) -> None:
        health = self._censor.health()
        self._censor.output(self._outputs.heartbeat, now, health, (), self._rules)
        self._censor.output(self._outputs.flush)
        self.answer(BEAT, json.dumps(asdict(health)))

    def _ordered(self) -> None:
        order = self._socket.recv(1)
        if order == LOAD:
            # In a thread: packets go on being decided under the old rules meanwhile.
            threading.Thread(target=self._load, daemon=True).start()
        elif order == PAUSE:
            self.answer(PAUSED)
            self._paused()
        elif order == KEEP:
            self._loaded = None
        elif order == END:
            self._censor.stop()
        elif not order:
            # The daemon is gone, and its table with the next daemon.
            os._exit(1)

    def _paused(self) -> None:
        """Nothing is decided while the daemon replaces its table."""
        order = self._socket.recv(1)
        if order in (APPLY_OPEN, APPLY_CLOSED) and self._loaded is not None:
            old, self._rules, self._loaded = self._rules, self._loaded, None
            self._censor.replace(self._rules, order == APPLY_OPEN)
            retire(old)
        elif not order:
            os._exit(1)
        self._loaded = None

    def _load(self) -> None:
        try:
            with unhurried():
                self._loaded = self._parts.load()
        except GfwemuError as error:
            self.answer(NOT_LOADED, str(error))
        except Exception:
            self.answer(NOT_LOADED, traceback.format_exc())
        else:
            self.answer(LOADED, likeness(self._loaded))
