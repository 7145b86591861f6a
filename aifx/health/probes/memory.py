"""Memory: size, use, ECC errors, swap, huge pages, and the control group's share."""

from __future__ import annotations

import re
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host
from aifx.health.probes import cgroups
from aifx.health.probes.cgroups import entry, table
from aifx.health.probing import first_missing, listed, probe, search_file, text_of

EDAC = "/sys/devices/system/edac/mc"
NODES = "/sys/devices/system/node"
MEMINFO = "/proc/meminfo"
GIB = 1 << 30
KIB_PER_GIB = 1 << 20
CGROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "memory.oom_control"),
    2: ("memory.max", "memory.current", "inactive_file", "memory.events"),
}
"""By version: the limit, the use, pages in memory.stat that can be dropped without writing, and the events."""


@probe("memory")
def collect(host: Host) -> dict[str, Any]:
    meminfo = table(host, MEMINFO)
    vmstat = table(host, "/proc/vmstat")

    def gib(name: str) -> Any:
        return _gib(entry(meminfo, name, MEMINFO), KIB_PER_GIB)

    swap, free = gib("SwapTotal"), gib("SwapFree")
    return {
        "total_gib": gib("MemTotal"),
        "available_gib": gib("MemAvailable"),
        "poisoned_mib": _gib(entry(meminfo, "HardwareCorrupted", MEMINFO), 1 << 10),
        "swap_gib": swap,
        "swap_used_gib": first_missing(swap, free) or round(max(swap - free, 0.0), 3),
        "swapped_in_pages": entry(vmstat, "pswpin", "/proc/vmstat"),
        "swappiness": host.number("/proc/sys/vm/swappiness"),
        "huge_pages_unused_gib": _huge_pages_unused(meminfo),
        "transparent_huge_pages": transparent_huge_pages(host),
        **_nodes(host),
        "controllers": _controllers(host),
        "cgroup": _cgroup(host),
    }


def _gib(number: Any, per_gib: int = GIB) -> Any:
    return round(number / per_gib, 3) if isinstance(number, int) else number


def _huge_pages_unused(meminfo: Any) -> Any:
    """Return huge pages that are reserved at boot or by sysctl, and that no process uses."""
    names = ("HugePages_Free", "HugePages_Rsvd", "Hugepagesize")
    numbers: list[Any] = [entry(meminfo, name, MEMINFO) for name in names]
    free, promised, size = numbers
    return first_missing(*numbers) or _gib(max(free - promised, 0) * size, KIB_PER_GIB)


def transparent_huge_pages(host: Host) -> str | Absent | Unknown:
    """Return the word in brackets of "always [madvise] never"."""
    word = search_file(host, "/sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]")
    return word[1] if isinstance(word, re.Match) else word


def _nodes(host: Host) -> dict[str, Any]:
    """Return NUMA nodes with processors: one with only memory (of a GPU, or CXL) has another size."""
    sizes: dict[str, float] = {}
    for name in listed(host, NODES, r"node\d+"):
        total = re.search(r"MemTotal:\s*(\d+) kB", text_of(host, f"{NODES}/{name}/meminfo"))
        if total and text_of(host, f"{NODES}/{name}/cpulist"):
            sizes[name] = round(int(total[1]) / KIB_PER_GIB, 3)
    if len(sizes) < 2:
        return dict.fromkeys(("least_node", "least_node_gib", "largest_node_gib"), Absent("there is one NUMA node"))
    least = min(sizes, key=lambda name: sizes[name])
    return {"least_node": least, "least_node_gib": sizes[least], "largest_node_gib": max(sizes.values())}


def _controllers(host: Host) -> Any:
    if found := listed(host, EDAC, r"mc\d+"):
        return [_controller(host, name) for name in found]
    names = host.names(EDAC)
    none = Absent("no memory controller reports ECC errors here (no EDAC driver, or a virtual machine)")
    return names if isinstance(names, Unknown) else none


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
    counts = []
    for dimm in listed(host, folder, r"(dimm|rank)\d+"):
        numbers = [host.number(f"{folder}/{dimm}/dimm_{kind}_count") for kind in ("ue", "ce")]
        counted = tuple(number if isinstance(number, int) else 0 for number in numbers)
        if any(counted):
            counts.append((counted, text_of(host, f"{folder}/{dimm}/dimm_label") or dimm))
    return [label for _, label in sorted(counts, reverse=True)]


def _cgroup(host: Host) -> dict[str, Any]:
    version, where = cgroups.folders(host, "memory")
    limit_file, usage_file, droppable_name, events_file = CGROUP_FILES[version]
    limit, folder = cgroups.least(host, where, limit_file)
    in_use: Any = cgroups.number(host, f"{folder}/{usage_file}")
    droppable: Any = entry(table(host, f"{folder}/memory.stat"), droppable_name, "memory.stat")
    # The working set of a kubelet: droppable pages do not count.
    used = first_missing(limit, in_use, droppable) or max(in_use - droppable, 0)
    events = f"{where[0]}/{events_file}"
    oom_kills = entry(table(host, events), "oom_kill", events)
    return {"limit_gib": _gib(limit), "used_gib": _gib(used), "oom_kills": oom_kills}
