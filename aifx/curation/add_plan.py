"""`aifx data add`: the plan (the files that are new or changed, and the version that they extend) and the documents."""

from __future__ import annotations

import codecs
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow import Schema

from aifx.core.artifact import short_reference
from aifx.core.errors import DataError, ExitCode, UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.parsing import check_utf8
from aifx.core.plurals import counted
from aifx.core.progress import report_progress
from aifx.core.requests import Request
from aifx.core.results import Result
from aifx.curation.adding import Add, decided_encoding, options_of, reading_of
from aifx.curation.erased import ErasedRows, holds_erased, read_erased
from aifx.curation.execution import Asked, Made, NotMade, Runner, execute, name_version, work_folder
from aifx.curation.step import Limits
from aifx.curation.work_folders import holding_dataset
from aifx.data.chat.lines import has_messages
from aifx.data.names import Kind
from aifx.data.readers.base import ColumnsChanged, DamagedFile, ReadOptions
from aifx.data.readers.columnar import READERS
from aifx.data.readers.encodings import AUTO, SAMPLE_BYTES, likely_encodings
from aifx.data.readers.encodings import MOST_NAMED as LIKELY
from aifx.data.readers.formats import KINDS, split_name
from aifx.data.readers.sources import Listing, SourceFile, leads_out, name_of
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.manifest import Manifest, Source, Version
from aifx.data.versions.shards import read_shard

CSV_MEMORY = 400 << 20
"""Memory of a process that reads CSV: pyarrow reads several blocks ahead, each as large as the largest row may be."""

SHOWN = 10
"""Bad rows that the command shows."""


@dataclass(frozen=True)
class AddPlan:
    """The work that is left to do.

    Attributes:
        parent: the version that the files extend: the last that `aifx data add` made.
        step: None if nothing is new.
        unchanged: files whose rows the parent has.
        meant: the version that the name meant, or "".
    """

    parent: Version | None
    step: Add | None
    unchanged: tuple[SourceFile, ...]
    meant: str


def plan_add(
    catalog: Catalog,
    name: str,
    listing: Listing,
    options: ReadOptions,
    license_: str,
    *,
    only: bool = False,
) -> AddPlan:
    """Compare files with those that the data set has. Raises UsageError, DataError.

    Args:
        only: extend no version that has rows of other files.
    """
    meant = catalog.latest(name) or ""
    parent, replaces = added_version(catalog, name, may_be_deleted=only), ""
    if (
        only
        and parent is not None
        and {source.name for source in parent.manifest.sources} - {file.name for file in listing.files}
    ):
        replaces = parent.manifest.whole_reference if parent.manifest.kind == options.kind else ""
        parent = None
    before = {source.name: source for source in parent.manifest.sources} if parent else {}
    if parent is not None and parent.manifest.kind != options.kind:
        what = f"{name} holds {parent.manifest.kind}, and these files are read as {options.kind}"
        raise UsageError(what, "a data set has one kind", f"--kind {parent.manifest.kind}, or another name")
    to_hash = sum(file.bytes for file in listing.files if not file.is_remote)
    with (
        report_progress("hashing", to_hash, "bytes") as progress,
        ThreadPoolExecutor(4) as pool,
    ):
        files = tuple(pool.map(lambda file: file.with_digest(progress), listing.files))
    unchanged = tuple(file for file in files if _is_same(file, before.get(file.name), options))
    names = {file.name for file in unchanged}
    relicensed = {file.name: license_ for file in unchanged if before[file.name].license != license_}
    erased = read_erased(catalog, name)
    is_clean = erased is None or parent is None or _lacks(parent, erased)
    if parent is not None and len(unchanged) == len(files) and not relicensed and is_clean:
        return AddPlan(parent, None, unchanged, meant)
    step = Add(
        parents=(parent,) if parent else (),
        files=tuple(file for file in files if file.name not in names),
        options=options,
        license=license_,
        relicensed=relicensed,
        erased=erased,
        replaces=replaces,
    )
    return AddPlan(parent, step, unchanged, meant)


