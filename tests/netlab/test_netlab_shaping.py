"""Links as programs feel them: delay, rate, loss."""

from __future__ import annotations

import re
import subprocess

import pytest
from lab_kit import PYTHON

from gfwemu.netlab.lab import Lab
from gfwemu.netlab.links import LINKS, Link
from gfwemu.netlab.topology import load_topology

pytestmark = pytest.mark.kernel

SERVER4, SERVER6 = "203.0.113.1", "2001:db8:f::1"
PACKET = 1200
HEADERS = 28  # IPv4 and UDP

# Sends datagrams at twice the link's rate for a while.
SEND = """
import socket, sys, time
host, port, rate, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
began = time.monotonic()
sent = 0
while (now := time.monotonic() - began) < seconds:
    while sent * PACKET < 2 * rate * now:
        s.sendto(bytes(PACKET - HEADERS), (host, port)); sent += 1
    time.sleep(0.002)
""".replace("PACKET", str(PACKET)).replace("HEADERS", str(HEADERS))

# Says how many bytes a second came, measured from the first datagram to the last.
RECEIVE = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2]))); s.settimeout(float(sys.argv[3]))
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
print('ready', flush=True)
times = []
try:
    while True:
        s.recv(2048); times.append(time.monotonic())
except TimeoutError: pass
print((len(times) - 1) * PACKET / (times[-1] - times[0]))
""".replace("PACKET", str(PACKET))


def round_trip(lab: Lab, server: str) -> float:
    """The least of some, in ms: the machine may be busy."""
    done = lab.exec("client", ["ping", "-n", "-c", "5", "-i", "0.1", "-W", "3", server], timeout=20)
    found = re.search(rb"min/avg/max/mdev = ([0-9.]+)/", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def rate(lab: Lab, sender: str, receiver: str, address: str, expected: float, seconds: float) -> float:
    patience = str(1.5 + 10 * PACKET / expected)
    command = [*PYTHON, "-c", RECEIVE, address, "5001", patience]
    with lab.popen(receiver, command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        lab.exec(sender, [*PYTHON, "-c", SEND, address, "5001", str(expected), str(seconds)], timeout=seconds + 20)
        return float(process.stdout.read())


@pytest.mark.parametrize("name", ["3g", "fois"])
def test_a_link_has_its_delay_and_its_rates(name: str) -> None:
    link = LINKS[name]
    with Lab(load_topology("bare"), link=name) as lab:
        # The ping's own transmission time at the slow end counts: 84 bytes each way.
        sent = 84 * 8 * (1 / link.up_kbit + 1 / link.down_kbit)
        for server in (SERVER4, "192.0.2.1"):
            assert link.rtt_ms + sent <= round_trip(lab, server) <= link.rtt_ms + sent + 8
        sent = 104 * 8 * (1 / link.up_kbit + 1 / link.down_kbit)
        assert link.rtt_ms + sent <= round_trip(lab, SERVER6) <= link.rtt_ms + sent + 8
        down, up = link.down_kbit * 125, link.up_kbit * 125
        assert rate(lab, "internet", "client", "192.0.2.10", down, 2.0) == pytest.approx(down, rel=0.05)
        assert rate(lab, "client", "internet", SERVER4, up, 2.0) == pytest.approx(up, rel=0.05)


def test_a_stretch_of_the_path_has_its_delay_beyond_the_censor() -> None:
    topology = load_topology("bare")
    outside = topology.path.outside.model_copy(update={"rtt": 0.04})
    topology = topology.model_copy(update={"path": topology.path.model_copy(update={"outside": outside})})
    with Lab(topology) as lab:
        assert 40 <= round_trip(lab, SERVER4) <= 48
        assert 40 <= round_trip(lab, SERVER6) <= 48
        assert round_trip(lab, "192.0.2.130") <= 8, "the censor is nearer"


def test_packets_keep_their_order_and_some_get_lost() -> None:
    """Loss is drawn from the seed, the same for each run; 400 packets at 10 % lose 40 or so."""
    send = (
        "import socket, time\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for n in range(400):\n"
        f"    s.sendto(n.to_bytes(4), ('{SERVER4}', 5002))\n"
        "    if n % 20 == 0: time.sleep(0.005)\n"
    )
    receive = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"s.bind(('{SERVER4}', 5002)); s.settimeout(2); print('ready', flush=True)\n"
        "try:\n"
        "    while True: print(int.from_bytes(s.recv(10)))\n"
        "except TimeoutError: pass\n"
    )

    def arrivals() -> list[int]:
        with (
            Lab(load_topology("bare"), link=Link(50_000, 50_000, 20, 0.1), seed=3) as lab,
            lab.popen("internet", [*PYTHON, "-c", receive], stdout=subprocess.PIPE) as process,
        ):
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            assert lab.exec("client", [*PYTHON, "-c", send], timeout=20).returncode == 0
            return [int(line) for line in process.stdout.read().split()]

    first = arrivals()
    assert first == sorted(first)
    assert 330 <= len(first) <= 385
    assert arrivals() == first
