"""Opening source files: decompressed within limits, and in UTF-8."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from aifx.curation.readers.base import DamagedFile, ReadOptions

SMALL_EXPANSION = 1 << 30
"""A compressed file may always expand to this size."""

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks; that of UTF-32-LE begins with that of UTF-16-LE."""

CODECS = {".gz": "gzip", ".zst": "zstd"}


class Stream:
    """The base of the streams that pyarrow reads."""

    closed = False

    def close(self) -> None:
        """Leave the file open for `open_bytes`, which closes it."""


class Expanding(Stream):
    """The decompressed bytes of a stream. Raises DamagedFile if they are damaged or beyond the limit."""

    def __init__(self, file: IO[bytes], codec: str, compressed_bytes: int, max_expansion: float) -> None:
        import pyarrow as pa

        self._stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)
        self._codec = codec
        self._limit = max(SMALL_EXPANSION, compressed_bytes * max_expansion)
        self._max_expansion = max_expansion
        self._read = 0

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except OSError as e:
            if e.errno is not None:
                raise
            raise DamagedFile(f"{self._codec}: {str(e).rstrip('.')}") from None
        self._read += len(data)
        if self._read > self._limit:
            why = f"it expands to more than {self._max_expansion:g} times its size"
            raise DamagedFile(f"{why}; --max-expansion allows more")
        return data


class Decoding(Stream):
    """The bytes of a stream in UTF-8. Bytes that cannot be decoded stay as they are, so that their row is bad."""

    def __init__(self, stream: Any, encoding: str, begun: bytes) -> None:
        is_wide = encoding.startswith(("utf-16", "utf-32"))
        self._errors = "surrogatepass" if is_wide else "surrogateescape"
        self._stream, self._begun = stream, begun
        self._decoder = codecs.getincrementaldecoder(encoding)(self._errors)
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            data = self._begun or self._stream.read(size)
            self._begun = b""
            try:
                self._rest += self._decoder.decode(data, final=not data).encode("utf-8", self._errors)
            except UnicodeError:
                self._rest += b"\xff"  # half a character at the end, or one that does not exist
                self._decoder.reset()
            if not data:
                break
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


class Begun(Stream):
    """A stream of which some bytes were read already."""

    def __init__(self, stream: Any, begun: bytes) -> None:
        self._stream, self._begun = stream, begun

    def read(self, size: int) -> bytes:
        found, self._begun = self._begun[:size], self._begun[size:]
        more: bytes = self._stream.read(size - len(found)) if len(found) < size else b""
        return found + more if found else more


class Marking(Stream):
    """The bytes of a stream in UTF-8, with a mark instead of each byte that is none.

    The marks are at the end of a private area of Unicode. `has_marks` is whether there was one.
    """

    has_marks = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        if data.isascii() and data and not self._decoder.getstate()[0]:
            return data
        text = self._decoder.decode(data, final=not data)
        try:
            return text.encode()
        except UnicodeEncodeError:
            self.has_marks = True
            return text.translate(_TO_MARK).encode()


_TO_MARK = {0xDC00 + byte: 0x10FF00 + byte for byte in range(0x80, 0x100)}
_FROM_MARK = {mark: surrogate for surrogate, mark in _TO_MARK.items()}
MARKS = f"[{chr(0x10FF80)}-{chr(0x10FFFF)}]"
"""A pattern of the marks."""


def unmarked(text: str) -> bytes:
    """The bytes of a text with marks."""
    return text.translate(_FROM_MARK).encode("utf-8", "surrogateescape")


@contextmanager
def open_bytes(path: str, compression: str, options: ReadOptions) -> Iterator[Any]:
    """The bytes of a local file, decompressed: `.read(size)` gives `size` bytes, or fewer at the end."""
    with open(path, "rb") as file:
        if compression:
            yield Expanding(file, CODECS[compression], os.fstat(file.fileno()).st_size, options.max_expansion)
        else:
            yield file


@contextmanager
def open_utf8(path: str, compression: str, options: ReadOptions) -> Iterator[Any]:
    """The same in UTF-8, without a byte order mark, which goes before `options.encoding`."""
    with open_bytes(path, compression, options) as stream:
        begun = stream.read(4)
        marks = [(mark, encoding) for mark, encoding in BOMS if begun.startswith(mark)]
        mark, encoding = marks[0] if marks else (b"", codecs.lookup(options.encoding).name)
        begun = begun[len(mark) :]
        yield Begun(stream, begun) if encoding == "utf-8" else Decoding(stream, encoding, begun)
