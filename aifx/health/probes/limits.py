"""Limits of a process, the use of shared resources, and stuck processes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from aifx.core.facts import Absent
from aifx.health.host import Host
from aifx.health.probes import cgroups
from aifx.health.probes.disk import space
from aifx.health.probing import first_missing, listed, probe, search_file, text_of

LOOKS = 5
LOOK_EVERY_S = 0.1
CAP_IPC_LOCK = 14
"""Capabilities (include/uapi/linux/capability.h) to which the limit does not apply."""

KERNEL_THREAD = 0x00200000
"""PF_KTHREAD of include/linux/sched.h, in field 9 of /proc/PID/stat."""


@probe("limits")
def collect(host: Host) -> dict[str, Any]:
    most, folder = cgroups.least(host, cgroups.folders(host, "pids")[1], "pids.max")
    shm = host.measure("shm_space", lambda: space("/dev/shm"))
    return {
        **_own_limits(host),
        **_of_machine(host),
        # Without a limit, their number says nothing.
        "cgroup_tasks": cgroups.number(host, f"{folder}/pids.current") if isinstance(most, int) else most,
        "cgroup_tasks_max": most,
        **_cpu_share(host),
        "shm_gib": shm.get("size_gib") if isinstance(shm, dict) else shm,
        "shm_used_percent": shm.get("used_percent") if isinstance(shm, dict) else shm,
    }


def _own_limits(host: Host) -> dict[str, Any]:
    path, pattern = "/proc/self/limits", r"^Max {}\s+\S+\s+(\S+)"
    memlock, files = (search_file(host, path, pattern.format(name)) for name in ("locked memory", "open files"))
    if not isinstance(memlock, re.Match) or not isinstance(files, re.Match):
        missing = first_missing(memlock, files)
        return dict.fromkeys(("memlock_is_limited", "memlock_mib", "open_files"), missing)
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)", text_of(host, "/proc/self/status"), re.MULTILINE)
    may_lock = capabilities is not None and bool(int(capabilities[1], 16) >> CAP_IPC_LOCK & 1)
    no_limit = Absent("locked memory has no limit")
    return {
        "memlock_is_limited": memlock[1] != "unlimited" and not may_lock,
        "memlock_mib": round(int(memlock[1]) / (1 << 20), 3) if memlock[1].isdigit() else no_limit,
        "open_files": int(files[1]) if files[1].isdigit() else Absent("open files have no limit"),
    }


def _of_machine(host: Host) -> dict[str, Any]:
    """Return the tasks and open files of the whole machine."""
    running = search_file(host, "/proc/loadavg", r"\d+/(\d+)")
    most = [host.number(f"/proc/sys/kernel/{name}") for name in ("pid_max", "threads-max")]
    limits = [limit for limit in most if isinstance(limit, int)]
    files = search_file(host, "/proc/sys/fs/file-nr", r"^(\d+)\s+(\d+)\s+(\d+)$")
    return {
        "tasks": int(running[1]) if isinstance(running, re.Match) else running,
        "tasks_max": min(limits) if limits else most[0],
        "handles": int(files[1]) - int(files[2]) if isinstance(files, re.Match) else files,
        "handles_max": int(files[3]) if isinstance(files, re.Match) else files,
    }


def _cpu_share(host: Host) -> dict[str, Any]:
    """Return the number of processors that this process may use, by affinity and by quota of time, and the number of
    100 ms periods in which the control group was throttled."""
    version, where = cgroups.folders(host, "cpu")
    mask = search_file(host, "/proc/self/status", r"^Cpus_allowed:\s*([0-9a-f,]+)")
    usable: Any = mask
    if isinstance(mask, re.Match):
        quotas = [quota for folder in where if (quota := _quota(host, version, folder)) is not None]
        usable = min([float(int(mask[1].replace(",", ""), 16).bit_count()), *quotas])
    stat = f"{where[0]}/cpu.stat"
    throttled = cgroups.entry(cgroups.table(host, stat), "nr_throttled", stat)
    return {"usable_cpus": usable, "throttled_periods": throttled}


def _quota(host: Host, version: int, folder: str) -> float | None:
    """Return the quota of time in processors; None without a quota."""
    names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    found = re.fullmatch(r"(\d+)\s+([1-9]\d*)", " ".join(text_of(host, f"{folder}/{name}") for name in names))
    return int(found[1]) / int(found[2]) if found else None


@probe("processes")
def collect_processes(host: Host) -> dict[str, Any] | Absent:
    """Return processes that wait in the kernel in every sample, and zombies."""
    seen = dict(_stats(host))
    if not seen:
        return Absent("no process is visible here")
    stuck = {pid for pid, (_, state, _) in seen.items() if state == "D"}
    for _ in range(LOOKS - 1 if host.is_live else 0):
        if stuck:
            time.sleep(LOOK_EVERY_S)
            stuck &= {pid for pid, (_, state, _) in _stats(host, stuck) if state == "D"}
    of_driver = [seen[pid][0] for pid in stuck if seen[pid][0].startswith("nvidia")]
    others = [seen[pid][0] for pid in stuck if not seen[pid][2]]
    return {
        "stuck": len(others),
        "stuck_names": sorted(set(others)),
        "stuck_of_driver": len(of_driver),
        "stuck_of_driver_names": sorted(set(of_driver)),
        "zombies": sum(state == "Z" for _, state, _ in seen.values()),
    }


def _stats(host: Host, pids: set[str] | None = None) -> Iterator[tuple[str, tuple[str, str, bool]]]:
    """Return name, state and whether it is a kernel thread, by process id. This does not use `Host.read`, which starts
    a thread per file: there may be thousands, and none of these hangs."""
    for pid in listed(host, "/proc", r"\d+") if pids is None else pids:
        try:
            text = host.path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        except OSError:  # the process has ended
            continue
        found = re.match(r"\d+ \((.*)\) (\w)(?: -?\d+){5} (\d+)", text, re.DOTALL)
        if found:
            yield pid, (found[1], found[2], bool(int(found[3]) & KERNEL_THREAD))
