"""Runs cases with real packets in a lab: many at a time, each between addresses of its own."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from pathlib import Path

from gfwemu.conformance.addresses import HAND_MADE, SERVERS, Addresses
from gfwemu.conformance.cases import Case
from gfwemu.conformance.play import Outcome, Play
from gfwemu.conformance.replay import lab_path
from gfwemu.conformance.result import FAIL, INCONCLUSIVE, PASS, Result, judge
from gfwemu.conformance.servers import Servers
from gfwemu.conformance.sockets import NodeSockets, Wire
from gfwemu.conformance.stage import Ended, InconclusiveError
from gfwemu.conformance.trace import Trace, seen
from gfwemu.model import FiveTuple, Side, address_bytes
from gfwemu.netlab.errors import LabError
from gfwemu.netlab.lab import Lab
from gfwemu.netlab.topology import Topology, load_topology

_NODES = {Side.INSIDE: "client", Side.OUTSIDE: "internet"}
_REST = 0.5
_AGAIN = 2
"""How often a failed case is played again before it counts as failed."""
_ALONE = 3
"""How often an inconclusive one must pass with nobody beside it."""
_PROGRAM_ADDRESSES = [f"192.0.2.{number}" for number in range(11, 32)]


def play_live(
    path: Path, cases: Sequence[Case], *, time_scale: float, jobs: int, on_result: Callable[[Result], None]
) -> list[Result]:
    """The results in the order of the cases. Raises what building a lab raises.

    Cases at different times of the censor's clock play in labs of their own, one after the other.
    """
    found: dict[str, Result] = {}
    for clock in sorted({case.clock for case in cases}):
        mine = [case for case in cases if case.clock == clock]
        with Lab(_topology(mine), rules=[path], time_scale=time_scale, start_time=clock) as lab:
            played = asyncio.run(_play(lab, mine, time_scale, jobs, on_result))
            _refuse_dead_services(lab)
        found.update({one.case.id: one for one in played})
    return [found[case.id] for case in cases]


def _refuse_dead_services(lab: Lab) -> None:
    """A censor that died lets everything pass, which some cases would take for success. Raises LabError."""
    lab.attached.refresh()
    for name, service in lab.attached.state["services"].items():
        if service["state"] != "running":
            log = (lab.directory / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip().split("\n")
            raise LabError(f"The lab's {name} {service['state']} while cases played: {log[-1]}", service=name)


def _topology(cases: Sequence[Case]) -> Topology:
    """The default lab with addresses for everybody who takes part."""
    topology = load_topology("default")
    outside = [str(host) for network in SERVERS[Side.OUTSIDE] for host in _hosts(network)]
    outside += [text for case in cases for text in _named_servers(case)]
    inside = [*_PROGRAM_ADDRESSES, *(str(host) for host in _hosts(SERVERS[Side.INSIDE][0]))]
    inside_v6 = [str(host) for host in _hosts(SERVERS[Side.INSIDE][1])]
    taken = {address for site in topology.internet.sites if site.listen for address in site.addresses}
    internet = topology.internet.model_copy(
        update={"addresses": (*topology.internet.addresses, *(one for one in outside if one not in taken))}
    )
    client = (*topology.client, *(f"{one}/25" for one in inside), *(f"{one}/64" for one in inside_v6))
    return topology.model_copy(update={"internet": internet, "client": client})


def _hosts(network: str) -> list[object]:
    return [*ip_network(network).hosts()][:300]


def _named_servers(case: Case) -> list[str]:
    """Addresses and networks that a script spells out."""
    found: list[str] = []
    for step in case.steps:
        spec = step.connect or step.udp
        wanted = spec.server if spec is not None and spec.from_ == "inside" else step.server
        if wanted.split("/")[0].count(".") == 3 or ":" in wanted:
            found += map(str, _hosts(wanted)) if "/" in wanted else [wanted]
    return found


async def _play(
    lab: Lab, cases: Sequence[Case], time_scale: float, jobs: int, on_result: Callable[[Result], None]
) -> list[Result]:
    world = LabWorld(lab, time_scale)
    slots = asyncio.Semaphore(jobs)

    async def repetition(case: Case, number: int) -> Outcome:
        async with slots:
            stage = LabStage(world)
            try:
                return await Play(case, stage, number).run()
            except LabError as error:
                return Outcome(inconclusive=str(error))
            finally:
                await stage.leave()

    async def whole(case: Case) -> Result:
        result = judge(case, await asyncio.gather(*(repetition(case, number) for number in range(case.repeat))))
        if result.verdict == FAIL and case.rate is None:
            result = await again(case, result)
        if world.lost() and result.verdict == FAIL:
            result = Result(case, INCONCLUSIVE, "the capture lost packets", result.wrong)
        on_result(result)
        return result

    async def again(case: Case, result: Result) -> Result:
        """A busy machine makes packets late: what fails must fail each time."""
        for number in range(_AGAIN):
            other = judge(case, [await repetition(case, case.repeat + number)])
            if other.verdict == PASS:
                return Result(case, INCONCLUSIVE, f"failed once, then passed: {'; '.join(result.wrong)}", result.wrong)
        return result

    async def alone(result: Result) -> Result:
        """On a busy machine the censor falls behind where many play; with nobody beside, it must keep up each time."""
        case = result.case
        if result.verdict != INCONCLUSIVE or case.rate is not None:
            return result
        numbers = range(case.repeat + _AGAIN, case.repeat + _AGAIN + _ALONE)
        found = [judge(case, [await repetition(case, number)]) for number in numbers]
        if any(one.verdict != PASS for one in found):
            return result
        return Result(case, PASS, f"{found[0].observed} (alone, {_ALONE} times; among others: {result.observed})")

    try:
        # The longest first: the others fit in beside them.
        started = {case.id: asyncio.create_task(whole(case)) for case in sorted(cases, key=_length, reverse=True)}
        results = [await started[case.id] for case in cases]
        return [await alone(one) for one in results]
    finally:
        world.close()


def _length(case: Case) -> float:
    return max((step.at or 0.0 for step in case.steps), default=0.0) + sum(step.wait or 0.0 for step in case.steps)


class LabWorld:
    """A lab with both ends in our hands."""

    def __init__(self, lab: Lab, time_scale: float) -> None:
        self.lab = lab
        self.scale = time_scale
        self.path = lab_path()
        self.addresses = Addresses()
        self._programs = list(_PROGRAM_ADDRESSES)
        self._stages: dict[bytes, LabStage] = {}
        self._visited: dict[bytes, list[LabStage]] = {}
        self._lost = 0
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._nodes = {side: NodeSockets(lab, name) for side, name in _NODES.items()}
        self.wires: dict[Side, Wire] = {side: node.wire("eth0") for side, node in self._nodes.items()}
        self.servers = {side: Servers(node, loop) for side, node in self._nodes.items()}
        self._find_gateways()
        self._lead_hand_made_home()
        for side, wire in self.wires.items():
            loop.add_reader(wire.link, self._take, side, wire)

    def _find_gateways(self) -> None:
        for side, node, interface in ((Side.INSIDE, "access", "inside"), (Side.OUTSIDE, "transit", "outside")):
            router = NodeSockets(self.lab, node)
            link = router.wire(interface)
            self.wires[side].gateway = link.hardware_address
            link.close()
            router.close()

    def _lead_hand_made_home(self) -> None:
        """The client's kernel gets what is for the hand-made addresses, and throws it away: it does not forward."""
        v4, v6 = HAND_MADE[Side.INSIDE]
        for network, via in ((v4, "192.0.2.10"), (v6, "2001:db8:1::10")):
            done = self.lab.exec("access", ["ip", "route", "replace", network, "via", via], timeout=10, as_root=True)
            if done.returncode:
                raise LabError(f"The lab's access has no way to {network}: {done.stderr.decode().strip()}.")

    def close(self) -> None:
        for wire in self.wires.values():
            self._loop.remove_reader(wire.link)
            wire.close()
        for servers in self.servers.values():
            servers.close()
        for node in self._nodes.values():
            node.close()

    def lost(self) -> int:
        self._lost += sum(wire.lost() for wire in self.wires.values())
        return self._lost

    def register(self, address: bytes, stage: LabStage) -> None:
        self._stages[address] = stage

    def unregister(self, address: bytes) -> None:
        self._stages.pop(address, None)

    def visit(self, server: bytes, stage: LabStage) -> None:
        """The stage hears of what others do to that server."""
        self._visited.setdefault(server, []).append(stage)

    def leave(self, stage: LabStage) -> None:
        for stages in self._visited.values():
            if stage in stages:
                stages.remove(stage)

    def program_address(self) -> str:
        """The one that was used least recently."""
        self._programs.append(self._programs.pop(0))
        return self._programs[-1]

    def _take(self, side: Side, wire: Wire) -> None:
        while (came := wire.receive()) is not None:
            data, at, sent = came
            one = seen(data, at, side, sent=sent)
            if one is None:
                continue
            stage = self._stages.get(one.packet.src) or self._stages.get(one.packet.dst)
            if stage is not None:
                stage.trace.packets.append(one)
                continue
            for stage in self._visited.get(one.packet.dst, ()) or self._visited.get(one.packet.src, ()):
                stage.trace.strangers.append(one)


