"""Time zones as rule files write them: `UTC`, an offset such as `+08:00`, or a name such as `Asia/Shanghai`."""

from __future__ import annotations

import datetime
import re
import zoneinfo

_OFFSET = re.compile(r"([+-])([0-9]{1,2}):?([0-9]{2})")
_ONE_DAY = datetime.timedelta(days=1)


def time_zone(text: str) -> datetime.tzinfo:
    """Raises ValueError with the reason."""
    if text.upper() in ("UTC", "Z"):
        return datetime.UTC
    if found := _OFFSET.fullmatch(text):
        offset = datetime.timedelta(hours=int(found[2]), minutes=int(found[3]))
        if offset < _ONE_DAY:
            return datetime.timezone(offset if found[1] == "+" else -offset)
    try:
        return zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"unknown time zone '{text[:40]}'; write an offset such as +08:00, or Asia/Shanghai") from None
