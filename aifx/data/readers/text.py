"""Plain text: a file is a document, or each part of it that begins at a line of some form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from aifx.data.readers.base import BadRow, DamagedFile, ReadOptions
from aifx.data.readers.streams import open_utf8

LARGE_BYTES = 1 << 16
DOCUMENT_BYTES = 32 << 20
"""A file that is larger becomes several rows, cut after a line."""


def read_documents(path: str, compression: str, options: ReadOptions) -> Iterator[bytes | BadRow]:
    """The documents of a file, in UTF-8: one, unless `options.split_at` cuts it or it is larger than DOCUMENT_BYTES."""
    starts = re.compile(options.split_at.encode(), re.MULTILINE) if options.split_at is not None else None
    with open_utf8(path, compression, options) as stream:
        rest, line, found = b"", 1, False
        while True:
            data, damage = _filled(stream, rest)
            is_last = damage is not None or len(data) < DOCUMENT_BYTES
            places = [match.start() for match in starts.finditer(data) if match.start()] if starts is not None else []
            end = len(data) if is_last else places.pop() if places else _cut(data)
            for first, stop in pairwise([0, *places, end]):
                document = data[first:stop] if stop - first < len(data) else data
                if document and not (starts is not None and document.isspace()):
                    found = True
                    yield _checked(document, line)
                if not is_last or stop < end:  # counting takes as long as hashing
                    line += document.count(b"\n")
            if damage is not None:
                raise damage
            if is_last:
                if not found:
                    yield BadRow(1, "no text", data)
                return
            rest = data[end:]


def _filled(stream: Any, rest: bytes) -> tuple[bytes, DamagedFile | None]:
    """`rest` and the bytes after it, DOCUMENT_BYTES in all; fewer at the end, and whole lines before damage."""
    parts, size = [rest] if rest else [], len(rest)
    damage = None
    try:
        while size < DOCUMENT_BYTES and (data := stream.read(DOCUMENT_BYTES - size)):
            parts.append(data)
            size += len(data)
    except DamagedFile as e:
        damage = e
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    return (data if damage is None else data[: data.rfind(b"\n") + 1]), damage


def _cut(data: bytes) -> int:
    """The end of a document that is too large: after its last line, otherwise before a character."""
    cut = data.rfind(b"\n") + 1
    if cut:
        return cut
    cut = len(data) - 1
    while cut > len(data) - 4 and data[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _checked(document: bytes, line: int) -> bytes | BadRow:
    if not is_utf8(document):
        try:
            document.decode()
        except UnicodeDecodeError as e:
            at = line + document.count(b"\n", 0, e.start)
            return BadRow(at, f"byte 0x{document[e.start]:02x} is not UTF-8", document)
    if not document or document.isspace():
        return BadRow(line, "no text", document)
    return document


def is_utf8(data: bytes) -> bool:
    """Whether bytes are valid UTF-8."""
    if data.isascii():
        return True
    try:
        if len(data) < LARGE_BYTES:
            data.decode()
        else:  # ten times as fast, and without a copy
            strings([data]).validate(full=True)
    except ValueError:  # UnicodeDecodeError, ArrowInvalid
        return False
    return True


def strings(documents: Sequence[bytes]) -> Any:
    """An array of documents in UTF-8, which stay where they are if there is only one."""
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(documents) + 1, np.int32)
    np.cumsum([len(document) for document in documents], out=offsets[1:])
    data = documents[0] if len(documents) == 1 else b"".join(documents)
    return pa.Array.from_buffers(pa.string(), len(documents), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
