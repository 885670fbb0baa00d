"""A mini-internet in namespaces of its own, and the means to run clients beside it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gfwemu.netlab.internet.plan import Echo, OpenVpn, Plan, Resolver, Sink, Site, Ssh, WireGuard

ALLOWED, INNOCENT, BLOCKPAGE, TLS_CLOSE, TLS_RESET, PUBLIC, OTHER = (f"192.0.2.{n}" for n in (1, 2, 3, 4, 5, 9, 10))
ALLOWED_V6, PUBLIC_V6 = "2001:db8::1", "2001:db8::9"
RESOLVER, RESOLVER_V6, FORWARDER, SERVERS = "192.0.2.53", "2001:db8::53", "192.0.2.54", "192.0.2.100"
TIMEOUT = 30

SITES = (
    Site(names=("www.allowed.example",), v4=(ALLOWED,), v6=(ALLOWED_V6,), https_records=("1 . alpn=h3,h2",)),
    Site(names=("xn--bcher-kva.example",), v4=(ALLOWED,)),
    Site(names=("*.wild.example",), v4=(ALLOWED,)),
    Site(names=("expired.example",), v4=(INNOCENT,), certificate="expired"),
    Site(names=("untrusted.example",), v4=(INNOCENT,), certificate="untrusted"),
    Site(names=("wrong-name.test",), v4=(INNOCENT,), certificate="wrong-name"),
    Site(names=("captcha.example",), v4=(INNOCENT,), behaviour="captcha"),
    Site(names=("closes.example",), v4=(INNOCENT,), behaviour="close"),
    Site(names=("resets.example",), v4=(INNOCENT,), behaviour="reset"),
    Site(names=("stalls.example",), v4=(INNOCENT,), behaviour="stall"),
    Site(names=("slow.example",), v4=(INNOCENT,), behaviour="slow"),
    Site(names=("gone.example",), v4=(INNOCENT,), behaviour="status", status=410),
    Site(names=("moved.example",), v4=(INNOCENT,), behaviour="redirect", location="http://www.allowed.example/info"),
    Site(names=("broken.example",), v4=(INNOCENT,), behaviour="redirect", location="http://"),
    Site(names=("blockpage.example",), v4=(BLOCKPAGE,), behaviour="blockpage"),
    Site(names=("tls-close.example",), v4=(TLS_CLOSE,), listen=("https",), behaviour="tls-close"),
    Site(names=("tls-reset.example",), v4=(TLS_RESET,), listen=("https",), behaviour="tls-reset"),
    Site(names=("nobody-listens.example",), v4=(OTHER,), listen=()),
    Site(names=("no-address.example",)),
    Site(names=("high-ports.example",), v4=(OTHER,), http_port=8080, https_port=8443),
)
RESOLVERS = (
    Resolver(names=("dns.example",), v4=(RESOLVER,), v6=(RESOLVER_V6,)),
    Resolver(names=("plain-dns.example",), v4=(OTHER,), listen=("udp",)),
)
SERVICES = (
    OpenVpn(name="openvpn-udp", address=SERVERS),
    OpenVpn(name="openvpn-tls-auth", address=SERVERS, port=1195, variant="tls-auth"),
    OpenVpn(name="openvpn-tls-crypt", address=SERVERS, port=1196, variant="tls-crypt"),
    OpenVpn(name="openvpn-tcp", address=SERVERS, port=1197, transport="tcp", variant="tls-crypt-v2"),
    WireGuard(name="wireguard", address=SERVERS),
    Ssh(name="ssh", address=SERVERS),
    Echo(name="echo", address=SERVERS),
    Echo(name="echo-udp", address=SERVERS, transport="udp"),
    Sink(name="sink", address=SERVERS),
)


def plan_for(directory: Path, **changes: Any) -> Plan:
    plan = Plan(
        directory=str(directory / "lab"),
        sites=SITES,
        resolvers=RESOLVERS,
        absent=("absent.example",),
        catch_all=Site(names=(), v4=(PUBLIC,), v6=(PUBLIC_V6,)),
    )
    return replace(plan, **changes)


@dataclass(slots=True)
class Namespace:
    """Namespaces of the test's own. What runs in them is a direct child of the test."""

    enter: list[str]
    directory: Path

    def popen(self, *argv: str, **options: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([*self.enter, *argv], stdin=subprocess.DEVNULL, **options)

    def run(self, *argv: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        options = {"timeout": TIMEOUT, "capture_output": True, "text": True, **options}
        if "input" not in options:
            options["stdin"] = subprocess.DEVNULL
        return subprocess.run([*self.enter, *argv], check=False, **options)

    @property
    def lab(self) -> Path:
        return self.directory / "lab"

    @property
    def authority(self) -> Path:
        return self.lab / "authority.pem"

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "status.json").read_text())
        return found

    def curl(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self.run(
            "curl", "-sS", "--max-time", "10", "--noproxy", "*", "--cacert", str(self.authority), *arguments
        )

    def python(self, *argv: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        return self.run(sys.executable, *argv, **options)

    def probe(self, *arguments: str) -> dict[str, Any]:
        done = self.python("-m", "gfwemu.netlab.probe", "--authority", str(self.authority), *arguments)
        assert done.stderr == ""
        found: dict[str, Any] = json.loads(done.stdout)
        return {**found, "exit": done.returncode}


def addresses_of(plan: Plan, missing: tuple[str, ...] = ()) -> str:
    wanted = [address for address in plan.addresses if address not in missing]
    return "".join(f"ip address add {address}/{128 if ':' in address else 32} dev lo\n" for address in wanted)


@contextmanager
def namespace(directory: Path, setup: str, *, user: bool) -> Iterator[Namespace]:
    """New namespaces in which `setup` (shell) has run; `user`: in a user namespace, as an ordinary user would."""
    directory.mkdir(exist_ok=True)
    script = f"set -e\nmount --make-rprivate /\nip link set lo up\n{setup}\necho ready\nexec sleep infinity\n"
    flags = "-Urnm" if user else "-nm"
    holder = subprocess.Popen(["unshare", flags, "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        kinds = ["-U", "--preserve-credentials"] if user else []
        yield Namespace(["nsenter", "-t", str(holder.pid), *kinds, "-n", "-m", "--"], directory)
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


@contextmanager
def internet(space: Namespace, plan: Plan) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the mini-internet; it must say that it is ready, and must end cleanly."""
    path = space.directory / "plan.json"
    path.write_text(plan.to_json())
    reading, writing = os.pipe()
    errors = (space.directory / "stderr").open("wb")
    process = space.popen(
        *(sys.executable, "-m", "gfwemu.netlab.internet", "--plan", str(path), "--ready-fd", str(writing)),
        pass_fds=(writing,),
        stderr=errors,
    )
    os.close(writing)
    errors.close()
    with os.fdopen(reading, "rb") as ready:
        said = ready.read(1)
    assert said == b"1", (space.directory / "stderr").read_text()
    try:
        yield process
    finally:
        process.terminate()
        process.wait(TIMEOUT)


@pytest.fixture(scope="session")
def make_namespace() -> Callable[..., Any]:
    return namespace


@pytest.fixture(scope="session")
def make_internet() -> Callable[..., Any]:
    return internet


@pytest.fixture(scope="session")
def make_addresses() -> Callable[..., str]:
    return addresses_of


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    return plan_for


@pytest.fixture(scope="session")
def run_internet(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`run_internet(setup="", user=..., **changes of the plan)` as a context manager that gives the namespace."""

    @contextmanager
    def run(*, setup: str = "", user: bool = os.geteuid() != 0, **changes: Any) -> Iterator[Namespace]:
        directory = tmp_path_factory.mktemp("internet")
        missing = changes.pop("without_addresses", ())
        plan = plan_for(directory, **changes)
        resolv = directory / "resolv.conf"
        resolv.write_text(f"nameserver {RESOLVER}\n")
        private = f"{addresses_of(plan, missing)}ip address add {FORWARDER}/32 dev lo\n"
        with (
            namespace(directory, f"{private}mount --bind {resolv} /etc/resolv.conf\n{setup}", user=user) as space,
            internet(space, plan),
        ):
            yield space

    return run


@pytest.fixture(scope="module")
def sites(run_internet: Callable[..., Any]) -> Iterator[Namespace]:
    """The mini-internet of this file without services."""
    with run_internet() as space:
        yield space


@pytest.fixture(scope="module", params=[False, True], ids=["tun", "no-tun"])
def servers(run_internet: Callable[..., Any], request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """With services, once as the machine is and once in a user namespace where no TUN device can be opened."""
    no_tun = bool(request.param)
    setup = "mount --bind /dev/null /dev/net/tun" if no_tun else ""
    with run_internet(setup=setup, user=no_tun or os.geteuid() != 0, services=SERVICES) as space:
        yield space


@pytest.fixture(scope="module")
def node(servers: Namespace) -> Iterator[Namespace]:
    """A network namespace beside the one of `servers`, one link away, with its own routes."""
    holder = servers.popen("unshare", "-n", "sh", "-c", "echo ready; exec sleep infinity", stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        user = ["-U", "--preserve-credentials"] if "-U" in servers.enter else []
        space = Namespace(["nsenter", "-t", str(holder.pid), *user, "-n", "-m", "--"], servers.directory)
        outside = f"""set -e
            ip link add toclient type veth peer name toserver netns {holder.pid}
            ip address add 198.51.100.1/30 dev toclient
            ip link set toclient up"""
        inside = """set -e
            ip link set lo up
            ip address add 198.51.100.2/30 dev toserver
            ip link set toserver up
            ip route add default via 198.51.100.1"""
        for place, script in ((servers, outside), (space, inside)):
            done = place.run("sh", "-c", script)
            assert done.returncode == 0, done.stderr
        yield space
    finally:
        holder.kill()
        holder.communicate()
