#!/usr/bin/env python3
"""Makes captures of ordinary traffic in the folder above, with real programs: DNS, ssh, SMTP, FTP, NTP, STUN, TURN,
DTLS, BitTorrent and a download. Needs root and, for DNS and the download, the project's Python environment.

Packages: bind9-dnsutils, openssh-client, openssh-server, openssl, curl, python3-aiosmtpd, vsftpd, chrony, coturn,
aria2.
The namespaces are those of vpn.py. Captures are cut to the first packets.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vpn import INSIDE, OUTSIDE, SERVER, capture, namespaces, run, running, within

DNS_SERVER = """
import time
from dnslib.server import BaseResolver, DNSServer
from dnslib import A, AAAA, QTYPE, RR
class Resolver(BaseResolver):
    def resolve(self, request, handler):
        reply = request.reply()
        data = {QTYPE.A: A("203.0.113.5"), QTYPE.AAAA: AAAA("2001:db8::5")}.get(request.q.qtype)
        if data is not None:
            reply.add_answer(RR(request.q.qname, request.q.qtype, rdata=data, ttl=60))
        return reply
for tcp in (False, True):
    DNSServer(Resolver(), address="198.51.100.2", port=53, tcp=tcp).start_thread()
time.sleep(60)
"""


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def bencode(value: object) -> bytes:
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    assert isinstance(value, dict)
    return b"d" + b"".join(bencode(key) + bencode(item) for key, item in sorted(value.items())) + b"e"


class Recorder:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def record(
        self,
        name: str,
        expression: str,
        packets: int,
        servers: Sequence[Sequence[str]],
        clients: Sequence[Sequence[str]],
    ) -> None:
        with (
            capture(f"{name}.pcap", expression, packets),
            running(*[within(OUTSIDE, *argv) for argv in servers]),
        ):
            for argv in clients:
                done = subprocess.run(within(INSIDE, *argv), capture_output=True, timeout=25)
                if done.returncode:
                    print(name, argv, done.returncode, done.stderr[-300:], file=sys.stderr)

    def dns(self) -> None:
        dig = ["dig", f"@{SERVER}"]
        self.record(
            "dns-dig",
            "port 53",
            40,
            [[sys.executable, "-c", DNS_SERVER]],
            [
                [*dig, "www.example.test", "A"],
                [*dig, "WWW.Example.test", "AAAA", "+noedns", "+norecurse"],
                [*dig, "www.example.test", "HTTPS"],
                [*dig, "_xmpp._tcp.example.test", "TYPE65280", "-c", "CH"],
                [*dig, "+tcp", "+keepopen", "one.example.test", "A", "two.example.test", "AAAA"],
            ],
        )

    def ssh(self) -> None:
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / "host"))
        server = f"mount -t tmpfs none /run; mkdir /run/sshd; /usr/sbin/sshd -D -f /dev/null -h {self.directory}/host"
        client = ["ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
        self.record("ssh", "tcp port 22", 30, [shell(server)], [[*client, f"nobody@{SERVER}", "true"]])

    def smtp(self) -> None:
        mail = self.directory / "mail"
        mail.write_text("From: a@example.test\nTo: b@example.test\n\nGET / HTTP/1.1\nHost: example.test\n")
        client = ["curl", "-sS", f"smtp://{SERVER}:25", "--mail-from", "a@example.test"]
        client += ["--mail-rcpt", "b@example.test"]
        server = ["/usr/bin/python3", "-m", "aiosmtpd", "-n", "-l", f"{SERVER}:25"]
        self.record("smtp-curl", "tcp port 25", 30, [server], [[*client, "-T", str(mail)]])

    def ftp(self) -> None:
        root = self.directory / "ftp"
        root.mkdir()
        (root / "file").write_bytes(b"ordinary bytes\n" * 100)
        root.chmod(0o555)
        self.directory.chmod(0o755)
        conf = self.directory / "vsftpd.conf"
        conf.write_text(
            "listen=YES\nbackground=NO\nanonymous_enable=YES\nftp_username=daemon\nseccomp_sandbox=NO\nisolate=NO\nisolate_network=NO\n"
            f"anon_root={root}\nsecure_chroot_dir={root}\nvsftpd_log_file=/dev/null\nxferlog_enable=NO\n"
        )
        self.record(
            "ftp-curl",
            "tcp",
            40,
            [["vsftpd", str(conf)]],
            [["curl", "-sS", "-o", "/dev/null", f"ftp://{SERVER}/file"]],
        )

    def ntp(self) -> None:
        server = self.directory / "chrony-server.conf"
        server.write_text(f"local stratum 8\nallow all\ncmdport 0\npidfile {self.directory}/a.pid\n")
        client = self.directory / "chrony-client.conf"
        client.write_text(f"server {SERVER} iburst\ncmdport 0\npidfile {self.directory}/b.pid\n")
        self.record(
            "ntp-chrony",
            "udp port 123",
            8,
            [["chronyd", "-d", "-x", "-u", "root", "-f", str(server)]],
            [["chronyd", "-Q", "-x", "-u", "root", "-t", "12", "-f", str(client)]],
        )

    def stun(self) -> None:
        server = ["turnserver", "--no-auth", "-L", SERVER, "--no-tls", "--no-dtls", "--no-cli"]
        server += ["--log-file", "stdout", "--pidfile", str(self.directory / "turn.pid"), "--no-software-attribute"]
        server += ["--userdb", str(self.directory / "turn.db")]
        self.record(
            "stun-turn",
            "udp",
            40,
            [server],
            [
                ["turnutils_stunclient", SERVER],
                ["turnutils_uclient", "-y", "-n", "3", "-m", "1", "-l", "172", SERVER],
            ],
        )

    def dtls(self) -> None:
        run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "3650", "-subj", "/CN=www.example.test", "-keyout", "key.pem", "-out", "cert.pem"),
            cwd=self.directory,
        )
        pem = f"-cert {self.directory}/cert.pem -key {self.directory}/key.pem"
        self.record(
            "dtls-openssl",
            "udp port 4433",
            20,
            [shell(f"sleep 20 | openssl s_server -dtls -accept 4433 {pem}")],
            [
                shell(
                    f"(echo hello; sleep 1) | openssl s_client -dtls -connect {SERVER}:4433 -servername a.example.test"
                )
            ],
        )

    def download(self) -> None:
        web = self.directory / "web"
        web.mkdir()
        (web / "file").write_bytes(hashlib.shake_128(b"download").digest(5_000))
        self.record(
            "http-download",
            "tcp port 8080",
            40,
            [[sys.executable, "-m", "http.server", "8080", "--protocol", "HTTP/1.1", "-d", str(web)]],
            [["curl", "-sS", "-o", "/dev/null", f"http://{SERVER}:8080/file", f"http://{SERVER}:8080/file?again"]],
        )

    def bittorrent(self) -> None:
        content = hashlib.shake_128(b"torrent").digest(4096)
        for side in ("seed", "leech"):
            (self.directory / side).mkdir()
        (self.directory / "seed" / "file").write_bytes(content)
        pieces = hashlib.sha1(content).digest()
        info = {b"name": b"file", b"length": len(content), b"piece length": 16384, b"pieces": pieces}
        torrent = self.directory / "file.torrent"
        torrent.write_bytes(bencode({b"info": info, b"announce": b"http://192.0.2.2:1/"}))
        for space in (INSIDE, OUTSIDE):
            run("ip", "-n", space, "route", "replace", "224.0.0.0/4", "dev", "veth0")
        argv = ["aria2c", "--enable-dht=false", "--bt-enable-lpd", "--bt-lpd-interface=veth0", "--no-conf"]
        argv += [str(torrent), "--summary-interval=0", "--bt-tracker-connect-timeout=1", "--bt-stop-timeout=20"]
        self.record(
            "bittorrent-aria2",
            "tcp portrange 6881-6999",
            16,
            [[*argv, "-d", str(self.directory / "seed"), "--check-integrity=true", "--seed-ratio=0"]],
            [[*argv, "-d", str(self.directory / "leech"), "--seed-time=0"]],
        )


def main() -> None:
    with tempfile.TemporaryDirectory() as name, namespaces():
        recorder = Recorder(Path(name))
        everything: dict[str, Callable[[], None]] = {
            "dns": recorder.dns,
            "ssh": recorder.ssh,
            "smtp": recorder.smtp,
            "ftp": recorder.ftp,
            "ntp": recorder.ntp,
            "stun": recorder.stun,
            "dtls": recorder.dtls,
            "download": recorder.download,
            "bittorrent": recorder.bittorrent,
        }
        for wanted in sys.argv[1:] or everything:
            everything[wanted]()


if __name__ == "__main__":
    main()
