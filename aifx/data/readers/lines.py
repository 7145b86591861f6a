"""Lines of files: as text with their numbers, as JSON, and in blocks of bytes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import Any

from aifx.core.errors import DataError
from aifx.core.parsing import parse_json
from aifx.data.readers.base import BLOCK_BYTES, ROW_BYTES, DamagedFile
from aifx.data.readers.encodings import DECODE_HANDLERS, DecodeErrors, FileScan, scan_text, undecodable
from aifx.data.readers.likely_encodings import SAMPLE_BYTES, likely_encodings
from aifx.data.readers.sources import SourceFile


def read_lines(file: SourceFile, errors: DecodeErrors | None = None) -> Iterator[str]:
    """The lines of a file in UTF-8, each with its end, without a byte order mark.

    Args:
        errors: what becomes of bytes that are not UTF-8; None if training cannot replace them, so that they are errors.

    Raises DataError naming the file and the line.
    """
    handler = DECODE_HANDLERS[errors or "strict"]
    with file.open() as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
                if handler == "strict" and b"\0" in line and likely_encodings(line)[:1] not in ([], ["utf-8"]):
                    why = f"byte {line.index(0) + 1} of the line is 0x00"
                    raise _not_utf8(file, number, why, line, errors)
            try:
                yield line.decode("utf-8", handler)
            except UnicodeDecodeError as error:
                why = f"byte {error.start + 1} of the line is 0x{line[error.start]:02x} ({error.reason})"
                raise _not_utf8(file, number, why, line + stream.read(SAMPLE_BYTES), errors) from None


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


def parse_records(lines: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of the lines of the file `name`, each with the number of its line, from 1. Raises DataError."""
    hint = 'each line is one JSON object, such as {"text": "Call me Ishmael."}'
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue
        place = f"{name}:{number}"
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(f"{place}: not JSON", str(error), hint) from None
        if not isinstance(record, dict):
            raise DataError(f"{place}: not a JSON object", f"it is {type(record).__name__}", hint)
        yield number, record


def line_blocks(stream: Any, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The bytes of a stream in blocks that end after a line. Raises DamagedFile for a line beyond ROW_BYTES."""
    parts: list[bytes] = []
    while data := stream.read(block_bytes):
        cut = data.rfind(b"\n") + 1
        if cut:
            yield b"".join([*parts, data[:cut]])
            parts = [data[cut:]] if cut < len(data) else []
        else:
            parts.append(data)
            if sum(map(len, parts)) > ROW_BYTES:
                raise DamagedFile(f"it has a line of more than {ROW_BYTES >> 20} MiB")
    if parts:
        yield b"".join(parts)
