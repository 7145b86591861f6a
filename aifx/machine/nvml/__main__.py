"""Everything that NVML reports of the NVIDIA driver and GPUs, as one JSON document on stdout.

A program of its own (`python -m aifx.machine.nvml`), for a driver in trouble can hang or crash the library. A value
that the GPU or driver does not report is `{"$absent": why}`. One that could not be read is `{"$unknown": why,
"$remedy": what to do}`. A GPU that is lost or hangs keeps no other from being read.

Units: MiB, degrees Celsius, watts, MHz, MB/s of one link in one direction, milliseconds.
"""

from __future__ import annotations

import re
import sys
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from os.path import basename
from typing import Any

from aifx.core.facts import Absent, Facts, Unknown, to_document
from aifx.core.lifecycle import exit_now
from aifx.core.processes import connect
from aifx.machine.nvml import Calls, also, open_driver, reasons, word

RECOVERY_ACTIONS = {
    0: "none",
    1: "reset",
    2: "reboot",
    3: "drain_p2p",
    4: "drain_and_reset",
    5: "recover_imex_domain",
    6: "bus_reset",
    7: "system_reboot",
}
COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
VIRTUALIZATION_MODES = {0: "none", 1: "passthrough", 2: "vgpu", 3: "host_vgpu", 4: "host_vsga"}
LINK_STATES = {0: "inactive", 1: "active", 2: "sleep", 3: "traffic_disabled"}
LINK_REMOTES = {0: "gpu", 1: "npu", 2: "switch", 255: "unknown"}
FABRIC_STATES = {0: "not_supported", 1: "not_started", 2: "in_progress", 3: "completed"}
FABRIC_SUMMARIES = {0: "not_supported", 1: "healthy", 2: "unhealthy", 3: "limited_capacity"}
FABRIC_CONFIGURATIONS = {
    1: "none",
    2: "incorrect_system_guid",
    3: "incorrect_chassis_serial",
    4: "no_partition",
    5: "insufficient_nvlinks",
    6: "incompatible_firmware",
    7: "invalid_location",
    8: "invalid_gpu_state",
}
FIELD_LINK_COUNT = 91
FIELDS_LINK = {
    "speed_mb_s": 164,
    "version": 166,
    "receive_errors": 208,
    "integrity_errors": 211,
    "recoveries_failed": 214,
    "link_recoveries": 215,
    "effective_ber": 220,
    "symbol_ber": 222,
}
COUNTERS = {"replays": 0, "recoveries": 1, "crc_flit_errors": 2, "crc_data_errors": 3}
FIELDS_ERRORS = {"replays": 161, "recoveries": 162, "crc_errors": 163}
FLAGS = {"degraded_bandwidth": 0, "route_recovery": 2, "route_unhealthy": 4, "access_timeout_recovery": 6}
"""First bit of each pair in the fabric's health mask: 1 is true, 2 false, 0 not reported."""
CONFIGURATION_SHIFT = 8

MIB = 1 << 20
CORRECTED, UNCORRECTED = 0, 1
VOLATILE, AGGREGATE = 0, 1
DRAM, SRAM = 2, 7
GRAPHICS, SM, MEMORY = 0, 1, 2
THRESHOLDS = {"slowdown_c": 1, "shutdown_c": 0, "memory_max_c": 2, "gpu_max_c": 3}
POLICIES = {"thermal_ms": 1, "board_limit_ms": 3, "reliability_ms": 5}
FIELD_MEMORY_TEMPERATURE, FIELD_RECOVERY_ACTION = 82, 230
MARGINS = {"shutdown_margin_c": 193, "slowdown_margin_c": 194, "memory_max_margin_c": 195, "gpu_max_margin_c": 196}
FIELDS_SLOWDOWN = {"software_thermal_ms": 269, "hardware_thermal_ms": 270, "power_brake_ms": 271}
CLOCKS = {
    "sm_mhz": ("DeviceGetClockInfo", SM),
    "memory_mhz": ("DeviceGetClockInfo", MEMORY),
    "sm_max_mhz": ("DeviceGetMaxClockInfo", SM),
    "memory_max_mhz": ("DeviceGetMaxClockInfo", MEMORY),
    "application_mhz": ("DeviceGetApplicationsClock", GRAPHICS),
    "application_default_mhz": ("DeviceGetDefaultApplicationsClock", GRAPHICS),
}
PCIE = {
    "generation": "DeviceGetCurrPcieLinkGeneration",
    "max_generation": "DeviceGetMaxPcieLinkGeneration",
    "device_max_generation": "DeviceGetGpuMaxPcieLinkGeneration",
    "width": "DeviceGetCurrPcieLinkWidth",
    "max_width": "DeviceGetMaxPcieLinkWidth",
    "replays": "DeviceGetPcieReplayCounter",
}
MEMORY_INFO_V2 = 0x02000028


