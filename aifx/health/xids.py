"""Xid and SXid: errors that NVIDIA's GPU and NVSwitch drivers log, grouped by code and device.

catalogues/xid.toml has the meaning of each code.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from aifx.core.facts import Unknown
from aifx.core.redaction import redact
from aifx.health.kernel_log import Line
from aifx.health.tables import read_table

DAY_S = 86_400
BURST_S = 60
"""A burst is the lines of one code and device until this time after its first, so that a storm is many bursts, and a
line more is never a burst less. NVSentinel's health-events-analyzer waits for 180 s without a line instead."""
FATAL_ACTIONS = {
    "CONTACT_SUPPORT", "RESET_GPU", "RESTART_BM", "RESTART_VM", "WORKFLOW_XID_48", "WORKFLOW_NVLINK_ERR",
    "WORKFLOW_NVLINK5_ERR",
}  # fmt: skip
"""NVIDIA's immediate actions that mean that the GPU cannot go on (NVSentinel's FATAL_RESOLUTION_BUCKETS)."""
NVLINK5 = range(144, 151)

XID = re.compile(r"NVRM: Xid \((?P<where>[^)]{1,80})\)[^:]{0,20}: (?P<code>\d{1,6})\b(?P<rest>.*)")
SXID = re.compile(r"SXid \((?P<where>[^)]{1,80})\): (?P<code>\d{1,6}), (?P<word>Non-fatal|Fatal)?(?P<rest>.*)")
SXID_DATA = re.compile(r"Severity \d|Data \{")
PCI = re.compile(r"(?:(?P<domain>[0-9a-fA-F]{4,8}):)?(?P<bus>[0-9a-fA-F]{2}):(?P<slot>[0-9a-fA-F]{2})(?![0-9a-fA-F:])")
LOADED = "NVRM: loading NVIDIA UNIX"
FIRST_OF_LOST = re.compile(r"NVRM: The NVIDIA GPU (?P<where>[0-9a-fA-F:.]{5,20})")
LOST = re.compile(r"NVRM: (?:GPU (?P<where>[0-9a-fA-F:.]{5,20}): .{0,20})?fallen off the bus")
PROCESS = re.compile(r"^, pid='?[^,]{0,40}, name=[^,]{0,40}|^, pid='?[^,]{0,40}")
NVLINK5_TEXT = re.compile(
    # The driver pads its columns: "NETIR_LINK_EVT  Fatal   XC0 i0 Link 08 (0x".
    r"(?P<unit>[A-Z][A-Z0-9_]{2,30})(?:/\w{1,30})? +(?P<word>Nonfatal|Non-fatal|Fatal|Link Fatal)\b"
    r"(?:[^(]{0,80}\( *(?P<first>0x[0-9a-fA-F]{1,8}) +(?P<second>0x[0-9a-fA-F]{1,8}))?"
)
UNIT = re.compile(r"\((GPC \d{1,3}, TPC \d{1,3})|((?:GPC ?\d{1,3} )?GPCCLIENT_\w{1,20})")
RECOVERY = re.compile(r"recovery action changed from .{0,60} to 0x[0-9a-fA-F]{1,8} \((?P<to>[^)]{1,40})\)")


@cache
def catalogue() -> dict[str, Any]:
    """Return xid.toml with codes as numbers, including unused codes."""
    document = read_table("catalogues", "xid.toml")
    unused = {key: value for key, value in document["not_used"].items() if key != "codes"}
    xids = dict.fromkeys(document["not_used"]["codes"], unused)
    xids |= {int(code): entry for code, entry in document["xid"].items()}
    return document | {"xid": xids, "sxid": {int(code): entry for code, entry in document["sxid"].items()}}


@dataclass
class Event:
    """The lines of one code on one device.

    Attributes:
        kind: "Xid" or "SXid".
        unit: the unit of the chip that the first line names; empty if it names none.
        lines: the age of each line in seconds and the unit that it names, oldest first.
        text: the text of the last line.
        is_cured: whether the driver was loaded again since, or reported that the GPU needs nothing more.
    """

    kind: str
    code: int
    device: str
    sub_code: str = ""
    fatal: bool | Unknown = False
    action: str = ""
    unit: str = ""
    lines: list[tuple[float, str]] = field(default_factory=list)
    text: str = ""
    is_cured: bool = False

    @property
    def recent(self) -> list[tuple[float, str]]:
        """The lines of the last day."""
        return [(age, unit) for age, unit in self.lines if age <= DAY_S]


def facts(lines: Iterable[Line]) -> dict[str, list[dict[str, Any]]]:
    """Return `xids` by code, GPU and sub-code; `xid_gpus` by GPU; `sxids` by code and switch.

    `count`, `count_24h`, `fatal_24h` and `same_unit_24h` are numbers of bursts.
    """
    events: dict[Any, Event] = {}
    pending = ""
    for line in lines:
        if "NVRM" in line.text:
            first = FIRST_OF_LOST.search(line.text)
            pending = first["where"] if first else pending
            event = _xid(line.text, pending)
            # Loading the driver cures all GPUs. Xid 154 reports "None" of a GPU that needs nothing more.
            if LOADED in line.text or (event is not None and (event.code, event.sub_code) == (154, "None")):
                for one in events.values():
                    one.is_cured |= event is None or one.device == event.device
        else:
            event = _sxid(line.text) if "SXid" in line.text else None
        if event is not None:
            sub_code = "" if event.code == 154 else event.sub_code
            known = events.setdefault((event.kind, event.code, event.device, sub_code, str(event.fatal)), event)
            known.lines.append((line.age_s, event.unit))
            known.sub_code, known.text, known.is_cured = event.sub_code, line.text, False
    xids = [event for event in events.values() if event.kind == "Xid"]
    gpus = Counter(code for code, _ in {(e.code, e.device) for e in xids if e.recent})
    return {
        "xids": [_facts_of(event) | _xid_facts(event, gpus[event.code]) for event in xids],
        "xid_gpus": [_gpu_facts(device, xids) for device in dict.fromkeys(e.device for e in xids)],
        "sxids": [_facts_of(event) for event in events.values() if event.kind == "SXid"],
    }


