"""A client, a router and a server, joined by veth pairs, in namespaces that die with the test."""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
import socket
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gfwemu.kernel.sandbox import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    enter_new_user_namespace,
    in_child,
    mount_proc,
    unshare,
)

CLIENT4, SERVER4 = "192.0.2.10", "198.51.100.10"
CLIENT6, SERVER6 = "2001:db8:1::10", "2001:db8:2::10"
_ROUTERS = {"client": ("192.0.2.1", "2001:db8:1::1"), "server": ("198.51.100.1", "2001:db8:2::1")}
INSIDE, OUTSIDE = "inside0", "outside0"
SECONDS = 60
_ENDS = {"client": (INSIDE, CLIENT4, CLIENT6), "server": (OUTSIDE, SERVER4, SERVER6)}

_libc = ctypes.CDLL(None, use_errno=True)


class SmallNet:
    """client (eth0) - inside0 router outside0 - eth0 server; IPv4 and IPv6. The test stands on the router."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        for node in ("client", "server", "router"):
            unshare(CLONE_NEWNET)
            self._fds[node] = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            _run("ip link set lo up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        for node in _ENDS:
            self.plug(node)

    def plug(self, node: str) -> None:
        """Lays the cable between the router and that node."""
        port, own4, own6 = _ENDS[node]
        self._link(node, port)
        router4, router6 = _ROUTERS[node]
        _run(f"ip addr add {router4}/24 dev {port}; ip addr add {router6}/64 dev {port} nodad; ip link set {port} up")
        with self.on(node):
            _run(
                f"ip addr add {own4}/24 dev eth0; ip addr add {own6}/64 dev eth0 nodad; ip link set eth0 up;"
                f"ip route add default via {router4}; ip -6 route add default via {router6};"
                "ethtool -K eth0 tx off tso off gso off gro off >/dev/null"
            )
        self._introduce(node, port)

    def _link(self, node: str, port: str) -> None:
        """The kernel takes a namespace by the process that is in it, so a child stands there for a moment."""
        ready, done = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            _libc.setns(self._fds[node], CLONE_NEWNET)
            os.write(ready[1], b"x")
            os.close(done[1])
            os.read(done[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        _run(f"ip link add {port} type veth peer name eth0 netns {pid}; ethtool -K {port} tx off gro off >/dev/null")
        for fd in (*done, *ready):
            os.close(fd)
        os.waitpid(pid, 0)

    def _introduce(self, node: str, port: str) -> None:
        """Permanent neighbours: no test waits for ARP, no capture shows it."""
        here = _run(f"ip -o link show {port}").split("link/ether ")[1].split()[0]
        with self.on(node):
            there = _run("ip -o link show eth0").split("link/ether ")[1].split()[0]
            for address in _ROUTERS[node]:
                _run(f"ip neigh replace {address} lladdr {here} dev eth0 nud permanent")
        for address in (CLIENT4, CLIENT6) if node == "client" else (SERVER4, SERVER6):
            _run(f"ip neigh replace {address} lladdr {there} dev {port} nud permanent")

    @contextmanager
    def on(self, node: str) -> Iterator[None]:
        """Sockets and processes made inside belong to that node."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(self._fds[node])
            yield
        finally:
            _setns(before)
            os.close(before)

    def udp(self, node: str, family: int = socket.AF_INET, port: int = 0) -> socket.socket:
        with self.on(node):
            sock = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        sock.settimeout(3)
        return sock

    def listen(self, family: int = socket.AF_INET, port: int = 80) -> socket.socket:
        with self.on("server"):
            sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        sock.listen(64)
        sock.settimeout(3)
        return sock

    def tcp(self, family: int = socket.AF_INET, timeout: float = 3) -> socket.socket:
        with self.on("client"):
            sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        return sock

    def sniffer(self, node: str) -> socket.socket:
        """Sees IP packets that arrive at the node, as `(bytes, ...)` without the Ethernet header."""
        with self.on(node):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            sock.bind(("eth0", 3))
        sock.settimeout(3)
        return sock


def _setns(fd: int) -> None:
    assert _libc.setns(fd, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


def _run(script: str) -> str:
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(script: str) -> str:
    """Runs a shell script on the node where the test stands; returns its output."""
    return _run(script)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


def in_namespaces(test: Callable[..., None]) -> Callable[[], None]:
    """The test runs beside a SmallNet, which it may take, in namespaces of its own; what it leaves dies then."""

    @pytest.mark.kernel
    def wrapper() -> None:
        with warnings.catch_warnings():
            # Python 3.12 warns of fork beside threads; the child has one thread and ends by itself.
            warnings.simplefilter("ignore", DeprecationWarning)
            answer = in_child(lambda: _separate(test), SECONDS)
        if answer:
            pytest.fail(answer, pytrace=False)

    functools.update_wrapper(wrapper, test)
    del wrapper.__wrapped__  # type: ignore[attr-defined]
    return wrapper


def _separate(test: Callable[..., None]) -> str:
    enter_new_user_namespace()
    unshare(CLONE_NEWNS | CLONE_NEWPID)
    return str(in_child(lambda: _attempt(test), SECONDS))


def _attempt(test: Callable[..., None]) -> str:
    try:
        mount_proc()
        net = SmallNet()
        test(*[net] if inspect.signature(test).parameters else [])
    except BaseException:
        return traceback.format_exc()
    return ""