def read_gpu(ask: Calls, index: int) -> Facts:
    """Everything of one GPU, with `Absent` or `Unknown` for what cannot be read."""
    facts: Facts = {
        "index": index,
        "name": ask("DeviceGetName"),
        "uuid": ask("DeviceGetUUID"),
        "pci_bus_id": ask("DeviceGetPciInfo", then=lambda info: _address(info.busId)),
        "vbios": ask("DeviceGetVbiosVersion"),
        "inforom": ask("DeviceGetInforomImageVersion"),
        "inforom_state": _inforom(ask),
        "virtualization": ask("DeviceGetVirtualizationMode", then=partial(word, VIRTUALIZATION_MODES)),
        "compute_mode": ask("DeviceGetComputeMode", then=partial(word, COMPUTE_MODES)),
        "persistence": ask("DeviceGetPersistenceMode", then=bool),
        "recovery_action": also(ask.fields(FIELD_RECOVERY_ACTION)[0], partial(word, RECOVERY_ACTIONS)),
        "ecc": _ecc(ask),
        "rows": _rows(ask),
        "pages": _pages(ask),
        "repair": {
            **_pair(ask("DeviceGetRepairStatus"), ("channel_pending", "tpc_pending"), bool),
            "unrepairable_memory": ask("DeviceGetUnrepairableMemoryFlag_v1", then=bool),
        },
        "throttle": _throttle(ask),
        "temperature": _temperature(ask),
        "power": _power(ask),
        "clocks": {name: ask(*query) for name, query in CLOCKS.items()},
        "pcie": {name: ask(query) for name, query in PCIE.items()},
        "memory": _memory(ask),
        "mig": _pair(ask("DeviceGetMigMode"), ("current", "pending"), bool),
        "utilization": _utilization(ask),
        "processes": _processes(ask),
        "links": _links(ask),
        "fabric": _fabric(ask),
    }
    return {"state": ask.state, **facts}


def unreadable(index: int, error: Absent | Unknown, state: str) -> Facts:
    """A GPU that cannot be opened: the same names, all with the same reason."""
    return {**read_gpu(_Refused(Absent(error.why)), index), "state": state if state != "ok" else error}


class _Refused(Calls):
    """Answers every query with the same `Absent`."""

    def __init__(self, why: Absent) -> None:
        super().__init__()
        self.why = why

    def __call__(self, name: str, *arguments: Any, then: Any = None) -> Any:
        return self.why


def _address(bus_id: bytes | str) -> str:
    """A PCI address as sysfs writes it: "00000000:3B:00.0" is 0000:3b:00.0."""
    text = bus_id.decode("ascii", "replace") if isinstance(bus_id, bytes) else bus_id
    domain, _, rest = text.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}" if re.fullmatch("[0-9a-f]+", domain) else text


def _inforom(ask: Calls) -> Any:
    """ "valid" or "corrupt": NVML says the latter by an error of its own."""
    answer = ask("DeviceValidateInforom", then=lambda _: "valid")
    return "corrupt" if isinstance(answer, Unknown) and "error 14)" in answer.why else answer


