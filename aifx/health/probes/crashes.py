"""Kernel logs of crashes that firmware kept during the reboot (pstore), or that systemd-pstore archived."""

from __future__ import annotations

import re
import time
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health import kernel_events
from aifx.health.host import Host
from aifx.health.kernel_log import parse
from aifx.health.probing import probe
from aifx.health.xids import excerpt

PSTORE = "/sys/fs/pstore"
ARCHIVE = "/var/lib/systemd/pstore"
ARCHIVE_DEPTH = 2
MOST_RECORDS = 200
RECORD_BYTES = 1 << 20
RECORD = re.compile(r"dmesg-(?P<backend>[a-z_]{1,20})-(?P<id>\d{1,20})(?P<compressed>\.enc\.z)?")
HEADER = re.compile(r"^(?:Panic|Oops|Emergency|Shutdown|Unknown)#\d+ Part\d+$|^dmesg-[\w.-]+:$", re.MULTILINE)
PART_DIGITS = 6
"""Digits of a record's number, from the right, that are the part number of a crash (systemd, src/pstore/pstore.c)."""

OF_HARDWARE = re.compile(
    r"[Mm]achine check|MCA |broadcast exception|[Hh]ardware error|NMI|SError|EDAC|Failed kernel mode recovery"
)
"""Texts in the reason of a panic that processor, memory or firmware caused."""


@probe("crashes")
def collect(host: Host) -> list[dict[str, Any]] | Absent:
    found = [*_folder(host, PSTORE, 0), *_folder(host, ARCHIVE, ARCHIVE_DEPTH)]
    names = [host.names(PSTORE), host.names(ARCHIVE)]
    if not found and (any(isinstance(n, Unknown) for n in names) or all(isinstance(n, Absent) for n in names)):
        return Absent(f"{PSTORE} is not readable: run aifx doctor as root")
    return found


def _folder(host: Host, folder: str, depth: int) -> list[dict[str, Any]]:
    """Return the crashes with records in a folder; the archive has a folder per crash."""
    names = host.names(folder)
    if not isinstance(names, list):
        return []
    if "dmesg.txt" in names:  # the joined records of this folder
        return [_crash(host, [f"{folder}/dmesg.txt"])]
    crashes: dict[tuple[str, str], list[str]] = {}
    for name in names[-MOST_RECORDS:]:
        if match := RECORD.fullmatch(name):
            crashes.setdefault((match["backend"], match["id"][:-PART_DIGITS]), []).append(f"{folder}/{name}")
    # The last part has the earliest lines.
    found = [_crash(host, paths[::-1]) for paths in crashes.values()]
    return found + [c for name in names[-MOST_RECORDS:] if depth for c in _folder(host, f"{folder}/{name}", depth - 1)]


def _crash(host: Host, paths: list[str]) -> dict[str, Any]:
    texts = [host.read(path, max_bytes=RECORD_BYTES) for path in paths if not path.endswith(".enc.z")]
    text = "\n".join(HEADER.sub("", text) for text in texts if isinstance(text, str))
    reason, line = _reason(text) if text else ("its record cannot be read here", "")
    cause = "hardware" if OF_HARDWARE.search(reason) else "kernel"
    written = host.modified(paths[-1])
    age = max(int(time.time() - written), 0) if isinstance(written, float) else written
    return {"device": paths[-1], "reason": reason, "cause": cause, "age_s": age, "text": line}


def _reason(text: str) -> tuple[str, str]:
    """Return why the kernel crashed, and the line with the reason: its last message, otherwise the first failure."""
    events = [(*kernel_events.kind_of(line.text), line.text) for line in parse(text).lines]
    for wanted, ordered in (("panics", events[::-1]), ("oopses", events), ("lockups", events)):
        for kind, match, line in ordered:
            if match is not None and kind == wanted:
                return excerpt(match["what"]), excerpt(line)
    return "the record does not say why", ""
