"""The profile of a version: sizes, values and lengths by column, in `profile.json`.

A task profiles its rows while they are in memory, and the parts are added up. The result depends on the rows and their
division into parts alone. Distinct values are counted with the K smallest of their hashes (Bar-Yossef et al.,
"Counting distinct elements in a data stream", 2002): exact below K, with a standard error of 1/sqrt(K) above.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from pydantic import TypeAdapter

from aifx.core.errors import DataError
from aifx.core.os_errors import first_line
from aifx.core.parsing import parse_json
from aifx.core.results import Result
from aifx.curation.near import hash_bytes
from aifx.curation.words import group_starts, mix
from aifx.data.names import CHAT, CLUSTER, ROW, SOURCE, Kind
from aifx.data.readers.arrow import pa, pc
from aifx.data.versions.catalog import Catalog, check_own_rows
from aifx.data.versions.manifest import PROFILE, Version
from aifx.data.versions.shards import BULK, read_parts, repeats

if TYPE_CHECKING:
    from pyarrow import ChunkedArray, Table

HASHES = 2048
MOST_VALUES = 1000
"""Distinct values up to which those of a column are counted."""

SHOWN_VALUES = 100
SHOWN_CHARACTERS = 80
WORDS_BYTES = 1 << 16
"""Bytes of some rows whose words are counted. In a longer text, they are counted in so many bytes."""

MOST_PARTS = 32
"""Profiles that are held before they are added up."""

BINS = 20
HISTOGRAM_SHARDS = 64
"""Shards whose numbers are in the histograms of a version, evenly spaced."""

Scalar: TypeAlias = str | int | float | bool
EDGES = (0, 1, 2, 3, *itertools.chain.from_iterable((1 << n, 3 << (n - 1)) for n in range(2, 40)))
"""Lower ends of the bins of lengths."""


def most_frequent(counts: Mapping[str, int], most: int | None = None) -> dict[str, int]:
    """The largest counts, in order."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])