def _pair(value: Any, names: tuple[str, str], of: Callable[[Any], Any]) -> Facts:
    return {name: value if isinstance(value, (Absent, Unknown)) else of(value[at]) for at, name in enumerate(names)}


def _ecc(ask: Calls) -> Facts:
    facts = _pair(ask("DeviceGetEccMode"), ("is_enabled", "is_pending"), bool)
    for kind, error in (("corrected", CORRECTED), ("uncorrected", UNCORRECTED)):
        for since, counter in (("volatile", VOLATILE), ("aggregate", AGGREGATE)):
            facts[f"{kind}_{since}"] = ask("DeviceGetTotalEccErrors", error, counter)
            for part, location in (("dram", DRAM), ("sram", SRAM)):
                facts[f"{part}_{kind}_{since}"] = ask("DeviceGetMemoryErrorCounter", error, counter, location)
    status = ask.struct("DeviceGetSramEccErrorStatus", "c_nvmlEccSramErrorStatus_v1_t")
    facts["sram_threshold_exceeded"] = also(status, lambda s: bool(s.bThresholdExceeded))
    return facts


def _rows(ask: Calls) -> Facts:
    """Row remapping, of Ampere and later; `spareless_banks` have no row left to remap to."""
    rows = ask("DeviceGetRemappedRows")
    banks = ask("DeviceGetRowRemapperHistogram")
    return {
        "correctable": also(rows, lambda r: r[0]),
        "uncorrectable": also(rows, lambda r: r[1]),
        "pending": also(rows, lambda r: bool(r[2])),
        "failed": also(rows, lambda r: bool(r[3])),
        "banks": also(banks, lambda b: b.max + b.high + b.partial + b.low + b.none),
        "spareless_banks": also(banks, lambda b: b.none),
    }


def _pages(ask: Calls) -> Facts:
    """Page retirement, of Volta and before."""
    corrected, uncorrected = (ask("DeviceGetRetiredPages", cause, then=len) for cause in (0, 1))
    return {
        "corrected": corrected,
        "uncorrected": uncorrected,
        "total": also(corrected, lambda c: also(uncorrected, lambda u: c + u)),
        "pending": ask("DeviceGetRetiredPagesPendingStatus", then=bool),
    }


def _throttle(ask: Calls) -> Facts:
    """For how long the clocks were held down, since the driver was loaded."""

    def to_ms(violation: Any) -> float:
        return float(violation.violationTime / 1e6)

    counters = ask.fields(*FIELDS_SLOWDOWN.values())
    held = {name: also(ns, lambda ns: ns / 1e6) for name, ns in zip(FIELDS_SLOWDOWN, counters, strict=True)}
    thermal, brake = held["hardware_thermal_ms"], held["power_brake_ms"]
    return {
        "reasons": ask("DeviceGetCurrentClocksEventReasons", then=reasons),
        **held,
        "hardware_ms": also(thermal, lambda t: also(brake, lambda b: t + b)),
        **{name: ask("DeviceGetViolationStatus", policy, then=to_ms) for name, policy in POLICIES.items()},
    }


def _temperature(ask: Calls) -> Facts:
    """`margin_c` is how much hotter the GPU may become (T.Limit); it begins to slow down at `slowdown_margin_c`."""
    memory, *limits = ask.fields(FIELD_MEMORY_TEMPERATURE, *MARGINS.values())
    return {
        "gpu_c": ask("DeviceGetTemperature", 0),
        # Without a sensor some drivers report 0.
        "memory_c": also(memory, lambda c: c or Absent("this GPU has no sensor in its memory")),
        "margin_c": ask("DeviceGetMarginTemperature"),
        **{name: ask("DeviceGetTemperatureThreshold", kind) for name, kind in THRESHOLDS.items()},
        **{name: also(limit, _signed) for name, limit in zip(MARGINS, limits, strict=True)},
    }


