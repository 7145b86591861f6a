"""The text of a version of a data set, divided into splits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from aifx.core.digests import Hash64, sha256_of
from aifx.core.errors import DataError
from aifx.core.project import Project
from aifx.data.corpus import by_block
from aifx.data.names import CLUSTER, ROW, SPLIT
from aifx.data.readers.documents import Piece, in_pieces
from aifx.data.readers.parquet import column_bytes
from aifx.data.sections import TextSection
from aifx.data.splits import SPLITS, Split, split_of
from aifx.data.versions.parts import DatasetPart, open_parts

logger = logging.getLogger(__name__)

Division: TypeAlias = Literal["column", "block", "cluster", "content"]
"""The way to decide the split of a row: by the column `_split`, its place, its duplicate cluster, or its text."""


@dataclass(frozen=True)
class VersionCorpus:
    """The rows of a version, each of which is a document."""

    part: DatasetPart
    section: TextSection

    @property
    def division(self) -> Division:
        if self.part.has_column(SPLIT):
            return "column"
        if self.section.split == "block":
            return "block"
        return "cluster" if self.part.has_column(CLUSTER) else "content"

    @property
    def fractions(self) -> Mapping[Split, float]:
        """The shares of the splits, unless the column `_split` decides."""
        return {"train": 0.0, "validation": self.section.validation_fraction, "test": self.section.test_fraction}

    @property
    def digest(self) -> str:
        fractions = None if self.division == "column" else self.fractions
        how = f"{self.division} {fractions} {self.section.text_field}"
        return sha256_of(f"version 1 {self.part.manifest.sha256} {how}\n")

    def names(self, split: Split) -> str:
        return self.part.reference

    def expected_bytes(self, *splits: Split) -> int | None:
        size = sum(column_bytes(path, str(path), self.section.text_field) for path in self.part.version.shards)
        if self.division == "column":
            return size if len(splits) == len(SPLITS) else None
        shares = {**self.fractions, "train": 1 - sum(self.fractions.values())}
        return round(size * sum(shares[split] for split in splits))

    def has(self, split: Split) -> bool:
        return split == "train" or (self.division != "column" and self.fractions[split] > 0)

    def why_missing(self, split: Split) -> tuple[str, str]:
        if self.division == "column":
            return f"its column {SPLIT} names no row for it", f"aifx data split {self.part.manifest.name}"
        return f"data.{split}_fraction is 0", f"aifx train --set data.{split}_fraction=0.1"

    def pieces(self, *, whole: bool = False) -> Iterator[tuple[Split, Piece]]:
        if self.division == "block":
            texts = (text for text, _ in self._rows(ROW))
            total = sum(len(text.encode()) for text in texts)
            pieces = (piece for text, _ in self._rows(ROW) for piece in in_pieces(iter((text,)), whole))
            yield from by_block(pieces, total, self.fractions)
            return
        column, assign = self._assignment()
        for text, value in self._rows(column):
            split = assign(text, value)
            for piece in in_pieces(iter((text,)), whole):
                yield split, piece

    def check_unchanged(self) -> None:
        """A version is immutable, and its files were compared with their digests."""

    def tokens_folder(self, name: str) -> Path:
        return self.part.tokens_folder(name)

    def warn_of_duplicates(self) -> None:
        """Log a warning if near-duplicates of training rows may be held out."""
        rows = self.part.manifest.rows
        if self.division == "block" and any(self.fractions.values()) and rows > 1:
            logger.warning(
                f'{self.part.reference}: data.split = "block" divides {rows:,} rows by their place, so copies of '
                'training rows may be in the held-out splits; data.split = "document" keeps copies together'
            )
        else:
            self.part.warn_of_duplicates(*self.fractions.values())

    def _assignment(self) -> tuple[str, Callable[[str, Any], Split]]:
        """A column, and the split of a row by its text and its value of that column."""
        fractions = self.fractions

        def by_hash(text: str) -> Split:
            return split_of(Hash64(text.encode()).digest(), fractions)

        if self.division == "column":
            return SPLIT, lambda text, split: self.part.split_of(split)
        if self.division == "cluster":
            return CLUSTER, lambda text, cluster: by_hash(cluster or text)
        return ROW, lambda text, row: by_hash(text)

    def _rows(self, column: str) -> Iterator[tuple[str, Any]]:
        """The text of each row with its value of a column. Rows without text are left out. Raises DataError."""
        field = self.section.text_field
        for path, batch in self.part.batches(list(dict.fromkeys([field, column]))):
            texts, values = (batch.column(batch.schema.get_field_index(key)) for key in (field, column))
            what = f"{self.part.reference}: {path.name}: column {field!r}"
            try:
                pairs = zip(texts.to_pylist(), values.to_pylist(), strict=True)
            except UnicodeDecodeError as error:
                raise DataError(f"{what} is not UTF-8", str(error), "aifx data clean") from None
            for text, value in pairs:
                if text is None or text == "":
                    continue
                if not isinstance(text, str):
                    hint = "name a column of text: data.text_field"
                    raise DataError(f"{what} is not text", f"it holds {type(text).__name__}", hint)
                yield text, value


def open_versions(reference: str, section: TextSection, project: Project) -> list[VersionCorpus]:
    """The corpus of a version, or those of the parts of a mix. Raises UsageError, DataError."""
    return [VersionCorpus(part, section) for part in open_parts(reference, project, "text")]
