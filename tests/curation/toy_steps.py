"""Steps that are small enough to see through."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from aifx.core.errors import EnvironmentFault
from aifx.curation.step import Limits, Outcome, ShardStep, Step
from aifx.data.names import ROW, SOURCE, Kind
from aifx.data.versions.manifest import Source
from aifx.data.versions.shards import dropped_rows


@dataclass(frozen=True)
class Rows(Step):
    """Collects given texts, one shard for each sequence of them."""

    texts: tuple[tuple[str, ...], ...]

    name = "rows"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"texts": self.texts}

    @property
    def kind(self) -> Kind:
        return "text"

    @property
    def worker_bytes(self) -> int:
        return 1

    def tasks(self) -> Sequence[tuple[str, int]]:
        return [(f"shard {index}", sum(map(len, texts))) for index, texts in enumerate(self.texts)]

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        texts, name = self.texts[task], f"s{task}.txt"
        ids = [f"{name}-{index}" for index in range(len(texts))]
        rows = pa.table({ROW: ids, SOURCE: [name] * len(ids), "text": pa.array(texts, pa.string())})
        yield Outcome(rows, sources=[Source(name, "0" * 64, sum(map(len, texts)), len(texts), "MIT")])


@dataclass(frozen=True)
class WithoutLetter(ShardStep):
    """Drops the texts that have a letter."""

    letter: str

    name = "without-letter"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"letter": self.letter}

    @property
    def worker_bytes(self) -> int:
        return 1

    def apply(self, rows: pa.Table, work: Path) -> Outcome:
        has = pa.compute.match_substring(rows["text"], self.letter)
        dropped = rows.filter(has)[ROW]
        kept = rows.filter(pa.compute.invert(has))
        return Outcome(kept, dropped_rows(dropped, [f"has {self.letter}"] * len(dropped)), {"seen": len(rows)})


@dataclass(frozen=True)
class HeldWithoutLetter(WithoutLetter):
    """The same, with time to be killed in: all but the first rows wait until a file is there."""

    path: Path
    free: int = 0

    def apply(self, rows: pa.Table, work: Path) -> Outcome:
        number = int(rows["text"][0].as_py().rpartition(" ")[2])
        while number >= self.free and not self.path.exists():
            time.sleep(0.02)
        return super().apply(rows, work)


@dataclass(frozen=True)
class NeedsFile(WithoutLetter):
    """Fails while a file is absent."""

    path: Path

    def apply(self, rows: pa.Table, work: Path) -> Outcome:
        if not self.path.exists():
            raise EnvironmentFault(f"no file {self.path}", "the step needs it", f"touch {self.path}")
        return super().apply(rows, work)


@dataclass(frozen=True)
class KillsItself(WithoutLetter):
    """Ends its process at a certain row."""

    def apply(self, rows: pa.Table, work: Path) -> Outcome:
        if "a cat 2" in rows["text"].to_pylist():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().apply(rows, work)
