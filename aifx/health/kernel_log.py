"""Read the lines of a kernel log, in any of these formats, each with its age.

6,123456789,-;text                               /dev/kmsg
[   12.345678] text                              dmesg, pstore
[Thu Oct 10 03:06:53 2024] text                  dmesg -T
[Oct10 03:06] text, then [  +0.123456] text      dmesg -e
2024-10-10T03:06:53,123456+00:00 text            dmesg --time-format iso
kern  :info  : [   12.345678] text               any of dmesg's formats with -x
Oct 10 03:06:53 n1 kernel: [12.345] text         journalctl, short-precise too; /var/log/messages, kern.log
2024-10-10T03:06:53+0000 n1 kernel: text         journalctl -o short-iso, rsyslog
Thu 2024-10-10 03:06:53 UTC n1 kernel: text      journalctl -o short-full
[   12.345678] n1 kernel: text                   journalctl -o short-monotonic
1728529613.123456 n1 kernel: text                journalctl -o short-unix
{"__REALTIME_TIMESTAMP": "...", "MESSAGE": "..."} journalctl -o json
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from aifx.core.parsing import parse_json

LEVEL = r"(?:<\d{1,4}>|\w{1,8} *:\w{1,8} *: )?"  # dmesg -r and -x
LEVEL_NUMBER = re.compile(r"^<\d{1,4}>")
SECONDS = r"\d{1,10}\.\d{1,9}"
CALLER = r"(?: ?\[ *[TC]\d+\])?"
DELTA = r"(?: <[ \d.]{1,20}>)?"
KMSG = re.compile(r"\d{1,10},\d{1,20},(?P<us>\d{1,18}),[^;]*;(?P<text>.*)")
DMESG = re.compile(
    rf"{LEVEL}\[(?: *(?P<s>{SECONDS})| *\+(?P<later>{SECONDS})|(?P<minute>\w{{3}}[ \d]\d \d\d:\d\d)"
    rf"|\w{{3}} (?P<date>\w{{3}} [ \d]\d \d\d:\d\d:\d\d \d{{4}})){DELTA}\]{CALLER} ?(?P<text>.*)"
)
ISO = re.compile(
    rf"{LEVEL}(?P<date>\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d(?:(?P<mark>[.,])\d{{1,9}})?(?:Z|[+-]\d\d:?\d\d)?)"
    rf"{CALLER} (?P<text>.*)"
)
SHORT_FULL = re.compile(
    r"\w{2,6}\.? (?P<date>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d{1,6})? "
    r"(?:UTC|GMT|(?P<zone>[+-]\d{2,4})|(?P<other>[A-Z]\w{1,5})) (?P<text>.*)"
)
SHORT_UNIX = re.compile(r"(?P<s>\d{9,11}\.\d{1,9}) (?P<text>.*)")
SYSLOG = re.compile(r"(?P<date>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d)(?:\.\d{1,6})? (?P<text>.*)")
FROM_HOST = re.compile(rf"\S+ kernel: (?:\[ *\d+\.\d+\]{CALLER} ?)?(?P<text>.*)")
MONOTONIC = re.compile(r"^\[ *\d+\.\d+\] (?P<host>\S+ )kernel: ", re.MULTILINE)
LINE = re.compile(r"\n(?=\S)")
BOOT = "Linux version "
LONGEST = 4096
BLOCK_CHARS = 1 << 20
HALF_YEAR_S = 183 * 86_400
LEAP_YEAR = 2000  # of dates without a year


@dataclass(frozen=True)
class Line:
    """A message, and the time from it to the reading."""

    age_s: float
    text: str


@dataclass(frozen=True)
class Log:
    """Attributes:
    lines: the lines of this boot, oldest first.
    is_whole: whether it starts with the boot; a ring buffer loses its oldest lines.
    unread_chars: the size of the text before these lines that was not evaluated for lack of time.
    untimed: the number of lines without a readable time.
    untimed_text: one of them.
    """

    lines: tuple[Line, ...]
    is_whole: bool
    unread_chars: int = 0
    untimed: int = 0
    untimed_text: str = ""

    @property
    def seconds(self) -> float:
        """The age of the oldest line."""
        return max((line.age_s for line in self.lines), default=0.0)


class Entry(NamedTuple):
    """A line before its time is converted to an age.

    Attributes:
        clock: the clock of its time: "boot" (since boot), "unix", "local" (of an unknown zone), "yearless", "" (not
            readable), "above" (the time of the line before), "later" (relative to the line before).
        at: the time in seconds.
        text: the message; empty if another program than the kernel wrote it.
    """

    clock: str
    at: float
    text: str


def parse(text: str, now: float | None = None, uptime: float | None = None, give_up_at: float = math.inf) -> Log:
    """Return the lines of a log, read from its end back to the start of this boot.

    Args:
        text: a log in any of the formats above, also mixed.
        now: the time of the reading, Unix time; None takes the time of the latest line.
        uptime: the machine's uptime at the reading, in seconds; None takes the time of the latest line.
        give_up_at: the time, of `time.monotonic`, at which reading stops.
    """
    host = match["host"] if (match := MONOTONIC.search(text)) else ""
    blocks: list[list[Entry]] = []
    unread, is_whole = len(text), False
    while unread and not is_whole and (not blocks or time.monotonic() < give_up_at):
        begin = _block_begin(text, unread)
        block = list(_entries(text[begin:unread].split("\n"), host))
        boots = [number for number, entry in enumerate(block) if entry.text.startswith(BOOT)]
        is_whole = bool(boots)
        blocks.append(block[boots[-1] :] if boots else block)
        unread = begin
    timed = list(_timed(entry for block in reversed(blocks) for entry in block))
    ends: dict[str, float] = {}
    for entry, _ in timed:
        ends[entry.clock] = max(entry.at, ends.get(entry.clock, 0.0))
    ends |= {"boot": uptime} if uptime is not None else {}
    ends |= {"unix": now} if now is not None else {}
    lines = tuple(Line(max(ends[e.clock] - e.at, 0.0) if e.clock else 0.0, e.text) for e, _ in timed)
    untimed = [entry.text for entry, is_timed in timed if not is_timed]
    return Log(lines, is_whole, 0 if is_whole else unread, len(untimed), untimed[0] if untimed else "")


def _block_begin(text: str, end: int) -> int:
    """Return the start of a line about one block before `end`, if possible not a continuation of another line."""
    begin = end - BLOCK_CHARS
    if begin <= 0:
        return 0
    cut = LINE.search(text, begin, end - 1)
    return cut.end() if cut else text.rfind("\n", 0, begin) + 1


def _timed(entries: Iterable[Entry]) -> Iterator[tuple[Entry, bool]]:
    """Set missing times to that of the line before. If dates without a year go back, a new year begins.

    The second value is whether the time of the line, or of the line that it continues, is readable.
    """
    clock, at, year_s, latest, is_timed = "", 0.0, 0.0, 0.0, True
    for entry in entries:
        is_timed = is_timed if entry.clock == "above" else bool(entry.clock)
        if entry.clock == "later":
            at += entry.at
        elif entry.clock not in ("", "above"):
            clock, at = entry.clock, entry.at
        if entry.clock == "yearless":
            year_s += 366 * 86_400.0 if at < latest - HALF_YEAR_S else 0.0
            latest, at = at, at + year_s
        yield Entry(clock, at, entry.text), is_timed


def _entries(lines: Iterable[str], host: str) -> Iterator[Entry]:
    """Yield each line with its clock; `host` is the host name that `journalctl -o short-monotonic` writes."""
    is_kmsg, is_kernel = False, True
    for raw in lines:
        line = raw[:LONGEST].rstrip("\r")
        is_next = line.startswith((" ", "\t"))
        if not line or line.startswith("-- ") or (is_next and (is_kmsg or not is_kernel)):
            continue  # messages of journalctl, device properties of /dev/kmsg, lines of other programs
        if is_next:
            yield Entry("above", 0.0, line.strip())
            continue
        is_kmsg = line[0].isdigit() and KMSG.match(line) is not None
        entry = _entry(line, host)
        is_kernel = bool(entry.text)
        # One record may have several lines.
        mark = "\\x0a" if is_kmsg else "\n"
        if mark not in entry.text:
            yield entry
            continue
        first, *others = entry.text.split(mark)
        yield entry._replace(text=first)
        yield from (Entry("above", 0.0, other) for other in others)


def _entry(line: str, host: str) -> Entry:
    if line.startswith("{") and (entry := _of_journal(line)):
        return entry
    if match := KMSG.match(line):
        return Entry("boot", int(match["us"]) / 1e6, match["text"])
    if match := DMESG.match(line):
        text = match["text"]
        if match["s"]:
            return Entry("boot", float(match["s"]), _of_kernel(text) if host and text.startswith(host) else text)
        if match["later"]:
            return Entry("later", float(match["later"]), text)
        if match["minute"]:
            return Entry(*_unix(f"{match['minute']} {LEAP_YEAR}", "%b%d %H:%M %Y", "yearless"), text)
        return Entry(*_unix(match["date"], "%b %d %H:%M:%S %Y"), text)
    if match := ISO.match(line):
        # Only dmesg writes a comma; other programs write host and sender.
        return Entry(*_unix(match["date"]), match["text"] if match["mark"] == "," else _of_kernel(match["text"]))
    if match := SHORT_FULL.match(line):
        time_of = _unix(match["date"] + (match["zone"] or ""), clock="local" if match["other"] else "unix")
        return Entry(*time_of, _of_kernel(match["text"]))
    if match := SHORT_UNIX.match(line):
        return Entry("unix", float(match["s"]), _of_kernel(match["text"]))
    if match := SYSLOG.match(line):
        return Entry(*_unix(f"{match['date']} {LEAP_YEAR}", "%b %d %H:%M:%S %Y", "yearless"), _of_kernel(match["text"]))
    return Entry("", 0.0, LEVEL_NUMBER.sub("", line))


@lru_cache(maxsize=256)
def _unix(date: str, form: str = "", clock: str = "unix") -> tuple[str, float]:
    """Return the clock, "" if it is not readable, and the time. Without a format, the time is in ISO 8601."""
    try:
        found = datetime.strptime(date, form) if form else datetime.fromisoformat(date)
        return clock, (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return "", 0.0


def _of_kernel(text: str) -> str:
    """Return the text after a syslog line's host and sender; empty if the sender is not the kernel."""
    match = FROM_HOST.match(text)
    return match["text"] if match else ""


def _of_journal(line: str) -> Entry | None:
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    message = entry.get("MESSAGE") if isinstance(entry, dict) else None
    if isinstance(message, list):  # bytes that are not UTF-8
        message = bytes(b for b in message if isinstance(b, int) and 0 <= b < 256).decode("utf-8", "replace")
    if not isinstance(message, str):
        return None
    at = str(entry.get("__REALTIME_TIMESTAMP", ""))
    return Entry("unix", int(at) / 1e6, message) if re.fullmatch(r"\d{1,18}", at) else Entry("", 0.0, message)
