"""Control groups, version 1 and 2: the limits of this process."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host
from aifx.health.probing import search_file, text_of

CGROUPS = "/sys/fs/cgroup"
NO_LIMIT = 1 << 60
"""Version 1 writes the largest page-aligned number if there is no limit."""

Number = int | Absent | Unknown


def folders(host: Host, controller: str) -> tuple[int, list[str]]:
    """Return the version, and the folders whose limits apply to this process, its own first, then its ancestors."""
    lines = [line.split(":", 2) for line in text_of(host, "/proc/self/cgroup").splitlines() if line.count(":") >= 2]
    for _, controllers, path in lines:
        if controller in controllers.split(","):
            # If several are mounted as one ("cpu,cpuacct"), most distributions link each name to it.
            name = next((n for n in (controller, controllers) if host.exists(f"{CGROUPS}/{n}")), controller)
            return 1, _with_ancestors(host, f"{CGROUPS}/{name}", path)
    own = next((path for number, _, path in lines if number == "0"), "/")
    return 2, _with_ancestors(host, CGROUPS, own)


def _with_ancestors(host: Host, base: str, path: str) -> list[str]:
    """Return the folder of a control group and its ancestors; the mount's root if only the host has that path."""
    own = PurePosixPath(path.lstrip("/"))
    found = [f"{base}/{p}".removesuffix("/.") for p in (own, *own.parents)]
    return [folder for folder in dict.fromkeys(found) if host.exists(folder)] or [base]


def least(host: Host, where: list[str], name: str) -> tuple[Number, str]:
    """Return the smallest limit, and the folder that sets it."""
    limits = [(number(host, f"{folder}/{name}"), folder) for folder in where]
    if numbers := [(limit, folder) for limit, folder in limits if isinstance(limit, int)]:
        return min(numbers)
    unknown = next((limit for limit, _ in limits if isinstance(limit, Unknown)), None)
    return unknown or Absent(f"no control group sets a limit ({name})"), where[0]


def number(host: Host, path: str) -> Number:
    """Return a limit or a count in bytes; `Absent` if it is "max"."""
    found = search_file(host, path, r"^(max|-1|\d+)$")
    if not isinstance(found, re.Match):
        return found
    is_number = found[1].isdigit() and int(found[1]) < NO_LIMIT
    return int(found[1]) if is_number else Absent(f"{path}: no limit")


def table(host: Host, path: str, base: int = 1) -> dict[str, int] | Absent | Unknown:
    """Return a file of lines "name number", with each number times `base`."""
    text = host.read(path)
    if not isinstance(text, str):
        return text
    pairs = [line.replace(":", " ").split() for line in text.splitlines()]
    return {pair[0]: int(pair[1]) * base for pair in pairs if len(pair) >= 2 and pair[1].isdigit()}


def entry(numbers: dict[str, int] | Absent | Unknown, name: str, path: str) -> Number:
    """Return one number of a `table`."""
    return numbers.get(name, Absent(f"{path} does not report {name}")) if isinstance(numbers, dict) else numbers
