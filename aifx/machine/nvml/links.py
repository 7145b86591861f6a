"""A GPU's NVLinks and its place in the fabric of switches, through NVML."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

from aifx.core.facts import Absent, Facts, Unknown
from aifx.machine.nvml.calls import Calls, also, word

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
"""Where each pair of bits begins in the fabric's health mask: 1 is true, 2 false, 0 not reported."""
CONFIGURATION_SHIFT = 8


def links(ask: Calls) -> list[Facts] | Absent | Unknown:
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
    """Of what is there: Hopper counts the CRC errors of flits alone."""
    if isinstance(one, Absent) or isinstance(other, Unknown):
        return other
    return one if isinstance(other, Absent) else also(one, lambda number: number + other)


def _ber(packed: int) -> float:
    """A bit error rate as NVML packs it: mantissa x 10^-exponent (NVML_NVLINK_BER_* of nvml.h)."""
    return (packed >> 8 & 0xF) * 10.0 ** -(packed & 0xFF)


def fabric(ask: Calls) -> Facts | Absent | Unknown:
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
