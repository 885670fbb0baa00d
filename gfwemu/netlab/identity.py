"""Whom programs of a lab run as: the user who asked, also behind sudo and inside user namespaces."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """`name` and `home` are empty where the password file does not know the user."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    name: str = ""
    home: str = ""

    @property
    def environment(self) -> dict[str, str]:
        if not self.name:
            return {}
        return {"USER": self.name, "LOGNAME": self.name, "HOME": self.home}


def invoking_user() -> Identity:
    """Who called us. Root by sudo counts as the user who called sudo."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and os.environ.get("SUDO_UID", "0").isdecimal() and os.environ.get("SUDO_GID", "0").isdecimal():
        sudo_uid = int(os.environ.get("SUDO_UID", "0"))
        if sudo_uid:
            uid, gid = sudo_uid, int(os.environ.get("SUDO_GID", "0"))
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Identity(uid, gid)
    return Identity(uid, gid, tuple(os.getgrouplist(entry.pw_name, gid)), entry.pw_name, entry.pw_dir)
