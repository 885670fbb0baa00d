"""WireGuard servers (wireguard-go in user space), and the configuration and script for their clients."""

from __future__ import annotations

import base64
import shlex
from ipaddress import IPv4Network
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from gfwemu.netlab.internet.authority import write_secret
from gfwemu.netlab.internet.plan import WireGuard
from gfwemu.netlab.internet.services import Status, Workshop, missing

START_PATIENCE = 10.0
# wireguard-go and wg meet at a socket below /var/run/wireguard: private, since an ordinary user may not write there.
SCRIPT = """#!/bin/sh
# {title}: sh {script} [INTERFACE]; runs until it is stopped.
set -eu
interface=${{1:-{interface}}}
[ "${{2:-}}" = private ] || exec unshare -m -- sh {quoted} "$interface" private
mount -t tmpfs tmpfs /var/run
# Also keeps wireguard-go from recommending the kernel instead of itself.
export WG_PROCESS_FOREGROUND=1
setpriv --pdeathsig KILL wireguard-go "$interface" &
server=$!
trap 'kill $server 2>/dev/null' EXIT
trap 'exit 0' INT TERM
until wg show "$interface" >/dev/null 2>&1; do kill -0 $server || exit 4; sleep 0.02; done
wg setconf "$interface" /dev/stdin <<'END'
{configuration}END
ip address add {address} dev "$interface"
ip link set dev "$interface" mtu 1420 up
echo "WireGuard is up on $interface: {address}"
wait $server
"""


def _keys() -> tuple[str, str]:
    key = X25519PrivateKey.generate()
    return base64.b64encode(key.private_bytes_raw()).decode(), base64.b64encode(
        key.public_key().public_bytes_raw()
    ).decode()


def _script(path: Path, title: str, interface: str, configuration: str, address: str) -> None:
    text = SCRIPT.format(
        title=title,
        script=path.name,
        quoted=shlex.quote(str(path)),
        interface=interface,
        configuration=configuration,
        address=address,
    )
    write_secret(path, text.encode())
    path.chmod(0o700)


async def start_wireguard(service: WireGuard, workshop: Workshop) -> Status:
    """Start one server; write `NAME.conf` (for wg-quick) and the script `NAME-up` (for a client without wg-quick)."""
    if problem := missing("wireguard-go", "wg", "ip", "unshare", "setpriv"):
        return Status("failed", problem)
    if workshop.tun_problem:
        return Status("failed", f"WireGuard needs TUN: {workshop.tun_problem}")
    tunnel = workshop.tunnel(service.tunnel)
    if tunnel is None:
        return Status("failed", "no network is left for its tunnel: give the plan a larger pool")
    (server_secret, server_public), (client_secret, client_public) = _keys(), _keys()
    server_address, client_address = tunnel.network_address + 1, tunnel.network_address + 2
    place = workshop.directory / service.name
    place.mkdir(exist_ok=True)
    endpoint = f"[{service.address}]:{service.port}" if ":" in service.address else f"{service.address}:{service.port}"
    for_server = (
        f"[Interface]\nPrivateKey = {server_secret}\nListenPort = {service.port}\n"
        f"[Peer]\nPublicKey = {client_public}\nAllowedIPs = {client_address}/32\n"
    )
    peer = f"[Peer]\nPublicKey = {server_public}\nEndpoint = {endpoint}\nAllowedIPs = {tunnel}\n"
    interface = f"[Interface]\nPrivateKey = {client_secret}\n"
    client_net, server_net = _with_prefix(client_address, tunnel), _with_prefix(server_address, tunnel)
    configuration = workshop.directory / f"{service.name}.conf"
    write_secret(configuration, f"{interface}Address = {client_net}\n{peer}".encode())
    client_script, server_script = workshop.directory / f"{service.name}-up", place / "server-up"
    _script(client_script, f"client of {service.name}", "wg0", interface + peer, client_net)
    _script(server_script, f"server {service.name}", f"{service.name[:12]}", for_server, server_net)
    log = place / "server.log"
    process = await workshop.start(["sh", str(server_script)], log)
    if problem := await workshop.await_line(process, log, "WireGuard is up", START_PATIENCE):
        return Status("failed", f"wireguard-go did not start: {problem}")
    return Status("up", f"tunnel {tunnel}, server {server_address}", (str(configuration), str(client_script)))


def _with_prefix(address: object, tunnel: IPv4Network) -> str:
    return f"{address}/{tunnel.prefixlen}"
