"""Versions of data sets as training reads them: one, or the several of a mix."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from aifx.core.artifact import short_reference
from aifx.core.errors import DataError, UsageError
from aifx.core.project import Project, cache_path
from aifx.data.names import CLUSTER, SPLIT, Kind
from aifx.data.readers.parquet import read_batches
from aifx.data.splits import SPLITS, Split
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.manifest import Manifest, Version
from aifx.data.versions.verification import check_shards

logger = logging.getLogger(__name__)

MIX = "mix"
"""The step of a version that has no rows of its own, and names those of its parents with weights."""

TOKENS = ".tokens"
"""The folder below a root of data sets that holds token stores, in a folder for each version."""


@dataclass(frozen=True)
class DatasetPart:
    """A version that training reads, alone or as a part of a mix.

    Attributes:
        weight: its share in what training reads, in proportion to those of the other parts.
        epochs: how often training may read each of its rows; without a bound if None.
    """

    catalog: Catalog
    manifest: Manifest
    weight: float = 1.0
    epochs: float | None = None

    @property
    def reference(self) -> str:
        return self.manifest.reference

    @cached_property
    def version(self) -> Version:
        """Its files on this machine, compared with their digests before they are first read.

        Raises DataError for a damaged one.
        """
        version = self.catalog.open(self.manifest.whole_reference)
        if self.catalog.local is not None:  # what comes from elsewhere is compared when it is copied
            check_shards(version)
        return version

    def has_column(self, name: str) -> bool:
        return name in self.manifest.columns

    def split_of(self, value: Any) -> Split:
        """A value of the column `_split`. Raises DataError if it is none."""
        if value not in SPLITS:
            what = f"{self.reference}: {value!r} in column {SPLIT} is no split"
            raise DataError(what, f"splits are {', '.join(SPLITS)}", f"aifx data split {self.manifest.name}")
        return cast(Split, value)

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[Path, Any]]:
        """Columns of its rows in pyarrow.RecordBatches, each with the file that it is from. Raises DataError."""
        for path in self.version.shards:
            for batch in read_batches(path, f"{self.reference}: {path.name}", columns):
                yield path, batch

    def column(self, name: str) -> list[Any]:
        """The values of a column. Raises DataError."""
        return [value for _, batch in self.batches([name]) for value in batch.column(0).to_pylist()]

    def warn_of_duplicates(self, *held_out: float) -> None:
        """Log a warning if near-duplicates of training rows may be in the shares that training itself holds out."""
        is_clustered = self.has_column(SPLIT) or self.has_column(CLUSTER)
        if any(held_out) and self.manifest.rows > 1 and not is_clustered:
            logger.warning(
                f"{self.reference} has no column {SPLIT} or {CLUSTER}: near-duplicates of training rows may be in "
                f"the held-out splits; this keeps them apart: aifx data split {self.manifest.name}"
            )

    def tokens_folder(self, name: str) -> Path:
        """The folder for the token store `name`: beside the data set, or in the cache if that cannot be written."""
        if self.catalog.local is not None:
            beside = self.catalog.local / TOKENS / self.manifest.version
            with suppress(OSError):
                if not (beside / name).is_dir():
                    beside.mkdir(parents=True, exist_ok=True)
                if (beside / name).is_dir() or os.access(beside, os.W_OK):
                    return beside
        return cache_path("tokens")


def rows_and_bytes(manifest: Manifest) -> tuple[int, int]:
    """The rows that training reads of a version, and their bytes: of a mix, all of its parents."""
    if manifest.step.name == MIX:
        return manifest.facts["mixed_rows"], manifest.facts["mixed_bytes"]
    return manifest.rows, manifest.bytes


def check_own_rows(manifest: Manifest, command: str) -> None:
    """Raise UsageError for a mix, whose rows are those of its parents. `command`: to use with one of them."""
    if manifest.step.name == MIX:
        parents = [short_reference(parent) for parent in manifest.parents]
        what = f"{manifest.reference} is a mix, which has no rows of its own"
        raise UsageError(what, f"it is made of {', '.join(parents)}", f"{command} {parents[0]}")


def open_parts(reference: str, project: Project, kind: Kind) -> tuple[DatasetPart, ...]:
    """The version that `data.dataset` names, or the parts of a mix. Reads manifests alone.

    Raises UsageError if there is no such version, DataError if it is damaged or of another kind.
    """
    catalog = open_catalog(project.datasets, project)
    manifest = catalog.manifest(reference)
    if manifest.kind not in (kind, "table" if kind == "chat" else kind):  # the rows of a table may be chats
        what = f"{manifest.reference} holds {manifest.kind}, and the task reads {kind}"
        raise DataError(what, "data.dataset names it", "aifx data ls")
    if manifest.step.name != MIX:
        if not manifest.rows:
            why = f"aifx data {manifest.step.name} made it, and left no row"
            raise DataError(f"{manifest.reference} has no rows", why, f"aifx data lineage {manifest.reference}")
        return (DatasetPart(catalog, manifest),)
    settings = manifest.step.settings
    parts = zip(manifest.parents, settings["weights"], settings["epochs"], strict=True)
    return tuple(DatasetPart(catalog, catalog.manifest(parent), *how) for parent, *how in parts)


def whole_reference(reference: str, project: Project, before: str | None = None) -> str:
    """ "name@<64 digits>". `before`, if `reference` can mean it; otherwise the latest that it means.

    Raises UsageError.
    """
    name, _, beginning = reference.partition("@")
    if before is not None:
        known, _, version = before.partition("@")
        if known == name and version.startswith(beginning):
            return before
    return open_catalog(project.datasets, project).manifest(reference).whole_reference


def dataset_record(reference: str, project: Project) -> Mapping[str, Any]:
    """The record of a data set in provenance.json: the version, "name@<64 digits>", and those of a mix."""
    manifest = open_catalog(project.datasets, project).manifest(reference)
    record: dict[str, Any] = {"reference": manifest.whole_reference}
    if manifest.step.name == MIX:
        settings = manifest.step.settings
        parts = zip(manifest.parents, settings["weights"], settings["epochs"], strict=True)
        record["parts"] = [{"reference": one, "weight": weight, "epochs": epochs} for one, weight, epochs in parts]
    return record
