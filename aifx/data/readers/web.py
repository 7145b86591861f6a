"""Web pages: the main text of each, by trafilatura, from .html files and WARC archives."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from aifx.core.artifact import writable_folder
from aifx.core.digests import sha256_of_values, size_and_sha256
from aifx.core.errors import DataError, EnvironmentFault
from aifx.core.extras import install_command
from aifx.core.plurals import counted
from aifx.core.progress import report_progress
from aifx.core.project import cache_path
from aifx.data.readers.arrow import pa
from aifx.data.readers.base import TEXT, BadRow, Batch, DamagedFile, ReadOptions
from aifx.data.readers.encodings import FileScan
from aifx.data.readers.sources import SourceFile
from aifx.data.readers.streams import open_bytes, read_whole
from aifx.data.row_cache import read_cached, read_checked, writing_checked

logger = logging.getLogger(__name__)

PAGE_BYTES = 32 << 20
"""Bytes of the largest page that is parsed."""

MEDIA_TYPES = ("text/html", "application/xhtml+xml")
BATCH_PAGES = 64
PAGES_VERSION = 1
"""The version of this module's texts. Raise it with a change by which the same page gives another text."""


def check_installed() -> None:
    """Raise EnvironmentFault if the packages of the extra `html` are missing."""
    with _from_extra():
        import trafilatura  # noqa: F401
        import warcio  # noqa: F401


def texts_version() -> str:
    """The version of all that finds the text of a page. Raises EnvironmentFault if the extra `html` is missing."""
    with _from_extra():
        return f"{PAGES_VERSION} {version('trafilatura')} {version('warcio')}"


@contextmanager
def _from_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as e:
        package = (e.name or "one").partition(".")[0]
        raise EnvironmentFault(
            f"web pages need {package}", f"{package} is not installed", install_command("html")
        ) from None


def find_schema(file: SourceFile, options: ReadOptions, *, is_whole: bool) -> pa.Schema:
    """The text of a page; of one in an archive also the URL and the date of its record."""
    return pa.schema([(name, pa.string()) for name in ([TEXT] if file.format == "html" else [TEXT, "url", "date"])])


def read(file: SourceFile, schema: pa.Schema, options: ReadOptions) -> Iterator[Batch]:
    """The main texts of pages. The number of one in an archive is that of its record."""
    with open_bytes(file, options) as stream:
        yield from _batches(_pages(file, stream), schema)


def scan_pages(file: SourceFile) -> FileScan:
    """Read a file once: the digest of its bytes with that of what finds their texts, which are in the cache then.

    Raises DataError for a damaged archive.
    """
    digest, num_bytes = _texts_of(file)
    _kept_bytes(file, _place(digest))
    return FileScan(digest, num_bytes)


def read_texts(file: SourceFile) -> Iterator[str]:
    """The main texts of the pages of a file: from the cache, if `scan_pages` put them there.

    Pages without text are left out. Raises DataError for a damaged archive.
    """
    place = _place(_texts_of(file)[0])
    if not place.exists():
        yield from (text for text in _texts(file) if not isinstance(text, BadRow))
        return
    left = _kept_bytes(file, place)
    with open(place, "rb") as lines:
        while left:
            line = lines.readline()
            left -= len(line)
            yield json.loads(line)


def _kept_bytes(file: SourceFile, place: Path) -> int:
    """The bytes of texts at `place`, a line of JSON each. They are made if they are not there, or damaged."""
    if (kept := read_cached(read_checked, place, "text of pages")) is not None:
        return len(kept)
    activity = f"extracting the text of {file.name}"
    logger.info(activity)
    left_out: Counter[str] = Counter()
    with (
        writable_folder(place.parent),
        writing_checked(place) as write,
        report_progress(activity, None, "pages") as progress,
    ):
        for text in _texts(file):
            if isinstance(text, BadRow):
                left_out[text.reason] += 1
            else:
                write(json.dumps(text).encode() + b"\n")
            progress.advance(1)
    for reason, count in left_out.items():
        logger.info(f"{file.name}: left out {counted(count, 'page')}: {reason}")
    return len(read_checked(place))


def _texts_of(file: SourceFile) -> tuple[str, int]:
    """The digest of all that the texts of a file depend on, and the bytes of the file."""
    with file.open() as stream:
        num_bytes, digest = size_and_sha256(stream)
    return sha256_of_values(file.format, digest, texts_version()), num_bytes


def _place(digest: str) -> Path:
    """The file of the cache for texts: one for each page, since a folder would take more of the disk than the page."""
    return cache_path("pages") / f"{digest}.jsonl"


def _texts(file: SourceFile) -> Iterator[str | BadRow]:
    """The texts of pages, as training reads them: damage is an error."""
    with file.open() as stream:
        try:
            for _, page in _pages(file, stream):
                yield page if isinstance(page, BadRow) else page[TEXT]
        except DamagedFile as e:
            at = f"record {e.line}: " if e.line else ""
            raise DataError(f"{file.name} cannot be read", f"{at}{e}", "copy it again, or leave it out") from None


def _pages(file: SourceFile, stream: Any) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """The pages of a file, each with its number from 0. Raises DamagedFile, and EnvironmentFault without the extra."""
    check_installed()
    if file.format == "warc":
        yield from _archive(stream)
        return
    text, reason, value = _text_of(read_whole(stream, PAGE_BYTES + 1))
    yield 0, BadRow(1, reason, value) if reason else {TEXT: text}


def _batches(pages: Iterator[tuple[int, dict[str, Any] | BadRow]], schema: pa.Schema) -> Iterator[Batch]:
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


def _archive(stream: Any) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """The pages of an archive, each with the number of its record. Raises DamagedFile."""
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
    return kind in MEDIA_TYPES and record.http_headers.get_statuscode() == "200"


def _text_of(data: bytes) -> tuple[str, str, bytes]:
    """The text of a page; otherwise why there is none, and the page."""
    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    if len(data) > PAGE_BYTES:
        return "", f"it has more than {PAGE_BYTES >> 20} MiB", data
    text = trafilatura.extract(data, include_comments=False) if data.strip() else None
    return (text, "", b"") if text and text.strip() else ("", "no text", data)
