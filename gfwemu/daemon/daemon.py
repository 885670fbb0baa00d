"""The live censor: what it puts into the kernel, its rules, its signals, its end."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

from gfwemu.daemon.censor import Censor, Outlet, say, settle_garbage
from gfwemu.daemon.clock import now as clock
from gfwemu.daemon.crew import Crew, WorkerError
from gfwemu.daemon.parts import DaemonOptions, Health, Outputs, Parts
from gfwemu.daemon.reload import retire, unhurried
from gfwemu.errors import CapabilityError, GfwemuError, UsageError
from gfwemu.kernel import systemd
from gfwemu.kernel.hop import Queues
from gfwemu.kernel.host import check_forwarding, check_interfaces
from gfwemu.kernel.inject import Injector
from gfwemu.kernel.nft import Nft, NftError
from gfwemu.kernel.ruleset import Ends, Lifetimes
from gfwemu.kernel.table import Table
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.plan import KernelPlan
from gfwemu.rules.spread import spread_of

_HEARTBEAT = 1.0


class Daemon:
    """`run` works until SIGTERM or SIGINT; SIGHUP loads the rules anew.

    A single worker is this process itself. Several are processes of their own, and this one keeps the table and writes.
    """

    def __init__(self, options: DaemonOptions, parts: Parts, outputs: Outputs) -> None:
        self._options = options
        self._parts = parts
        self._outputs = outputs
        self._outlet = Outlet()
        self._stop = False
        self._reload = False
        self._loader: threading.Thread | None = None
        self._loaded: tuple[RuleSet, KernelPlan] | GfwemuError | None = None
        self._censor: Censor | None = None
        self._crew: Crew | None = None
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)

    def run(self) -> None:
        """Raises GfwemuError where it cannot start, and where a worker dies; leaves nothing behind in the kernel."""
        options = self._options
        check_interfaces(options.inside, options.outside)
        notes = check_forwarding()
        self._rules = self._parts.load()
        self._handle_signals()
        self._open_kernel()
        try:
            if options.pid_file is not None:
                self._write_pid(options.pid_file)
            for note in notes:
                say(note)
            if options.workers > 1:
                self._tell_spread(self._rules)
            self._tell_ready()
            self._loop()
        finally:
            self._close()

    # -- start and end ------------------------------------------------------------------------------------------

    def _open_kernel(self) -> None:
        options = self._options
        plan = self._plan(self._rules)
        # Tried first, because its error says best what a user without privileges lacks.
        Injector().close()
        try:
            queues = Queues(options.queue, options.workers)
            self._table = Table(Nft(), Ends(options.inside, options.outside), queues)
            self._open_queues(plan.fail_open)
            # Only after the queues are bound: then no other daemon can be using the table.
            self._table.remove_leftovers()
            self._table.install(plan, self._lifetimes(self._rules))
        except (NftError, OSError) as error:
            raise CapabilityError(f"The kernel refuses gfwemu's table ({error}).", "Ask `gfwemu doctor`.") from None

    def _open_queues(self, fail_open: bool) -> None:
        options, rules = self._options, self._rules
        if options.workers == 1:
            engine, widened = self._parts.engine(rules, 0), self._parts.widened
            self._censor = Censor(
                options.queue,
                options,
                rules,
                engine,
                widened,
                self._table,
                self._outputs,
                fail_open=fail_open,
                prober=lambda given: self._parts.prober(given, 0),
            )
        else:
            # Workers share the memory of all that is there before they begin.
            settle_garbage()
            self._crew = Crew(options, self._parts, rules, self._outputs, fail_open, self._output)

    def _write_pid(self, path: Path) -> None:
        try:
            path.write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise UsageError(f"--pid-file {path}: {error.strerror}.") from None

    def _plan(self, rules: RuleSet) -> KernelPlan:
        plan = self._parts.plan(rules)
        if self._options.fail_open is not None:
            plan = replace(plan, fail_open=self._options.fail_open)
        return plan if self._options.kernel_decides else plan.all_queued()

    def _lifetimes(self, rules: RuleSet) -> Lifetimes:
        flows, scale = rules.options.flows, self._options.time_scale
        return Lifetimes(
            flows.tcp_established / scale,
            flows.udp / scale,
            flows.other / scale,
            flows.limit,
            flows.tcp_opening / scale,
        )

    def _tell_ready(self) -> None:
        options, rules = self._options, self._rules
        settle_garbage()
        say(
            f"ready: {len(rules.rules)} rules between {options.inside} (inside) and {options.outside} (outside), "
            f"{_queues(options)}, seed {rules.seed}"
        )
        systemd.notify("READY=1", f"STATUS={len(rules.rules)} rules")
        if options.ready_fd is not None:
            with suppress(OSError):
                os.write(options.ready_fd, b"\n")
                os.close(options.ready_fd)

    def _tell_spread(self, rules: RuleSet) -> None:
        spread, rule = spread_of(rules)
        if spread == "one":
            say(f"one worker decides all packets, because the rule '{rule}' bears upon flows of all")

    def _close(self) -> None:
        """Nothing new is queued; then every packet that waits gets its verdict; then the table goes, come what may."""
        systemd.notify("STOPPING=1")
        try:
            self._drain()
        finally:
            if self._crew is not None:
                self._crew.kill()
            _say_if_failing(self._table.close)
            if self._censor is not None:
                self._censor.close()
            self._output(self._outputs.close)
            if self._options.pid_file is not None:
                self._options.pid_file.unlink(missing_ok=True)
        losses = self._censor.losses() if self._censor is not None else []
        for loss in losses:
            say(loss)

    def _drain(self) -> None:
        now = clock()
        with suppress(OSError):
            self._output(self._outputs.kernel_rules, now, self._table.counters(), self._rules)
        _say_if_failing(self._table.quiet)
        if self._crew is not None:
            self._crew.end()
        if self._censor is not None:
            self._censor.drain()
        self._output(self._outputs.heartbeat, now, self._health(), (), self._rules)

    # -- the loop -----------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        self._watchdog = systemd.watchdog_seconds()
        interval = min(_HEARTBEAT, self._watchdog or _HEARTBEAT)
        if self._censor is not None:
            if self._stop:
                self._censor.stop()
            self._censor.loop(self._wake.fileno(), self._woken, self._beat, interval)
        elif self._crew is not None:
            self._supervise(self._crew, interval)

    def _supervise(self, crew: Crew, interval: float) -> None:
        next_beat = clock() + interval
        while not self._stop:
            fds = [self._wake.fileno(), *crew.filenos()]
            ready, _, _ = select.select(fds, [], [], max(0.0, next_beat - clock()))
            if fds[0] in ready:
                self._woken()
            crew.attend(ready)
            self._advance_reload()
            if clock() >= next_beat:
                next_beat = clock() + interval
                self._beat(clock())
                self._output(self._outputs.flush)

    def _beat(self, now: float) -> None:
        with suppress(GfwemuError, OSError):
            self._output(self._outputs.heartbeat, now, self._health(), self._table.counters(), self._rules)
        if self._watchdog is not None and (self._crew is None or self._crew.alive()):
            systemd.notify("WATCHDOG=1")

    def _health(self) -> Health:
        hands = self._censor or self._crew
        assert hands is not None
        return hands.health()

    def _output(self, method: Callable[..., None], *arguments: object) -> None:
        outlet = self._outlet if self._censor is None else self._censor.output
        outlet(method, *arguments)

    # -- signals ------------------------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._reload = True
        else:
            self._stop = True
            if self._censor is not None:
                self._censor.stop()

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            while self._wake.recv(4096):
                pass
        self._advance_reload()
        if self._reload and self._loader is None:
            self._reload = False
            systemd.notify_reloading()
            if self._crew is not None:
                self._crew.load()
            # In a thread: packets go on being decided under the old rules meanwhile.
            self._loader = threading.Thread(target=self._load, daemon=True)
            self._loader.start()

    def _load(self) -> None:
        """All that takes long: the files are read, and the kernel has the new sets."""
        try:
            with unhurried():
                rules = self._parts.load()
                plan = self._plan(rules)
                self._table.prepare(plan)
            self._loaded = rules, plan
        except GfwemuError as error:
            self._loaded = error
        except OSError as error:
            self._loaded = GfwemuError(str(error))
        except Exception:
            self._loaded = GfwemuError(traceback.format_exc())
        self._waker.send(b"\0")

    def _advance_reload(self) -> None:
        """Where everybody has read the new rules, they take force."""
        if self._loaded is None or (self._crew is not None and not self._crew.have_loaded()):
            return
        loaded, self._loaded, self._loader = self._loaded, None, None
        self._apply_reload(loaded)
        if self._reload:
            # A signal came while the files were read.
            self._waker.send(b"\0")

    def _apply_reload(self, loaded: tuple[RuleSet, KernelPlan] | GfwemuError) -> None:
        now = clock()
        try:
            if isinstance(loaded, GfwemuError):
                raise loaded
            rules, plan = loaded
            if self._crew is not None:
                self._crew.check_loaded(rules)
            self._output(self._outputs.kernel_rules, now, self._table.counters(), self._rules)
            self._replace(rules, plan)
        except WorkerError:
            raise
        except (GfwemuError, OSError) as error:
            if self._crew is not None:
                self._crew.keep()
            _say_if_failing(self._table.forget)
            say(f"the rules were not reloaded, the old ones stay in force:\n{error}")
        else:
            old, self._rules = self._rules, rules
            retire(old)
            self._output(self._outputs.reloaded, now)
            say(f"reloaded: {len(rules.rules)} rules")
            if self._crew is not None:
                self._tell_spread(rules)
        systemd.notify("READY=1", f"STATUS={len(self._rules.rules)} rules")

    def _replace(self, rules: RuleSet, plan: KernelPlan) -> None:
        if self._crew is not None:
            self._crew.replace(lambda: self._table.replace(plan, self._lifetimes(rules)), plan.fail_open)
        elif self._censor is not None:
            self._table.replace(plan, self._lifetimes(rules))
            self._censor.replace(rules, plan.fail_open)


def _queues(options: DaemonOptions) -> str:
    if options.workers == 1:
        return f"queue {options.queue}"
    return f"{options.workers} workers on queues {options.queue} to {options.queue + options.workers - 1}"


def _say_if_failing(action: Callable[[], None]) -> None:
    try:
        action()
    except (GfwemuError, OSError) as error:
        say(str(error))