def excerpt(text: str) -> str:
    """Return a line, shortened for evidence."""
    return redact(" ".join(text.split()))[:200]


def pci_address(where: str) -> str:
    """Return "0000:3b:00.0" for "PCI:0000:3B:00 GPU-I:05"; a text without an address unchanged."""
    match = PCI.search(where)
    if not match:
        return redact(where)[:40]
    domain = re.sub(r"^0{4}(?=.{4})", "", match["domain"] or "0000")
    return f"{domain}:{match['bus']}:{match['slot']}.0".lower()


def _xid(text: str, pending: str) -> Event | None:
    match = XID.search(text)
    if not match:
        lost = LOST.search(text)
        where = (lost["where"] or pending) if lost else ""
        return Event("Xid", 79, pci_address(where), fatal=True, action="RESTART_BM") if where else None
    code, rest = int(match["code"]), PROCESS.sub("", match["rest"]).lstrip(", ")
    action = str(catalogue()["xid"].get(code, {}).get("now", ""))
    event = Event("Xid", code, pci_address(match["where"]), fatal=action in FATAL_ACTIONS, action=action)
    if unit := UNIT.search(rest):
        event.unit = unit[1] or unit[2]
    if code in NVLINK5:
        _decode_nvlink5(event, rest)
    elif code == 154:
        to = RECOVERY.search(rest)
        event.sub_code = to["to"] if to else excerpt(rest)[:40]
    return event


def _decode_nvlink5(event: Event, rest: str) -> None:
    """Set the unit, whether the error is fatal, and NVIDIA's action for the first two words of the line."""
    match = NVLINK5_TEXT.search(rest)
    if not match:
        event.fatal = Unknown(f"the line of Xid {event.code} does not show whether it is fatal", "read the kernel log")
        return
    # Some drivers name the pipe; NVIDIA's catalogue has "TLW_RX/TLW_RX_PIPE0".
    unit = match["unit"].partition("_PIPE")[0]
    event.sub_code, event.fatal = unit, not match["word"].startswith("Non")
    if match["first"]:
        reason = int(match["first"], 16) >> 20 & 0x3F
        status = f"{int(match['second'], 16):#x}"
        actions = catalogue()["nvlink5"].get(str(event.code), {}).get(unit, {})
        by_reason = unit == "NETIR_LINK_EVT"
        event.sub_code += f" {reason if by_reason else status}"
        event.action = actions.get(str(reason) if by_reason else status, event.action)


def _sxid(text: str) -> Event | None:
    match = SXID.search(text)
    if not match or SXID_DATA.match(match["rest"]):
        return None
    code = int(match["code"])
    entry = catalogue()["sxid"].get(code, {})
    fatal: bool | Unknown = match["word"] == "Fatal"
    if not match["word"]:
        remedy = "read the kernel log and NVIDIA's Fabric Manager User Guide"
        unlisted = Unknown(f"neither the line of SXid {code} nor the catalogue shows whether it is fatal", remedy)
        fatal = entry["class"] != "non_fatal" if entry else unlisted
    return Event("SXid", code, pci_address(match["where"]), fatal=fatal)


def _bursts(lines: Iterable[tuple[float, str]]) -> list[set[str]]:
    """Return the bursts of lines of these ages and units, oldest first, each as its units."""
    found: list[set[str]] = []
    first = math.inf
    for age, unit in sorted(lines, reverse=True):
        if first - age >= BURST_S:
            found.append(set())
            first = age
        found[-1].add(unit)
    return found


def _facts_of(event: Event) -> dict[str, Any]:
    entry = catalogue()[event.kind.lower()].get(event.code, {})
    return {
        "device": event.device,
        "code": event.code,
        "id": f"{event.kind} {event.code}",
        "name": entry.get("name", "in no list that aifx has"),
        "class": entry.get("class", "unlisted"),
        "fatal": event.fatal,
        "count": len(_bursts(event.lines)),
        "count_24h": len(_bursts(event.recent)),
        "lines_24h": len(event.recent),
        "last_age_s": int(min(event.lines)[0]),
        "text": excerpt(event.text),
        "is_cured": event.is_cured,
    }


def _xid_facts(event: Event, gpus: int) -> dict[str, Any]:
    # A burst that names many units comes from a program, which runs on all of them.
    units = [units for units in _bursts((age, unit) for age, unit in event.recent if unit) if len(units) == 1]
    same_unit = max(Counter(unit for (unit,) in units).values(), default=0)
    return {"sub_code": event.sub_code, "nvidia_action": event.action, "gpus_24h": gpus, "same_unit_24h": same_unit}


def _gpu_facts(device: str, xids: Iterable[Event]) -> dict[str, Any]:
    fatal = [event for event in xids if event.device == device and event.fatal is True and event.recent]
    recent = [line for event in fatal for line in event.recent]
    return {
        "device": device,
        "fatal_24h": len(_bursts(recent)),
        "fatal_lines_24h": len(recent),
        "fatal_codes": sorted({event.code for event in fatal}),
    }
