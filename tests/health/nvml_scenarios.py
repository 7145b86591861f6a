"""The scenario of fake_nvml.c in which NVML says what a document of `python -m aifx.machine.nvml` holds."""

from __future__ import annotations

import uuid
from typing import Any

FIELDS = {
    "temperature.memory_c": 82,
    "temperature.shutdown_margin_c": 193,
    "temperature.slowdown_margin_c": 194,
    "temperature.memory_max_margin_c": 195,
    "temperature.gpu_max_margin_c": 196,
}
MILLISECONDS = {"software_thermal_ms": 269, "hardware_thermal_ms": 270, "power_brake_ms": 271}
VIOLATIONS = {"thermal_ms": 1, "board_limit_ms": 3, "reliability_ms": 5}
LINK_FIELDS = {"speed_mb_s": 164, "version": 166, "receive_errors": 208, "integrity_errors": 211,
               "recoveries_failed": 214, "link_recoveries": 215}  # fmt: skip
LINK_COUNTERS = ("replays", "recoveries", "crc_flit_errors", "crc_data_errors")
REMOTES = {"gpu": 0, "switch": 2}
FLAGS = {"degraded_bandwidth": 0, "route_recovery": 2, "route_unhealthy": 4, "access_timeout_recovery": 6}
PLAIN = {
    "DeviceGetName": "name",
    "DeviceGetUUID": "uuid",
    "DeviceGetVbiosVersion": "vbios",
    "DeviceGetInforomImageVersion": "inforom",
    "DeviceGetPciInfo_v3": "pci_bus_id",
    "DeviceGetRetiredPagesPendingStatus": "pages.pending",
    "DeviceGetRetiredPages/0": "pages.corrected",
    "DeviceGetRetiredPages/1": "pages.uncorrected",
    "DeviceGetPersistenceMode": "persistence",
    "DeviceGetEccMode": "ecc.is_enabled ecc.is_pending",
    "DeviceGetSramEccErrorStatus": "ecc.sram_threshold_exceeded",
    "DeviceGetRemappedRows": "rows.correctable rows.uncorrectable rows.pending rows.failed",
    "DeviceGetRowRemapperHistogram": "rows.banks",
    "DeviceGetRepairStatus": "repair.channel_pending repair.tpc_pending",
    "DeviceGetUnrepairableMemoryFlag_v1": "repair.unrepairable_memory",
    "DeviceGetTemperature/0": "temperature.gpu_c",
    "DeviceGetMarginTemperature": "temperature.margin_c",
    "DeviceGetTemperatureThreshold/0": "temperature.shutdown_c",
    "DeviceGetTemperatureThreshold/1": "temperature.slowdown_c",
    "DeviceGetTemperatureThreshold/2": "temperature.memory_max_c",
    "DeviceGetTemperatureThreshold/3": "temperature.gpu_max_c",
    "DeviceGetClockInfo/1": "clocks.sm_mhz",
    "DeviceGetClockInfo/2": "clocks.memory_mhz",
    "DeviceGetMaxClockInfo/1": "clocks.sm_max_mhz",
    "DeviceGetMaxClockInfo/2": "clocks.memory_max_mhz",
    "DeviceGetApplicationsClock/0": "clocks.application_mhz",
    "DeviceGetDefaultApplicationsClock/0": "clocks.application_default_mhz",
    "DeviceGetCurrPcieLinkGeneration": "pcie.generation",
    "DeviceGetMaxPcieLinkGeneration": "pcie.max_generation",
    "DeviceGetGpuMaxPcieLinkGeneration": "pcie.device_max_generation",
    "DeviceGetCurrPcieLinkWidth": "pcie.width",
    "DeviceGetMaxPcieLinkWidth": "pcie.max_width",
    "DeviceGetPcieReplayCounter": "pcie.replays",
    "DeviceGetMemoryInfo_v2": "memory.total_mib memory.reserved_mib memory.used_mib",
    "DeviceGetMigMode": "mig.current mig.pending",
    "DeviceGetUtilizationRates": "utilization.gpu_percent utilization.memory_percent",
}
MILLIWATTS = {
    "DeviceGetPowerUsage": "power.draw_w",
    "DeviceGetPowerManagementLimit": "power.limit_w",
    "DeviceGetEnforcedPowerLimit": "power.enforced_w",
    "DeviceGetPowerManagementDefaultLimit": "power.default_w",
    "DeviceGetPowerManagementLimitConstraints": "power.min_w power.max_w",
}


