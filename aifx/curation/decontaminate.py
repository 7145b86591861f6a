"""The step that drops rows which share runs of 13 words with texts such as those of a test, and the report of them.

The runs of the references are hashed into an index in a folder, which processes map. A run of a row whose hash is in
the index is compared with the reference word by word, so that none is found by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import Table, parquet

from aifx.core.calls import call_each
from aifx.core.digests import sha256_of_json
from aifx.core.errors import EnvironmentFault, ExitCode
from aifx.core.files import replacing
from aifx.core.json_files import readable_bytes
from aifx.core.progress import report_progress
from aifx.core.results import Result
from aifx.curation.held_out import (
    RUN_WORDS,
    Compared,
    HeldOutRows,
    fingerprints,
    is_held_out,
    read_compared,
    read_kept,
    rows_with,
    write_compared,
    write_fingerprints,
)
from aifx.curation.step import (
    DecidedStep,
    Limits,
    Outcome,
    first_rows,
    numbered_parts,
    without_dropped,
    write_decisions,
)
from aifx.curation.words import HASHES, I64, U64, Words, find_words, split_words, text_buffer, word_runs
from aifx.curation.work_folders import sketches_of
from aifx.data.names import ROW, SOURCE, SPLIT
from aifx.data.versions.catalog import check_shards
from aifx.data.versions.manifest import Version
from aifx.data.versions.shards import read_parts, read_shard, return_memory

BYTES_PER_RUN = 96
"""Memory for each run while the index is made."""

EXAMPLE_BYTES = 300
OVERLAPS = 3
"""Version of the decisions that are kept for each shard. Raise it if a row would get another."""


@dataclass(frozen=True)
class Reference:
    """Texts that training must not contain.

    Attributes:
        name: for messages and the rules of dropped rows: a data set, or a file, without a path of this machine.
        version: holds the texts; for files, in a temporary catalog.
        digest: of the texts, wherever their files are.
        is_held_out: only rows whose `_split` is validation or test.
        has_ids: whether `version` is not temporary, so that its `_row` still names a row later.
    """

    name: str
    version: Version
    digest: str
    is_held_out: bool
    has_ids: bool


@dataclass(frozen=True)
class ReferenceTexts:
    """A reference, as rows are compared with it.

    Attributes:
        too_short: texts of fewer than 13 words, which cannot be found.
    """

    name: str
    texts: int
    too_short: int


# How overlaps are found, after "Language Models are Few-Shot Learners" (Brown et al. 2020, appendix C), which removes
# what shares 13 words with a test. Words are compared without case and punctuation. The index is the sorted hashes of
# all runs of the references, with the place of each in their text. A hash of a row is looked up in three steps, each of
# which leaves less to the next: a table by its lowest bits says no to most, a binary search finds equal hashes,
# and equal hashes are compared word by word. Runs of a row that begin one word apart are one fragment.


@dataclass(frozen=True)
class Index:
    """The runs of the references.

    Attributes:
        work: the folder of the index.
        hashes: of the different runs, increasing.
        begins: place of each run in `data`.
        ends: place after it.
        data: the reference texts, one after the other, in UTF-8.
        bounds: [texts + 1] where each text begins.
        is_possible: whether a run with these lowest bits of its hash is in the index.
    """

    work: Path
    hashes: U64
    begins: I64
    ends: I64
    data: NDArray[np.uint8]
    bounds: I64
    is_possible: NDArray[np.bool_]

    def find(self, hashes: U64) -> tuple[I64, I64]:
        """Which of the hashes are in the index, and where."""
        if not len(self.hashes):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        slots = (hashes & np.uint64(len(self.is_possible) - 1)).view(np.int64)
        likely = np.flatnonzero(self.is_possible.take(slots))
        entries = np.minimum(np.searchsorted(self.hashes, hashes[likely]), len(self.hashes) - 1)
        is_there = self.hashes[entries] == hashes[likely]
        return likely[is_there], entries[is_there]

    def words_of(self, entry: int) -> list[str]:
        return split_words(self.data[self.begins[entry] : self.ends[entry]].tobytes().decode())

    def text_of(self, entry: int) -> Mapping[str, Any]:
        """The reference text that a run is in: its `reference`, its `place` and its `_row`."""
        number = int(np.searchsorted(self.bounds, self.begins[entry], "right")) - 1
        return self._texts.slice(number, 1).to_pylist()[0]  # type: ignore[no-any-return]

    @cached_property
    def _texts(self) -> Table:
        return read_shard(self.work / "texts.parquet")


def build_index(
    references: Sequence[Reference], work: Path, limits: Limits, own: HeldOutRows | None = None
) -> tuple[ReferenceTexts, ...]:
    """Write the index of the references into the folder `work`.

    Args:
        own: the held-out rows of one of them.

    Raises EnvironmentFault if it needs more memory than there is.
    """
    open_index.cache_clear()
    parts: list[tuple[U64, I64, I64]] = [(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))]
    bounds = [np.zeros(1, np.int64)]
    names: dict[str, list[str | None]] = {"reference": [], "place": [], ROW: []}
    found = []
    size = runs = 0
    with open(work / "data.bin", "wb") as data:
        for reference in references:
            texts = too_short = 0
            for rows in _reference_rows(reference, own):
                content, offsets = text_buffer(rows["text"])
                data.write(content)
                words = find_words(rows["text"])
                found_runs = word_runs(words, RUN_WORDS, whole=False)
                last = found_runs.words + RUN_WORDS - 1
                parts.append((found_runs.hashes, words.begins[found_runs.words] + size, words.ends[last] + size))
                bounds.append(offsets[1:] + size)
                size += len(content)
                runs += len(parts[-1][0])
                too_short += int((words.counts < RUN_WORDS).sum())
                _check_memory(runs, limits)
                texts += len(rows)
                ids: list[Any] = rows[ROW].to_pylist()
                sources = rows[SOURCE].to_pylist() if SOURCE in rows.column_names else [reference.name] * len(ids)
                names["reference"] += [reference.name] * len(ids)
                places = (row.rpartition("-")[2] for row in ids)
                names["place"] += [f"{source}, row {place}" for source, place in zip(sources, places, strict=True)]
                names[ROW] += [row if reference.has_ids else None for row in ids]
            found.append(ReferenceTexts(reference.name, texts, too_short))
    hashes, begins, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
    hashes, first = np.unique(hashes, return_index=True)
    arrays = {"hashes": hashes, "begins": begins[first], "ends": ends[first], "bounds": np.concatenate(bounds)}
    for name, array in {**arrays, "is_possible": _slots(hashes)}.items():
        np.save(work / f"{name}.npy", array)
    named = pa.table({name: pa.array(column, pa.string()) for name, column in names.items()})
    parquet.write_table(named, work / "texts.parquet")
    return tuple(found)


@lru_cache(maxsize=1)
def open_index(work: Path) -> Index:
    """The index in a folder, mapped."""
    arrays = {
        name: np.load(work / f"{name}.npy", mmap_mode="r")
        for name in ("hashes", "begins", "ends", "bounds", "is_possible")
    }
    path = work / "data.bin"
    data: Any = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    return Index(work, data=data, **arrays)


def _slots(hashes: U64) -> NDArray[np.bool_]:
    """For the lowest bits of a hash, whether the index has such a hash: at most an eighth of them."""
    found = np.zeros(1 << max((8 * len(hashes) - 1).bit_length(), 10), bool)
    found[(hashes & np.uint64(len(found) - 1)).view(np.int64)] = True
    return found


def _reference_rows(reference: Reference, own: HeldOutRows | None) -> Iterator[Table]:
    version = reference.version
    if own is not None and _is_own(own.version, [reference]):
        yield from map(own.of_shard, range(len(version.shards)))
        return
    with report_progress(f"reading {reference.name}", version.manifest.bytes, "bytes") as progress:
        for path, shard in zip(version.shards, version.manifest.shards, strict=True):
            columns = [ROW, SOURCE, "text", *([SPLIT] if reference.is_held_out else [])]
            for rows in read_parts(path, [name for name in columns if name in version.manifest.columns]):
                yield rows.filter(pa.array(is_held_out(rows))) if reference.is_held_out else rows
            progress.advance(shard.bytes)


def _check_memory(runs: int, limits: Limits) -> None:
    if runs * BYTES_PER_RUN > limits.spare_bytes:
        why = f"an index of {runs:,} runs and more needs {readable_bytes(runs * BYTES_PER_RUN)}"
        hint = "a larger --memory, or fewer references with --against"
        raise EnvironmentFault(f"--memory {readable_bytes(limits.memory_bytes)} is too little", why, hint)


@dataclass(frozen=True)
class Overlap:
    """A row that shares runs of words with a reference text, or is a copy of a row of a reference.

    Attributes:
        row: its `_row`.
        runs: of 13 words that it shares with any reference; 0 of a copy.
        words: of the longest fragment that it shares; 0 of a copy.
        reference: name of the reference that the fragment or the copied row is in.
        place: of it in the reference: file and number of the row, from 0.
        twin: `_row` of it; None if it is in a file.
        text: the beginning of the fragment, as the row has it; empty of a copy.
    """

    row: str
    source: str
    runs: int
    words: int
    reference: str
    place: str
    twin: str | None
    text: str


def find_overlaps(
    version: Version,
    references: Sequence[Reference],
    work: Path,
    limits: Limits,
    shards: Mapping[int, I64 | None],
    kept: HeldOutRows | None = None,
) -> Iterator[tuple[int, list[tuple[int, Overlap]]]]:
    """Read shards of a version, and yield for each its number and its overlaps, each with its row in the shard.

    If validation and test rows of its data set are among the references, its own are not compared.

    Args:
        work: the folder with the index.
        shards: the numbers of the rows to compare, by the number of the shard; None for all.
        kept: keeps the fingerprints of shards all of whose rows are compared.
    """
    files, columns = version.manifest.shards, [ROW, SOURCE, "text"]
    if compares_training(version, references):
        columns.append(SPLIT)
    scan = partial(_scan, work, [name for name in columns if name in version.manifest.columns])
    scans = [
        (version.shards[shard], rows, kept.fingerprint_file(shard) if kept is not None and rows is None else None)
        for shard, rows in shards.items()
    ]
    numbers = [*shards]
    with report_progress(f"comparing {version.reference}", sum(files[shard].bytes for shard in shards), "bytes") as bar:
        for index, found in call_each(scan, scans, limits.workers, begin=return_memory):
            yield numbers[index], found
            bar.advance(files[numbers[index]].bytes)


def _is_own(version: Version, references: Sequence[Reference]) -> bool:
    """Whether a version's own validation and test rows are among the references."""
    digest = version.manifest.sha256
    return any(each.is_held_out and each.version.manifest.sha256 == digest for each in references)


