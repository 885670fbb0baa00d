"""The certificate authority of the lab, and one that nobody trusts.

Certificates are issued on demand, one for each name that a client asks for, and kept. Files in the directory:

- `authority.pem`, `authority.key`: the lab authority; reused when they exist, so that a browser can import it once.
- `ca-bundle.pem`: the machine's own bundle with the lab authority behind it, for clients that take one bundle only.
"""

from __future__ import annotations

import datetime
import os
import ssl
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from gfwemu.netlab.internet.plan import CertificateKind

DAY = datetime.timedelta(days=1)
# Names are the client's choice: bound what they can make us keep.
KEPT_CERTIFICATES = 1024
SYSTEM_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
WRONG_NAME = "somebody-else.example"


@dataclass(slots=True)
class Authority:
    """Issues leaf certificates: ECDSA P-256, valid from yesterday for 90 days unless the kind says otherwise."""

    lab: trustme.CA
    untrusted: trustme.CA = field(default_factory=lambda: trustme.CA(organization_name="Nobody trusts this authority"))
    _kept: OrderedDict[tuple[CertificateKind, tuple[str, ...]], trustme.LeafCert] = field(default_factory=OrderedDict)

    def leaf(self, kind: CertificateKind, *identities: str) -> trustme.LeafCert:
        """The certificate for names and addresses. Raises `ValueError` for a text that cannot be a name."""
        key = (kind, identities)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        now = datetime.datetime.now(datetime.UTC)
        start, end = (now - 120 * DAY, now - 30 * DAY) if kind == "expired" else (now - DAY, now + 89 * DAY)
        authority = self.untrusted if kind == "untrusted" else self.lab
        names = (WRONG_NAME,) if kind == "wrong-name" else identities
        leaf = authority.issue_cert(*names, common_name=names[0][:64], not_before=start, not_after=end)
        self._kept[key] = leaf
        if len(self._kept) > KEPT_CERTIFICATES:
            self._kept.popitem(last=False)
        return leaf

    def context(self, leaf: trustme.LeafCert, alpn: tuple[str, ...]) -> ssl.SSLContext:
        """A TLS server context that shows `leaf` and offers `alpn` (none when empty)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context


def open_authority(directory: Path) -> Authority:
    """The authority kept in `directory`, made when it is not there yet; writes the bundle for clients."""
    directory.mkdir(parents=True, exist_ok=True)
    certificate, key = directory / "authority.pem", directory / "authority.key"
    if certificate.exists() and key.exists():
        lab = trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())
    else:
        lab = trustme.CA(organization_name="gfwemu lab", organization_unit_name="gfwemu lab authority")
        lab.cert_pem.write_to_path(certificate)
        write_secret(key, lab.private_key_pem.bytes())
    system = next((path for path in map(Path, SYSTEM_BUNDLES) if path.exists()), None)
    bundle = system.read_bytes().rstrip() + b"\n" if system else b""
    (directory / "ca-bundle.pem").write_bytes(bundle + lab.cert_pem.bytes())
    return Authority(lab)


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