def run_add(
    plan: AddPlan,
    name: str,
    catalog: Catalog,
    limits: Limits,
    run_tasks: Runner | None = None,
    accepts: Callable[[Manifest], bool] = lambda _: True,
    *,
    set_name: bool = True,
    dry_run: bool = False,
    asked: Asked | None = None,
) -> Made:
    """Do what is planned, and let `name` mean the version with the files. The rest goes to `execute`."""
    if plan.step is None:
        assert plan.parent is not None
        made = Made(plan.parent, is_new=False, is_accepted=accepts(plan.parent.manifest))
        if set_name and not dry_run:
            with holding_dataset(name, catalog, "lets its name mean another version"):
                name_version(catalog, name, made, plan.meant, asked)
        return made
    if any(file.format == "csv" for file in plan.step.files):
        if limits.memory_bytes < CSV_MEMORY:
            what, why = f"--memory {readable_bytes(limits.memory_bytes)} is too little", "reading CSV takes 400 MiB"
            raise UsageError(what, why, "--memory 400MiB")
        limits = replace(limits, workers=max(1, min(limits.workers, limits.memory_bytes // CSV_MEMORY - 1)))
    run = partial(execute, name=name, catalog=catalog, limits=limits, run_tasks=run_tasks, accepts=accepts)
    run = partial(run, set_name=set_name, meant=plan.meant, asked=asked)
    try:
        return run(plan.step, dry_run=dry_run)
    except NotMade as missing:
        changed = f"new or changed source files: {len(plan.step.files):,}"
        if not plan.step.files:
            changed = "rows of it were erased" if not plan.step.relicensed else ""
        missing.note = changed if plan.step.parents else "files of its rows are no longer sources"
        raise
    except ColumnsChanged:
        # A row further on has a column, or a wider number, that the beginning of its file does not have.
        shutil.rmtree(work_folder(plan.step, name, catalog), ignore_errors=True)
        return run(replace(plan.step, scanned=True))


def added_version(catalog: Catalog, name: str, *, may_be_deleted: bool = False) -> Version | None:
    """The version of a data set that `aifx data add` made last, before the steps that made the latest one of it.

    If it, or one that a step after it made, was deleted: the oldest that is left after that.

    Args:
        may_be_deleted: None instead of one that is left.
    """
    version = catalog.latest(name)
    if version is None:
        return None
    reference = f"{name}@{version}"
    while True:
        manifest = catalog.manifest(reference)
        if manifest.made_by.name == Add.name:
            return catalog.open(reference)
        own = [parent for parent in manifest.parents if parent.startswith(f"{name}@")]
        if not own:
            parents = ", ".join(map(short_reference, manifest.parents))
            why = f"`aifx data {manifest.step.name}` made {manifest.reference} from {parents or 'nothing'}"
            raise UsageError(f"no files can be added to {name}", why, "add them under another name")
        if not catalog.holds(own[0]):
            return None if may_be_deleted else catalog.open(reference)
        reference = own[0]


def infer_kind(listing: Listing, options: ReadOptions) -> Kind:
    """Images if all files are pictures; text if they are texts, or the first has the field with the text; chat if it
    has lists of messages.

    Raises UsageError for files of several kinds.
    """
    formats = {file.format for file in listing.files}
    if "image" in formats:
        if len(formats) > 1:
            other = next(file.name for file in listing.files if file.format != "image")
            why = f"{other} is not a picture, and others are"
            raise UsageError("the files are of several kinds", why, "--kind images, or --kind text, takes some of them")
        return "images"
    tables = [file for file in listing.files if file.format in KINDS["table"]]
    texts = [file for file in listing.files if file.format not in KINDS["table"]]
    if not tables:
        return "text"
    schema = _columns_of(tables[0], options)
    columns = [] if schema is None else schema.names
    if options.text_field in columns or not columns:  # if no row can be read, its task says why
        return "text"
    if texts:
        what = f"{tables[0].name} has no column {options.text_field!r}, and {texts[0].name} is text"
        hint = f"--text-field {columns[0] if columns else 'NAME'}"
        raise UsageError(what, f"its columns are {', '.join(columns[:8])}", hint)
    assert schema is not None
    return "chat" if tables[0].format in KINDS["chat"] and has_messages(schema) else "table"


def _columns_of(file: SourceFile, options: ReadOptions) -> Schema | None:
    """The columns of a file, None if it cannot be read."""
    with file.on_disk() as local:
        as_table = replace(options_of(local, options), kind="table")
        try:
            return READERS[file.format].find_schema(local, as_table, is_whole=False)
        except DamagedFile:
            return None


def of_kind(listing: Listing, kind: Kind) -> Listing:
    """The files that can be of a kind; the others are left out."""
    others = [file.name for file in listing.files if file.format not in KINDS[kind]]
    files = tuple(file for file in listing.files if file.format in KINDS[kind])
    return replace(listing, files=files, left_out=tuple(sorted([*listing.left_out, *others])))


def with_listed(listing: Listing, arguments: Sequence[str], base: Path, *, follow_links: bool = False) -> Listing:
    """The listing of pictures with those that lists name in place of the lists: .csv files that are arguments.

    A picture that is not below the folder of its list is among the links that are not followed.

    Args:
        base, follow_links: as `list_sources` takes them.

    Raises DataError for a list that cannot be read, a file that it names, and a picture that shows two things.
    """
    from aifx.data.picture_lists import read_list

    given = {os.path.abspath(os.path.expanduser(argument)) for argument in arguments}
    lists = [file for file in listing.files if file.location in given and split_name(file.name)[0] == ".csv"]
    found = {file.name: file for file in listing.files if file not in lists}
    links = set(listing.links)
    for one in lists:
        inside = None if follow_links else os.path.realpath(os.path.dirname(one.location))
        for example in read_list(Path(one.location), one.name)[1]:
            path = os.path.abspath(example.path)
            name, hint = name_of(path, base), f"correct {one.name}"
            if leads_out(path, inside):
                links.add(name)
                continue
            try:
                state = os.stat(path)
            except OSError as e:
                raise DataError(f"{example.name} cannot be read", e.strerror or str(e), hint) from None
            if not stat.S_ISREG(state.st_mode):
                raise DataError(f"{example.name} is not a regular file", "a picture is one", hint)
            file = SourceFile(name, path, "image", split_name(name)[1], state.st_size, state.st_mtime_ns)
            file = replace(file, target=example.target, split=example.split)
            if name in found and found[name].target is not None and found[name] != file:
                raise DataError(f"{example.name} shows two things", "another row or its folder says otherwise", hint)
            found[name] = file
    return replace(listing, files=tuple(found[name] for name in sorted(found)), links=tuple(sorted(links)))


def _lacks(version: Version, erased: ErasedRows) -> bool:
    """Whether a version has none of the erased rows: an `add` that knew them made it, or no row has such an id."""
    made_by = version.manifest.step
    is_known = made_by.name == Add.name and made_by.settings.get("erased_sha256") == erased.digest
    return is_known or not holds_erased(version, erased)


def _is_same(file: SourceFile, source: Source | None, options: ReadOptions) -> bool:
    if source is None or source.reading != reading_of(file, options, decided_encoding(source)):
        return False
    return source.stamp == file.stamp if file.is_remote else source.sha256 == file.sha256


def check_options(options: ReadOptions) -> None:
    """Check an encoding, a pattern and the name of a field.

    Raises UsageError for an encoding that Python does not know, a pattern that is no regular expression, and the name
    of a field that is not UTF-8.
    """
    check_utf8("name of the text field", options.text_field)
    try:
        re.compile((options.split_at or "").encode())
    except (re.error, UnicodeEncodeError) as e:
        what = f"--split-at {options.split_at!r} is not a regular expression"
        raise UsageError(what, str(e), "--split-at '^CHAPTER '") from None
    if options.encoding == AUTO:
        return
    try:
        codecs.getincrementaldecoder(options.encoding)
        "".encode(options.encoding)
    except (LookupError, UnicodeEncodeError):
        what = f"--encoding {options.encoding!r} is not an encoding of text"
        raise UsageError(what, "Python has no codec of this name", "--encoding auto") from None


def refusal(manifest: Manifest, max_bad: float, *, allows_damaged: bool) -> str:
    """The reason to refuse a version of whose files too much could not be read; "" if there is none.

    Args:
        max_bad: the largest share of bad rows if below 1, otherwise their largest number.
        allows_damaged: whether files may end before their end.
    """
    if (damaged := manifest.facts.get("damaged_files", 0)) and not allows_damaged:
        files = counted(damaged, "file")
        return f"{files} cannot be read to the end; --allow-damaged takes the rows before the damage"
    bad = manifest.quarantined_rows
    rows = manifest.rows + bad
    limit = int(max_bad * rows if max_bad < 1 else max_bad)
    if bad > limit:
        return f"{bad:,} of {counted(rows, 'row')} cannot be read, and --max-bad {max_bad:g} allows {limit:,}"
    return "" if manifest.rows else "the files have no rows"


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
        request: the id of the request.
        is_repeated: whether an earlier call with the same id did it, and this is what that call reported.
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
    request: str | None = None
    is_repeated: bool = False

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.is_accepted else ExitCode.VERDICT


def added_files(plan: AddPlan, made: Made, listing: Listing, asked: Request | None = None) -> AddedFiles:
    """The document of `aifx data add`."""
    manifest = made.version.manifest
    bad = first_quarantined(made.version)
    return AddedFiles(
        reference=manifest.reference,
        parents=tuple(map(short_reference, manifest.parents)),
        rows=manifest.rows,
        size_bytes=manifest.bytes,
        files_read=len(plan.step.files) if plan.step else 0,
        files_unchanged=len(plan.unchanged),
        quarantined=manifest.quarantined_rows,
        damaged_files=manifest.facts.get("damaged_files", 0),
        bad_rows=tuple(QuarantinedRow(row["source"], row["line"], row["reason"]) for row in bad),
        likely_encodings=_likely_encodings(bad),
        encodings={source.name: found for source in manifest.sources if (found := decided_encoding(source))},
        is_new=made.is_new,
        is_accepted=made.is_accepted,
        left_out=listing.left_out,
        links=listing.links,
        request=None if asked is None else asked.id,
    )


def first_quarantined(version: Version) -> list[dict[str, Any]]:
    """The first rows in the quarantine of a version."""
    found: list[dict[str, Any]] = []
    for path in version.quarantine:
        found += read_shard(path).slice(0, SHOWN - len(found)).to_pylist()
        if len(found) == SHOWN:
            break
    return found


def _likely_encodings(bad: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[str]]:
    """The likely encodings of the rows in quarantine that are not UTF-8, by file."""
    samples: dict[str, bytes] = {}
    for row in bad:
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
        format: "jsonl", "parquet"; of a reader of the project, its name.
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
        ListedFile(
            name=file.name,
            format=file.reader.name if file.reader else file.format,
            compression=file.compression,
            size_bytes=None if file.query else file.bytes,
        )
        for file in listing.files
    )
    return ListedFiles(name, kind, files, listing.left_out, listing.links)
