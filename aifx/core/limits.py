"""Limits of this process (`ulimit`): those below which Python and JAX abort, and one of memory that aifx sets."""

from __future__ import annotations

import resource
from pathlib import Path

from aifx.core.errors import EnvironmentFault

OPEN_FILES = 64
"""A training with one open file after another fails in asyncio's threads below 24 (measured)."""

ADDRESS_SPACE = 1 << 30
"""Importing numpy and JAX ends in an abort of OpenBLAS below 0.6 GB (measured, 2 cores)."""


def check_limits() -> None:
    """Raise EnvironmentFault if this process may not open the files or map the memory that JAX needs to start."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < OPEN_FILES:
        why = f"the limit is {files} (ulimit -n), and at least {OPEN_FILES} are needed"
        raise EnvironmentFault("this process may open too few files", why, "ulimit -n 4096, then run it again")
    space = address_space_limit()
    if space is not None and space < ADDRESS_SPACE:
        why = f"the limit is {space >> 20} MiB (ulimit -v), and at least {ADDRESS_SPACE >> 20} MiB are needed"
        raise EnvironmentFault("this process may use too little memory", why, "ulimit -v unlimited, then run it again")


def address_space_limit() -> int | None:
    """Bytes of address space that this process may use, None without a limit."""
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if space == resource.RLIM_INFINITY else space


def limit_memory(memory_bytes: int, unused_bytes: int = 0) -> int:
    """Let the kernel refuse this process more than `memory_bytes`. Returns the bytes that it does not use yet.

    Args:
        unused_bytes: that libraries will reserve and not use, such as stacks of threads: the limit counts these.
    """
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    memory = {line[0].rstrip(":"): int(line[1]) << 10 for line in lines if line[-1] == "kB"}
    free = max(memory_bytes - memory["VmRSS"], 0)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = memory["VmData"] + free + unused_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    return free
