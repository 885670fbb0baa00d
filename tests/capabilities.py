"""What a test may need from the machine: namespaces with netfilter in them, programs, devices."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PROBE = """
step() { "$@" || { echo "cannot: $*"; exit 1; }; }
step mount --make-rprivate /
step ip link set lo up
step ip link add probe0 type veth peer name probe1
step nft add table inet probe
step nft 'add chain inet probe forward { type filter hook forward priority 0; }'
nft add rule inet probe forward queue num 0 2>/dev/null || step iptables -t mangle -A FORWARD -j NFQUEUE --queue-num 0
"""


@cache
def missing_in_kernel() -> str | None:
    """Why kernel tests cannot run here, in one line; None if they can. Asked once a process."""
    for program in ("unshare", "ip", "nft", "iptables"):
        if missing := missing_needs([program]):
            return missing
    probe = subprocess.run(
        ["unshare", "-Urnm", "sh", "-c", PROBE], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )
    if probe.returncode == 0:
        return None
    said = [line for line in (probe.stdout + probe.stderr).splitlines() if line.strip()]
    return f"no lab in a user namespace: {'; '.join(said) or 'unshare failed'}"


def missing_needs(needs: Iterable[str]) -> str | None:
    """The first need that this machine lacks; a need is a program's name, or the path of a file to read and write."""
    for need in needs:
        if need.startswith("/"):
            if not os.access(need, os.R_OK | os.W_OK):
                return f"no access to {need}" if Path(need).exists() else f"no {need}"
        elif not shutil.which(need, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"):
            return f"no program {need}"
    return None
