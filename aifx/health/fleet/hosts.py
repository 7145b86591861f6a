"""Which nodes: a file with one a line, ranges as Slurm writes them (`n[001-128,200]`), or what Slurm itself says."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from aifx.errors import EnvironmentFault, UsageError

NAME = re.compile(r"(?:[\w.-]+@)?[\w:.][\w.:%-]*")
RANGE = re.compile(r"(\d+)-(\d+)|(\d+)")
FORMS = "one a line: n1, me@n1, n[001-128], http://n1:9470"
MAX_NODES = 100_000


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
        except ValueError as error:
            raise UsageError(
                f"{path}, line {number}: no host", str(error), "one a line: n1, me@n1, n[001-128]"
            ) from None
    if not hosts:
        raise UsageError(f"--hosts {path} names no host", "", FORMS)
    return list(dict.fromkeys(hosts))


def expanded(word: str) -> list[str]:
    """`n[01-03]-[a,b]`: the six names. Raises ValueError for what is no host's name."""
    parts = re.split(r"\[([^\[\]]*)\]", word)
    choices = [[part] if index % 2 == 0 else list(_choices(part)) for index, part in enumerate(parts)]
    names = ["".join(choice) for choice in itertools.islice(itertools.product(*choices), MAX_NODES)]
    # One that begins with "-" would be an option of ssh's.
    if not all(NAME.fullmatch(name) for name in names):
        raise ValueError(f"{word!r} is none")
    return names


def _choices(text: str) -> Iterable[str]:
    for part in text.split(","):
        match = RANGE.fullmatch(part)
        if match is None and not re.fullmatch(r"[\w.-]+", part):
            raise ValueError(f"[{text}] is no range")
        if match is None or match[3]:
            yield part
            continue
        first, last = int(match[1]), int(match[2])
        if last < first or last - first >= MAX_NODES:
            raise ValueError(f"[{text}] is no range")
        yield from (f"{number:0{len(match[1])}}" for number in range(first, last + 1))


def slurm_hosts(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The nodes of the allocation that this runs in. Raises UsageError outside one, EnvironmentFault without Slurm."""
    nodes = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    if not nodes:
        raise UsageError(
            "--slurm asks the nodes of an allocation", "this is none", "salloc --nodes=8 aifx doctor --slurm"
        )
    try:
        return list(dict.fromkeys(expanded_list(nodes)))
    except ValueError as error:
        raise EnvironmentFault("SLURM_JOB_NODELIST cannot be understood", f"{nodes}: {error}") from None


def expanded_list(nodes: str) -> list[str]:
    """`n[1-2,4],m7`: commas within brackets part no names."""
    return [host for word in re.split(r",(?![^\[]*\])", nodes) for host in expanded(word)]