def _signed(value: int) -> int:
    """Some drivers give a negative offset as an unsigned number."""
    return value - (1 << 32) if value >= 1 << 31 else value


def _power(ask: Calls) -> Facts:
    def watts(milliwatts: int) -> float:
        return round(milliwatts / 1000, 1)

    return {
        "draw_w": ask("DeviceGetPowerUsage", then=watts),
        "limit_w": ask("DeviceGetPowerManagementLimit", then=watts),
        "enforced_w": ask("DeviceGetEnforcedPowerLimit", then=watts),
        "default_w": ask("DeviceGetPowerManagementDefaultLimit", then=watts),
        **_pair(ask("DeviceGetPowerManagementLimitConstraints"), ("min_w", "max_w"), watts),
    }


def _memory(ask: Calls) -> Facts:
    """Memory in MiB. The driver's own is reserved, not used."""
    info = ask("DeviceGetMemoryInfo", MEMORY_INFO_V2)
    return {
        "total_mib": also(info, lambda i: i.total // MIB),
        "used_mib": also(info, lambda i: i.used // MIB),
        "reserved_mib": also(info, lambda i: i.reserved // MIB),
    }


def _utilization(ask: Calls) -> Facts:
    rates = ask("DeviceGetUtilizationRates")
    return {"gpu_percent": also(rates, lambda r: r.gpu), "memory_percent": also(rates, lambda r: r.memory)}


def _processes(ask: Calls) -> list[Facts] | Absent | Unknown:
    """Processes that hold the GPU; names without their arguments, in which secrets may be."""
    found: dict[int, Facts] = {}
    for kind in ("Compute", "Graphics", "MPSCompute"):
        listed = ask(f"DeviceGet{kind}RunningProcesses")
        if isinstance(listed, Unknown) or (isinstance(listed, Absent) and kind == "Compute"):
            return listed
        for process in [] if isinstance(listed, Absent) else listed:
            used = process.usedGpuMemory
            found[process.pid] = {
                "pid": process.pid,
                "name": Calls()("SystemGetProcessName", process.pid, then=lambda line: basename(line.split(" ")[0])),
                "memory_mib": Absent("NVML does not report it") if used is None else used // MIB,
            }
    return [found[pid] for pid in sorted(found)]


def _links(ask: Calls) -> list[Facts] | Absent | Unknown:
    """One table for each link that the chip has, also where nothing is plugged into it."""
    count = ask.fields(FIELD_LINK_COUNT)[0]
    if isinstance(count, (Absent, Unknown)):
        return count
    return [_link(ask, number) for number in range(int(count))] or Absent("this GPU has no NVLink")


def _link(ask: Calls, number: int) -> Facts:
    state = ask("DeviceGetNvLinkState", number, then=partial(word, LINK_STATES))
    facts: Facts = {"link": number, "state": state}
    missing = Absent("the link is not active") if state == "inactive" else state
    if isinstance(missing, (Absent, Unknown)):
        return facts | dict.fromkeys(("remote", *FIELDS_LINK, *COUNTERS, "crc_errors"), missing)
    values = ask.fields(*((field, number) for field in FIELDS_LINK.values()))
    facts |= dict(zip(FIELDS_LINK, values, strict=True))
    for name in ("effective_ber", "symbol_ber"):
        facts[name] = also(facts[name], _ber)
    facts["remote"] = ask("DeviceGetNvLinkRemoteDeviceType", number, then=partial(word, LINK_REMOTES))
    return facts | _errors(ask, number)


def _errors(ask: Calls, number: int) -> Facts:
    """Replays, recoveries and CRC errors, by whichever of the two ways this driver has."""
    facts = {name: ask("DeviceGetNvLinkErrorCounter", number, counter) for name, counter in COUNTERS.items()}
    facts["crc_errors"] = _sum(facts["crc_flit_errors"], facts["crc_data_errors"])
    values = ask.fields(*((field, number) for field in FIELDS_ERRORS.values()))
    for name, value in zip(FIELDS_ERRORS, values, strict=True):
        if isinstance(facts[name], Absent):
            facts[name] = value
    return facts


def _sum(one: Any, other: Any) -> Any:
    """The sum of the counts that are there: Hopper counts the CRC errors of flits alone."""
    if isinstance(one, Absent) or isinstance(other, Unknown):
        return other
    return one if isinstance(other, Absent) else also(one, lambda number: number + other)


def _ber(packed: int) -> float:
    """A bit error rate as NVML packs it: mantissa x 10^-exponent (NVML_NVLINK_BER_* of nvml.h)."""
    return (packed >> 8 & 0xF) * 10.0 ** -(packed & 0xFF)


def _fabric(ask: Calls) -> Facts | Absent | Unknown:
    """The GPU's registration with the switches; `Absent` where it needs none."""
    info = ask.struct("DeviceGetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v3_t", "c_nvmlGpuFabricInfo_v2_t")
    if isinstance(info, (Absent, Unknown)):
        return info
    state = word(FABRIC_STATES, info.state)
    if state == "not_supported":
        return Absent("this GPU joins no NVLink fabric")
    mask, summary = info.healthMask, getattr(info, "healthSummary", 0)
    configuration = mask >> CONFIGURATION_SHIFT & 0xF
    no_summary = Absent("this driver does not sum up the fabric's health")
    no_configuration = Absent("the fabric does not report its configuration")
    return {
        "state": state,
        "status": info.status if state == "completed" else Absent("the fabric's registration has not completed"),
        "clique": info.cliqueId,
        "cluster": str(uuid.UUID(bytes=bytes(info.clusterUuid))),
        "summary": word(FABRIC_SUMMARIES, summary) if summary else no_summary,
        **{name: _flag(name, mask >> shift & 3) for name, shift in FLAGS.items()},
        "configuration": word(FABRIC_CONFIGURATIONS, configuration) if configuration else no_configuration,
    }


def _flag(name: str, bits: int) -> bool | Absent | Unknown:
    if bits == 0:
        return Absent(f"the fabric does not report {name}")
    return bits == 1 if bits < 3 else Unknown(f"{name} is {bits}, which this version does not know")


GPUS_LIMIT_S = 5.0


def read(limit_s: float = GPUS_LIMIT_S) -> Facts:
    """The driver's facts and a table for each GPU, of which one that takes longer than the limit is given up."""
    facts = open_driver()
    if not isinstance(facts["count"], int):
        return {**facts, "gpus": facts["count"]}
    found: dict[int, Facts] = {}
    ends = time.monotonic() + limit_s
    # All at once: NVML takes calls from several threads.
    threads = [threading.Thread(target=_gpu, args=(index, found), daemon=True) for index in range(facts["count"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(ends - time.monotonic(), 0))
    hangs = Unknown(f"NVML gave no answer for this GPU in {limit_s:g} s", "look for Xid lines and processes in state D")
    gpus = [found.get(index) or unreadable(index, hangs, "ok") for index in range(len(threads))]
    return {**facts, "gpus": gpus}


def _gpu(index: int, found: dict[int, Facts]) -> None:
    ask = Calls()
    try:
        handle = ask("DeviceGetHandleByIndex", index)
        failed = isinstance(handle, (Absent, Unknown))
        found[index] = unreadable(index, handle, ask.state) if failed else read_gpu(Calls(handle), index)
    except Exception as error:
        why = Unknown(f"reading the GPU failed: {type(error).__name__}: {error}", "send in what --record writes")
        found[index] = unreadable(index, why, "ok")


def main() -> None:
    emit = connect()
    emit(to_document(read(*map(float, sys.argv[1:2]))))
    # Neither a call that hangs nor NVML's end, which may wait for it, is waited for.
    exit_now(0)


if __name__ == "__main__":
    main()
