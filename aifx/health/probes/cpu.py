"""Processors: their number, their frequency governors, and faults that the kernel handled."""

from __future__ import annotations

import re
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host
from aifx.health.probes import Probe

CPUS = "/sys/devices/system/cpu"
TAINTS = {"machine_check": 4, "bad_page": 5, "soft_lockup": 14}
"""Bits of /proc/sys/kernel/tainted (Documentation/admin-guide/tainted-kernels.rst)."""


def collect(host: Host) -> dict[str, Any]:
    return {"cpu": _cpu(host), "kernel": _kernel(host)}


def _cpu(host: Host) -> dict[str, Any] | Absent | Unknown:
    online, present = (_numbers(host.read(f"{CPUS}/{name}")) for name in ("online", "present"))
    info = host.read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE) if isinstance(info, str) else None
    num_present = len(present) if isinstance(present, set) else present
    return {
        "model": model[1].strip() if model else Absent("/proc/cpuinfo has no model name"),
        "is_virtual": "hypervisor" in info if isinstance(info, str) else info,
        "online": len(online) if isinstance(online, set) else online,
        "present": num_present,
        "meant_online": num_present // 2 if isinstance(num_present, int) and _smt_is_off(host) else num_present,
        "offline": _ranges(present - online) if isinstance(present, set) and isinstance(online, set) else online,
        "load_1min": _load(host),
        "governors": _governors(host),
        "package_throttles": _sum(host, "thermal_throttle/package_throttle_count"),
    }


def _smt_is_off(host: Host) -> bool:
    """Return whether one of a core's two threads was switched off on purpose."""
    return host.read(f"{CPUS}/smt/control") in ("off", "forceoff")


def _kernel(host: Host) -> dict[str, Any]:
    tainted = host.number("/proc/sys/kernel/tainted")
    bits: dict[str, Any] = dict.fromkeys(TAINTS, tainted)
    if isinstance(tainted, int):
        bits = {name: bool(tainted >> bit & 1) for name, bit in TAINTS.items()}
    return {"release": host.read("/proc/sys/kernel/osrelease"), "command_line": host.read("/proc/cmdline"), **bits}


def _load(host: Host) -> float | Absent | Unknown:
    text = host.read("/proc/loadavg")
    if not isinstance(text, str):
        return text
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return Unknown(f"/proc/loadavg has an unknown format: {text[:40]!r}")


def _numbers(text: str | Absent | Unknown) -> set[int] | Absent | Unknown:
    """Return the processors of "0-3,8"."""
    if not isinstance(text, str):
        return text
    try:
        ends = [part.split("-") for part in text.split(",") if part]
        return {number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)}
    except ValueError:
        return Unknown(f"{text[:40]!r} is not a list of processors")


def _ranges(numbers: set[int]) -> str:
    """Return processors as "0-3,8"."""
    starts = sorted(number for number in numbers if number - 1 not in numbers)
    ends = sorted(number for number in numbers if number + 1 not in numbers)
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in zip(starts, ends, strict=True))


def _governors(host: Host) -> list[str] | Absent | Unknown:
    """Return the distinct frequency governors of the kernel; virtual machines have none.

    With `intel_pstate` and `amd_pstate`, the processor chooses its own frequency, and `powersave` is only a name.
    """
    policies = host.names(f"{CPUS}/cpufreq")
    if not isinstance(policies, list):
        return (
            Absent("this machine does not control the processors' frequency")
            if isinstance(policies, Absent)
            else policies
        )
    folders = [f"{CPUS}/cpufreq/{p}" for p in policies if p.startswith("policy")]
    read = [(host.read(f"{folder}/scaling_governor"), folder) for folder in folders]
    own = [governor for governor, folder in read if governor != "powersave" or not _has_preference(host, folder)]
    if read and not own:
        return Absent("the processors choose their own frequency")
    found = sorted({governor for governor in own if isinstance(governor, str)})
    return found or Absent("this machine does not control the processors' frequency")


def _has_preference(host: Host, folder: str) -> bool:
    """Return whether a policy's driver leaves the frequency to the processor (Documentation/admin-guide/pm)."""
    driver = host.read(f"{folder}/scaling_driver")
    is_pstate = isinstance(driver, str) and driver.startswith(("intel_pstate", "amd_pstate", "amd-pstate"))
    return is_pstate and isinstance(host.read(f"{folder}/energy_performance_preference"), str)


def _sum(host: Host, name: str) -> int | Absent | Unknown:
    cpus = host.names(CPUS)
    names = [c for c in cpus if re.fullmatch(r"cpu\d+", c)] if isinstance(cpus, list) else []
    counts = [host.number(f"{CPUS}/{cpu}/{name}") for cpu in names]
    numbers = [int(count) for count in counts if isinstance(count, (int, float))]
    return sum(numbers) if numbers else Absent(f"the processors do not report {name}")


PROBES = (Probe("cpu", ("cpu", "kernel"), collect),)