def scenario(document: dict[str, Any]) -> str:
    major, minor = document["cuda"].split(".")
    lines = {
        "nvmlSystemGetDriverVersion": document["driver"],
        "nvmlSystemGetNVMLVersion": document["nvml"],
        "nvmlSystemGetCudaDriverVersion": int(major) * 1000 + int(minor) * 10,
        "nvmlDeviceGetCount_v2": document["count"],
    }
    for gpu in document["gpus"]:
        lines |= {f"{gpu['index']}:nvml{name}": value for name, value in _gpu(gpu).items()}
    return "".join(f"{name} = {value}\n" for name, value in lines.items())


def _gpu(gpu: dict[str, Any]) -> dict[str, Any]:
    lines: dict[str, Any] = {
        "DeviceValidateInforom": 0,
        "DeviceGetVirtualizationMode": {"none": 0, "passthrough": 1}[gpu["virtualization"]],
        "DeviceGetComputeMode": 0,
        "DeviceGetFieldValues/230": 0,
        "DeviceGetCurrentClocksEventReasons": 1,
        "DeviceGetComputeRunningProcesses_v3": 0,
        "DeviceGetGraphicsRunningProcesses_v3": 0,
    }
    for table, factor in ((PLAIN, 1), (MILLIWATTS, 1000)):
        for function, paths in table.items():
            values = [_at(gpu, path) for path in paths.split()]
            if not any(isinstance(value, dict) for value in values):
                lines[function] = " ".join(_scenario_value(value, factor) for value in values)
    for path, field in FIELDS.items():
        lines |= _told(f"DeviceGetFieldValues/{field}", _at(gpu, path))
    throttle = gpu["throttle"]
    lines |= {f"DeviceGetFieldValues/{field}": int(throttle[n] * 1e6) for n, field in MILLISECONDS.items()}
    lines |= {f"DeviceGetViolationStatus/{policy}": int(throttle[n] * 1e6) for n, policy in VIOLATIONS.items()}
    return lines | _ecc(gpu["ecc"]) | _links(gpu["links"]) | _fabric(gpu["fabric"])


def _ecc(ecc: dict[str, Any]) -> dict[str, Any]:
    lines: dict[str, Any] = {}
    for kind, error in (("corrected", 0), ("uncorrected", 1)):
        for counter, since in enumerate(("volatile", "aggregate")):
            lines[f"DeviceGetTotalEccErrors/{error}/{counter}"] = ecc[f"{kind}_{since}"]
            for part, place in (("dram", 2), ("sram", 7)):
                name = f"DeviceGetMemoryErrorCounter/{error}/{counter}/{place}"
                lines[name] = ecc[f"{part}_{kind}_{since}"]
    return lines


def _links(links: Any) -> dict[str, Any]:
    if isinstance(links, dict):
        return {}
    lines: dict[str, Any] = {"DeviceGetFieldValues/91": len(links)}
    for number, link in enumerate(links):
        lines[f"DeviceGetNvLinkState/{number}"] = int(link["state"] == "active")
        if link["state"] == "active":
            lines[f"DeviceGetNvLinkRemoteDeviceType/{number}"] = REMOTES[link["remote"]]
        for name, field in LINK_FIELDS.items():
            lines |= _told(f"DeviceGetFieldValues/{field}/{number}", link[name])
        for counter, name in enumerate(LINK_COUNTERS):
            lines |= _told(f"DeviceGetNvLinkErrorCounter/{number}/{counter}", link[name])
        if not isinstance(link["effective_ber"], dict):
            lines[f"DeviceGetFieldValues/220/{number}"] = 1 << 8 | 254
            lines[f"DeviceGetFieldValues/222/{number}"] = 0
    return lines


def _fabric(fabric: dict[str, Any]) -> dict[str, Any]:
    if "$absent" in fabric:
        return {}
    mask = sum((1 if fabric[name] else 2) << at for name, at in FLAGS.items() if not isinstance(fabric[name], dict))
    mask |= (fabric["configuration"] == "none") << 8
    words = " ".join(str(byte) for byte in uuid.UUID(fabric["cluster"]).bytes)
    return {"DeviceGetGpuFabricInfoV": f"3 {fabric['status']} {fabric['clique']} {mask} {words}"}


def _told(name: str, value: Any) -> dict[str, Any]:
    return {} if isinstance(value, dict) else {name: value}


def _at(gpu: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        gpu = gpu[key]
    return gpu


def _scenario_value(value: Any, factor: int) -> str:
    return value if isinstance(value, str) else str(int(value * factor))
