"""Searching an index: the rows whose texts are nearest to a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aifx.core.errors import DataError, UsageError
from aifx.core.json_values import plain
from aifx.core.results import Result
from aifx.data.names import ROW
from aifx.data.readers.parquet import open_parquet
from aifx.data.readers.rows import input_file, read_rows
from aifx.data.versions.catalog import check_shards
from aifx.data.versions.manifest import Version
from aifx.search.embedders import F32, Embedder
from aifx.search.indexes import Index
from aifx.search.kinds import search_index

BEGINNING = 200
"""Characters of a text that are shown."""

QUERIES_AT_A_TIME = 1 << 10


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        score: the cosine of the angle between its vector and the query's, at most 1.
        text: the beginning of its text.
    """

    score: float
    row: str
    text: str


@dataclass(frozen=True)
class QueryHits:
    """The rows nearest to a query, nearest first."""

    query: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class SearchResult(Result):
    """The document of `aifx data search --json`.

    Attributes:
        index: its name.
        is_exact: whether no other row is nearer. An approximate index may miss some.
    """

    reference: str
    index: str
    is_exact: bool
    queries: tuple[QueryHits, ...]


def search(version: Version, index: Index, embedder: Embedder, queries: Sequence[str], top: int) -> SearchResult:
    """The rows nearest to each text. Raises UsageError for a text without content, DataError for a damaged shard."""
    check_shards(version)
    return _search(version, index, embedder, queries, top, np.full(len(queries), -1))


def search_like(version: Version, index: Index, embedder: Embedder, row: str, top: int) -> SearchResult:
    """The rows nearest to a row, without itself.

    Raises UsageError for an id that the version does not have, DataError for a damaged shard.
    """
    check_shards(version)
    number, text = _find_row(version, index.manifest.column, row)
    return _search(version, index, embedder, [text], top, np.array([number]))


def check_embedder(index: Index, embedder: Embedder) -> None:
    """Raise UsageError if the index was made with another embedder, whose vectors have other meanings."""
    theirs, ours = index.manifest.embedder, embedder.record
    if (theirs.kind, theirs.dims, plain(theirs.settings)) == (ours.kind, ours.dims, plain(ours.settings)):
        return
    names = {**theirs.settings, **ours.settings}
    differ = [
        f"{name} is {theirs.settings.get(name)} there and {ours.settings.get(name)} here"
        for name in names
        if theirs.settings.get(name) != ours.settings.get(name)
    ]
    why = "; ".join(differ) or f"it has {theirs.kind} of {theirs.dims} numbers, not {ours.kind} of {ours.dims}"
    hint = f"aifx data index {index.manifest.reference} --embedder {ours.name}"
    raise UsageError(f"index {index.manifest.name} was made with another embedder", why, hint)


def read_queries(name: str, text_field: str = "text") -> list[str]:
    """The queries of a file: the lines of .txt that are not blank, or a field of each row of other formats.

    Raises UsageError, DataError naming the file and the line.
    """
    file = input_file(name)
    found: list[str] = []
    for row in read_rows(file, text_field=text_field):
        text = row.values.get(text_field)
        if not isinstance(text, str):
            texts = [field for field, value in row.values.items() if isinstance(value, str)]
            hint = f"--text-field {texts[0]}" if texts else f"head -{row.number} {name}"
            raise DataError(f"{row.place}: no text in the field {text_field!r}", "each row is a query", hint)
        found += [line for line in text.splitlines() if line.strip()] if file.format == "text" else [text]
    if not found:
        raise UsageError(f"{name} has no query", "it has no text", f"head {name}")
    return found


def _search(
    version: Version, index: Index, embedder: Embedder, queries: Sequence[str], top: int, own: NDArray[np.int64]
) -> SearchResult:
    """The rows nearest to each query, without the rows numbered `own`, one for each query."""
    faiss_index = index.read()
    found: list[list[tuple[float, int]]] = []
    for at in range(0, len(queries), QUERIES_AT_A_TIME):
        vectors = _embed(version, embedder, queries[at : at + QUERIES_AT_A_TIME])
        scores, numbers = search_index(faiss_index, vectors, min(top + 1, faiss_index.ntotal))
        for score, number, left_out in zip(scores, numbers, own[at:], strict=False):
            is_hit = (number >= 0) & (number != left_out)
            found.append(list(zip(score[is_hit][:top].tolist(), number[is_hit][:top].tolist(), strict=True)))
    rows = _read_rows(version, index.manifest.column, {number for hits in found for _, number in hits})
    answers = [QueryHits(query, tuple(Hit(score, *rows[number]) for score, number in hits))
               for query, hits in zip(queries, found, strict=True)]  # fmt: skip
    return SearchResult(version.reference, index.manifest.name, index.manifest.kind == "exact", tuple(answers))


def _embed(version: Version, embedder: Embedder, queries: Sequence[str]) -> F32:
    import pyarrow as pa

    try:
        texts = pa.array(queries, pa.string())
    except UnicodeEncodeError as e:
        what = f"query {e.object[:50]!r} cannot be searched for"
        raise UsageError(what, "it is not UTF-8", "aifx data search NAME 'white whale'") from None
    vectors = embedder.embed(texts)
    if not np.isfinite(vectors).all():
        what = f"the vectors of {embedder.record.name} are not finite"
        raise DataError(what, "the embedder computes infinities or NaN", "index the texts with another embedder")
    empty = np.flatnonzero(~vectors.any(axis=1))
    if len(empty):
        what = f"query {queries[empty[0]][:50]!r} cannot be searched for"
        raise UsageError(what, "it has no word", f"aifx data search {version.reference} 'white whale'")
    return vectors


def _read_rows(version: Version, column: str, numbers: set[int]) -> dict[int, tuple[str, str]]:
    """The id and the beginning of the text of rows, by their number in the version."""
    import pyarrow.compute as pc

    wanted, first = np.array(sorted(numbers), np.int64), 0
    found: dict[int, tuple[str, str]] = {}
    for path in version.shards:
        with open_parquet(path, str(path)) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                here = wanted[(wanted >= first) & (wanted < first + rows)]
                if len(here):
                    table = file.read_row_group(group, [ROW, column], use_threads=False).take(here - first)
                    texts = pc.utf8_slice_codeunits(table[column], 0, BEGINNING).to_pylist()
                    found.update(zip(here.tolist(), zip(table[ROW].to_pylist(), texts, strict=True), strict=True))
                first += rows
    return found


def _find_row(version: Version, column: str, row: str) -> tuple[int, str]:
    """The number of a row in the version, and its text. Raises UsageError."""
    first = 0
    for path in version.shards:
        with open_parquet(path, str(path)) as file:
            ids = file.read([ROW], use_threads=False).column(0)
            at = ids.index(row).as_py()
            if at >= 0:
                text = file.read([column], use_threads=False).column(0)[at].as_py()
                return first + at, text or ""
            first += len(ids)
    what = f"--like {row} names no row of {version.reference}"
    raise UsageError(
        what, "a row is named by its whole id", f'aifx data query {version.reference} "SELECT _row FROM data"'
    )
