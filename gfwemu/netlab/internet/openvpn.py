"""OpenVPN servers, and the configuration for their clients."""

from __future__ import annotations

from pathlib import Path

from gfwemu.netlab.internet.authority import write_secret
from gfwemu.netlab.internet.plan import OpenVpn
from gfwemu.netlab.internet.services import Status, Workshop, missing

START_PATIENCE = 10.0
READY = "Initialization Sequence Completed"
LISTENING_TCP = "Listening for incoming TCP connection"


def _block(tag: str, content: bytes) -> str:
    return f"<{tag}>\n{content.decode().strip()}\n</{tag}>\n"


async def _variant_blocks(service: OpenVpn, workshop: Workshop, place: Path) -> tuple[str, str]:
    """The lines that wrap the control channel, for the server and for the client."""
    if service.variant == "plain":
        return "", ""
    server, client = place / "server.key", place / "client.key"
    if service.variant == "tls-crypt-v2":
        await workshop.run(["openvpn", "--genkey", "tls-crypt-v2-server", str(server)])
        await workshop.run(["openvpn", "--tls-crypt-v2", str(server), "--genkey", "tls-crypt-v2-client", str(client)])
        return _block("tls-crypt-v2", server.read_bytes()), _block("tls-crypt-v2", client.read_bytes())
    await workshop.run(["openvpn", "--genkey", "secret", str(server)])
    block = _block(service.variant, server.read_bytes())
    if service.variant == "tls-auth":
        return "key-direction 0\n" + block, "key-direction 1\n" + block
    return block, block


def _identity(workshop: Workshop, name: str) -> str:
    leaf = workshop.authority.leaf("trusted", name)
    return (
        _block("ca", workshop.authority.lab.cert_pem.bytes())
        + _block("cert", leaf.cert_chain_pems[0].bytes())
        + _block("key", leaf.private_key_pem.bytes())
    )


async def start_openvpn(service: OpenVpn, workshop: Workshop) -> Status:
    """Start one server and write `NAME.ovpn`.

    Without TUN the server runs point to point on the null device: clients complete the handshake, one at a time, and
    nothing can be sent.
    """
    if problem := missing("openvpn"):
        return Status("failed", problem)
    tunnel = workshop.tunnel(service.tunnel)
    if tunnel is None:
        return Status("failed", "no network is left for its tunnel: give the plan a larger pool")
    null = bool(workshop.tun_problem)
    place = workshop.directory / service.name
    place.mkdir(exist_ok=True)
    for_server, for_client = await _variant_blocks(service, workshop, place)
    family = "6" if ":" in service.address else ""
    tcp = service.transport == "tcp"
    mode = (
        "dev null\ntls-server\n"
        if null
        else (f"dev tun\ntopology subnet\nserver {tunnel.network_address} {tunnel.netmask}\nduplicate-cn\n")
    )
    server = (
        f"{mode}proto {'tcp' + family + '-server' if tcp else 'udp' + family}\n"
        f"local {service.address}\nport {service.port}\n"
        "dh none\nkeepalive 10 60\nconnect-retry 1 1\nverb 3\n"
    )
    client = (
        ("dev null\ntls-client\n" if null else "client\ndev tun\n")
        + f"proto {'tcp' + family + '-client' if tcp else 'udp' + family}\n"
        f"remote {service.address} {service.port}\n"
        "nobind\nremote-cert-tls server\nconnect-retry 1 5\nverb 3\n"
    )
    configuration = place / "server.conf"
    write_secret(configuration, (server + _identity(workshop, "openvpn-server.example") + for_server).encode())
    for_user = workshop.directory / f"{service.name}.ovpn"
    write_secret(for_user, (client + _identity(workshop, "openvpn-client.example") + for_client).encode())
    log = place / "server.log"
    process = await workshop.start(["openvpn", "--config", str(configuration)], log)
    awaited = READY if not null else LISTENING_TCP if tcp else "link local (bound)"
    if problem := await workshop.await_line(process, log, awaited, START_PATIENCE):
        return Status("failed", f"openvpn did not start: {problem}")
    files = (str(for_user),)
    if null:
        return Status("limited", f"handshake only, one client at a time: {workshop.tun_problem}", files)
    return Status("up", f"tunnel {tunnel}, server {tunnel.network_address + 1}", files)
