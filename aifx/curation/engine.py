"""DuckDB within limits: nothing is fetched, and what exceeds the memory goes to a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aifx.core.errors import EnvironmentFault
from aifx.curation.step import Limits


@contextmanager
def open_engine(folder: Path, limits: Limits) -> Iterator[Any]:
    """A connection to a database in memory that spills to `folder`, which is made.

    Raises EnvironmentFault if a query needs more memory, or more room on the disk, than there is.
    """
    import duckdb

    spill = folder / "spill"
    spill.mkdir(parents=True, exist_ok=True)
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{limits.memory_bytes >> 20}MiB",
        "temp_directory": str(spill),
        "threads": limits.workers,
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    try:
        with duckdb.connect(":memory:", config=config) as connection:
            yield connection
    except duckdb.OutOfMemoryException as e:
        why = str(e).splitlines()[0]
        raise EnvironmentFault(f"{limits.memory_bytes >> 20} MiB of memory are too few", why, "--memory 8GB") from None
    except duckdb.IOException as e:
        raise EnvironmentFault(f"{spill} cannot be written", str(e).splitlines()[0], f"df -h {spill}") from None
