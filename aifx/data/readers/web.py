"""Web pages: the main text of each, by trafilatura, from .html files and WARC archives."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

from aifx.core.errors import EnvironmentFault
from aifx.core.extras import install_command
from aifx.data.readers.base import TEXT, BadRow, Batch, DamagedFile, ReadOptions, batch_of
from aifx.data.readers.streams import open_bytes, read_whole

if TYPE_CHECKING:
    from pyarrow import Schema

PAGE_BYTES = 32 << 20
"""Of the largest page that is parsed."""

PAGES = ("text/html", "application/xhtml+xml")
BATCH_PAGES = 64


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
    import pyarrow as pa

    with open_bytes(path, compression, options) as stream:
        text, reason, value = _text_of(read_whole(stream, PAGE_BYTES + 1))
    bad = [BadRow(1, reason, value)] if reason else []
    yield batch_of(pa.table({TEXT: pa.array([] if reason else [text], pa.string())}), 0, bad)


def find_archive_schema(path: str, compression: str, options: ReadOptions, *, is_whole: bool) -> Schema:
    """The columns of an archive."""
    import pyarrow as pa

    return pa.schema([(TEXT, pa.string()), ("url", pa.string()), ("date", pa.string())])


def read_archive(path: str, compression: str, schema: Schema, options: ReadOptions) -> Iterator[Batch]:
    """The main texts of the pages that an archive holds as responses; `url` and `date` are those of the record.

    The number of a row is the number of its record in the archive.
    """
    import pyarrow as pa

    with _from_extra():
        from warcio.exceptions import ArchiveLoadFailed

    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    bad: list[BadRow] = []

    def batch() -> Batch:
        return Batch(pa.Table.from_pylist(rows, schema=schema), pa.array(numbers, pa.int64()), list(bad))

    number = -1
    with open_bytes(path, compression, options) as stream:
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
                if reason:
                    bad.append(BadRow(number + 1, reason, value))
                else:
                    rows.append({TEXT: text, "url": url, "date": date})
                    numbers.append(number)
                if len(rows) + len(bad) == BATCH_PAGES:
                    yield batch()
                    rows, numbers, bad = [], [], []
        except (ArchiveLoadFailed, OverflowError, DamagedFile) as e:  # too long for an address
            if rows or bad:
                yield batch()
            if isinstance(e, DamagedFile):
                raise
            raise DamagedFile(f"not a WARC archive that can be read: {e}", number + 2) from None
    yield batch()


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