def compares_training(version: Version, references: Sequence[Reference]) -> bool:
    """Whether held-out rows of any version of the data set are references, so that its own are no training rows."""
    return any(each.is_held_out and each.version.manifest.name == version.manifest.name for each in references)


def _scan(work: Path, columns: Sequence[str], shard: tuple[Path, I64 | None, Path | None]) -> list[tuple[int, Overlap]]:
    """The overlaps of a shard, of whose rows those that `_split` holds out are skipped if it is one of the columns.

    Args:
        shard: its path, the numbers of the rows to compare, in order, or None, and a file for fingerprints, or None.
    """
    path, chosen, file = shard
    index, found, kept = open_index(work), list[tuple[int, Overlap]](), list[tuple[I64, I64]]()
    for first, rows in numbered_parts(path, columns):
        numbers = np.arange(first, first + len(rows))
        if chosen is not None:
            numbers = chosen[slice(*np.searchsorted(chosen, (first, first + len(rows))))]
        if SPLIT in columns:
            numbers = numbers[~is_held_out(rows)[numbers - first]]
        if len(numbers) < len(rows):
            rows = rows.take(pa.array(numbers - first))
        words = find_words(rows["text"])
        if file is not None:
            marks, texts = fingerprints(words)
            kept.append((marks, numbers[texts]))
        for text, hits in _hits(index, rows["text"], words):
            found.append((int(numbers[text]), _overlap(index, rows.slice(text, 1), hits)))
    if file is not None:
        write_fingerprints(file, kept)
    return found


