"""What the engine orders. The shell performs commands in order."""

from __future__ import annotations

from gfwemu.engine.records import Record
from gfwemu.model import Verdict, record
from gfwemu.rules.actions import Probe


@record
class SetVerdict:
    """The one verdict of a packet.

    data: the packet's new bytes, where it is rewritten. offload: the kernel may answer the rest of this flow, in both
    directions, with the same verdict. bulk: of the rest of this flow nothing but headers and sizes counts. reason:
    which rule touched the packet, for the capture's comment; empty where none did. queue_all: from now on user space
    must see every packet of the flow; with spare_answers, all but the DNS answers of its server. Without queue_all,
    spare_answers says that this is still so.
    """

    packet_id: int
    verdict: Verdict
    data: bytes | None = None
    offload: bool = False
    reason: str = ""
    bulk: bool = False
    queue_all: bool = False
    spare_answers: bool = False


@record
class Hold:
    """The packet waits; a later SetVerdict ends its wait."""

    packet_id: int
    reason: str = ""


@record
class Inject:
    """Send this forged IP packet now."""

    data: bytes
    reason: str


@record
class SetTimer:
    """Call `TimerFired` once, at that time (seconds since the epoch). Replaces any earlier wish; None: no wish."""

    at: float | None


@record
class Watch:
    """Packets between these endpoints must be queued for `seconds`, offloaded or not: a residual block began.

    Ports are None where the key leaves them out, and the client is empty where it is any. Refreshing is a new Watch.
    """

    client: bytes
    server: bytes
    client_port: int | None
    server_port: int | None
    proto: int
    seconds: float


@record
class SendProbes:
    """Connect to this server as the action says, and tell of each reaction by a `ProbeFinished` with that request_id.

    payload: what the client sent first, as far as it is known. Who cannot send probes leaves it at the report.
    """

    request_id: int
    rule: str
    action: Probe
    server: bytes
    port: int
    payload: bytes


@record
class Report:
    """Something for the event log."""

    record: Record


Command = SetVerdict | Hold | Inject | SetTimer | Watch | SendProbes | Report
