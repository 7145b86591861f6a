"""TPUs: chips on PCI, their device files, libtpu, and the processes that use them."""

from __future__ import annotations

import math
import os
import re
from importlib import metadata
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host
from aifx.health.probes.memory import transparent_huge_pages
from aifx.health.probing import listed, probe, text_of
from aifx.machine.catalogue import TPU_GENERATIONS

PCI = "/sys/bus/pci/devices"
GOOGLE = "0x1ae0"
V2_SUBSYSTEM = "0x004e"
"""Subsystem ID of v2, whose device ID is that of v3 (tpu_info/device.py)."""
LOCK = "/tmp/libtpu_lockfile"
DEVICE_FILE = re.compile(r"/dev/(accel|vfio/)\d+")


@probe("tpu")
def collect(host: Host) -> dict[str, Any] | Absent | Unknown:
    chips = find_chips(host)
    if not chips:
        names = host.names(PCI)
        return names if isinstance(names, Unknown) else Absent("there is no TPU on PCI")
    files = _device_files(host)
    denied = host.measure("tpu_denied", lambda: sum(not os.access(file, os.R_OK | os.W_OK) for file in files))
    libtpu = host.measure("libtpu", libtpu_version)
    holders = _holders(host)
    return {
        "chips": chips,
        "count": len(chips),
        "generation": chips[0]["generation"],
        "promised_chips": _promised(host),
        "device_files": len(files),
        "denied": denied,
        "has_libtpu": bool(libtpu) if isinstance(libtpu, str) else libtpu,
        "libtpu": libtpu or Absent("libtpu is not installed") if isinstance(libtpu, str) else libtpu,
        "holders": len(holders) if isinstance(holders, list) else holders,
        "holder_names": holders,
        "lock_is_stale": host.exists(LOCK) and not holders if isinstance(holders, list) else holders,
        "transparent_huge_pages": transparent_huge_pages(host),
    }


def libtpu_version() -> str:
    """Return the version of libtpu; empty if it is not installed."""
    for name in ("libtpu", "libtpu-nightly"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def find_chips(host: Host) -> list[dict[str, Any]]:
    """Return the TPU chips on PCI, each with its address (`device`) and `generation`."""
    return [chip for name in listed(host, PCI) if (chip := _chip(host, name))]


def _chip(host: Host, name: str) -> dict[str, Any] | None:
    # Other functions belong to the same chip.
    if not name.endswith(".0") or host.read(f"{PCI}/{name}/vendor") != GOOGLE:
        return None
    generation = TPU_GENERATIONS.get(text_of(host, f"{PCI}/{name}/device"))
    if generation == "v3" and host.read(f"{PCI}/{name}/subsystem_device") == V2_SUBSYSTEM:
        generation = "v2"
    return {"device": name, "generation": generation} if generation else None  # otherwise it is Google's network card


def _promised(host: Host) -> int | Absent:
    """Return the number of chips of this host in the environment ("2,4,1")."""
    text = host.environ().get("TPU_CHIPS_PER_HOST_BOUNDS", "")
    if not re.fullmatch(r"\d+(,\d+)*", text):
        return Absent("TPU_CHIPS_PER_HOST_BOUNDS does not set the number of chips")
    return math.prod(int(part) for part in text.split(","))


def _device_files(host: Host) -> list[str]:
    """Return /dev/accel0 and so on, or with newer drivers /dev/vfio/0 and so on."""
    old = [f"/dev/{name}" for name in listed(host, "/dev", r"accel\d+")]
    return old or [f"/dev/vfio/{name}" for name in listed(host, "/dev/vfio", r"\d+")]


def _holders(host: Host) -> list[str] | Absent | Unknown:
    """Return other processes that have a device file open, as "name (pid)"."""
    names = host.names("/proc")
    if not isinstance(names, list):
        return names
    found, denied = [], False
    for pid in (name for name in names if name.isdigit() and (not host.is_live or int(name) != os.getpid())):
        folder = host.path(f"/proc/{pid}/fd")
        try:
            # This does not use `Host.read`, for the reason in limits.py.
            links = [os.readlink(folder / fd) for fd in os.listdir(folder)]
        except PermissionError:
            denied = True
            continue
        except OSError:  # the process has ended, or closed a file
            continue
        if any(DEVICE_FILE.fullmatch(link) for link in links):
            found.append(f"{text_of(host, f'/proc/{pid}/comm') or 'process'} ({pid})")
    if denied and not found:
        return Absent("only root sees the open files of other users' processes: run aifx doctor as root")
    return found
