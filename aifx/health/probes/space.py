"""How full file systems are, as df tells it."""

from __future__ import annotations

import os
from typing import Any

GIB = 1 << 30


def space(path: str) -> dict[str, Any]:
    """Size, what is left to users, and the shares of bytes and inodes in use. Raises OSError; a mount whose server is
    gone may hang."""
    told = os.statvfs(path)
    used, left = (told.f_blocks - told.f_bfree) * told.f_frsize, told.f_bavail * told.f_frsize
    inodes = told.f_files - told.f_ffree
    return {
        "size_gib": round(told.f_blocks * told.f_frsize / GIB, 3),
        "free_gib": round(left / GIB, 3),
        "used_percent": _percent(used, used + left),
        # btrfs and some network file systems count none.
        "inodes_used_percent": _percent(inodes, inodes + told.f_favail) if told.f_files else 0.0,
    }


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0
