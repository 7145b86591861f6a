"""Where steps of a data set work on this machine, and who holds these folders."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.files import holding
from aifx.core.project import cache_path

if TYPE_CHECKING:
    from aifx.data.versions.catalog import Catalog

ROWS_FOLDER = "named-files"
"""The folder of the cache for the rows of files that aifx.toml names, while a command looks at them."""

SKETCHES = "sketches"
"""The folder of a data set that keeps what steps computed from each shard, by the shard's SHA-256."""

WORK, READ = ".work-", ".query-"
"""Beginnings of the names of the folders in which a step works, and in which the rows of a query are."""


def steps_root(catalog: Catalog) -> Path:
    """The folder on this machine with the folders where steps work. All remote roots have the same."""
    return catalog.local if catalog.local is not None else cache_path("datasets") / "work"


def steps_folder(name: str, catalog: Catalog) -> Path:
    """The folder on this machine where the steps of a data set work, and which they hold."""
    return steps_root(catalog) / name


def sketches_of(work: Path) -> Path:
    """The folder that keeps the sketches of a data set, one of whose steps prepares decisions in `work`."""
    return next(folder.parent for folder in work.parents if folder.name.startswith(WORK)) / SKETCHES


def holding_dataset(name: str, catalog: Catalog, purpose: str) -> AbstractContextManager[None]:
    """Hold a data set on this machine, as `core.locks.holding` does."""
    return holding(steps_folder(name, catalog), f"data set {name}", purpose)


def holding_work(work: Path) -> AbstractContextManager[None]:
    """Hold the folder of a step together with others that work in it."""
    return holding(work, str(work), "works in it", shared=True)
