"""Processors: their number, their frequency governors, and faults that the kernel handled."""

from __future__ import annotations

import re
from typing import Any

from ClusterShell.RangeSet import RangeSet, RangeSetParseError

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host
from aifx.health.probing import listed, probe, search_file, text_of

CPUS = "/sys/devices/system/cpu"
THROTTLE_COUNT = "thermal_throttle/package_throttle_count"
TAINTS = {"machine_check": 4, "bad_page": 5, "soft_lockup": 14}
"""Bits of /proc/sys/kernel/tainted (Documentation/admin-guide/tainted-kernels.rst)."""


@probe("cpu", "kernel")
def collect(host: Host) -> dict[str, Any]:
    tainted = host.number("/proc/sys/kernel/tainted")
    taints = {name: bool(tainted >> bit & 1) if isinstance(tainted, int) else tainted for name, bit in TAINTS.items()}
    release, command_line = host.read("/proc/sys/kernel/osrelease"), host.read("/proc/cmdline")
    return {"cpu": _cpu(host), "kernel": {"release": release, "command_line": command_line, **taints}}


def _cpu(host: Host) -> dict[str, Any]:
    online, present = (_numbers(host.read(f"{CPUS}/{name}")) for name in ("online", "present"))
    info = host.read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE) if isinstance(info, str) else None
    num_present = len(present) if isinstance(present, RangeSet) else present
    counts = [host.number(f"{CPUS}/{cpu}/{THROTTLE_COUNT}") for cpu in listed(host, CPUS, r"cpu\d+")]
    throttles = [count for count in counts if isinstance(count, int)]
    load = search_file(host, "/proc/loadavg", r"^[\d.]+")
    # One of a core's two threads may be switched off on purpose.
    has_smt_off = text_of(host, f"{CPUS}/smt/control") in ("off", "forceoff")
    are_listed = isinstance(present, RangeSet) and isinstance(online, RangeSet)
    return {
        "model": model[1].strip() if model else Absent("/proc/cpuinfo has no model name"),
        "is_virtual": "hypervisor" in info if isinstance(info, str) else info,
        "online": len(online) if isinstance(online, RangeSet) else online,
        "present": num_present,
        "meant_online": num_present // 2 if isinstance(num_present, int) and has_smt_off else num_present,
        "offline": str(present - online) if are_listed else online,
        "load_1min": float(load[0]) if isinstance(load, re.Match) else load,
        "governors": _governors(host),
        "package_throttles": sum(throttles) if throttles else Absent(f"no processor reports {THROTTLE_COUNT}"),
    }


def _numbers(text: str | Absent | Unknown) -> Any:
    """Return the processors of "0-3,8" as a RangeSet."""
    try:
        return RangeSet(text) if isinstance(text, str) else text
    except RangeSetParseError:
        return Unknown(f"{text!r:.40} is not a list of processors")


def _governors(host: Host) -> list[str] | Absent | Unknown:
    """Return the distinct frequency governors of the kernel; virtual machines have none. With `intel_pstate` and
    `amd_pstate`, the processor chooses its own frequency, and `powersave` is only a name."""
    none = Absent("this machine does not control the processors' frequency")
    policies = host.names(f"{CPUS}/cpufreq")
    if not isinstance(policies, list):
        return none if isinstance(policies, Absent) else policies
    folders = [f"{CPUS}/cpufreq/{p}" for p in policies if p.startswith("policy")]
    read = [(host.read(f"{folder}/scaling_governor"), folder) for folder in folders]
    own = [governor for governor, folder in read if governor != "powersave" or not _has_preference(host, folder)]
    if read and not own:
        return Absent("the processors choose their own frequency")
    return sorted({governor for governor in own if isinstance(governor, str)}) or none


def _has_preference(host: Host, folder: str) -> bool:
    """Return whether a policy's driver leaves the frequency to the processor (Documentation/admin-guide/pm)."""
    is_pstate = text_of(host, f"{folder}/scaling_driver").startswith(("intel_pstate", "amd_pstate", "amd-pstate"))
    return is_pstate and isinstance(host.read(f"{folder}/energy_performance_preference"), str)
