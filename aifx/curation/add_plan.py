"""What `aifx data add` has to do: which files are new or changed, and which version they extend."""

from __future__ import annotations

import codecs
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from aifx.core.errors import UsageError
from aifx.core.progress import report_progress
from aifx.curation.adding import Add
from aifx.curation.collecting import reading_of
from aifx.curation.execution import Made, Runner, execute, work_folder
from aifx.curation.readers.base import ColumnsChanged, DamagedFile, ReadOptions
from aifx.curation.readers.formats import READERS
from aifx.curation.source_files import Listing, SourceFile
from aifx.curation.step import Limits
from aifx.data.versions import Catalog, Kind, Manifest, Source, Version


@dataclass(frozen=True)
class AddPlan:
    """What has to be done.

    Attributes:
        parent: the version that the files extend: the last that `aifx data add` made.
        step: None if nothing is new.
        unchanged: files whose rows the parent has.
    """

    parent: Version | None
    step: Add | None
    unchanged: tuple[SourceFile, ...]


def plan_add(
    catalog: Catalog,
    name: str,
    listing: Listing,
    options: ReadOptions,
    license_: str,
) -> AddPlan:
    """Compare files with those that the data set has. Raises UsageError, DataError."""
    parent = added_version(catalog, name)
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
    if parent is not None and len(unchanged) == len(files) and not relicensed:
        return AddPlan(parent, None, unchanged)
    step = Add(
        parents=(parent,) if parent else (),
        files=tuple(file for file in files if file.name not in names),
        options=options,
        license=license_,
        relicensed=relicensed,
    )
    return AddPlan(parent, step, unchanged)


def run_add(
    plan: AddPlan,
    name: str,
    catalog: Catalog,
    limits: Limits,
    run_tasks: Runner | None = None,
    accepts: Callable[[Manifest], bool] = lambda _: True,
) -> Made:
    """Do what is planned, and let `name` mean the version with the files. The rest goes to `execute`."""
    if plan.step is None:
        assert plan.parent is not None
        is_accepted = accepts(plan.parent.manifest)
        if is_accepted:
            catalog.set_latest(name, plan.parent.manifest.version)
        return Made(plan.parent, is_new=False, is_accepted=is_accepted)
    try:
        return execute(plan.step, name, catalog, limits, run_tasks, accepts)
    except ColumnsChanged:
        # A row further on has a column, or a wider number, that the beginning of its file does not have.
        shutil.rmtree(work_folder(plan.step, name, catalog), ignore_errors=True)
        return execute(replace(plan.step, scanned=True), name, catalog, limits, run_tasks, accepts)


def added_version(catalog: Catalog, name: str) -> Version | None:
    """The version of a data set that `aifx data add` made last, before the steps that made the latest one of it."""
    version = catalog.latest(name)
    if version is None:
        return None
    reference = f"{name}@{version}"
    while True:
        manifest = catalog.manifest(reference)
        if manifest.step.name == Add.name:
            return catalog.open(reference)
        own = [parent for parent in manifest.parents if parent.startswith(f"{name}@")]
        if not own:
            why = f"`aifx data {manifest.step.name}` made {reference} from {', '.join(manifest.parents) or 'nothing'}"
            raise UsageError(f"no files can be added to {name}", why, "add them under another name")
        reference = own[0]


def infer_kind(listing: Listing, options: ReadOptions) -> Kind:
    """Text if the files are texts, or the first has the field with the text; otherwise a table. Raises UsageError."""
    tables = [file for file in listing.files if file.format != "text"]
    texts = [file for file in listing.files if file.format == "text"]
    if not tables:
        return "text"
    first = tables[0]
    with first.on_disk() as (path, _):
        try:
            schema = READERS[first.format].find_schema(
                path, first.compression, replace(options, kind="table"), is_whole=False
            )
        except DamagedFile:
            return "text" if texts else "table"
    if options.text_field in schema.names:
        return "text"
    if texts:
        what = f"{first.name} has no column {options.text_field!r}, and {texts[0].name} is text"
        columns = f"its columns are {', '.join(schema.names[:8])}"
        raise UsageError(what, columns, f"--text-field {schema.names[0] if schema.names else 'NAME'}")
    return "table"


def _is_same(file: SourceFile, source: Source | None, options: ReadOptions) -> bool:
    if source is None or source.reading != reading_of(file, options):
        return False
    return source.stamp == file.stamp if file.is_remote else source.sha256 == file.sha256


def check_options(options: ReadOptions) -> None:
    """Raises UsageError for an encoding that Python does not know."""
    try:
        codecs.getincrementaldecoder(options.encoding)
        "".encode(options.encoding)
    except LookupError:
        what = f"--encoding {options.encoding!r} is not an encoding of text"
        raise UsageError(what, "Python has no codec of this name", "--encoding cp1252") from None
