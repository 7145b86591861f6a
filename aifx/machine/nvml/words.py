"""NVML's enumerations and error codes as words (nvml.h). A number without a word stays a number, which no rule knows,
so it is never healthy."""

from __future__ import annotations

from aifx.core.facts import Absent, Unknown

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
CLOCK_REASONS = {
    0: "idle",
    1: "application_clocks",
    2: "software_power_cap",
    3: "hardware_slowdown",
    4: "sync_boost",
    5: "software_thermal",
    6: "hardware_thermal",
    7: "power_brake",
    8: "display_clocks",
}
"""By bit."""

FAULT_REASONS = ("hardware_slowdown", "software_thermal", "hardware_thermal", "power_brake")
"""Those of a fault; idle, application clocks and the power cap are none."""

LIBRARY_STATES = {9: "not_loaded", 12: "no_library", 18: "library_mismatch"}
"""Why NVML cannot start, by error code."""

GPU_STATES = {15: "lost", 16: "reset_required"}
"""Errors of the GPU itself, not of the query."""

NOT_THERE = {
    2: "this driver does not know the query",
    3: "this GPU or driver does not report it",
    6: "there is none",
    13: "this driver's NVML has no such function",
    21: "there are no data",
    22: "a virtual GPU does not report it",
    25: "this driver's NVML has another version of the function",
    26: "this driver no longer reports it",
}
"""Errors for a part that is absent, not one that failed."""

NO_PERMISSION = 4


def word(table: dict[int, str], value: int) -> str:
    return table.get(value, str(value))


def reasons(mask: int) -> list[str]:
    """The clocks' event reasons in a mask."""
    return [word(CLOCK_REASONS, bit) for bit in range(64) if mask >> bit & 1]


def failure(what: str, code: int, text: str) -> Absent | Unknown:
    """Return the value that an error represents."""
    if code in NOT_THERE:
        return Absent(f"{what}: {NOT_THERE[code]}")
    if code in GPU_STATES:
        # One finding reports that; its values are no findings of their own.
        return Absent(f"the GPU is {GPU_STATES[code].replace('_', ' ')}")
    if code == NO_PERMISSION:
        return Unknown(f"{what}: {text}", "run aifx doctor as root")
    return failed(what, code, text)


def failed(what: str, code: int, text: str) -> Unknown:
    """An error that no healthy machine has."""
    why = f"{what}: {text} (NVML error {code})"
    return Unknown(why, "look for NVRM in the kernel log; `nvidia-bug-report.sh` collects what NVIDIA asks for")
