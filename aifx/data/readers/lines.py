"""Lines of files: as text, and in blocks of bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from aifx.core.errors import DataError
from aifx.data.readers.base import BLOCK_BYTES, ROW_BYTES, DamagedFile
from aifx.data.readers.encodings import DECODE_HANDLERS, DecodeErrors, FileScan, scan_text, undecodable
from aifx.data.readers.likely_encodings import likely_encodings
from aifx.data.readers.sources import SourceFile
from aifx.data.readers.streams import Utf8


def read_lines(file: SourceFile, errors: DecodeErrors | None = None, *, newline: str = "\n") -> Iterator[str]:
    """The lines of a file in UTF-8, each with its end, without a byte order mark.

    Args:
        errors: what becomes of bytes that are not UTF-8; None if training cannot replace them, so that they are errors.
        newline: "" if a carriage return ends a line, too.

    Raises DataError naming the file and the line.
    """
    handler = DECODE_HANDLERS[errors or "strict"]
    with file.open() as opened:
        stream = Utf8(opened)
        first = stream.head[: stream.head.find(b"\n") + 1] or stream.head
        if handler == "strict" and b"\0" in first and likely_encodings(first)[:1] not in ([], ["utf-8"]):
            raise _not_utf8(file, 1, f"byte {first.index(0) + 1} of the line is 0x00", first, errors)
        number = 1
        for block in line_blocks(stream, most=None):
            try:
                text = block.decode("utf-8", handler)
            except UnicodeDecodeError as error:
                start = block.rfind(b"\n", 0, error.start) + 1
                yield from io.StringIO(block[:start].decode(), newline=newline)
                at = error.start - start + 1
                why = f"byte {at} of the line is 0x{block[error.start]:02x} ({error.reason})"
                number += block.count(b"\n", 0, start)
                raise _not_utf8(file, number, why, block[start:], errors) from None
            yield from io.StringIO(text, newline=newline)
            number += block.count(b"\n")


def _not_utf8(file: SourceFile, number: int, why: str, sample: bytes, errors: DecodeErrors | None) -> DataError:
    """The error for a line that is not UTF-8, which counts all bytes that are not, unless it is a stream.

    Args:
        sample: the line, and what follows it.
    """
    scan = None if file.is_stream else scan_text(file)
    if scan is None or not scan.where:
        scan = FileScan("", 0, 0, f":{number}", why, tuple(likely_encodings(sample)))
    line = likely_encodings(sample.partition(b"\n")[0])
    return undecodable({file: scan}, is_replaceable=errors is not None, line_encodings=line)


def line_blocks(stream: Any, block_bytes: int = BLOCK_BYTES, most: int | None = ROW_BYTES) -> Iterator[bytes]:
    """The bytes of a stream in blocks that end after a line.

    Args:
        most: bytes of a line; None if there is no limit.

    Raises DamagedFile for a longer line.
    """
    parts: list[bytes] = []
    while data := stream.read1(block_bytes):
        cut = data.rfind(b"\n") + 1
        if cut:
            yield b"".join([*parts, data[:cut]])
            parts = [data[cut:]] if cut < len(data) else []
        else:
            parts.append(data)
            if most is not None and sum(map(len, parts)) > most:
                raise DamagedFile(f"it has a line of more than {most >> 20} MiB")
    if parts:
        yield b"".join(parts)
