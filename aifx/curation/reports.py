"""Documents of the commands of `aifx data` about versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aifx.core.artifact import short_reference
from aifx.core.errors import DataError, ExitCode
from aifx.core.file_states import FileState
from aifx.core.project import Project
from aifx.core.results import Result
from aifx.curation.history import settings_text, trained_runs
from aifx.data.file_index import find_implicit, split_reference
from aifx.data.names import Kind
from aifx.data.readers.encodings import FileScan
from aifx.data.readers.sources import SourceFile
from aifx.data.versions.catalog import Catalog, ReadFiles, check_files, rows_and_bytes

if TYPE_CHECKING:
    from aifx.config.sections import DataSection


@dataclass(frozen=True)
class ListedVersion:
    """A line of `aifx data ls`.

    Attributes:
        rows, size_bytes: of a mix, those of its parents.
        own_bytes: of the Parquet files in its own folder; versions before it hold the others.
        step: that made it.
        is_latest: whether the name alone means this version.
    """

    reference: str
    kind: Kind
    rows: int
    size_bytes: int
    own_bytes: int
    step: str
    parents: tuple[str, ...]
    licenses: tuple[str, ...]
    is_latest: bool


@dataclass(frozen=True)
class UnreadableVersion:
    """A version whose manifest cannot be read.

    Attributes:
        why: it is damaged, or of a format that this aifx does not read.
    """

    reference: str
    why: str
    hint: str


@dataclass(frozen=True)
class VersionList(Result):
    """The document of `aifx data ls --json`."""

    root: str
    versions: tuple[ListedVersion, ...]
    unreadable: tuple[UnreadableVersion, ...]


def list_versions(catalog: Catalog, name: str | None = None) -> VersionList:
    """The versions of all data sets, or of one. Raises UsageError if there is none of that name."""
    names = catalog.names() if name is None else [catalog.find(name)[0]]
    listed, unreadable = [], []
    for name in names:
        latest = catalog.latest(name)
        for version in catalog.versions(name):
            try:
                manifest = catalog.manifest(f"{name}@{version}")
            except DataError as e:
                unreadable.append(UnreadableVersion(f"{name}@{version}", e.why, e.hint))
                continue
            rows, size_bytes = rows_and_bytes(manifest)
            listed.append(
                ListedVersion(
                    reference=manifest.reference,
                    kind=manifest.kind,
                    rows=rows,
                    size_bytes=size_bytes,
                    own_bytes=sum(file.bytes for file in manifest.files if not file.holder),
                    step=manifest.step.name,
                    parents=tuple(map(short_reference, manifest.parents)),
                    licenses=manifest.licenses,
                    is_latest=version == latest,
                )
            )
    return VersionList(catalog.store.url, tuple(listed), tuple(unreadable))


@dataclass(frozen=True)
class VerifiedVersion:
    """A version after `aifx data verify` read its files.

    Attributes:
        damages: each damaged or missing file, and why.
        unread: number of the files that are in a store and are named by a key of `[data]`: they were not read, and
            stand for what the store records of them, their ETags or times.
    """

    reference: str
    files: int
    size_bytes: int
    damages: tuple[str, ...]
    unread: int = 0


@dataclass(frozen=True)
class Verification(Result):
    """The document of `aifx data verify --json`."""

    versions: tuple[VerifiedVersion, ...]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.is_whole else ExitCode.VERDICT

    @property
    def is_whole(self) -> bool:
        return not any(version.damages for version in self.versions)


def verify_version(catalog: Catalog, reference: str, read: ReadFiles | None = None) -> VerifiedVersion:
    """Compare each file of a version, local or remote, with its SHA-256. Raises UsageError if there is none.

    Args:
        read: see `check_files`.
    """
    try:
        name, version = catalog.find(reference)
    except DataError as e:  # the file that names the latest version
        return VerifiedVersion(reference, 0, 0, (f"{e.what}: {e.why}",))
    found = check_files(catalog.store.below(f"{name}/{version}"), name, version, read)
    return VerifiedVersion(f"{name}@{version}", found.files, found.bytes, found.damages)


def verify_files(reference: str, section: DataSection, project: Project) -> VerifiedVersion:
    """Read each file of this machine that a key of `[data]` names, and compare it with what training last read of it.

    Args:
        reference: "data.train", or "data.train@<digits>" to compare the files with those of a run's provenance.

    Raises DataError for a file that cannot be read, UsageError if the key names none or the digits are no digest.
    """
    key, digits = split_reference(reference)
    known = find_implicit(key, section, project)
    found = find_implicit(key, section, project, again=True)
    damages = [
        f"{file.name} has other bytes than were read before, and the same size and times"
        for file, scan in found.files.items()
        if known.files[file].state == scan.state and known.files[file] != scan
    ]
    if not found.sha256.startswith(digits):
        damages.append(f"the files are not {short_reference(reference)}")
    size = sum(_size_of(file, scan) for file, scan in found.files.items())
    unread = sum(file.is_remote for file in found.files)
    return VerifiedVersion(found.reference, len(found.files), size, tuple(damages), unread)


@dataclass(frozen=True)
class PageSource:
    """A file from which rows of a version came, or that a key of `[data]` names.

    Attributes:
        sha256: of the decompressed text that a key names; of a file in a store that it names, of the store's
            record.
        rows: None if it has none with fields, or was not read.
        license: an SPDX expression, or "unknown".
    """

    name: str
    sha256: str
    bytes: int
    rows: int | None
    license: str


@dataclass(frozen=True)
class VersionPage(Result):
    """The document of `aifx data show NAME --json`.

    Attributes:
        reference: "name@version"; of files, the key and the beginning of their SHA-256, as provenance has it.
        rows: None if they are not known: of arrays, and of files in a store.
        columns: Arrow type by column.
        step: that made the version, with `settings`; "" for files that a key of `[data]` names.
        runs: of the project that trained on this version.
    """

    reference: str
    kind: Kind
    rows: int | None
    size_bytes: int
    columns: Mapping[str, str]
    step: str
    settings: Mapping[str, Any]
    parents: tuple[str, ...]
    sources: tuple[PageSource, ...]
    runs: tuple[str, ...]

    @property
    def settings_text(self) -> str:
        return settings_text(self.settings)


def show_version(catalog: Catalog, reference: str, project: Project | None) -> VersionPage:
    """A version on one page. Raises UsageError if there is none, DataError if it is damaged."""
    manifest = catalog.manifest(reference)
    rows, size_bytes = rows_and_bytes(manifest)
    return VersionPage(
        reference=manifest.reference,
        kind=manifest.kind,
        rows=rows,
        size_bytes=size_bytes,
        columns=manifest.columns,
        step=manifest.step.name,
        settings=manifest.step.settings,
        parents=tuple(map(short_reference, manifest.parents)),
        sources=tuple(PageSource(one.name, one.sha256, one.bytes, one.rows, one.license) for one in manifest.sources),
        runs=_runs_on(manifest.whole_reference, project),
    )


def show_files(reference: str, section: DataSection, project: Project) -> VersionPage:
    """The files that "data.train" or another key names, as `show_version` shows a version.

    Raises UsageError if the key names none or others, DataError for what training cannot read.
    """
    from aifx.curation.named_files import count_rows  # reads rows, for which it imports pyarrow

    version = find_implicit(reference, section, project)
    found = count_rows(version, section)
    sizes = {file: _size_of(file, scan) for file, scan in version.files.items()}
    rows = [count for count in found.rows.values() if count is not None]
    return VersionPage(
        reference=version.reference,
        kind=found.kind,
        rows=sum(rows) if len(rows) == len(found.rows) else None,
        size_bytes=sum(sizes.values()),
        columns=found.columns,
        step="",
        settings={},
        parents=(),
        sources=tuple(
            PageSource(file.name, file.stamp or scan.digest, sizes[file], found.rows[file], "unknown")
            for file, scan in version.files.items()
        ),
        runs=_runs_on(f"{version.key}@{version.sha256}", project),
    )


def _runs_on(reference: str, project: Project | None) -> tuple[str, ...]:
    runs = trained_runs(project) if project is not None else ()
    return tuple(dict.fromkeys(run.run for run in runs if run.reference == reference))


def _size_of(file: SourceFile, scan: FileScan) -> int:
    """The size of a file on the disk or in its store."""
    return scan.state.bytes if isinstance(scan.state, FileState) else file.bytes
