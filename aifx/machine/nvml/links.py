"""A GPU's NVLinks and its place in the fabric of switches, through NVML."""

from __future__ import annotations

import uuid
from typing import Any

from aifx.core.facts import Absent, Facts, Unknown
from aifx.machine.nvml.calls import Calls, also
from aifx.machine.nvml.words import (
    FABRIC_CONFIGURATIONS,
    FABRIC_STATES,
    FABRIC_SUMMARIES,
    LINK_REMOTES,
    LINK_STATES,
    word,
)

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
    state = ask("DeviceGetNvLinkState", number, then=lambda value: word(LINK_STATES, int(value)))
    facts: Facts = {"link": number, "state": state}
    down = Absent("the link is not active")
    if state == "inactive" or isinstance(state, (Absent, Unknown)):
        names = ("remote", *FIELDS_LINK, *COUNTERS, "crc_errors")
        return facts | dict.fromkeys(names, state if isinstance(state, (Absent, Unknown)) else down)
    values = ask.fields(*((field, number) for field in FIELDS_LINK.values()))
    facts |= dict(zip(FIELDS_LINK, values, strict=True))
    for name in ("effective_ber", "symbol_ber"):
        facts[name] = also(facts[name], _ber)
    facts |= _errors(ask, number)
    remote = ask("DeviceGetNvLinkRemoteDeviceType", number, then=lambda value: word(LINK_REMOTES, int(value)))
    return facts | {"remote": remote}


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
    mantissa, exponent = packed >> 8 & 0xF, packed & 0xFF
    return mantissa * 10.0**-exponent


def fabric(ask: Calls) -> Facts | Absent | Unknown:
    """The GPU's registration with the switches; `Absent` where it needs none."""
    info = ask.struct("DeviceGetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v3_t", "c_nvmlGpuFabricInfo_v2_t")
    if isinstance(info, (Absent, Unknown)):
        return info
    state = word(FABRIC_STATES, info.state)
    if state == "not_supported":
        return Absent("this GPU joins no NVLink fabric")
    mask = info.healthMask
    return {
        "state": state,
        "status": info.status if state == "completed" else Absent("the fabric's registration has not completed"),
        "clique": info.cliqueId,
        "cluster": str(uuid.UUID(bytes=bytes(info.clusterUuid))),
        "summary": _summary(info),
        **{name: _flag(name, mask >> shift & 3) for name, shift in FLAGS.items()},
        "configuration": _configuration(mask >> CONFIGURATION_SHIFT & 0xF),
    }


def _summary(info: Any) -> Any:
    if not hasattr(info, "healthSummary") or info.healthSummary == 0:
        return Absent("this driver does not sum up the fabric's health")
    return word(FABRIC_SUMMARIES, info.healthSummary)


def _flag(name: str, bits: int) -> bool | Absent | Unknown:
    if bits == 0:
        return Absent(f"the fabric does not report {name}")
    return bits == 1 if bits < 3 else Unknown(f"{name} is {bits}, which this version does not know")


def _configuration(bits: int) -> str | Absent:
    return word(FABRIC_CONFIGURATIONS, bits) if bits else Absent("the fabric does not report its configuration")
