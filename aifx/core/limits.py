"""Limits of this process (`ulimit`) below which Python and JAX abort instead of reporting an error."""

from __future__ import annotations

import resource

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
