"""Disks: space for runs, caches and temporary files, read-only file systems, and the drives' health logs."""

from __future__ import annotations

import errno
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from aifx.core.errors import EnvironmentFault
from aifx.core.facts import Absent, Unknown
from aifx.core.files import make_private
from aifx.core.parsing import parse_json
from aifx.core.project import cache_location
from aifx.health.host import Host, within
from aifx.health.probing import listed, probe, text_of

LIMIT_S = 1.5
ON_DISK = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs"}
OVER_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "gpfs", "beegfs", "9p", "afs", "glusterfs", "wekafs"}
MOUNT = re.compile(r"^\S+ \S+ (\S+) \S+ (\S+) .*? - (\S+) (\S+) (\S+)", re.MULTILINE)
"""A line of /proc/self/mountinfo (Documentation/filesystems/proc.rst)."""

FSYNC_BYTES, FSYNCS = 64 << 10, 3
GIB = 1 << 30


@probe("disk")
def collect(host: Host) -> dict[str, Any]:
    return {
        "places": host.measure("disk_places", places),
        "file_systems": _file_systems(host),
        "fsync_ms": host.measure("disk_fsync", fsync_ms),
    }


def places() -> list[Any]:
    """Return the space in the folders that aifx and jobs need; folders on one file system are one place."""
    wanted = {"run": Path.cwd(), "cache": cache_location(), "temp": Path(tempfile.gettempdir()), "root": Path("/")}
    with ThreadPoolExecutor(len(wanted)) as pool:
        found = list(pool.map(_place, wanted, wanted.values()))
    first: dict[Any, dict[str, Any]] = {}
    for number, place in enumerate(found):
        if isinstance(place, Unknown):
            first[number] = {"unknown": place}
        elif (mate := first.setdefault(place.pop("file_system"), place)) is not place:
            mate["device"] += f", {place['device']}"
            mate["is_writable"] = mate["is_writable"] and place["is_writable"]
            mate["unwritable"] += place["unwritable"]
    return [place.get("unknown", place) for place in first.values()]


def space(path: str) -> dict[str, Any]:
    """Return the size, the space left for users, and the used shares of bytes and inodes. Raises OSError. A mount
    without its server may hang."""
    usage, stats = psutil.disk_usage(path), os.statvfs(path)
    inodes = stats.f_files - stats.f_ffree
    # btrfs and some network file systems report no inodes.
    whole = inodes + stats.f_favail if stats.f_files else 0
    return {
        "size_gib": round(usage.total / GIB, 3),
        "free_gib": round(usage.free / GIB, 3),
        "used_percent": usage.percent,
        "inodes_used_percent": round(100 * inodes / whole, 1) if whole else 0.0,
    }


def _place(role: str, path: Path) -> dict[str, Any] | Unknown:
    def look() -> dict[str, Any]:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        real = there.resolve()
        # A run may be written elsewhere, and the root of a container may be read-only.
        is_writable = role in ("run", "root") or os.access(there, os.W_OK)
        return {
            "device": f"{role} {path}",
            "mount_point": str(next(folder for folder in (real, *real.parents) if folder.is_mount())),
            "file_system": there.stat().st_dev,
            "is_writable": is_writable,
            "unwritable": [] if is_writable else [str(path)],
            **space(str(there)),
        }

    try:
        return within(LIMIT_S, look, f"looking at {path}")
    except OSError as error:  # including TimeoutError
        return Unknown(f"{role} {path}: {error}", "look for a file system that hangs")


def fsync_ms() -> float | Absent | Unknown:
    """Return the median time to write 64 KiB to disk in the cache folder."""

    def write() -> float:
        folder = cache_location()
        make_private(folder)
        times = []
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(FSYNCS):
                began = time.monotonic()
                file.write(b"\0" * FSYNC_BYTES)
                file.flush()
                os.fsync(file.fileno())
                times.append(time.monotonic() - began)
        return round(1000 * statistics.median(times), 2)

    try:
        return within(LIMIT_S, write, f"writing to {cache_location()}")
    except TimeoutError as error:
        return Unknown(str(error), "look for a file system that hangs, or a worn disk")
    except EnvironmentFault as fault:
        return Absent(f"{fault.what}: {fault.why}")
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):  # disk.place.unwritable reports this
            return Absent(f"{cache_location()} cannot be written: {error.strerror}")
        raise


def mounts(host: Host) -> list[tuple[str, str, str, str, str]] | Absent | Unknown:
    """Return device number, mount point, type, source, and options of the file system (not of one mount)."""
    text = host.read("/proc/self/mountinfo")
    if not isinstance(text, str):
        return text
    found = MOUNT.findall(text)
    return [(number, _unescaped(point), kind, source, options) for number, point, kind, source, options in found]


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _file_systems(host: Host) -> list[dict[str, Any]] | Absent | Unknown:
    """Return each file system once, however often it is mounted."""
    mounted, wanted = mounts(host), _meant_writable(host)
    if not isinstance(mounted, list):
        return mounted
    on_disk: dict[str, list[tuple[str, str, str, str]]] = {}
    for number, point, kind, source, options in mounted:
        if kind in ON_DISK:
            on_disk.setdefault(number, []).append((point, kind, source, options))
    found = []
    for number, places in on_disk.items():
        point, kind, source, options = next((place for place in places if place[0] in wanted), places[0])
        words = set(options.split(","))
        stopped = bool(words & {"emergency_ro", "shutdown"})
        # With errors=remount-ro alone, the file system might also be mounted read-only on purpose.
        silent = Absent(f"/etc/fstab does not say whether {point} should be writable")
        facts = {"device": point, "type": kind, "source": source, "is_read_only": "ro" in words or stopped}
        facts["is_meant_writable"] = True if stopped else wanted.get(point, silent)
        facts["errors"] = _errors(host, number) if kind == "ext4" else Absent(f"{kind} has no error counter")
        found.append(facts)
    return found