@dataclass(frozen=True)
class _Hit:
    """A run of a text that is in the index: its number in the text, its place in bytes, and the index's entry."""

    run: int
    begin: int
    end: int
    entry: int


def _hits(index: Index, texts: Any, words: Words) -> Iterator[tuple[int, list[_Hit]]]:
    """The texts that have runs of the index, and these runs, verified word by word."""
    runs = word_runs(words, RUN_WORDS, whole=False)
    places, entries = index.find(runs.hashes)
    numbers = np.searchsorted(runs.firsts, places, "right") - 1
    data, offsets = text_buffer(texts)
    by_text: dict[int, list[_Hit]] = {}
    for number, place, entry in zip(numbers.tolist(), places.tolist(), entries.tolist(), strict=True):
        begin, end = int(words.begins[runs.words[place]]), int(words.ends[runs.words[place] + RUN_WORDS - 1])
        if split_words(data[begin:end].tobytes().decode()) == index.words_of(entry):
            start = int(offsets[number])
            hit = _Hit(place - int(runs.firsts[number]), begin - start, end - start, entry)
            by_text.setdefault(number, []).append(hit)
    yield from by_text.items()


def _overlap(index: Index, row: Table, hits: Sequence[_Hit]) -> Overlap:
    """The report of a row: its longest fragment is the longest series of runs that begin one word apart."""
    begin = longest = 0
    for at in range(len(hits)):
        if at and hits[at].run != hits[at - 1].run + 1:
            begin = at
        if at - begin >= longest:
            longest, first = at - begin + 1, hits[begin]
    last = hits[hits.index(first) + longest - 1]
    text = row["text"][0].as_py().encode()[first.begin : min(last.end, first.begin + EXAMPLE_BYTES)]
    reference = index.text_of(first.entry)
    return Overlap(
        row=row[ROW][0].as_py(),
        source=row[SOURCE][0].as_py() if SOURCE in row.column_names else "",
        runs=len(hits),
        words=longest + RUN_WORDS - 1,
        reference=reference["reference"],
        place=reference["place"],
        twin=reference[ROW],
        text=text.decode(errors="ignore"),
    )


