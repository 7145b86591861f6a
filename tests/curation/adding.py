"""Adding files in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyarrow import parquet

from aifx.curation.add_plan import plan_add, run_add, with_listed
from aifx.curation.execution import Made
from aifx.curation.step import Limits
from aifx.data.readers.base import ReadOptions
from aifx.data.readers.sources import list_sources
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Version

LIMITS = Limits(1 << 30, 1)


def environ_of(folder: Path) -> dict[str, str]:
    """The environment of a command whose home and cache are below a folder."""
    return {"HOME": str(folder), "PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(folder / "cache")}


def add(folder: Path, name: str, *sources: str, **options: Any) -> Made:
    """Add files of a folder to the data set below it, or in another `catalog`; `only` them."""
    only = options.pop("only", False)
    catalog = options.pop("catalog", None) or open_catalog(str(folder / "datasets"))
    named = [str(folder / source) for source in sources]
    listing = list_sources(named, folder)
    chosen = ReadOptions(options.pop("kind", "text"), **options)
    if chosen.kind == "images":
        listing = with_listed(listing, named, folder)
    return run_add(plan_add(catalog, name, listing, chosen, "MIT", only=only), name, catalog, LIMITS)


def rows_of(version: Version) -> list[dict[str, Any]]:
    return [row for path in version.shards for row in parquet.read_table(path).to_pylist()]


def quarantine_of(version: Version) -> list[dict[str, Any]]:
    return [row for path in version.quarantine for row in parquet.read_table(path).to_pylist()]
