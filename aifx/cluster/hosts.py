"""Hosts: lists of them, and the programs that reach them, which are ssh and those of Slurm and Kubernetes.

A list is a file, or the nodes of a Slurm allocation. ClusterShell expands `n[001-128,200]`. Each program is a child of
`core/processes.py`, found by its absolute path and ended at its limit.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Event
from typing import Any

from aifx.core.environment import need_program
from aifx.core.errors import EnvironmentFault, UsageError
from aifx.core.processes import Ended, run

NAME = re.compile(r"(?:[\w.-]+@)?[\w:.][\w.:%-]*")
"""A name that begins with "-" would be an option of ssh."""
EXAMPLES = "one or more per line: n1, me@n1, n[001-128], http://n1:9470"
MAX_NODES = 100_000
LIMIT_S = 60.0
"""For a scheduler to answer."""


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


def ssh_command(host: str, words: Sequence[str], *, connect_s: float) -> list[str]:
    """Return the command that runs `words` on a host. Keys, ports and jump hosts come from ~/.ssh/config.

    Raises EnvironmentFault if there is no ssh.
    """
    options = ["-T", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", f"ConnectTimeout={max(int(connect_s), 1)}"]
    return [need_program("ssh", "other hosts are reached by it"), *options, "--", host, shlex.join(words)]


def srun_command(hosts: Sequence[str], words: Sequence[str], *options: str) -> list[str]:
    """Return the command that runs `words` once on each of these nodes of the allocation. Raises EnvironmentFault."""
    where = [f"--nodes={len(hosts)}", f"--nodelist={','.join(hosts)}"]
    program = need_program("srun", "the nodes of an allocation are reached by it")
    return [program, "--overlap", "--ntasks-per-node=1", *options, *where, *words]


def ask_slurm(
    program: str,
    *arguments: str,
    cwd: Path | None = None,
    without: Collection[str] = (),
    folders: Sequence[str] = (),
    limit_s: float = LIMIT_S,
    holds: int | None = None,
) -> Ended:
    """Run a program of Slurm to its end, in English. Raises EnvironmentFault if there is none.

    Args:
        without: variables that it does not get.
        folders: searched after those of PATH.
        holds: a descriptor that it keeps open, as in `Child`.
    """
    why = "this machine is not one of a Slurm cluster, or its programs are not in PATH"
    path = need_program(program, " or ".join([why, *folders]), folders)
    environ = {name: value for name, value in os.environ.items() if name not in without}
    return _ask(path, arguments, limit_s, cwd=cwd, env={**environ, "LC_ALL": "C"}, holds=holds)


def ask_kubernetes(*arguments: str, holds: int | None = None) -> Ended:
    """Run kubectl to its end. Raises EnvironmentFault if there is none."""
    path = need_program("kubectl", "aifx asks Kubernetes by it")
    return _ask(path, (f"--request-timeout={LIMIT_S / 2:g}s", *arguments), LIMIT_S, holds=holds)


_PASSING = re.compile(
    "unable to contact|unable to connect|was refused|connection (refused|reset|timed out)|time ?out|timed out"
    "|deadline exceeded|no such host|no route to host|network is unreachable|temporarily un|standby mode"
    "|zero bytes were transmitted|currently unable|ServiceUnavailable|TooManyRequests|etcdserver",
    re.IGNORECASE,
)


def refusal(what: str, ended: Ended, why: str, hint: str) -> EnvironmentFault:
    """The error of a question that failed. It is transient if, by what Slurm and kubectl write, nobody answered."""
    transient = ended.cut == "limit" or any(map(_PASSING.search, ended.last_lines))
    return EnvironmentFault(what, why, hint, transient=transient)


NEVER = Event()
"""That nobody sets."""

_until: ContextVar[tuple[float, Event]] = ContextVar("until", default=(math.inf, NEVER))


@contextmanager
def answers_until(moment: float, given_up: Event) -> Iterator[None]:
    """Let no question inside last beyond a moment of `time.monotonic`, or after the event is set.

    One that would raises EnvironmentFault.
    """
    before = _until.set((moment, given_up))
    try:
        yield
    finally:
        _until.reset(before)


def _ask(program: str, arguments: Sequence[str], limit_s: float, **options: Any) -> Ended:
    moment, given_up = _until.get()
    ended, left_s = None, moment - time.monotonic()
    if left_s > 0 and not given_up.is_set():
        ended = run([program, *arguments], limit_s=min(limit_s, left_s), given_up=given_up.is_set, **options)
    if ended is None or ended.cut == "stopped" or (ended.cut == "limit" and left_s < limit_s):
        raise EnvironmentFault(f"{Path(program).name} does not answer", "it was asked in vain", transient=True)
    return ended


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