class LabStage:
    """A repetition in the lab."""

    def __init__(self, world: LabWorld) -> None:
        self._world = world
        self.path = world.path
        self.scale = world.scale
        self.trace = Trace()
        self._clients: list[tuple[Side, bytes]] = []
        self._programs: list[bytes] = []

    @property
    def now(self) -> float:
        return time.time()

    async def leave(self) -> None:
        """What is still under way must not meet whoever gets the addresses next."""
        await asyncio.sleep(_REST)
        for side, address in self._clients:
            self._world.unregister(address)
            self._world.addresses.give_back(side, address)
        for address in self._programs:
            self._world.unregister(address)
        self._world.leave(self)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def client(self, side: Side, *, ipv6: bool) -> bytes:
        address = self._world.addresses.client(side, ipv6=ipv6)
        self._clients.append((side, address))
        self._world.register(address, self)
        return address

    def server(self, side: Side, client: bytes, wanted: str) -> bytes:
        address = self._world.addresses.server(side, client, wanted)
        self._world.visit(address, self)
        return address

    def serve(self, side: Side, address: bytes, port: int, proto: int) -> None:
        self._world.servers[side].serve(address, port, proto)

    def emit(self, side: Side, data: bytes) -> None:
        self._world.wires[side].send(data)

    def received(self, flow: FiveTuple) -> bytes:
        return self._server_of(flow).received(flow)

    def answer(self, flow: FiveTuple, data: bytes) -> bool:
        return self._server_of(flow).answer(flow, data)

    def _server_of(self, flow: FiveTuple) -> Servers:
        return self._world.servers[self._world.addresses.side_of(flow.dst)]

    async def program(self, argv: list[str], timeout: float) -> Ended:
        address = self._world.program_address()
        packed = address_bytes(address)
        self._programs.append(packed)
        self._world.register(packed, self)
        command = [part.replace("{client}", address) for part in argv]
        start = time.monotonic()
        try:
            done = await asyncio.to_thread(self._world.lab.exec, "client", command, timeout=timeout)
        except subprocess.TimeoutExpired as late:
            return Ended(None, (late.stdout or b"").decode(errors="replace"), timeout)
        if done.returncode == 127:
            raise InconclusiveError(f"the program {command[0]} is missing")
        said = (done.stdout + done.stderr).decode(errors="replace")
        return Ended(done.returncode, said, time.monotonic() - start)
