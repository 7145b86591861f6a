"""Memory: size, use, ECC errors, swap, huge pages, and the control group's share."""

from __future__ import annotations

import re
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host
from aifx.health.probes import Probe, cgroups
from aifx.health.probes.cgroups import entry, table

EDAC = "/sys/devices/system/edac/mc"
NODES = "/sys/devices/system/node"
MEMINFO = "/proc/meminfo"
GIB = 1 << 30
KIB_PER_GIB = 1 << 20


def collect(host: Host) -> dict[str, Any]:
    meminfo = table(host, MEMINFO)
    vmstat = table(host, "/proc/vmstat")

    def gib(name: str) -> Any:
        return _gib(entry(meminfo, name, MEMINFO), KIB_PER_GIB)

    swap, free = gib("SwapTotal"), gib("SwapFree")
    return {
        "memory": {
            "total_gib": gib("MemTotal"),
            "available_gib": gib("MemAvailable"),
            "poisoned_mib": _gib(entry(meminfo, "HardwareCorrupted", MEMINFO), 1 << 10),
            "swap_gib": swap,
            "swap_used_gib": round(max(swap - free, 0.0), 3) if _numbers(swap, free) else swap,
            "swapped_in_pages": entry(vmstat, "pswpin", "/proc/vmstat"),
            "swappiness": host.number("/proc/sys/vm/swappiness"),
            "huge_pages_unused_gib": _huge_pages_unused(meminfo),
            "transparent_huge_pages": transparent_huge_pages(host),
            **_nodes(host),
            "controllers": _controllers(host),
            "cgroup": _cgroup(host),
        }
    }


def _gib(number: Any, per_gib: int = GIB) -> Any:
    return round(number / per_gib, 3) if isinstance(number, int) else number


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


def _huge_pages_unused(meminfo: Any) -> Any:
    """Return huge pages that are reserved at boot or by sysctl, and that no process uses."""
    free, promised, size = (
        entry(meminfo, name, MEMINFO) for name in ("HugePages_Free", "HugePages_Rsvd", "Hugepagesize")
    )
    if isinstance(free, int) and isinstance(promised, int) and isinstance(size, int):
        return _gib(max(free - promised, 0) * size, KIB_PER_GIB)
    return free if not isinstance(free, int) else size


def transparent_huge_pages(host: Host) -> str | Absent | Unknown:
    """Return the word in brackets of "always [madvise] never"."""
    text = host.read("/sys/kernel/mm/transparent_hugepage/enabled")
    if not isinstance(text, str):
        return text
    word = re.search(r"\[(\w+)\]", text)
    return word[1] if word else Unknown(f"no choice is selected in {text[:60]!r}")


def _nodes(host: Host) -> dict[str, Any]:
    """Return NUMA nodes with processors: one with only memory (of a GPU, or CXL) has another size."""
    names = host.names(NODES)
    sizes: dict[str, float] = {}
    for name in names if isinstance(names, list) else []:
        cpus = host.read(f"{NODES}/{name}/cpulist") if re.fullmatch(r"node\d+", name) else ""
        meminfo = host.read(f"{NODES}/{name}/meminfo") if isinstance(cpus, str) and cpus else ""
        total = re.search(r"MemTotal:\s*(\d+) kB", meminfo) if isinstance(meminfo, str) else None
        if total:
            sizes[name] = round(int(total[1]) / KIB_PER_GIB, 3)
    if len(sizes) < 2:
        return dict.fromkeys(("least_node", "least_node_gib", "largest_node_gib"), Absent("there is one NUMA node"))
    least = min(sizes, key=lambda name: sizes[name])
    return {"least_node": least, "least_node_gib": sizes[least], "largest_node_gib": max(sizes.values())}


def _controllers(host: Host) -> Any:
    names = host.names(EDAC)
    found = [n for n in names if re.fullmatch(r"mc\d+", n)] if isinstance(names, list) else []
    if not found and not isinstance(names, Unknown):
        return Absent("no memory controller reports ECC errors here (no EDAC driver, or a virtual machine)")
    return [_controller(host, name) for name in found] if found else names


def _controller(host: Host, name: str) -> dict[str, Any]:
    folder = f"{EDAC}/{name}"
    seconds = host.number(f"{folder}/seconds_since_reset")
    return {
        "device": name,
        "corrected": host.number(f"{folder}/ce_count"),
        "uncorrected": host.number(f"{folder}/ue_count"),
        "days": round(seconds / 86400, 3) if isinstance(seconds, (int, float)) else seconds,
        "dimms_at_fault": ", ".join(_dimms_at_fault(host, folder)) or "unknown DIMM",
    }


def _dimms_at_fault(host: Host, folder: str) -> list[str]:
    """Return the labels of the DIMMs with errors, most errors first."""
    names = host.names(folder)
    counts = []
    for dimm in (n for n in names if re.fullmatch(r"(dimm|rank)\d+", n)) if isinstance(names, list) else ():
        numbers = [host.number(f"{folder}/{dimm}/dimm_{kind}_count") for kind in ("ue", "ce")]
        counted = tuple(number if isinstance(number, int) else 0 for number in numbers)
        label = host.read(f"{folder}/{dimm}/dimm_label")
        if any(counted):
            counts.append((counted, label if isinstance(label, str) and label else dimm))
    return [label for _, label in sorted(counts, reverse=True)]


def _cgroup(host: Host) -> dict[str, Any]:
    version, where = cgroups.folders(host, "memory")
    limit, folder = cgroups.least(host, where, "memory.max" if version == 2 else "memory.limit_in_bytes")
    in_use = cgroups.number(host, f"{folder}/{'memory.current' if version == 2 else 'memory.usage_in_bytes'}")
    # The working set of a kubelet: pages that can be dropped without writing do not count.
    droppable = entry(
        table(host, f"{folder}/memory.stat"), "inactive_file" if version == 2 else "total_inactive_file", "memory.stat"
    )
    used: Any = limit if not isinstance(limit, int) else in_use if not isinstance(in_use, int) else droppable
    if isinstance(limit, int) and isinstance(in_use, int) and isinstance(droppable, int):
        used = max(in_use - droppable, 0)
    events = f"{where[0]}/{'memory.events' if version == 2 else 'memory.oom_control'}"
    return {
        "limit_gib": _gib(limit),
        "used_gib": _gib(used),
        "oom_kills": entry(table(host, events), "oom_kill", events),
    }


PROBES = (Probe("memory", ("memory",), collect),)