@dataclass(frozen=True)
class Lengths:
    """Lengths of the values of a column.

    Attributes:
        rows: that were measured.
        total: the sum of their lengths.
        bins: rows by the lower end of their bin.
    """

    rows: int
    total: int
    min: int
    max: int
    bins: Mapping[int, int]

    @property
    def mean(self) -> float:
        return self.total / self.rows if self.rows else 0.0

    def quantile(self, share: float) -> int:
        """The lower end of the bin that holds it."""
        seen = 0
        for edge, count in sorted(self.bins.items()):
            seen += count
            if seen >= share * self.rows:
                return edge
        return 0

    def folded(self, most: int) -> list[tuple[int, int]]:
        """Neighbouring bins together, so that at most `most` are left: the lower end of each, and its rows."""
        if not self.bins:
            return []
        used = [edge for edge in EDGES if min(self.bins) <= edge <= max(self.bins)]
        every = -(-len(used) // most)
        groups = [used[start : start + every] for start in range(0, len(used), every)]
        return [(group[0], sum(self.bins.get(edge, 0) for edge in group)) for group in groups]


@dataclass(frozen=True)
class Histogram:
    """Rows of a column of numbers by value.

    Attributes:
        edges: of the bins, one more than there are bins.
    """

    rows: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ColumnProfile:
    """A column of a version.

    Attributes:
        type: Arrow's name of it.
        bytes: in memory, uncompressed.
        distinct: number of values; None if it was not counted.
        is_estimate: whether `distinct` has a standard error of 2.2 %.
        values: the most frequent values with their rows; empty if a column has too many values.
        histogram: None unless the column holds numbers.
    """

    type: str
    nulls: int
    bytes: int
    distinct: int | None
    is_estimate: bool
    min: Scalar | None
    max: Scalar | None
    values: Mapping[str, int]
    histogram: Histogram | None


@dataclass(frozen=True)
class Profile:
    """The content of `profile.json`.

    Attributes:
        bytes: of the shards.
        lengths: of the texts in characters and words, of the images in bytes, of the chats in messages and characters.
    """

    rows: int
    bytes: int
    columns: Mapping[str, ColumnProfile]
    lengths: Mapping[str, Lengths]
    format: int = 1


@dataclass(frozen=True)
class VersionProfile(Result):
    """The document of `aifx data profile --json`."""

    reference: str
    profile: Profile


def read_profile(catalog: Catalog, reference: str) -> VersionProfile:
    """The profile of a version. Raises UsageError if there is none or it is a mix, DataError if it is damaged."""
    name, version = catalog.find(reference)
    check_own_rows(catalog.manifest(f"{name}@{version}"), "aifx data profile")
    url = f"{catalog.store.url}/{name}/{version}/{PROFILE}"
    data = catalog.store.read(f"{name}/{version}/{PROFILE}")
    hint = f"aifx data verify {name}@{version}"
    if data is None:
        raise DataError(f"no {url}", "the version is not complete", hint)
    try:
        profile: Profile = TypeAdapter(Profile).validate_python(parse_json(data))
    except ValueError as e:
        raise DataError(f"{url} is damaged", first_line(e), hint) from None
    return VersionProfile(f"{name}@{version}", profile)


@dataclass(frozen=True)
class PartialColumn:
    """A column of some rows.

    Attributes:
        hashes: the smallest hashes of its values; None if they are not counted.
        values: rows by value; None if there are too many values.
    """

    nulls: int
    bytes: int
    min: Scalar | None
    max: Scalar | None
    hashes: tuple[int, ...] | None
    values: Mapping[str, int] | None


@dataclass(frozen=True)
class PartialProfile:
    """The profile of some rows.

    Attributes:
        lengths: by unit, of the texts, images or chats.
    """

    rows: int = 0
    columns: Mapping[str, PartialColumn] = field(default_factory=dict)
    lengths: Mapping[str, Lengths] = field(default_factory=dict)


def profile_rows(rows: Table, kind: Kind) -> PartialProfile:
    """The profile of some rows of a version of a kind."""
    is_chat = kind == "chat" and CHAT in rows.column_names  # not a step's table of findings
    texts = ("text", CHAT) if is_chat else ("text",)
    columns = {name: _column(name, rows.column(name), texts) for name in rows.column_names}
    return PartialProfile(len(rows), columns, _chat_lengths(rows) if is_chat else _lengths(rows))


def merge_profiles(parts: Iterable[PartialProfile]) -> PartialProfile:
    """The profile of the rows of all parts, which have the same columns."""
    given = [part for part in parts if part.columns]
    if not given:
        return PartialProfile()
    columns = {name: _merged_column(name, [part.columns[name] for part in given]) for name in given[0].columns}
    units = dict.fromkeys(unit for part in given for unit in part.lengths)
    lengths = {unit: _merged_lengths([part.lengths[unit] for part in given if unit in part.lengths]) for unit in units}
    return PartialProfile(sum(part.rows for part in given), columns, lengths)


def complete_profile(part: PartialProfile, version: Version) -> Profile:
    """The profile of a version, whose rows have the profile `part`."""
    manifest, columns = version.manifest, {}
    histograms = _histograms(part, version.shards)
    for name, one in part.columns.items():
        distinct, is_estimate = (part.rows, False) if name == ROW else _distinct(one.hashes, part.rows)
        columns[name] = ColumnProfile(
            manifest.columns[name],
            one.nulls,
            one.bytes,
            distinct,
            is_estimate,
            one.min,
            one.max,
            most_frequent(one.values or {}, SHOWN_VALUES),
            histograms.get(name),
        )
    return Profile(manifest.rows, manifest.bytes, columns, part.lengths)


def _distinct(hashes: Sequence[int] | None, rows: int) -> tuple[int | None, bool]:
    if hashes is None or len(hashes) < HASHES:
        return (None if hashes is None else len(hashes)), False
    return min(round((HASHES - 1) / (hashes[HASHES - 1] / 2**64)), rows), True


@cache
def _connection() -> Any:
    import duckdb

    return duckdb.connect(config={"threads": 1})


def _hashes(name: str, column: ChunkedArray) -> Any:
    """The hashes of the values of a column, without nulls; None if there is none for its type."""
    values = column.drop_null()
    if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
        values = values.unique() if name not in BULK and repeats(values) else values
        return np.frombuffer(array("Q", hash_bytes(values.cast(pa.binary()).to_pylist())), np.uint64)
    numbers = values.to_numpy() if pa.types.is_primitive(values.type) else np.array([], object)
    if numbers.dtype.kind in "biu":
        return mix(numbers.astype(np.uint64) + _NUMBER)
    if numbers.dtype.kind in "fmM":
        return mix(numbers.astype(np.float64).view(np.uint64) + _NUMBER)
    return _hashes_of_duckdb(values) if len(values) else np.array([], np.uint64)


_NUMBER = np.uint64(0x9E3779B97F4A7C15)


def _hashes_of_duckdb(values: ChunkedArray) -> Any:
    """Hashes of lists and other types, by DuckDB: loading it takes a fifth of a second and 60 MB."""
    import duckdb

    with _connection().cursor() as cursor, suppress(duckdb.Error):  # a type of Arrow that DuckDB does not have
        cursor.register("found", pa.table({"value": values}))
        return cursor.execute("SELECT hash(value) AS hash FROM found").fetchnumpy()["hash"]
    return None


def _column(name: str, column: ChunkedArray, texts: Sequence[str]) -> PartialColumn:
    """The profile of a column. Those in `texts` have no least value and no frequent ones."""
    smallest = None
    if name != ROW and (hashes := _hashes(name, column)) is not None:
        ordered = np.sort(hashes)  # numpy.unique takes ten times as long
        smallest = tuple(ordered[group_starts(ordered)][:HASHES].tolist())
    low = high = values = None
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if name not in texts and (is_text or pa.types.is_primitive(column.type)):
        with suppress(pa.ArrowNotImplementedError):  # of a duration or a 16-bit float
            found = pc.min_max(column)
            low, high = _scalar(found["min"]), _scalar(found["max"])
    is_counted = name not in (ROW, CLUSTER, *texts) and (is_text or pa.types.is_boolean(column.type))
    if is_counted and smallest is not None and (name == SOURCE or len(smallest) <= MOST_VALUES):
        counts = pc.value_counts(column.drop_null())
        values = dict(zip(map(str, counts.field(0).to_pylist()), counts.field(1).to_pylist(), strict=True))
    return PartialColumn(column.null_count, column.nbytes, low, high, smallest, values)


def _scalar(found: Any) -> Scalar | None:
    try:
        value = found.as_py()
    except (OverflowError, ValueError):  # a date that Python does not have
        value = found.cast(pa.string()).as_py()
    if isinstance(value, int | float) or value is None:
        return value
    return str(value)[:SHOWN_CHARACTERS]


def _merged_column(name: str, parts: Sequence[PartialColumn]) -> PartialColumn:
    lows = [part.min for part in parts if part.min is not None]
    highs = [part.max for part in parts if part.max is not None]
    sketches = [part.hashes for part in parts]
    hashes = None
    if all(sketch is not None for sketch in sketches):
        hashes = tuple(sorted({one for sketch in sketches for one in sketch or ()})[:HASHES])
    values: Counter[str] | None = None
    if all(part.values is not None for part in parts) and (name == SOURCE or len(hashes or ()) <= MOST_VALUES):
        values = Counter()
        for part in parts:
            values.update(part.values or {})
    return PartialColumn(
        sum(part.nulls for part in parts),
        sum(part.bytes for part in parts),
        min(lows, default=None),
        max(highs, default=None),
        hashes,
        values,
    )


def _lengths(rows: Table) -> dict[str, Lengths]:
    """Lengths of the texts in characters, and in words for as many as `WORDS_BYTES` hold; of images in bytes."""

    def numbers(column: Any) -> Any:
        return column.drop_null().to_numpy()

    if "text" in rows.column_names and pa.types.is_string(rows.schema.field("text").type):
        texts = rows.column("text").drop_null()
        every = max(1, -(-texts.nbytes // WORDS_BYTES))
        words = [_words(texts[index].as_buffer()) for index in range(0, len(texts), every)]
        return {"characters": _measured(_characters(texts)), "words": _measured(np.array(words, np.int64))}
    if "image" in rows.column_names and pa.types.is_binary(rows.schema.field("image").type):
        return {"bytes": _measured(numbers(pc.binary_length(rows.column("image"))))}
    return {}


def _characters(texts: ChunkedArray) -> Any:
    """[texts] The characters of each text: its bytes without those that continue a character.

    Few bytes do in most languages of Europe, so finding them takes three quarters of the time of Arrow's `utf8_length`.
    """
    found = [np.array([], np.int64)]
    for chunk in texts.chunks if len(texts) else ():
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        data = np.frombuffer(chunk.buffers()[2] or b"", np.int8)[offsets[0] : offsets[-1]]
        continues = data < -64  # 10xxxxxx
        if 8 * np.count_nonzero(continues) > len(data):
            found.append(pc.utf8_length(chunk).to_numpy())
        else:
            before = np.searchsorted(np.flatnonzero(continues), offsets - offsets[0])
            found.append(np.diff(offsets) - np.diff(before))
    return np.concatenate(found)


def _chat_lengths(rows: Table) -> dict[str, Lengths]:
    """Lengths of the chats in messages, and in characters of what they say."""
    from aifx.data.chat.lines import messages_of  # with all readers of files, for which other kinds must not pay

    chats = [messages_of(chat) for chat in rows.column(CHAT).to_pylist()]
    characters = [sum(map(len, chat)) for chat in chats]
    return {
        unit: _measured(np.array(lengths, np.int64))
        for unit, lengths in (("messages", [*map(len, chats)]), ("characters", characters))
    }


def _words(text: Any) -> int:
    """Words of a text; those of a long one are estimated by its beginning."""
    counted = len(text[:WORDS_BYTES].to_pybytes().decode(errors="ignore").split())
    return round(counted * max(len(text) / WORDS_BYTES, 1))


def _measured(lengths: Any) -> Lengths:
    if not len(lengths):
        return Lengths(0, 0, 0, 0, {})
    counts = np.bincount(np.searchsorted(EDGES, lengths, "right") - 1)
    bins = {EDGES[index]: int(count) for index, count in enumerate(counts) if count}
    return Lengths(len(lengths), int(lengths.sum()), int(lengths.min()), int(lengths.max()), bins)


def _merged_lengths(parts: Sequence[Lengths]) -> Lengths:
    given = [part for part in parts if part.rows]
    bins: Counter[int] = Counter()
    for part in given:
        bins.update(part.bins)
    return Lengths(
        sum(part.rows for part in given),
        sum(part.total for part in given),
        min((part.min for part in given), default=0),
        max((part.max for part in given), default=0),
        dict(sorted(bins.items())),
    )


def _has_bins(low: float, high: float) -> bool:
    """Whether the edges of bins between two numbers are different numbers in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.all(np.diff(np.linspace(low, high, BINS + 1)) > 0)) and np.isfinite(high - low)


def _histograms(part: PartialProfile, shards: Sequence[Path]) -> dict[str, Histogram]:
    ranges = {
        name: (float(one.min), float(one.max))
        for name, one in part.columns.items()
        if isinstance(one.min, int | float) and isinstance(one.max, int | float) and not isinstance(one.min, bool)
    }
    ranges = {name: ends for name, ends in ranges.items() if np.isfinite(ends).all() and _has_bins(*ends)}
    if not ranges:
        return {}
    every = -(-len(shards) // HISTOGRAM_SHARDS)
    counts = {name: np.zeros(BINS, np.int64) for name in ranges}
    for shard in shards[::every]:
        for rows in read_parts(shard, list(ranges)):
            for name, ends in ranges.items():
                values = rows.column(name).drop_null().to_numpy().astype(np.float64)
                counts[name] += np.histogram(values[np.isfinite(values)], BINS, ends)[0]
    return {
        name: Histogram(int(counts[name].sum()), tuple(np.linspace(*ends, BINS + 1).tolist()), tuple(found.tolist()))
        for (name, ends), found in zip(ranges.items(), counts.values(), strict=True)
    }
