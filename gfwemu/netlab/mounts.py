"""The files that programs inside a lab see instead of the machine's: names, resolvers, certificates.

Everything is a bind mount in the node's own mount namespace; the machine's files stay as they are.
"""

from __future__ import annotations

import socket
from pathlib import Path

from gfwemu.errors import CapabilityError
from gfwemu.netlab import syscalls
from gfwemu.netlab.blueprint import Blueprint, Node

# Where distributions keep the bundle that TLS libraries read.
BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# Variables that name a bundle: OpenSSL, curl, requests, Node.js, git.
BUNDLE_VARIABLES = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO")
# Daemons outside that would resolve names for a program inside.
_BACK_DOORS = (
    "/run/nscd/socket",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/avahi-daemon/socket",
)


def bundle_path(blueprint: Blueprint) -> Path:
    """The lab authority's bundle; empty until the mini-internet is up."""
    return Path(blueprint.directory, "authorities.pem")


def write_files(blueprint: Blueprint) -> None:
    """Write what `cover` mounts, once for all nodes."""
    root = Path(blueprint.directory)
    hosts = ["127.0.0.1 localhost", f"127.0.0.1 {socket.gethostname()}"]
    if blueprint.ipv6:
        hosts.append("::1 localhost ip6-localhost ip6-loopback")
    (root / "hosts").write_text("\n".join([*hosts, ""]), encoding="utf-8")
    (root / "nsswitch.conf").write_text(_nsswitch(), encoding="utf-8")
    (root / "nothing").write_bytes(b"")
    bundle_path(blueprint).write_bytes(b"")
    for node in blueprint.nodes:
        lines = [f"nameserver {address}\n" for address in node.resolvers]
        (root / f"{node.name}.resolv.conf").write_text("".join(lines), encoding="ascii")


def cover(blueprint: Blueprint, node: Node) -> None:
    """Mount the node's files. The caller is alone in the node's mount namespace."""
    root = Path(blueprint.directory)
    for target, source in (("/etc/resolv.conf", f"{node.name}.resolv.conf"), ("/etc/hosts", "hosts")):
        if not Path(target).exists():
            raise CapabilityError(
                f"There is no {target} that the lab could cover with its own.", "Create an empty one."
            )
        _bind(root / source, target)
    if Path("/etc/nsswitch.conf").exists():
        _bind(root / "nsswitch.conf", "/etc/nsswitch.conf")
    for path in _BACK_DOORS:
        if Path(path).exists():
            _bind(root / "nothing", path)
    if blueprint.authority:
        for path in {str(Path(bundle).resolve()) for bundle in BUNDLES if Path(bundle).exists()}:
            _bind(bundle_path(blueprint), path)


def bundle_environment(blueprint: Blueprint) -> dict[str, str]:
    """The variables that lead TLS libraries to the lab's authority."""
    if not blueprint.authority:
        return {}
    covered = next((bundle for bundle in BUNDLES if Path(bundle).exists()), str(bundle_path(blueprint)))
    return dict.fromkeys(BUNDLE_VARIABLES, covered)


def _bind(source: Path, target: str) -> None:
    try:
        syscalls.mount(str(source), target, flags=syscalls.MS_BIND)
    except OSError as error:
        raise CapabilityError(f"Cannot mount the lab's own {target}: {error.strerror}.", "See gfwemu doctor.") from None


def _nsswitch() -> str:
    """The machine's, with `hosts` read from the file and then asked of the DNS, by nobody else."""
    try:
        lines = Path("/etc/nsswitch.conf").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    kept = [line for line in lines if not line.strip().startswith("hosts:")]
    return "\n".join([*kept, "hosts: files dns", ""])