@dataclass(frozen=True)
class Contamination(Result):
    """The document of `aifx data decontaminate --json` without --drop.

    Attributes:
        rows: of the version.
        overlapping: rows that share a run of 13 words with a reference, or in tables and lists of pictures are copies.
        by_reference: the same by the reference with the row's longest fragment.
        overlaps: the first of them.
    """

    reference: str
    rows: int
    against: tuple[ReferenceTexts, ...]
    overlapping: int
    by_reference: Mapping[str, int]
    overlaps: tuple[Overlap, ...]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.VERDICT if self.overlapping else ExitCode.OK


@dataclass(frozen=True)
class Decontaminate(DecidedStep):
    """Drops the rows that share a run of 13 words with a reference."""

    references: tuple[Reference, ...]

    name = "decontaminate"
    only_drops = True

    def on(self, version: Version) -> Self:
        """The same step with the rows of its first parent, which may be references too, in another place."""
        own = version.manifest.sha256
        moved = [replace(one, version=version) if one.digest == own else one for one in self.references]
        return replace(super().on(version), references=tuple(moved))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The references, of which the parent's own rows need no digest."""
        version = self.parents[0]
        against = [
            [each.name, "" if _is_own(version, [each]) else each.digest, each.is_held_out] for each in self.references
        ]
        return {"words": RUN_WORDS, "against": against}

    @property
    def task_settings(self) -> Mapping[str, Any]:
        return {}

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        version, sketches = self.parents[0], sketches_of(work)
        own = HeldOutRows(version, sketches) if _is_own(version, self.references) else None
        against = build_index(self.references, work, limits, own)
        held_out = own.shards_with_rows() if own is not None else {}
        key = [OVERLAPS, HASHES, self.settings]
        folder = sketches / f"overlaps-{sha256_of_json([*key, *held_out])}"
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{shard.sha256}.parquet" for shard in version.manifest.shards]
        rows = {shard: found for shard, file in enumerate(files) if (found := read_kept(file)) is not None}
        missing: dict[int, I64 | None] = {shard: None for shard in range(len(files)) if shard not in rows}
        if own is not None:
            last = sketches / f"overlaps-{sha256_of_json(key)}.parquet"
            rows |= _keep_decisions(own, held_out, read_compared(last), missing)
        for shard, found in find_overlaps(version, self.references, work, limits, missing, own):
            rows[shard] = pa.concat_tables([rows.get(shard, decisions_of([])), decisions_of(found)]).sort_by("row")
            with replacing(files[shard]) as file:
                parquet.write_table(rows[shard], file)
        if own is not None:
            write_compared(last, held_out, {version.manifest.shards[shard].sha256: rows[shard] for shard in rows})
        self.write(work, rows)
        return {
            "reference_texts": sum(each.texts for each in against),
            "too_short": sum(each.too_short for each in against),
        }

    def write(self, work: Path, rows: Mapping[int, Table]) -> None:
        """Write the decisions, which have the numbers of rows in their shards, by the numbers of the shards."""
        firsts = first_rows(self.parents[0].manifest.shards).tolist()
        placed = [rows[shard].set_column(0, "row", pc.add(rows[shard]["row"], firsts[shard])) for shard in sorted(rows)]
        write_decisions(work, pa.concat_tables([decisions_of([]), *placed]))

    def apply(self, rows: Table, decisions: Table) -> Outcome:
        return without_dropped(rows, decisions, twin="twin")


