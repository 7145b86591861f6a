"""The kernel log: Xids, SXids and the events that name a fault. Only what is understood is kept, never whole logs."""

from __future__ import annotations

import os
import time
from typing import Any

from aifx.health import kernel_events, xids
from aifx.health.facts import Absent, Unknown
from aifx.health.host import CAPTURED, Host
from aifx.health.kernel_log import Log, parse
from aifx.health.probes import Probe
from aifx.health.xids import DAY_S

GIVES = ("kernel_log", "xids", "xid_gpus", "sxids", "kernel_events")
KMSG = "/dev/kmsg"
LOGS = (f"/{CAPTURED}/kmsg.txt", f"/{CAPTURED}/dmesg.txt", "/var/log/dmesg", "/var/log/kern.log")
COMMANDS = (
    ("journalctl", "-k", "-b", "--lines=20000", "-o", "json", "--output-fields=MESSAGE", "--no-pager"),
    ("dmesg", "--time-format", "iso"),
)
RECORD_BYTES = 16_384  # a shorter buffer than a record is EINVAL
MOST_BYTES = 1 << 25
LIMIT_S = 1.5
MEND = "run aifx doctor as root, or `sysctl kernel.dmesg_restrict=0`, or join the group adm or systemd-journal"
GRANT = f"grant {KMSG} to the container (`--device {KMSG}`, or a hostPath volume) with the capability SYSLOG"
LIMITED_CLASSES = ("0x0200", "0x0207", "0x0300", "0x0302", "0x1200")
"""PCI classes whose narrow link costs: network, InfiniBand, GPUs, accelerators."""


def collect(host: Host) -> dict[str, Any]:
    log = read_log(host)
    if not isinstance(log, Log):
        return dict.fromkeys(GIVES, log)
    events = kernel_events.facts(log.lines)
    events["pcie_narrow"] = [event for event in events["pcie_narrow"] if _matters(host, event["device"])]
    day = min(_uptime(host) or DAY_S, DAY_S)
    lost = 0.0 if log.is_whole else max(day - log.seconds, 0.0)
    told = {"reach_s": int(log.seconds), "lines": len(log.lines), "lost_of_day_s": int(lost)}
    return {"kernel_log": told, "kernel_events": events, **xids.facts(log.lines)}


def read_log(host: Host) -> Log | Absent | Unknown:
    """The kernel's lines since the boot, as many as are left."""
    return _live(host) if host.is_live else _of_tree(host)


def _live(host: Host) -> Log | Absent | Unknown:
    try:
        return parse(_read_kmsg(), uptime=_uptime(host))
    except FileNotFoundError:
        return Absent(f"there is no {KMSG} here: {GRANT}")
    except OSError as error:
        denied = f"the kernel log may not be read: {KMSG}: {error.strerror}"
    for command in COMMANDS:
        said = host.run(*command, limit_s=LIMIT_S)
        log = parse(said, now=time.time()) if isinstance(said, str) else None
        if log and log.lines:  # journalctl has no entries, and no error, for one who may not see them
            return log
    return Unknown(denied, MEND)


def _read_kmsg() -> str:
    """Every record that is there, without waiting for another. Raises OSError."""
    file = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK)
    chunks, size, ends = [], 0, time.monotonic() + LIMIT_S
    try:
        while size < MOST_BYTES and time.monotonic() < ends:
            try:
                chunk = os.read(file, RECORD_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:  # records were overwritten meanwhile: the next read gives the oldest left
                continue
            if not chunk:
                break
            chunks.append(chunk)
            size += len(chunk)
    finally:
        os.close(file)
    return b"".join(chunks).decode("utf-8", "replace")


def _of_tree(host: Host) -> Log | Absent | Unknown:
    for path in LOGS:
        text = host.read(path, max_bytes=MOST_BYTES)
        if isinstance(text, str):
            return parse(text, uptime=_uptime(host))
        if isinstance(text, Unknown):
            return text
    return Absent(f"no kernel log here ({', '.join(LOGS)}), and no {KMSG}: {GRANT}")


def _uptime(host: Host) -> float | None:
    text = host.read("/proc/uptime")
    try:
        return float(text.split()[0]) if isinstance(text, str) else None
    except (ValueError, IndexError):
        return None


def _matters(host: Host, device: str) -> bool:
    """Whether a narrow PCIe link of a device costs anything here: the kernel logs those of every class."""
    told = host.read(f"/sys/bus/pci/devices/{device}/class")
    return isinstance(told, str) and told.startswith(LIMITED_CLASSES)


PROBES = (Probe("kernel_log", GIVES, collect, limit_s=4.0),)
