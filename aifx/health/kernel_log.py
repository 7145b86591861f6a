"""The kernel log's lines, in any of the formats that they are kept in, each with its age.

6,123,456789,-;text                               /dev/kmsg
kern  :info  : [   12.345678] text                dmesg, with or without what stands before the bracket
[Thu Oct 10 03:06:53 2024] text                   dmesg -T
2024-10-10T03:06:53,123456+00:00 text             dmesg --time-format iso
2024-10-10T03:06:53+0000 n1 kernel: text          journalctl -o short-iso, rsyslog
Oct 10 03:06:53 n1 kernel: [12.345] text          journalctl, /var/log/kern.log
{"__REALTIME_TIMESTAMP": "...", "MESSAGE": "..."} journalctl -o json
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from aifx.parsing import parse_json

KMSG = re.compile(r"\d{1,10},\d{1,20},(?P<us>\d{1,18}),[^;]*;(?P<text>.*)")
DMESG = re.compile(
    r"(?:<\d{1,4}>|\w{1,10} *:\w{1,10} *: )?\[ *(?P<s>\d{1,10}\.\d{1,9})\](?:\[ *[TC]\d+\])? ?(?P<text>.*)"
)
DMESG_T = re.compile(r"\[\w{3} (?P<date>\w{3} [ \d]\d \d\d:\d\d:\d\d \d{4})\] ?(?P<text>.*)")
ISO = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:(?P<mark>[.,])(?P<part>\d{1,9}))?"
    r"(?P<zone>Z|[+-]\d\d:?\d\d)? (?P<text>.*)"
)
SYSLOG = re.compile(r"(?P<date>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d) (?P<text>.*)")
FROM_HOST = re.compile(r"\S+ kernel: (?:\[ *\d+\.\d+\] ?)?(?P<text>.*)")
MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
BOOT = re.compile(r"Linux version \d+\.\d+")
LONGEST = 4096


@dataclass(frozen=True)
class Line:
    """Attributes:
    age_s: how long before the reading it was logged.
    text: what was logged.
    """

    age_s: float
    text: str


@dataclass(frozen=True)
class Log:
    """Attributes:
    lines: of this boot, oldest first.
    is_whole: whether it begins where the boot did; a ring buffer loses what is oldest.
    """

    lines: tuple[Line, ...]
    is_whole: bool

    @property
    def seconds(self) -> float:
        """How far back it reaches."""
        return max((line.age_s for line in self.lines), default=0.0)


def parse(text: str, now: float | None = None, uptime: float | None = None) -> Log:
    """The lines of a log.

    Args:
        text: in any of the formats above, also mixed.
        now: when it was read, Unix time; None takes the latest line's time.
        uptime: of the machine when it was read, seconds; None takes the latest line's time.
    """
    stamped: list[tuple[str, float, str]] = []
    kind, at = "", 0.0
    for new_kind, new_at, message in _stamped(text.splitlines()):
        # A line without a time belongs with the one before it.
        kind, at = (new_kind, new_at) if new_kind else (kind, at)
        if BOOT.match(message):
            stamped.clear()
        stamped.append((kind, at, message))
    ends = {k: max((a for other, a, _ in stamped if other == k), default=0.0) for k in ("boot", "unix", "yearless")}
    ends |= {"boot": uptime} if uptime is not None else {}
    ends |= {"unix": now} if now is not None else {}
    lines = tuple(Line(max(ends.get(k, 0.0) - a, 0.0) if k else 0.0, message) for k, a, message in stamped)
    return Log(lines, bool(lines) and BOOT.match(lines[0].text) is not None)


def _stamped(lines: Iterable[str]) -> Iterator[tuple[str, float, str]]:
    """Each line's kind of time ("boot": since then, "unix", "yearless" or "": none), the seconds, the text."""
    year, month = 2000, 0
    for raw in lines:
        line = raw[:LONGEST]
        if line.startswith("{") and (entry := _of_journal(line)):
            yield entry
        elif match := KMSG.match(line):
            yield "boot", int(match["us"]) / 1e6, match["text"]
        elif match := DMESG.match(line):
            yield "boot", float(match["s"]), match["text"]
        elif match := DMESG_T.match(line):
            yield *_unix(match["date"], "%b %d %H:%M:%S %Y"), match["text"]
        elif match := ISO.match(line):
            zone = (match["zone"] or "Z").replace("Z", "+0000").replace(":", "")
            kind, at = _unix(f"{match['date']} {zone}", "%Y-%m-%dT%H:%M:%S %z")
            # Only dmesg writes a comma; the others name host and sender.
            dmesg = match["mark"] == ","
            yield kind, at + float(f"0.{match['part'] or 0}"), match["text"] if dmesg else _of_kernel(match["text"])
        elif match := SYSLOG.match(line):
            # It names no year: one begins where the months go back. 2000 has a 29th of February.
            here = MONTHS.find(match["date"][:3])
            year, month = year + (here < month - 18), here
            kind, at = _unix(f"{match['date']} {year}", "%b %d %H:%M:%S %Y")
            yield "yearless" if kind else "", at, _of_kernel(match["text"])
        elif line and not line.startswith((" ", "--")):
            yield "", 0.0, line


def _unix(date: str, form: str) -> tuple[str, float]:
    try:
        found = datetime.strptime(date, form)
        return "unix", (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return "", 0.0


def _of_kernel(text: str) -> str:
    """What stands behind a syslog line's host and sender; nothing where that was not the kernel."""
    match = FROM_HOST.match(text)
    return match["text"] if match else ""


def _of_journal(line: str) -> tuple[str, float, str] | None:
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    if not isinstance(entry, dict):
        return None
    message = entry.get("MESSAGE")
    if isinstance(message, list):  # bytes that are no UTF-8
        message = bytes(b for b in message if isinstance(b, int) and 0 <= b < 256).decode("utf-8", "replace")
    time = str(entry.get("__REALTIME_TIMESTAMP", ""))
    if not isinstance(message, str):
        return None
    return ("unix", int(time) / 1e6, message) if re.fullmatch(r"\d{1,18}", time) else ("", 0.0, message)