def _keep_decisions(
    own: HeldOutRows, held_out: Mapping[str, int], last: Compared | None, missing: dict[int, I64 | None]
) -> dict[int, Table]:
    """The decisions about shards that were there when the data set was compared last, which hold for all other rows.

    Args:
        held_out: the shards with held-out rows.
        missing: the rows to compare, of which those are removed that need not be.
    """
    if last is None:
        return {}
    still_hold = last.still_hold(held_out)
    known = set(last.held_out)
    new = own.fingerprints_of(shard for sha256, shard in held_out.items() if sha256 not in known)
    kept = {}
    for shard in [*missing]:
        sha256 = own.version.manifest.shards[shard].sha256
        if sha256 not in last.shards or (rows := rows_with(own.fingerprint_file(shard), new)) is None:
            continue
        decisions = last.of_shard(sha256)
        if not still_hold:
            rows = np.union1d(rows, decisions["row"].to_numpy())
        kept[shard] = decisions.filter(pc.invert(pc.is_in(decisions["row"], pa.array(rows))))
        missing[shard] = rows
        if not len(rows):
            del missing[shard]
    return kept


def decisions_of(overlaps: Sequence[tuple[int, Overlap]]) -> Table:
    """The decisions about the rows of a shard, which has these overlaps."""
    return pa.table(
        {
            "row": pa.array([place for place, _ in overlaps], pa.int64()),
            "rule": pa.array([f"overlaps {overlap.reference}" for _, overlap in overlaps], pa.string()),
            "twin": pa.array([overlap.twin for _, overlap in overlaps], pa.string()),
        }
    )


def find_contamination(
    version: Version, references: Sequence[Reference], work: Path, limits: Limits, most: int
) -> Contamination:
    """Compare the rows of a version with references, and report `most` of those that overlap."""
    check_shards(version)
    references = with_versions(references)
    against = build_index(references, work, limits)
    every = dict.fromkeys(range(len(version.shards)))
    return report_overlaps(version, against, find_overlaps(version, references, work, limits, every), most)


def with_versions(references: Sequence[Reference]) -> list[Reference]:
    """The references with the names of their versions, also of that which is compared: the name is evidence."""
    return [replace(each, name=each.version.reference) if each.has_ids else each for each in references]


def report_overlaps(
    version: Version,
    against: tuple[ReferenceTexts, ...],
    shards: Iterable[tuple[int, list[tuple[int, Overlap]]]],
    most: int,
) -> Contamination:
    """The report on the overlaps of each shard of a version, with `most` of them."""
    counts: Counter[str] = Counter()
    by_shard: dict[int, list[Overlap]] = {}
    for shard, found in shards:
        counts.update(overlap.reference for _, overlap in found)
        by_shard[shard] = [overlap for _, overlap in found[:most]]
    overlaps = [overlap for shard in sorted(by_shard) for overlap in by_shard[shard]]
    return Contamination(
        version.reference,
        version.manifest.rows,
        against,
        counts.total(),
        dict(sorted(counts.items())),
        tuple(overlaps[:most]),
    )
