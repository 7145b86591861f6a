"""Which nodes: a file with one a line, ranges as Slurm writes them (`n[001-128,200]`), or what Slurm itself says."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from aifx.core.errors import EnvironmentFault, UsageError

NAME = re.compile(r"(?:[\w.-]+@)?[\w:.][\w.:%-]*")
RANGE = re.compile(r"(\d+)-(\d+)|(\d+)")
FORMS = "one a line: n1, me@n1, n[001-128], http://n1:9470"
MAX_NODES = 100_000
MAX_DIGITS = 40


def is_address(target: str) -> bool:
    """Whether a node is asked through its agent."""
    return target.startswith(("http://", "https://"))


def read_hosts(path: Path) -> list[str]:
    """The nodes of a file (`-` is stdin), each once, in order. Raises UsageError that names the line."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--hosts {path} cannot be read", why, f"ls -l {path}") from None
    hosts = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        try:
            hosts += [host for word in words for host in ([word] if is_address(word) else expanded(word))]
            _check_number(hosts)
        except ValueError as error:
            raise UsageError(
                f"{path}, line {number}: no host", str(error), "one a line: n1, me@n1, n[001-128]"
            ) from None
    if not hosts:
        raise UsageError(f"--hosts {path} names no host", "", FORMS)
    return list(dict.fromkeys(hosts))


def expanded(word: str) -> list[str]:
    """`n[01-03]-[a,b]`: the six names. Raises ValueError for what is no host's name, and for more than MAX_NODES."""
    names = [""]
    for index, part in enumerate(re.split(r"\[([^\[\]]*)\]", word)):
        choices = [part] if index % 2 == 0 else _choices(part)
        if len(names) * len(choices) > MAX_NODES:
            raise ValueError(f"{word[:60]!r} means more than {MAX_NODES:,} nodes")
        names = [name + choice for name in names for choice in choices]
    # One that begins with "-" would be an option of ssh's.
    if not all(NAME.fullmatch(name) for name in names):
        raise ValueError(f"{word[:60]!r} is none")
    return names


def _choices(text: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        match = RANGE.fullmatch(part)
        if match is None and not re.fullmatch(r"[\w.-]+", part):
            raise ValueError(f"[{text[:60]}] is no range")
        if match is None or match[3]:
            found.append(part)
            continue
        if len(match[1]) + len(match[2]) > MAX_DIGITS:
            raise ValueError(f"[{text[:60]}] is no range")
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise ValueError(f"[{text[:60]}] is no range")
        if len(found) + last - first >= MAX_NODES:
            raise ValueError(f"[{text[:60]}] means more than {MAX_NODES:,} nodes")
        found += (f"{number:0{len(match[1])}}" for number in range(first, last + 1))
    return found


def slurm_hosts(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The nodes of the allocation that this runs in. Raises UsageError outside one, EnvironmentFault without Slurm."""
    nodes = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    if not nodes:
        raise UsageError(
            "--slurm asks the nodes of an allocation", "this is none", "salloc --nodes=8 aifx doctor fleet --slurm"
        )
    try:
        return list(dict.fromkeys(expanded_list(nodes)))
    except ValueError as error:
        raise EnvironmentFault("SLURM_JOB_NODELIST cannot be understood", f"{nodes}: {error}") from None


def expanded_list(nodes: str) -> list[str]:
    """`n[1-2,4],m7`: commas within brackets part no names."""
    hosts: list[str] = []
    for word in re.split(r",(?![^\[]*\])", nodes):
        hosts += expanded(word)
        _check_number(hosts)
    return hosts


def _check_number(hosts: Sequence[str]) -> None:
    if len(hosts) > MAX_NODES:
        raise ValueError(f"these are more than {MAX_NODES:,} nodes")
