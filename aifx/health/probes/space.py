"""The use of file systems, as df reports it."""

from __future__ import annotations

import os
from typing import Any

GIB = 1 << 30


def space(path: str) -> dict[str, Any]:
    """Return the size, the space left for users, and the used shares of bytes and inodes. Raises OSError. A mount
    without its server may hang."""
    stats = os.statvfs(path)
    used, left = (stats.f_blocks - stats.f_bfree) * stats.f_frsize, stats.f_bavail * stats.f_frsize
    inodes = stats.f_files - stats.f_ffree
    return {
        "size_gib": round(stats.f_blocks * stats.f_frsize / GIB, 3),
        "free_gib": round(left / GIB, 3),
        "used_percent": _percent(used, used + left),
        # btrfs and some network file systems report no inodes.
        "inodes_used_percent": _percent(inodes, inodes + stats.f_favail) if stats.f_files else 0.0,
    }


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0
