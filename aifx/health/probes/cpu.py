"""Processors: how many, how they are driven, and what the kernel did about their faults."""

from __future__ import annotations

import re
from typing import Any

from aifx.health.facts import Absent, Unknown
from aifx.health.host import Host
from aifx.health.probes import Probe

CPUS = "/sys/devices/system/cpu"
TAINTS = {"machine_check": 4, "bad_page": 5, "soft_lockup": 14}
"""Bits of /proc/sys/kernel/tainted (Documentation/admin-guide/tainted-kernels.rst)."""


def collect(host: Host) -> dict[str, Any]:
    return {"cpu": _cpu(host), "kernel": _kernel(host)}


def _cpu(host: Host) -> dict[str, Any] | Absent | Unknown:
    online, present = (_count(host.read(f"{CPUS}/{name}")) for name in ("online", "present"))
    info = host.read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE) if isinstance(info, str) else None
    load = host.read("/proc/loadavg")
    return {
        "model": model[1].strip() if model else Absent("/proc/cpuinfo has no model name"),
        "is_virtual": "hypervisor" in info if isinstance(info, str) else info,
        "online": online,
        "present": present,
        "meant_online": present // 2 if isinstance(present, int) and _smt_is_off(host) else present,
        "load_1min": float(load.split()[0]) if isinstance(load, str) else load,
        "governors": _governors(host),
        "package_throttles": _sum(host, "thermal_throttle/package_throttle_count"),
    }


def _smt_is_off(host: Host) -> bool:
    """Whether of the two threads of a core one was switched off on purpose."""
    return host.read(f"{CPUS}/smt/control") in ("off", "forceoff")


def _kernel(host: Host) -> dict[str, Any]:
    tainted = host.number("/proc/sys/kernel/tainted")
    bits: dict[str, Any] = dict.fromkeys(TAINTS, tainted)
    if isinstance(tainted, int):
        bits = {name: bool(tainted >> bit & 1) for name, bit in TAINTS.items()}
    return {"release": host.read("/proc/sys/kernel/osrelease"), "command_line": host.read("/proc/cmdline"), **bits}


def _count(text: str | Absent | Unknown) -> int | Absent | Unknown:
    """How many numbers "0-3,8" means."""
    if not isinstance(text, str):
        return text
    try:
        ends = [part.split("-") for part in text.split(",") if part]
        return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)
    except ValueError:
        return Unknown(f"{text[:40]!r} is no list of processors")


def _governors(host: Host) -> list[str] | Absent | Unknown:
    """The distinct frequency governors; virtual machines have none."""
    policies = host.names(f"{CPUS}/cpufreq")
    if not isinstance(policies, list):
        return Absent("the processors' frequency is not driven from here") if isinstance(policies, Absent) else policies
    read = [host.read(f"{CPUS}/cpufreq/{p}/scaling_governor") for p in policies if p.startswith("policy")]
    found = sorted({governor for governor in read if isinstance(governor, str)})
    return found or Absent("the processors' frequency is not driven from here")


def _sum(host: Host, name: str) -> int | Absent | Unknown:
    cpus = host.names(CPUS)
    names = [c for c in cpus if re.fullmatch(r"cpu\d+", c)] if isinstance(cpus, list) else []
    counts = [host.number(f"{CPUS}/{cpu}/{name}") for cpu in names]
    numbers = [int(count) for count in counts if isinstance(count, (int, float))]
    return sum(numbers) if numbers else Absent(f"the processors do not tell {name}")


PROBES = (Probe("cpu", ("cpu", "kernel"), collect),)
