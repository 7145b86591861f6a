"""A file that holds documents, and the formats that it can have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

COMPRESSIONS = (".gz", ".zst")
COMPRESSIBLE = (".txt", ".jsonl")
FORMATS = (*COMPRESSIBLE, ".parquet")
SUFFIXES = (*FORMATS, *(f"{name}{compression}" for name in COMPRESSIBLE for compression in COMPRESSIONS))


@dataclass(frozen=True)
class TextFile:
    """A file that holds documents.

    Attributes:
        name: what messages call it: relative to the project if it lies inside.
        is_matched: a glob matched it, so that it may be empty.
    """

    path: Path
    name: str
    is_matched: bool = False

    @property
    def compression(self) -> str:
        """ ".gz", ".zst" or ""."""
        suffix = self.path.suffix.lower()
        return suffix if suffix in COMPRESSIONS else ""

    @property
    def format(self) -> str:
        """The suffix without that of a compression, one of FORMATS."""
        return Path(self.path.stem if self.compression else self.path.name).suffix.lower()
