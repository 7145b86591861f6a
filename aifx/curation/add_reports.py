"""The documents of `aifx data add`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aifx.core.artifact import short_reference
from aifx.core.errors import ExitCode
from aifx.core.plurals import counted
from aifx.core.results import Result
from aifx.curation.add_plan import AddPlan
from aifx.curation.collecting import decided_encoding
from aifx.curation.execution import Made
from aifx.data.names import Kind
from aifx.data.readers.likely_encodings import SAMPLE_BYTES, likely_encodings
from aifx.data.readers.likely_encodings import SHOWN as LIKELY
from aifx.data.readers.sources import Listing
from aifx.data.versions.manifest import Manifest, Version
from aifx.data.versions.shards import read_shard

SHOWN = 10
"""Bad rows that the command shows."""


@dataclass(frozen=True)
class BadRows:
    """The number of rows and files of a version that could not be read."""

    bad: int
    rows: int
    damaged_files: int

    @classmethod
    def of(cls, manifest: Manifest) -> BadRows:
        bad = sum(source.quarantined for source in manifest.sources)
        return cls(bad, manifest.rows + bad, int(manifest.facts.get("damaged_files", 0)))

    def refusal(self, max_bad: float, *, allows_damaged: bool) -> str:
        """Why this is too much; "" if it is not.

        Args:
            max_bad: the largest share of bad rows if below 1, otherwise their largest number.
            allows_damaged: whether files may end before their end.
        """
        if self.damaged_files and not allows_damaged:
            files = counted(self.damaged_files, "file")
            return f"{files} cannot be read to the end; --allow-damaged takes the rows before the damage"
        limit = int(max_bad * self.rows if max_bad < 1 else max_bad)
        if self.bad > limit:
            bad = f"{self.bad:,} of {counted(self.rows, 'row')}"
            return f"{bad} cannot be read, and --max-bad {max_bad:g} allows {limit:,}"
        return "" if self.rows > self.bad else "the files have no rows"


@dataclass(frozen=True)
class QuarantinedRow:
    """A row, or the rest of a file, that could not be read.

    Attributes:
        line: from 1; null if it is not known from which on a file cannot be read.
    """

    source: str
    line: int | None
    reason: str


@dataclass(frozen=True)
class AddedFiles(Result):
    """The document of `aifx data add --json`.

    Attributes:
        reference: "name@version".
        rows: of the whole version.
        files_read: files that were new or changed.
        files_unchanged: files whose rows were taken from the version before.
        quarantined: bad rows of the whole version.
        damaged_files: that could not be read to their end.
        bad_rows: the first rows in quarantine.
        likely_encodings: of each file that has bytes that are not UTF-8, the likeliest first.
        encodings: of each file, if `--encoding auto` decided it.
        is_new: False if the same version was there already.
        is_accepted: whether the name alone means this version.
        left_out: files of folders that have no reader.
        links: that lead out of their folder, and were not followed.
    """

    reference: str
    parents: tuple[str, ...]
    rows: int
    size_bytes: int
    files_read: int
    files_unchanged: int
    quarantined: int
    damaged_files: int
    bad_rows: tuple[QuarantinedRow, ...]
    likely_encodings: Mapping[str, Sequence[str]]
    encodings: Mapping[str, str]
    is_new: bool
    is_accepted: bool
    left_out: tuple[str, ...]
    links: tuple[str, ...]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.is_accepted else ExitCode.VERDICT


def added_files(plan: AddPlan, made: Made, listing: Listing) -> AddedFiles:
    """The document of `aifx data add`."""
    manifest = made.version.manifest
    bad = BadRows.of(manifest)
    return AddedFiles(
        reference=manifest.reference,
        parents=tuple(map(short_reference, manifest.parents)),
        rows=manifest.rows,
        size_bytes=manifest.bytes,
        files_read=len(plan.step.files) if plan.step else 0,
        files_unchanged=len(plan.unchanged),
        quarantined=bad.bad,
        damaged_files=bad.damaged_files,
        bad_rows=tuple(first_quarantined(made.version)),
        likely_encodings=_likely_encodings(made.version),
        encodings={source.name: found for source in manifest.sources if (found := decided_encoding(source))},
        is_new=made.is_new,
        is_accepted=made.is_accepted,
        left_out=listing.left_out,
        links=listing.links,
    )


def first_quarantined(version: Version, count: int = SHOWN) -> list[QuarantinedRow]:
    """The first rows in the quarantine of a version."""
    found: list[QuarantinedRow] = []
    for path in version.quarantine:
        rows = read_shard(path, ["source", "line", "reason"]).slice(0, count - len(found))
        found += [QuarantinedRow(**row) for row in rows.to_pylist()]
        if len(found) == count:
            break
    return found


def _likely_encodings(version: Version) -> dict[str, Sequence[str]]:
    """Of the first rows in quarantine that are not UTF-8, by file."""
    samples: dict[str, bytes] = {}
    num_rows = 0
    for path in version.quarantine:
        for row in read_shard(path, ["source", "value"]).slice(0, SHOWN - num_rows).to_pylist():
            num_rows += 1
            value = row["value"] or b""
            try:
                value.decode()
            except UnicodeDecodeError as e:
                line = value.rfind(b"\n", 0, e.start) + 1
                samples[row["source"]] = samples.get(row["source"], b"") + value[line : line + SAMPLE_BYTES] + b"\n"
    found = {source: likely_encodings(sample)[:LIKELY] for source, sample in samples.items()}
    return {source: likely for source, likely in found.items() if likely and likely[0] != "utf-8"}


@dataclass(frozen=True)
class ListedFile:
    """A file that would be read.

    Attributes:
        format: "jsonl", "parquet".
        compression: ".gz", ".zst" or "".
        size_bytes: None for a query: a dry run reads no row.
    """

    name: str
    format: str
    compression: str
    size_bytes: int | None


@dataclass(frozen=True)
class ListedFiles(Result):
    """The document of `aifx data add --dry-run --json`.

    Attributes:
        left_out: files of folders that have no reader.
        links: that lead out of their folder, and are not followed.
    """

    name: str
    kind: Kind
    files: tuple[ListedFile, ...]
    left_out: tuple[str, ...]
    links: tuple[str, ...]


def listed_files(name: str, kind: Kind, listing: Listing) -> ListedFiles:
    """The document of `aifx data add --dry-run`."""
    files = tuple(
        ListedFile(file.name, file.format, file.compression, None if file.query else file.bytes)
        for file in listing.files
    )
    return ListedFiles(name, kind, files, listing.left_out, listing.links)
