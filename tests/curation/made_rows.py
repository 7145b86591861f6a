"""Versions of given rows, and what plain Python makes of texts: the words, the shingles and the clusters."""

from __future__ import annotations

import functools
import random
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from aifx.curation.execution import execute
from aifx.curation.step import Limits, Outcome, Step
from aifx.data.names import ROW, SOURCE, Kind
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.manifest import Source, Version

LIMITS = Limits(1 << 30, 1)
PREFIX = "0123456789ab"


@dataclass(frozen=True)
class Made(Step):
    """Makes a version of rows, given as Arrow tables with `_row` and more, one for each shard."""

    tables: tuple[pa.Table, ...]
    what: Kind = "text"

    name = "made"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The rows: other rows are another version."""
        return {"tables": [repr(table.to_pylist()) for table in self.tables]}

    @property
    def kind(self) -> Kind:
        return self.what

    def tasks(self) -> Sequence[tuple[str, int]]:
        return [(f"part {index}", table.nbytes) for index, table in enumerate(self.tables)]

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        yield Outcome(self.tables[task], sources=[Source("f.txt", "0" * 64, 1, 1, "MIT")])


def texts_version(catalog: Catalog, texts: Sequence[tuple[str, str]], per_shard: int, name: str = "texts") -> Version:
    """A version of (id, text) pairs, in shards of so many rows."""
    tables = []
    for begin in range(0, len(texts), per_shard):
        ids, values = zip(*texts[begin : begin + per_shard], strict=True)
        tables.append(
            pa.table({ROW: pa.array(ids), SOURCE: ["f.txt"] * len(ids), "text": pa.array(values, pa.string())})
        )
    return execute(Made((), tuple(tables)), name, catalog, LIMITS).version


def numbered(texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"{PREFIX}-{number}", text) for number, text in enumerate(texts)]


def rows_of(paths: Sequence[Path]) -> list[dict[str, Any]]:
    return [row for path in paths for row in parquet.read_table(path).to_pylist()]


def words_of(text: str) -> list[str]:
    """The words of a text, one character at a time."""
    found, word = [], ""
    for character in text:
        kind = unicodedata.category(character)
        is_word = kind[0] in "LMN" or kind == "Cn"
        alone = is_word and any(
            first <= ord(character) <= last
            for first, last in (
                (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF),
                (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
            )
        )  # fmt: skip
        low = character.lower()
        low = low if len(low) == 1 and len(low.encode()) == len(character.encode()) else character
        if is_word and not alone:
            word += low
            continue
        if word:
            found.append(word)
            word = ""
        if alone:
            found.append(low)
    return [*found, word] if word else found


@functools.cache
def shingles_of(text: str, size: int = 5) -> frozenset[tuple[str, ...]]:
    words = words_of(text)
    if not words:
        return frozenset()
    return frozenset(tuple(words[at : at + size]) for at in range(max(len(words) - size + 1, 1)))


def jaccard(left: str, right: str) -> float:
    """Similarity of the shingles of two texts; -1 if neither has words, so that only their copies are duplicates."""
    one, two = shingles_of(left), shingles_of(right)
    return len(one & two) / len(one | two) if one | two else -1.0


def order_of(row: str) -> tuple[str, int, str]:
    return row.rpartition("-")[0], len(row), row


def clusters_of(texts: Sequence[tuple[str, str]], near: float | None) -> dict[str, str]:
    """The cluster of each row, by comparing all pairs."""
    parents = {row: row for row, _ in texts}

    def find(row: str) -> str:
        while parents[row] != row:
            row = parents[row]
        return row

    for index, (row, text) in enumerate(texts):
        for other, its in texts[:index]:
            if text == its or (near is not None and jaccard(text, its) >= near):
                one, two = sorted((find(row), find(other)), key=order_of)
                parents[two] = one
    return {row: find(row) for row, _ in texts}


def some_texts(count: int, seed: int, vocabulary: int = 2000, longest: int = 120) -> list[str]:
    """Texts of random words."""
    chosen = random.Random(seed)
    words = [f"w{number:x}" for number in range(vocabulary)]
    return [" ".join(chosen.choices(words, k=chosen.randint(1, longest))) for _ in range(count)]


def edited(text: str, edits: int, seed: int) -> str:
    """The text with so many words replaced."""
    chosen = random.Random(seed)
    words = text.split()
    for place in chosen.sample(range(len(words)), min(edits, len(words))):
        words[place] = f"edit{chosen.randrange(1 << 30):x}"
    return " ".join(words)
