"""A lab from the inside: who can reach whom, as whom, over how many hops, and what stays private."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_kit import PYTHON, inhabitants, namespaces_of, until

from gfwemu.errors import UsageError
from gfwemu.netlab.errors import LabError
from gfwemu.netlab.lab import Lab
from gfwemu.netlab.topology import load_topology

pytestmark = pytest.mark.kernel

SERVER4, SERVER6 = "203.0.113.1", "2001:db8:f::1"
SERVERS = pytest.mark.parametrize("server", [SERVER4, SERVER6])


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    with Lab(load_topology("bare")) as lab:
        yield lab


def hops_lab() -> Lab:
    topology = load_topology("bare")
    path = topology.path.model_copy(
        update={
            "inside": topology.path.inside.model_copy(update={"hops": 3}),
            "outside": topology.path.outside.model_copy(update={"hops": 5}),
        }
    )
    return Lab(topology.model_copy(update={"path": path}))


def ping(lab: Lab, server: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    return lab.exec("client", ["ping", "-n", "-c", "1", "-W", "2", *options, server], timeout=30)


@SERVERS
def test_the_client_reaches_the_internet(bare: Lab, server: str) -> None:
    assert ping(bare, server).returncode == 0


@pytest.mark.parametrize("client", ["192.0.2.10", "2001:db8:1::10"])
def test_the_internet_reaches_the_client(bare: Lab, client: str) -> None:
    done = bare.exec("internet", ["ping", "-n", "-c", "1", "-W", "2", client], timeout=30)
    assert done.returncode == 0


def test_every_router_answers(bare: Lab) -> None:
    for node, entry in bare.attached.state["nodes"].items():
        for address in entry["addresses"]:
            assert ping(bare, address).returncode == 0, f"{node} {address}"


def test_an_address_that_exists_nowhere_is_silent(bare: Lab) -> None:
    done = bare.exec("client", ["ping", "-n", "-c", "1", "-W", "1", "203.0.113.99"], timeout=30)
    assert done.returncode == 1
    assert b"1 packets transmitted, 0 received, 100% packet loss" in done.stdout
    assert b"From " not in done.stdout


def test_a_port_where_nobody_listens_refuses(bare: Lab) -> None:
    script = f"import socket; socket.create_connection(('{SERVER4}', 81), 5)"
    done = bare.exec("client", [*PYTHON, "-c", script], timeout=30)
    assert b"ConnectionRefusedError" in done.stderr


@SERVERS
def test_ttl_reaches_as_far_as_the_hops_say(server: str) -> None:
    """Three hops to the censor (itself one more router), five from it to the server."""
    answers = {}
    with hops_lab() as lab:
        for ttl in range(1, 11):
            said = ping(lab, server, "-t", str(ttl)).stdout.decode()
            found = re.search(r"(?:From|bytes from) ([0-9a-f.:]+?):? ", said)
            assert found is not None, said
            answers[ttl] = found[1]
        inside = ping(lab, server).stdout.decode()
    access, censor, transit = ("192.0.2.1", "192.0.2.130", "192.0.2.134")
    if ":" in server:
        access, censor, transit = ("2001:db8:1::1", "2001:db8:2::2", "2001:db8:3::2")
    expected = [access] * 3 + [censor] + [transit] * 5 + [server]
    assert [answers[ttl] for ttl in range(1, 11)] == expected
    assert f"ttl={64 - 9}" in inside


def test_packets_are_no_larger_than_the_wire(bare: Lab) -> None:
    """Offloads are off: nothing above the MTU arrives, and checksums are filled in."""
    catch = (
        "import socket, struct\n"
        "s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))\n"
        "s.bind(('inside', 0)); s.settimeout(25); print('ready', flush=True)\n"
        "largest = 0; bad = 0; n = 0\n"
        "def total(data):\n"
        "    data += b'\\0' * (len(data) % 2); t = sum(struct.unpack(f'>{len(data)//2}H', data))\n"
        "    t = (t & 0xffff) + (t >> 16); return (t & 0xffff) + (t >> 16)\n"
        "while n < 100:\n"
        "    p = s.recv(70000)\n"
        "    if p[9] != 6: continue\n"
        "    n += 1; largest = max(largest, len(p)); l4 = p[20:]\n"
        "    bad += total(p[12:20] + struct.pack('>HH', 6, len(l4)) + l4) != 0xffff\n"
        "print(largest, bad)\n"
    )
    serve = (
        "import socket\n"
        f"s = socket.create_server(('{SERVER4}', 8000)); print('ready', flush=True); c, _ = s.accept()\n"
        "while c.recv(65536): pass\n"
    )
    send = f"import socket; s = socket.create_connection(('{SERVER4}', 8000), 25); s.sendall(bytes(300_000)); s.close()"
    watcher = bare.popen("censor", [*PYTHON, "-c", catch], as_root=True, stdout=subprocess.PIPE)
    server = bare.popen("internet", [*PYTHON, "-c", serve], stdout=subprocess.PIPE)
    assert watcher.stdout
    assert server.stdout
    with watcher, server:
        assert watcher.stdout.readline() == server.stdout.readline() == b"ready\n"
        assert bare.exec("client", [*PYTHON, "-c", send], timeout=30).returncode == 0
        assert watcher.stdout.read() == b"1500 0\n"


def test_programs_run_as_the_caller_in_his_directory(
    bare: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = "import os; print(os.getuid(), os.getgid(), os.getcwd()); open('made', 'w').close()"
    done = bare.exec("client", [*PYTHON, "-c", script], timeout=30)
    assert done.stdout.decode().split() == [str(os.getuid()), str(os.getgid()), str(tmp_path)]
    assert (tmp_path / "made").stat().st_uid == os.getuid()


def test_as_root_is_root_of_the_lab(bare: Lab) -> None:
    done = bare.exec("client", ["ip", "link", "add", "spare", "type", "veth"], timeout=10, as_root=True)
    assert done.returncode == 0, done.stderr


def test_results_are_a_completed_process(bare: Lab) -> None:
    done = bare.exec("client", ["sh", "-c", "cat; echo err >&2; exit 3"], timeout=10, input=b"in\0put")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"in\0put", b"err\n")
    assert bare.exec("client", ["sh", "-c", "kill -TERM $$"], timeout=30).returncode == -15
    assert bare.exec("client", ["no-such-program"], timeout=30).returncode == 127
    assert bare.exec("client", ["/etc"], timeout=30).returncode == 126


def test_the_environment_gets_through_and_proxies_do_not(bare: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://192.0.2.200:3128")
    monkeypatch.setenv("GFWEMU_PROBE_KEPT", "kept")
    done = bare.exec("client", ["env"], timeout=10, env={"GFWEMU_PROBE_ADDED": "added"})
    lines = done.stdout.decode().splitlines()
    assert {"GFWEMU_PROBE_KEPT=kept", "GFWEMU_PROBE_ADDED=added"} <= set(lines)
    assert not [line for line in lines if "proxy" in line.lower()]


def test_a_timeout_kills_the_whole_group(bare: Lab) -> None:
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        bare.exec("client", ["sh", "-c", "echo said; sleep 4321 & sleep 4321"], timeout=1)
    assert time.monotonic() - began < 20
    assert caught.value.stdout == b"said\n"
    until(lambda: not find_sleepers(bare), "the sleepers to be gone")


def find_sleepers(lab: Lab) -> bool:
    done = lab.exec("client", ["sh", "-c", "cat /proc/[0-9]*/cmdline"], timeout=10, as_root=True)
    return b"sleep\x004321" in done.stdout


def test_a_killed_helper_takes_its_program_along(bare: Lab) -> None:
    with bare.popen("client", ["sleep", "4321"], stdin=subprocess.DEVNULL) as process:
        until(lambda: find_sleepers(bare), "the sleeper")
        process.kill()
    until(lambda: not find_sleepers(bare), "the sleeper to be gone")


def test_programs_see_the_labs_processes_only(bare: Lab) -> None:
    done = bare.exec("client", ["sh", "-c", "cat /proc/1/comm; echo /proc/[0-9]*"], timeout=30)
    name, numbers = done.stdout.decode().splitlines()
    assert name == "lab:init"
    assert len(numbers.split()) < 20


def test_several_programs_at_once_from_threads(bare: Lab) -> None:
    results: list[bytes] = []

    def work(number: int) -> None:
        results.append(bare.exec("client", ["echo", str(number)], timeout=30).stdout)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [b"0\n", b"1\n", b"2\n", b"3\n"]


def test_an_unknown_node_is_refused(bare: Lab) -> None:
    with pytest.raises(UsageError, match="no node 'clinet'; did you mean 'client'"):
        bare.exec("clinet", ["true"], timeout=30)


def test_names_files_are_private(bare: Lab) -> None:
    machine = [Path("/etc/resolv.conf").read_bytes(), Path("/etc/hosts").read_bytes()]
    done = bare.exec("client", ["sh", "-c", "cat /etc/resolv.conf; grep ^hosts: /etc/nsswitch.conf"], timeout=30)
    assert done.stdout == b"hosts: files dns\n"
    assert [Path("/etc/resolv.conf").read_bytes(), Path("/etc/hosts").read_bytes()] == machine


def test_the_machine_sees_no_link_of_the_lab(bare: Lab) -> None:
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    done = bare.exec("censor", ["ip", "-o", "link"], timeout=30)
    inside = {line.split(": ")[1].split("@")[0] for line in done.stdout.decode().splitlines()}
    assert inside == {"lo", "inside", "outside"}
    assert not links & {"inside", "outside"}


def test_close_leaves_nothing_and_may_come_twice() -> None:
    lab = Lab(load_topology("bare"))
    lab.start()
    directory = lab.directory
    with namespaces_of(lab.attached.state) as namespaces:
        assert inhabitants(namespaces)
        lab.close()
        assert inhabitants(namespaces) == []
    assert not directory.exists()
    lab.close()
    assert lab.events() == []
    with pytest.raises(LabError, match="The lab is not up"):
        lab.exec("client", ["true"], timeout=30)


def test_two_labs_side_by_side_do_not_meet(bare: Lab) -> None:
    with Lab(load_topology("bare")) as other:
        assert other.directory != bare.directory
        with namespaces_of(other.attached.state) as theirs, namespaces_of(bare.attached.state) as ours:
            assert not theirs & ours
        serve = f"import socket; s = socket.create_server(('{SERVER4}', 8001)); print('up', flush=True); s.accept()"
        with other.popen("internet", [*PYTHON, "-c", serve], stdout=subprocess.PIPE) as server:
            assert server.stdout
            assert server.stdout.readline() == b"up\n"
            connect = [*PYTHON, "-c", f"import socket; socket.create_connection(('{SERVER4}', 8001), 25)"]
            assert bare.exec("client", connect, timeout=30).returncode == 1
            assert other.exec("client", connect, timeout=30).returncode == 0
            server.kill()


def test_up_is_quick() -> None:
    """Two seconds is the aim for all of a lab; this is its network alone, on a machine that tests keep busy."""
    began = time.monotonic()
    with Lab(load_topology("bare")):
        assert time.monotonic() - began < 2.0


def test_python_is_the_same_inside(bare: Lab) -> None:
    done = bare.exec("client", [sys.executable, "-c", "import gfwemu; print(gfwemu.__version__)"], timeout=30)
    assert done.returncode == 0, done.stderr