def _meant_writable(host: Host) -> dict[str, bool]:
    """Return for each mount point in /etc/fstab whether it should be writable."""
    lines = [line.split() for line in text_of(host, "/etc/fstab").splitlines()]
    return {w[1]: "ro" not in w[3].split(",") for w in lines if len(w) > 3 and not w[0].startswith("#")}


def _errors(host: Host, number: str) -> Any:
    """Return the number of errors that ext4 has detected since the last fsck."""
    link = host.link(f"/sys/dev/block/{number}")
    if not isinstance(link, str):
        return Absent("the block device is not visible here")
    return host.number(f"/sys/fs/ext4/{link.rpartition('/')[2]}/errors_count")


@probe("network_mounts")
def collect_network_mounts(host: Host) -> Any:
    mounted = mounts(host)
    if not isinstance(mounted, list):
        return mounted
    points = [(point, kind) for _, point, kind, *_ in mounted if kind in OVER_NETWORK or kind.startswith("fuse.")]
    if not points:
        return Absent("there is no network mount")
    return host.measure("network_mounts", lambda: network_mounts(points))


def network_mounts(points: list[tuple[str, str]], look: Callable[[str], Any] = space) -> list[Any]:
    """Return the response time of each network mount. One that hangs is `Unknown`."""

    def answer(mount: tuple[str, str]) -> dict[str, Any] | Unknown:
        point, kind = mount
        began = time.monotonic()
        try:
            within(LIMIT_S, lambda: look(point), f"asking {kind} mount {point} for its size")
            error = ""
        except TimeoutError as late:
            return Unknown(str(late), f"check its server; `umount -f -l {point}` releases the mount")
        except PermissionError:
            error = ""  # it answered
        except OSError as failure:
            error = failure.strerror or str(failure)
        took = round(1000 * (time.monotonic() - began), 2)
        return {"device": point, "type": kind, "answers": not error, "error": error or "none", "took_ms": took}

    with ThreadPoolExecutor(min(len(points), 32)) as pool:
        return list(pool.map(answer, points))


@probe("nvme")
def collect_nvme(host: Host) -> list[dict[str, Any]] | Absent | Unknown:
    drives = listed(host, "/sys/class/nvme", r"nvme\d+")
    if not drives:
        names = host.names("/sys/class/nvme")
        return names if isinstance(names, Unknown) else Absent("there is no NVMe drive")
    with ThreadPoolExecutor(min(len(drives), 16)) as pool:
        return list(pool.map(lambda name: _drive(host, name), drives))


def _drive(host: Host, name: str) -> dict[str, Any]:
    folder = f"/sys/class/nvme/{name}"
    model = host.read(f"{folder}/model")
    return {
        "device": name,
        "model": model.strip() if isinstance(model, str) else model,
        "address": host.read(f"{folder}/address"),
        "state": host.read(f"{folder}/state"),
        "link_width": host.number(f"{folder}/device/current_link_width"),
        "max_link_width": host.number(f"{folder}/device/max_link_width"),
        **_smart(host, name),
    }


SMART = {
    # fact: its name in nvme-cli, its name in smartmontools
    "critical_warning": ("critical_warning", "critical_warning"),
    "worn_percent": ("percent_used", "percentage_used"),
    "media_errors": ("media_errors", "media_errors"),
    "spare_percent": ("avail_spare", "available_spare"),
    "spare_threshold_percent": ("spare_thresh", "available_spare_threshold"),
}


def _smart(host: Host, name: str) -> dict[str, Any]:
    """Return the drive's health log, from nvme-cli or smartmontools."""
    text, tool = host.run("nvme", "smart-log", f"/dev/{name}", "-o", "json", limit_s=1.2), 0
    if isinstance(text, Absent):
        text, tool = host.run("smartctl", "--json", "-A", "-H", f"/dev/{name}", limit_s=1.2), 1
    if isinstance(text, Absent):
        return dict.fromkeys(SMART, Absent("nvme-cli or smartmontools is required to read a drive's health log"))
    if isinstance(text, Unknown):
        remedy = text.remedy or "run aifx doctor as root; `nvme smart-log` says what keeps it"
        # One unknown value per drive is enough.
        return dict.fromkeys(SMART, Absent(f"{text.why}: {remedy}")) | {"critical_warning": Unknown(text.why, remedy)}
    try:
        log = parse_json(text)
    except ValueError as error:
        return dict.fromkeys(SMART, Unknown(f"the health log of {name} is not JSON: {error}"))
    log = log.get("nvme_smart_health_information_log") if tool and isinstance(log, dict) else log
    log = log if isinstance(log, dict) else {}
    facts: dict[str, Any] = {}
    for fact, words in SMART.items():
        value = log.get(words[tool])
        if isinstance(value, dict):  # nvme-cli -v splits the bits of the warning
            value = value.get("value")
        # The threshold is optional: the drive also sets a bit of its critical warning.
        missing = Absent if fact == "spare_threshold_percent" else Unknown
        is_number = isinstance(value, (int, float))
        facts[fact] = value if is_number else missing(f"{name} does not report {words[tool]}")
    return facts
