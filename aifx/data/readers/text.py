"""Plain text: a file is a document, or each part of it that begins at a line of some form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from aifx.data.readers.base import ROW_BYTES, BadRow, DamagedFile, ReadOptions
from aifx.data.readers.streams import open_utf8

if TYPE_CHECKING:
    from aifx.data.readers.sources import SourceFile

LARGE_BYTES = 1 << 16
FILL_BYTES = 32 << 20
"""That are read at a time."""


def read_documents(file: SourceFile, options: ReadOptions) -> Iterator[bytes | BadRow]:
    """The documents of a file, in UTF-8: one, or each part of it that begins where `options.split_at` matches.

    Raises DamagedFile for one that is larger than ROW_BYTES, and the damage that ends one.
    """
    starts = re.compile(options.split_at.encode(), re.MULTILINE) if options.split_at is not None else None
    with open_utf8(file, options) as stream:
        data, line, found = b"", 1, False
        is_last = False
        while not is_last:
            size = len(data)
            data, damage = _filled(stream, data)
            is_last = damage is not None or len(data) < size + FILL_BYTES
            places = [match.start() for match in starts.finditer(data) if match.start()] if starts is not None else []
            for first, stop in pairwise([0, *places, len(data)]):
                if stop - first > ROW_BYTES:
                    why = f"the text has more than {ROW_BYTES >> 20} MiB; --split-at cuts a file into rows"
                    raise DamagedFile(why, line)
                if stop == len(data) and not is_last:
                    break
                document = data[first:stop] if stop - first < len(data) else data
                if document and not (starts is not None and document.isspace()):
                    found = True
                    yield _checked(document, line)
                if stop < len(data):  # counting takes as long as hashing
                    line += document.count(b"\n")
            if damage is not None:
                raise damage
            if is_last and not found:
                yield BadRow(1, "no text", data)
            data = data[places[-1] if places else 0 :]


def _filled(stream: Any, begun: bytes) -> tuple[bytes, DamagedFile | None]:
    """`begun` with FILL_BYTES after it; with fewer at the end, and with whole lines before damage."""
    parts, left = [begun] if begun else [], FILL_BYTES
    damage = None
    try:
        while left and (data := stream.read1(left)):
            parts.append(data)
            left -= len(data)
    except DamagedFile as e:
        damage = e
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    return (data if damage is None else data[: data.rfind(b"\n") + 1]), damage


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
