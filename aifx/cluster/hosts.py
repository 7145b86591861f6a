"""The names of nodes: a file of them, or the nodes of a Slurm allocation. ClusterShell expands `n[001-128,200]`."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from aifx.core.errors import EnvironmentFault, UsageError

NAME = re.compile(r"(?:[\w.-]+@)?[\w:.][\w.:%-]*")
"""A name that begins with "-" would be an option of ssh."""
EXAMPLES = "one or more per line: n1, me@n1, n[001-128], http://n1:9470"
MAX_NODES = 100_000


def is_address(target: str) -> bool:
    """Return whether a node is asked through its agent."""
    return target.startswith(("http://", "https://"))


def read_hosts(path: Path) -> list[str]:
    """Return the nodes of a file (`-` is stdin), each once, in order. Raises UsageError that names the line."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--hosts {path} cannot be read", why, f"ls -l {path}") from None
    hosts: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            for word in line.partition("#")[0].split():
                hosts |= dict.fromkeys([word] if is_address(word) else expand(word))
            if len(hosts) > MAX_NODES:
                raise ValueError(f"the list has more than {MAX_NODES:,} nodes")
        except ValueError as error:
            raise UsageError(f"{path}, line {number} is not a list of nodes", str(error), EXAMPLES) from None
    if not hosts:
        raise UsageError(f"--hosts {path} names no node", "", EXAMPLES)
    return list(hosts)


def slurm_hosts(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the nodes of the allocation that this process runs in. Raises UsageError outside of one."""
    nodes = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    if not nodes:
        why = "SLURM_JOB_NODELIST is not set"
        raise UsageError("--slurm requires a Slurm allocation", why, "salloc --nodes=8 aifx doctor fleet --slurm")
    try:
        return expand(nodes)
    except ValueError as error:
        raise EnvironmentFault("SLURM_JOB_NODELIST is not a list of nodes", str(error)) from None


def expand(nodes: str) -> list[str]:
    """Return the nodes of a list, `n[01-03],m7`, each once. Raises ValueError, also for more than MAX_NODES."""
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

    if _most(nodes) > MAX_NODES:  # before anything of that size is made
        raise ValueError(f"{nodes[:60]!r} has more than {MAX_NODES:,} nodes")
    names: dict[str, None] = {}
    for word in _words(nodes):  # one by one: a set of many patterns takes quadratic time, and loses the order
        try:
            names |= dict.fromkeys(map(str, NodeSet(word, resolver=RESOLVER_NOGROUP)) if "[" in word else [word])
        except NodeSetException as error:
            raise ValueError(str(error)[:200]) from None
    if wrong := [name for name in names if not NAME.fullmatch(name)]:
        raise ValueError(f"{wrong[0]!r} is not the name of a node"[:200])
    return list(names)


def first_of(nodes: str) -> str:
    """Return the first node of a Slurm list, where rank 0 runs. ClusterShell would sort `n[3,1]`."""
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", _words(nodes)[0])


def _most(nodes: str) -> int:
    """Return how many nodes a set has at most."""

    def count(part: str) -> int:
        match = re.match(r"\s*(\d+)-(\d+)", part)
        return abs(int(match[2]) - int(match[1])) + 1 if match else 1

    brackets = (re.findall(r"\[([^\]]*)", word) for word in _words(nodes))
    return sum(math.prod(sum(map(count, text.split(","))) for text in texts) for texts in brackets)


def _words(nodes: str) -> list[str]:
    """Return the parts of a set. A comma inside of brackets separates no parts."""
    return re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", nodes) or [nodes]
