"""The kernel log: Xids, SXids and events that name a fault. Only recognized events are kept, never whole logs."""

from __future__ import annotations

import errno
import os
import re
import time
from dataclasses import replace
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health import kernel_events, xids
from aifx.health.host import CAPTURED, Host
from aifx.health.kernel_log import Log, parse
from aifx.health.probing import probe, search_file, text_of
from aifx.health.xids import DAY_S, excerpt

GIVES = ("kernel_log", "xids", "xid_gpus", "sxids", "kernel_events")
KMSG = "/dev/kmsg"
MESSAGES = "/var/log/messages"  # of all programs, so it may have no line of the kernel
LOGS = (
    f"/{CAPTURED}/kmsg.txt",
    f"/{CAPTURED}/dmesg.txt",
    "/var/log/kern.log",
    MESSAGES,
    "/var/log/dmesg",  # what was logged until the machine was up
)
COMMANDS = (
    ("journalctl", "-k", "-b", "--lines=20000", "-o", "json", "--output-fields=MESSAGE", "--no-pager"),
    ("dmesg", "--time-format", "iso"),
)
RECORD_BYTES = 16_384  # a buffer shorter than a record is EINVAL
MOST_BYTES = 1 << 25
LIMIT_S = 1.5
PARSE_LIMIT_S = EVENTS_LIMIT_S = 1.0
"""Part of the probe's 6 s: reading the Xids takes at most twice as long, because it stops where the events do."""
UNREADABLE_PERCENT = 50
REMEDY = "run aifx doctor as root, or `sysctl kernel.dmesg_restrict=0`, or join the group adm or systemd-journal"
RECAPTURE = "capture it with `dmesg --time-format iso` or `journalctl -k -b -o short-iso`"
GRANT = f"grant {KMSG} to the container (`--device {KMSG}`, or a hostPath volume) with the capability SYSLOG"
LIMITED_CLASSES = ("0x0200", "0x0207", "0x0300", "0x0302", "0x1200")
"""PCI classes for which a narrow link matters: network, InfiniBand, GPUs, accelerators. The kernel logs every class."""
CARD = re.compile(r"\(capable of .{1,40} x(?:8|12|16|32) link")
"""A device that can have 8 lanes or more, such as these. Drives have 4 at most."""


@probe(*GIVES, limit_s=6.0)
def collect(host: Host) -> dict[str, Any]:
    log = read_log(host)
    if not isinstance(log, Log):
        return dict.fromkeys(GIVES, log)
    events, searched = kernel_events.facts(log.lines, time.monotonic() + EVENTS_LIMIT_S)
    older, newer = log.lines[: len(log.lines) - searched], log.lines[len(log.lines) - searched :]
    log = replace(log, lines=newer, unread_chars=log.unread_chars + sum(len(line.text) + 1 for line in older))
    events["pcie_narrow"] = [event for event in events["pcie_narrow"] if _is_card(host, event)]
    return {"kernel_log": _of_log(log, _uptime(host)), "kernel_events": events, **xids.facts(log.lines)}


def _is_card(host: Host, event: dict[str, Any]) -> bool:
    """Return whether a narrow link of the device matters. A copy may lack the class, and a device that is gone does."""
    pci_class = text_of(host, f"/sys/bus/pci/devices/{event['device']}/class")
    return pci_class.startswith(LIMITED_CLASSES) if pci_class else CARD.search(event["text"]) is not None


def _of_log(log: Log, uptime: float | None) -> dict[str, Any]:
    """Return how far the log reaches back, and how much of it is readable."""
    day = min(uptime or DAY_S, DAY_S)
    lost = 0.0 if log.is_whole or log.unread_chars else max(day - log.seconds, 0.0)
    untimed = 100 * log.untimed / max(len(log.lines), 1)
    example = excerpt(log.untimed_text)
    why = f"the time of {log.untimed} of the kernel log's {len(log.lines)} lines is not understood, such as {example!r}"
    return {
        "reach_s": int(log.seconds),
        "lines": len(log.lines),
        "lost_of_day_s": int(lost),
        "unread_bytes": log.unread_chars,
        "untimed_percent": Unknown(why, RECAPTURE) if untimed >= UNREADABLE_PERCENT else untimed,
        "untimed_line": example,
    }


def read_log(host: Host) -> Log | Absent | Unknown:
    """Return the kernel's lines since the boot that are still kept."""
    if not host.is_live:
        return _of_tree(host)
    try:
        return _parse(_read_kmsg(), uptime=_uptime(host))
    except FileNotFoundError:
        return Absent(f"there is no {KMSG} here: {GRANT}")
    except OSError as error:
        denied = f"the kernel log could not be read: {KMSG}: {error.strerror}"
    for command in COMMANDS:
        output = host.run(*command, limit_s=LIMIT_S)
        log = _parse(output, now=time.time()) if isinstance(output, str) else None
        if log and log.lines:  # journalctl prints neither entries nor an error for a user without permission
            return log
    return Unknown(denied, REMEDY)


def _parse(text: str, now: float | None = None, uptime: float | None = None) -> Log:
    return parse(text, now, uptime, time.monotonic() + PARSE_LIMIT_S)


def _read_kmsg() -> str:
    """Return all records without waiting for another. Raises OSError, also if this takes too long."""
    file = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK)
    chunks, ends = [], time.monotonic() + LIMIT_S
    try:
        while True:
            try:
                chunk = os.read(file, RECORD_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:  # records were overwritten meanwhile: the next read returns the oldest one left
                continue
            if not chunk:
                break
            chunks.append(chunk)
            if time.monotonic() > ends:  # the oldest come first, and the newest matter
                raise TimeoutError(errno.ETIMEDOUT, f"reading took more than {LIMIT_S:g} s")
    finally:
        os.close(file)
    return b"".join(chunks).decode("utf-8", "replace")


def _of_tree(host: Host) -> Log | Absent | Unknown:
    """Return the first log of a copied tree with a recognized line of the kernel; otherwise the first with a line."""
    strange: Log | Unknown | None = None
    for path in LOGS:
        found = host.tail(path, MOST_BYTES)
        if isinstance(found, Unknown):
            return found
        if isinstance(found, Absent):
            continue
        text, skipped = found
        log = _parse(text.partition("\n")[2] if skipped else text, uptime=_uptime(host))
        log = log if log.is_whole else replace(log, unread_chars=log.unread_chars + skipped)
        if not any(line.text for line in log.lines):
            nothing = Unknown(f"aifx recognizes no line of {path} as the kernel's", RECAPTURE)
            strange = strange or (nothing if text.strip() and path != MESSAGES else None)
        elif log.untimed < len(log.lines):
            return log
        else:  # such as "dmesg: read kernel buffer failed"
            strange = strange or log
    return strange or Absent(f"no kernel log here ({', '.join(LOGS)}), and no {KMSG}: {GRANT}")


def _uptime(host: Host) -> float | None:
    uptime = search_file(host, "/proc/uptime", r"^[\d.]+")
    return float(uptime[0]) if isinstance(uptime, re.Match) else None
