"""Web pages: the main text of each, by trafilatura, from .html files and WARC archives."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.core.artifact import (
    Artifact,
    DamagedArtifact,
    SealedFile,
    cached,
    damaged_files,
    seal_files,
    writable_folder,
)
from aifx.core.digests import sha256_of_values, size_and_sha256
from aifx.core.errors import DataError, EnvironmentFault
from aifx.core.extras import install_command
from aifx.core.plurals import counted
from aifx.core.progress import report_progress
from aifx.core.project import cache_path
from aifx.data.readers.base import TEXT, BadRow, Batch, DamagedFile, ReadOptions
from aifx.data.readers.encodings import FileScan
from aifx.data.readers.sources import SourceFile
from aifx.data.readers.streams import open_bytes, read_whole

if TYPE_CHECKING:
    from pyarrow import Schema

logger = logging.getLogger(__name__)

PAGE_BYTES = 32 << 20
"""Of the largest page that is parsed."""

PAGES = ("text/html", "application/xhtml+xml")
BATCH_PAGES = 64
PAGES_VERSION = 1
"""Of this module; it rises if the same page would give another text."""

TEXTS = "texts.jsonl"


def check_installed() -> None:
    """Raises EnvironmentFault if the packages of the extra `html` are missing."""
    with _from_extra():
        import trafilatura  # noqa: F401
        import warcio  # noqa: F401


def find_page_schema(path: str, compression: str, options: ReadOptions, *, is_whole: bool) -> Schema:
    """The one column of a page."""
    import pyarrow as pa

    return pa.schema([(TEXT, pa.string())])


def read_page(path: str, compression: str, schema: Schema, options: ReadOptions) -> Iterator[Batch]:
    """The main text of a page."""
    with open_bytes(path, compression, options) as stream:
        yield from _batches(_page(stream), schema)


def find_archive_schema(path: str, compression: str, options: ReadOptions, *, is_whole: bool) -> Schema:
    """The columns of an archive."""
    import pyarrow as pa

    return pa.schema([(TEXT, pa.string()), ("url", pa.string()), ("date", pa.string())])


def read_archive(path: str, compression: str, schema: Schema, options: ReadOptions) -> Iterator[Batch]:
    """The main texts of the pages that an archive holds as responses; `url` and `date` are those of the record.

    The number of a row is the number of its record in the archive.
    """
    with open_bytes(path, compression, options) as stream:
        yield from _batches(_archive(stream), schema)


def scan_pages(file: SourceFile) -> FileScan:
    """Read a file once: the digest of its bytes with that of what finds their texts, which are in the cache then.

    Raises DataError for a damaged archive.
    """
    place, num_bytes = _texts_of(file)
    _make_texts(file, place)
    return FileScan(place.name, num_bytes)


def read_texts(file: SourceFile) -> Iterator[str]:
    """The main texts of the pages of a file: from the cache, if `scan_pages` put them there.

    Pages without text are left out. Raises DataError for a damaged archive.
    """
    place, _ = _texts_of(file)
    if place.is_dir():
        _make_texts(file, place)
        with open(place / TEXTS, encoding="utf-8") as lines:
            yield from (json.loads(line)[TEXT] for line in lines)
    else:
        yield from (page[TEXT] for page in _pages(file) if not isinstance(page, BadRow))


def _make_texts(file: SourceFile, place: Path) -> None:
    """Write the texts of a file to `place`, unless they are there and not damaged."""

    def make(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, SealedFile]]:
        activity = f"extracting the text of {file.name}"
        logger.info(activity)
        left_out: Counter[str] = Counter()
        with open(folder / TEXTS, "w", encoding="utf-8") as lines, report_progress(activity, None, "pages") as progress:
            for page in _pages(file):
                if isinstance(page, BadRow):
                    left_out[page.reason] += 1
                else:
                    lines.write(json.dumps({TEXT: page[TEXT]}) + "\n")
                progress.advance(1)
        for reason, count in left_out.items():
            logger.info(f"{file.name}: left out {counted(count, 'page')}: {reason}")
        return {}, seal_files(folder, [folder / TEXTS])

    def check(folder: Path, artifact: Artifact) -> Path:
        if damaged := damaged_files(folder, artifact):
            raise DamagedArtifact(folder, damaged[0])
        return folder

    with writable_folder(place.parent):
        cached(place, "texts of pages", 1, make, check, logger.warning)


def texts_version() -> str:
    """The version of all that finds the text of a page. Raises EnvironmentFault if the extra `html` is missing."""
    with _from_extra():
        return f"{PAGES_VERSION} {version('trafilatura')} {version('warcio')}"


def _texts_of(file: SourceFile) -> tuple[Path, int]:
    """The artefact with the texts of a file, named by all that they depend on, and the bytes of the file."""
    check_installed()
    with file.open() as stream:
        num_bytes, digest = size_and_sha256(stream)
    return cache_path("pages") / sha256_of_values(file.format, digest, texts_version()), num_bytes


def _pages(file: SourceFile) -> Iterator[dict[str, Any] | BadRow]:
    with file.open() as stream:
        try:
            yield from (page for _, page in (_page if file.format == "html" else _archive)(stream))
        except DamagedFile as e:
            at = f"record {e.line}: " if e.line else ""
            raise DataError(f"{file.name} cannot be read", f"{at}{e}", "copy it again, or leave it out") from None


def _batches(pages: Iterator[tuple[int, dict[str, Any] | BadRow]], schema: Schema) -> Iterator[Batch]:
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    bad: list[BadRow] = []

    def batch() -> Batch:
        return Batch(pa.Table.from_pylist(rows, schema=schema), pa.array(numbers, pa.int64()), list(bad))

    try:
        for number, page in pages:
            if isinstance(page, BadRow):
                bad.append(page)
            else:
                rows.append(page)
                numbers.append(number)
            if len(rows) + len(bad) == BATCH_PAGES:
                yield batch()
                rows, numbers, bad = [], [], []
    except DamagedFile:
        if rows or bad:
            yield batch()
        raise
    yield batch()


def _page(stream: Any) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    text, reason, value = _text_of(read_whole(stream, PAGE_BYTES + 1))
    yield 0, BadRow(1, reason, value) if reason else {TEXT: text}


def _archive(stream: Any) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """The pages of an archive, each with the number of its record. Raises DamagedFile."""
    with _from_extra():
        from warcio.exceptions import ArchiveLoadFailed

    number = -1
    try:
        for number, record in enumerate(_records(stream)):
            url, date = (record.rec_headers.get_header(f"WARC-{key}") for key in ("Target-URI", "Date"))
            if record.rec_type is None:
                text, reason, value = "", "no WARC-Type", b""
            elif record.rec_type == "response" and not url:
                text, reason, value = "", "no WARC-Target-URI", b""
            elif _is_page(record):
                text, reason, value = _text_of(record.content_stream().read(PAGE_BYTES + 1))
            else:
                continue
            if record.raw_stream.limit and not record.raw_stream.read(1):
                raise _ends_within(number + 1)
            yield number, BadRow(number + 1, reason, value) if reason else {TEXT: text, "url": url, "date": date}
    except (ArchiveLoadFailed, OverflowError) as e:  # too long for an address
        raise DamagedFile(f"not a WARC archive that can be read: {e}", number + 2) from None


def _records(stream: Any) -> Iterator[Any]:
    """The records of an archive. Raises DamagedFile for one whose end is not known or not there."""
    with _from_extra():
        from warcio.archiveiterator import ArchiveIterator

    archive = ArchiveIterator(stream, arc2warc=True)
    load = archive.loader.load_http_headers
    # warcio fails on a record without a target.
    archive.loader.load_http_headers = lambda kind, target, *rest: load(kind, target or "", *rest)
    before = None
    for number, record in enumerate(chain(archive, [None])):
        if before is not None and before.raw_stream.limit:
            raise _ends_within(number)
        if record is None:
            return
        if not (record.rec_headers.get_header("Content-Length") or "").strip().isdecimal():
            raise DamagedFile("the record has no Content-Length, so its end is not known", number + 1)
        yield record
        before = record


def _ends_within(number: int) -> DamagedFile:
    return DamagedFile("the archive ends within the record", number)


def _is_page(record: Any) -> bool:
    if record.rec_type != "response" or record.http_headers is None:
        return False
    kind = (record.http_headers.get_header("Content-Type") or "").partition(";")[0].strip().lower()
    return kind in PAGES and record.http_headers.get_statuscode() == "200"


def _text_of(data: bytes) -> tuple[str, str, bytes]:
    """The text of a page; otherwise why there is none, and the page."""
    with _from_extra():
        import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    if len(data) > PAGE_BYTES:
        return "", f"it has more than {PAGE_BYTES >> 20} MiB", data
    text = trafilatura.extract(data, include_comments=False) if data.strip() else None
    return (text, "", b"") if text and text.strip() else ("", "no text", data)


@contextmanager
def _from_extra() -> Iterator[None]:
    """Raise EnvironmentFault for a package of the extra `html` that is missing."""
    try:
        yield
    except ImportError as e:
        package = (e.name or "one").partition(".")[0]
        raise EnvironmentFault(
            f"web pages need {package}", f"{package} is not installed", install_command("html")
        ) from None
