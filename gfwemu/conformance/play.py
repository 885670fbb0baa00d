"""Plays a case's script on a stage, and has its expectations judged."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from gfwemu.conformance.cases import Case
from gfwemu.conformance.hand import Channel
from gfwemu.conformance.hello import middle_of
from gfwemu.conformance.judge import Scene, describe, mismatches
from gfwemu.conformance.language import Connect, Dig, Expect, Step
from gfwemu.conformance.payloads import build_payload, name_in
from gfwemu.conformance.specs import Payload
from gfwemu.conformance.stage import Ended, InconclusiveError, Stage
from gfwemu.conformance.trace import Seen
from gfwemu.model import FiveTuple, Side, Transport

SETTLE = 0.4
"""Seconds after which what was to come has come: a round trip and the slowest injection."""
PATIENCE = 2.0
"""Seconds until what has not come is taken for missing. Waiting longer than SETTLE only helps a busy machine."""
_POLL = 0.02
_SLOWER = 1.4
_HANDSHAKE = 1.0
_LATE = 0.02
_HARMLESS = b"\x00harmless\x00"
_PROGRAM_TIMEOUT = 15.0


@dataclass(slots=True)
class Outcome:
    """One repetition: what was amiss, what was seen, and the delay of the first injection at the client."""

    wrong: list[str] = field(default_factory=list)
    observed: list[str] = field(default_factory=list)
    inconclusive: str = ""
    delay: float | None = None


class Play:
    """One repetition of one case."""

    def __init__(self, case: Case, stage: Stage, number: int) -> None:
        self._case = case
        self._stage = stage
        self._rng = random.Random(f"{case.id} {number}")
        self._port = self._rng.randrange(20_000, 50_000)
        self._channels: list[Channel] = []
        self._mark = 0
        self._zero: float | None = None
        self._ended: Ended | None = None
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        try:
            for step in self._case.steps:
                await self._step(step)
            if self._case.expect is not None:
                await self._expect(self._case.expect)
        except InconclusiveError as error:
            self.outcome.inconclusive = str(error)
        return self.outcome

    async def _step(self, step: Step) -> None:
        match step.verb:
            case "connect":
                assert step.connect is not None
                await self._connect(step.connect)
            case "udp":
                assert step.udp is not None
                self._open(step.udp, Transport.UDP)
            case "send":
                await self._send(step, step.send, advance=True)
            case "packet":
                await self._send(step, step.payload, advance=False)
            case "answer":
                await self._answer(step.answer)
            case "finish":
                self._channel.finish(step.finish or "fin")
                await self._stage.sleep(self._round_trip)
            case "wait":
                await self._pass((step.wait or 0.0) / self._stage.scale)
            case "at":
                await self._until(step.at or 0.0)
            case "pause":
                await self._pass(step.pause or 0.0)
            case "try":
                await self._try(step)
            case "expect":
                assert step.expect is not None
                await self._expect(step.expect)
            case _:
                await self._program(step)

    @property
    def _channel(self) -> Channel:
        if not self._channels:
            raise InconclusiveError("the script sends before it connects")
        return self._channels[-1]

    @property
    def _round_trip(self) -> float:
        return self._stage.path.rtt + 0.02

    # -- opening ----------------------------------------------------------------------------------------------------

    def _open(self, spec: Connect, proto: int) -> Channel:
        side = Side(spec.from_)
        last = self._channels[-1] if self._channels else None
        client = (
            last.flow.src
            if last is not None and spec.client == "same" and len(last.flow.src) == (16 if spec.ipv6 else 4)
            else self._stage.client(side, ipv6=spec.ipv6)
        )
        wanted = spec.server
        if wanted == "same" and last is not None and len(last.flow.dst) == len(client):
            server = last.flow.dst
        else:
            server = self._stage.server(side.opposite, client, "fresh" if wanted in ("same", "other") else wanted)
        self._port += 1
        match spec.client_port:
            case None:
                port = self._port
            case "above":
                port = min(65535, spec.port + 1 + self._rng.randrange(200))
            case "below":
                port = max(1, spec.port - 1 - self._rng.randrange(min(200, spec.port - 1 or 1)))
            case "equal":
                port = spec.port
            case int(port):
                pass
        flow = FiveTuple(proto, client, port, server, spec.port)
        if spec.server not in ("silent", "hand"):
            self._stage.serve(side.opposite, server, spec.port, proto)
        channel = Channel(self._stage, flow, side, spec, self._rng.getrandbits(31))
        self._channels.append(channel)
        return channel

    async def _connect(self, spec: Connect) -> Channel:
        channel = self._open(spec, Transport.TCP)
        if spec.handshake != "none":
            channel.syn()
        if spec.handshake in ("blind", "none"):
            channel.handshake_done()
            if spec.server != "hand":
                channel.ack = self._rng.getrandbits(31)
            await self._stage.sleep(0.01)
        elif spec.handshake == "full":
            await self._await_answer(channel)
            if channel.outcome == "timeout" and len(self._channels) == 1 and not self._asks_for_connection:
                raise InconclusiveError("the handshake never ended")
            channel.handshake_done()
            if channel.outcome == "ok":
                channel.acknowledge()
            await self._stage.sleep(0.01)
        else:
            await self._stage.sleep(self._round_trip)
            channel.pump()
            channel.handshake_done()
        return channel

    @property
    def _asks_for_connection(self) -> bool:
        expectations = [step.expect for step in self._case.steps] + [self._case.expect]
        return any(one is not None and one.connection is not None for one in expectations)

    async def _await_answer(self, channel: Channel) -> None:
        """Until the SYN/ACK, a reset, or, where the SYN got lost, a second."""
        start, pause = self._stage.now, _POLL
        while not channel.outcome:
            await self._stage.sleep(pause)
            pause *= _SLOWER
            channel.pump()
            waited = self._stage.now - start
            lost = not any(
                one.packet.five_tuple == channel.flow and self._stage.trace.arrived(one) for one in self._sent(channel)
            )
            if waited > (_HANDSHAKE if lost else 3 * _HANDSHAKE):
                channel.outcome = channel.outcome or "timeout"

    def _sent(self, channel: Channel) -> list[Seen]:
        return [one for one in self._stage.trace.packets if one.sent and one.packet.five_tuple == channel.flow]

    # -- sending ----------------------------------------------------------------------------------------------------

    async def _send(self, step: Step, payload: Payload | None, *, advance: bool) -> None:
        channel = self._channel
        channel.pump()
        data = build_payload(payload, stream=channel.is_tcp) if payload is not None else b""
        by_server = step.by == "server"
        if by_server:
            packets = channel.send_as_server(data, step)
        else:
            packets = channel.send(data, step, _cuts(step, payload, data), advance=advance)
        if advance:
            self._zero = self._stage.now
        for _ in range(step.times):
            for number, packet in enumerate(packets):
                channel.emit(packet, by_server=by_server)
                if step.every and number + 1 < len(packets):
                    await self._stage.sleep(step.every)
            if step.times > 1:
                await self._stage.sleep(step.every or 0.001)
        # In order at the censor: what the two ends send must not overtake each other.
        await self._stage.sleep(self._round_trip if by_server else 0.002)
        channel.pump()

    async def _answer(self, payload: Payload | None) -> None:
        channel = self._channel
        assert payload is not None
        await self._stage.sleep(self._round_trip)
        data = build_payload(payload, stream=channel.is_tcp)
        if not self._stage.answer(channel.flow, data):
            raise InconclusiveError("the server has no such connection to answer on")
        await self._stage.sleep(self._round_trip)
        channel.pump()
        await self._stage.sleep(0.005)

    async def _pass(self, seconds: float) -> None:
        await self._stage.sleep(seconds)
        for channel in self._channels:
            channel.pump()

    async def _until(self, censor_seconds: float) -> None:
        """Until so long, on the censor's clock, after the last `send`."""
        if self._zero is None:
            raise InconclusiveError("'at' comes before the first 'send'")
        left = self._zero + censor_seconds / self._stage.scale - self._stage.now
        if left < -_LATE * censor_seconds / self._stage.scale:
            raise InconclusiveError(f"too late for 'at: {censor_seconds:g}' by {-left:.1f} s; lower --time-scale")
        await self._pass(max(0.0, left))

    # -- looking ----------------------------------------------------------------------------------------------------

    async def _try(self, step: Step) -> None:
        """A new flow between the same ends with bytes that nobody minds."""
        before = self._channel
        spec = before.spec.model_copy(
            update={
                "port": before.spec.port if step.try_ == "same" else step.try_,
                "server": step.server,
                "client": step.client,
                "client_port": step.client_port
                if step.client_port is not None
                else before.spec.client_port
                if isinstance(before.spec.client_port, str)
                else None,
                "from_": step.from_ or before.spec.from_,
                "ipv6": before.spec.ipv6 if step.ipv6 is None else step.ipv6,
                "handshake": "full",
                "timestamps": False,
                "syn_ttl": None,
            }
        )
        mark = len(self._stage.trace.packets)
        zero = self._zero
        found = await self._harmless(spec, before.flow.proto, step.payload, mark)
        self._zero = zero
        self._channels.remove(self._channels[-1])
        self._mark = len(self._stage.trace.packets)
        wanted = step.outcome or "free"
        if found != wanted and not (wanted == "blocked" and found in ("reset", "timeout")):
            self.outcome.wrong.append(f"a later flow is to be {wanted} and was {found}")
        self.outcome.observed.append(f"later flow {found}")

    async def _harmless(self, spec: Connect, proto: int, payload: Payload | None, mark: int) -> str:
        data = build_payload(payload, stream=proto == Transport.TCP) if payload is not None else _HARMLESS
        channel = await self._connect(spec) if proto == Transport.TCP else self._open(spec, proto)
        if channel.outcome == "timeout":
            return "timeout"
        if channel.outcome != "reset":
            for packet in channel.send(data, Step.model_validate({"send": {"text": ""}}), (), advance=True):
                channel.emit(packet)
        start, back, pause = self._stage.now, channel.flow.reversed(), _POLL
        while True:
            await self._stage.sleep(pause)
            pause *= _SLOWER
            channel.pump()
            mine = [one for one in self._stage.trace.injected(channel.side, mark) if one.packet.five_tuple == back]
            if mine:
                # What else it met belongs to it, not to what comes next.
                await self._stage.sleep(SETTLE)
                return "reset" if channel.is_tcp else "blocked"
            waited = self._stage.now - start
            read = data in self._stage.received(channel.flow)
            if waited > SETTLE and read:
                return "free"
            if waited > PATIENCE / 2 and not read:
                return "timeout"

    async def _expect(self, expect: Expect) -> None:
        start = self._stage.now
        await self._pass(SETTLE)
        pause = _POLL * 5
        while True:
            scene = Scene(self._stage, self._channels, self._mark, self._ended)
            wrong = mismatches(expect, scene)
            if not wrong or self._stage.now - start > PATIENCE:
                break
            await self._pass(pause)
            pause *= 2
        first = self._first_delay(scene)
        if self.outcome.delay is None:
            self.outcome.delay = first
        self.outcome.wrong += wrong
        self.outcome.observed.append(describe(expect, scene))
        self._mark = len(self._stage.trace.packets)

    def _first_delay(self, scene: Scene) -> float | None:
        found = scene.injected(scene.client_side)
        return scene.delay(found[0]) if found else None

    async def _program(self, step: Step) -> None:
        argv = list(step.run or [])
        if step.curl is not None:
            argv = ["curl", "-sS", "--max-time", "6", "--interface", "{client}", *step.options, step.curl]
        elif step.dig is not None:
            argv = _dig(step.dig)
        self._ended = await self._stage.program(argv, _PROGRAM_TIMEOUT)
        self.outcome.observed.append(f"{argv[0]} exit {self._ended.exit} after {self._ended.seconds:.1f} s")


def _dig(spec: Dig) -> list[str]:
    way = ["+tcp"] if spec.tcp else ["+notcp"]
    return ["dig", "-b", "{client}", f"@{spec.server}", "+tries=1", "+time=2", "+short", *way, spec.name, spec.type]


def _cuts(step: Step, payload: Payload | None, data: bytes) -> list[int]:
    """Offsets at which a new segment begins."""
    if not isinstance(step.cut, str):
        found, at = [], 0
        for size in step.cut:
            at += size
            found.append(at)
        return found
    if step.cut == "half" or payload is None:
        return [len(data) // 2]
    return [middle_of(name_in(payload), data)]
