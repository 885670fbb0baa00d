"""OpenSSH servers, and the configuration for their clients.

Each connection gets an `sshd -i` in a user namespace of its own, where it is the ordinary user `lab`: an sshd that is
root insists on changing to other users, which do not exist in the lab's user namespace. The listening socket stays
outside, since only there a low port can be bound.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gfwemu.netlab.internet.authority import write_secret
from gfwemu.netlab.internet.plan import Ssh
from gfwemu.netlab.internet.process import bind
from gfwemu.netlab.internet.services import Status, Workshop, die_with_parent_hard, missing, which

USER = "lab"
USER_ID = 1000


def _key_pair(private: Path) -> str:
    """Write a private key in OpenSSH's format; return the public one as one line."""
    key = Ed25519PrivateKey.generate()
    write_secret(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _as_user(place: Path, command: list[str]) -> list[str]:
    """Run a command as `lab`, with a passwd and a group file that know this user only."""
    script = (
        f"mount --bind {shlex.quote(str(place / 'passwd'))} /etc/passwd && "
        f"mount --bind {shlex.quote(str(place / 'group'))} /etc/group && "
        f"exec unshare -U --map-user={USER_ID} --map-group={USER_ID} {shlex.join(command)}"
    )
    return ["unshare", "-m", "sh", "-c", script]


async def start_ssh(service: Ssh, workshop: Workshop) -> Status:
    """Start one server; write `NAME.config` for `ssh -F`, with the client's key and the known host beside it."""
    if problem := missing("sshd", "unshare"):
        return Status("failed", problem)
    place = workshop.directory / service.name
    home = place / "home"
    home.mkdir(parents=True, exist_ok=True)
    host_key = _key_pair(place / "host_key")
    identity = workshop.directory / f"{service.name}.key"
    (place / "authorized_keys").write_text(_key_pair(identity) + "\n")
    (place / "passwd").write_text(f"{USER}:x:{USER_ID}:{USER_ID}::{home}:/bin/sh\n")
    (place / "group").write_text(f"{USER}:x:{USER_ID}:\n")
    configuration = place / "sshd_config"
    configuration.write_text(
        f"HostKey {place / 'host_key'}\nAuthorizedKeysFile {place / 'authorized_keys'}\nPidFile none\n"
        "UsePAM no\nUseDNS no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PrintMotd no\nPrintLastLog no\nSubsystem sftp internal-sftp\n"
    )
    known = workshop.directory / f"{service.name}.known_hosts"
    host = f"[{service.address}]:{service.port}" if service.port != 22 else service.address
    known.write_text(f"{host} {host_key}\n")
    client = workshop.directory / f"{service.name}.config"
    client.write_text(
        f"Host {service.name}\n  HostName {service.address}\n  Port {service.port}\n  User {USER}\n"
        f"  IdentityFile {identity}\n  IdentitiesOnly yes\n  UserKnownHostsFile {known}\n"
        "  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n"
    )
    sshd = which("sshd") or "sshd"
    if problem := await workshop.run(_as_user(place, [sshd, "-t", "-f", str(configuration)])):
        return Status("failed", f"sshd cannot run: {problem}")
    argv = _as_user(place, [sshd, "-i", "-f", str(configuration), "-E", str(place / "server.log")])
    listener = bind(service.address, service.port, socket.SOCK_STREAM)
    accepting = asyncio.ensure_future(_accept(listener, argv))
    workshop.at_end(lambda: _stop(accepting))
    return Status("up", f"user {USER}", (str(client), str(identity), str(known)))


def _stop(accepting: asyncio.Task[None]) -> None:
    accepting.cancel()


async def _accept(listener: socket.socket, argv: list[str]) -> None:
    loop = asyncio.get_running_loop()
    sessions: set[asyncio.Task[int]] = set()
    while True:
        connection, _ = await loop.sock_accept(listener)
        with connection:
            connection.setblocking(True)
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=connection.fileno(),
                stdout=connection.fileno(),
                stderr=asyncio.subprocess.DEVNULL,
                preexec_fn=die_with_parent_hard,
                env={"PATH": os.defpath},
            )
        session = asyncio.ensure_future(process.wait())
        sessions.add(session)
        session.add_done_callback(sessions.discard)
