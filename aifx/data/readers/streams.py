"""Opening source files: decompressed within limits, and in UTF-8."""

from __future__ import annotations

import codecs
import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import IO, Any

from aifx.core.calls import advance
from aifx.data.readers.base import BLOCK_BYTES, DamagedFile, ReadOptions
from aifx.data.readers.likely_encodings import AUTO, SAMPLE_BYTES, likely_encodings, mark_of

SMALL_EXPANSION = 1 << 30
"""A compressed file may always expand to this size."""

COMPRESSED_BLOCK = 1 << 17
"""Bytes of a compressed file that its decompressor reads at a time, at most."""

HEAD_BYTES = 1 << 12
"""Of a file, in which a byte order mark or its absence shows."""

CODECS = {".gz": "gzip", ".zst": "zstd"}


def decompressed(file: Any, compression: str) -> Any:
    """A buffered reader of the decompressed bytes of an open file: `file` itself if `compression` is ""."""
    if compression == ".gz":
        return gzip.GzipFile(fileobj=file, mode="rb")
    if compression == ".zst":
        from backports.zstd import ZstdFile

        return ZstdFile(file)
    return file


def damages(compression: str) -> tuple[type[Exception], ...]:
    """The errors of `decompressed` for bytes that cannot be decompressed."""
    if compression == ".zst":
        from backports.zstd import ZstdError

        return EOFError, ZstdError
    return EOFError, zlib.error, gzip.BadGzipFile


class Stream:
    """The base of the streams that pyarrow reads. `read(size)` gives `size` bytes or fewer, and none at the end."""

    closed = False

    def close(self) -> None:
        """Leave the file open for `open_bytes`, which closes it."""


class Counted(Stream):
    """A file whose bytes are progress of the step that reads it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell, self.seek, self.fileno = file.tell, file.seek, file.fileno

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        advance(len(data))
        return data


class Expanding(Stream):
    """The decompressed bytes of a stream. Raises DamagedFile beyond the limit, and where they are damaged."""

    def __init__(self, file: IO[bytes], compression: str, compressed_bytes: int, max_expansion: float) -> None:
        self._file, self._compression = file, compression
        self._damages = damages(compression)
        self._stream = decompressed(file, compression)
        self._limit = max(SMALL_EXPANSION, compressed_bytes * max_expansion)
        self._max_expansion = max_expansion
        self._read = 0
        self._damage: DamagedFile | None = None
        self._rest = b""  # before the damage

    def read(self, size: int) -> bytes:
        if self._damage is None:
            try:
                self._rest = self._stream.read(size)
            except self._damages as e:
                self._damage = DamagedFile(f"{CODECS[self._compression]}: {str(e).rstrip('.')}")
                self._rest = self._before_damage()
        data, self._rest = self._rest[:size], self._rest[size:]
        if self._damage is not None and not data:
            raise self._damage
        self._read += len(data)
        if self._read > self._limit:
            raise expanded(self._max_expansion)
        return data

    def _before_damage(self) -> bytes:
        """The bytes that can be decompressed after those that were read.

        A read that fails gives nothing, so they are read again: compressed and decompressed ones in ever smaller parts.
        """
        found, last = b"", COMPRESSED_BLOCK
        for read_bytes, found_bytes in ((COMPRESSED_BLOCK >> 6, COMPRESSED_BLOCK), (1, COMPRESSED_BLOCK), (1, 1)):
            near = self._file.tell() - 2 * last
            self._file.seek(0)
            stream, last = decompressed(Dripping(self._file, near, read_bytes), self._compression), read_bytes
            skipped, parts = self._read + len(found), []
            with suppress(*self._damages):
                while skipped:
                    skipped -= len(stream.read1(min(skipped, BLOCK_BYTES)))
                while data := stream.read1(found_bytes):
                    parts.append(data)
            found += b"".join(parts)
        return found


class Dripping(Stream):
    """A file that gives few bytes at a time from a place on: a decompressor loses the rest of what it fails on."""

    def __init__(self, file: IO[bytes], place: int, size: int) -> None:
        self._file, self._place, self._size = file, place, size

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, max(self._place - self._file.tell(), self._size)))


def expanded(max_expansion: float) -> DamagedFile:
    """The error of a file that expands beyond the limit."""
    why = f"it expands to more than {max_expansion:g} times its size"
    return DamagedFile(f"{why}; --max-expansion allows more")


def read_whole(stream: Any, size: int) -> bytes:
    """`size` bytes of a stream, or fewer at its end. Raises DamagedFile."""
    parts: list[bytes] = []
    while size and (data := stream.read(size)):
        parts.append(data)
        size -= len(data)
    return b"".join(parts) if len(parts) != 1 else parts[0]


class Decoding(Stream):
    """The bytes of a stream in UTF-8. Bytes that cannot be decoded stay as they are, so that their row is bad."""

    def __init__(self, stream: Any, encoding: str, begun: bytes) -> None:
        is_wide = encoding.startswith(("utf-16", "utf-32"))
        self._errors = "surrogatepass" if is_wide else "surrogateescape"
        self._stream, self._begun = stream, begun
        self._decoder = codecs.getincrementaldecoder(encoding)(self._errors)
        self._rest = b""

    def read(self, size: int) -> bytes:
        while not self._rest:
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


class Ended(Stream):
    """A stream with more bytes after its end, in one piece with the last of its own."""

    def __init__(self, stream: Any, end: bytes) -> None:
        self._stream, self._end = stream, end
        self._next: bytes | None = None

    def read(self, size: int) -> bytes:
        size -= len(self._end)
        data = self._stream.read(size) if self._next is None else self._next
        self._next = self._stream.read(size) if data else b""
        return data + self._end if data and not self._next else data


class Begun(Stream):
    """A stream of which some bytes were read already."""

    def __init__(self, stream: Any, begun: bytes) -> None:
        self._stream, self._begun = stream, begun

    def read(self, size: int) -> bytes:
        found, self._begun = self._begun[:size], self._begun[size:]
        return found or self._stream.read(size)


class Marking(Stream):
    """The bytes of a stream in UTF-8, with a mark instead of each byte that is none.

    The marks are at the end of a private area of Unicode. The stream ends before the line that is damaged.

    Attributes:
        has_marks: whether there was one.
        damage: that ended the stream.
        is_within_line: whether the line goes on after the bytes that were read.
    """

    has_marks = False
    is_within_line = False
    damage: DamagedFile | None = None

    def __init__(self, stream: Any) -> None:
        self._stream, self._rest = stream, b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def read(self, size: int) -> bytes:
        data = self._lines(size) if self.damage is None else b""
        if data.isascii() and data and not self._decoder.getstate()[0]:
            return data
        text = self._decoder.decode(data, final=not data)
        try:
            return text.encode()
        except UnicodeEncodeError:
            self.has_marks = True
            return text.translate(_TO_MARK).encode()

    def _lines(self, size: int) -> bytes:
        """Whole lines of `size` bytes at most, or a part of a longer line; at the end the rest."""
        is_end = False
        try:
            while len(self._rest) < size and not is_end:
                data = self._stream.read(size - len(self._rest))
                self._rest += data
                is_end = not data
        except DamagedFile as e:
            self.damage = e
            self._rest = self._rest[: self._rest.rfind(b"\n") + 1]
            is_end = True
        cut = len(self._rest) if is_end else self._rest.rfind(b"\n") + 1 or size
        found, self._rest = self._rest[:cut], self._rest[cut:]
        if found:
            self.is_within_line = not found.endswith(b"\n")
        return found


_TO_MARK = {0xDC00 + byte: 0x10FF00 + byte for byte in range(0x80, 0x100)}
_FROM_MARK = {mark: surrogate for surrogate, mark in _TO_MARK.items()}
MARKS = f"[{chr(0x10FF80)}-{chr(0x10FFFF)}]"
"""A pattern of the marks."""


def unmarked(text: str) -> bytes:
    """The bytes of a text with marks."""
    return text.translate(_FROM_MARK).encode("utf-8", "surrogateescape")


@contextmanager
def open_bytes(path: str, compression: str, options: ReadOptions, *, is_counted: bool = True) -> Iterator[Any]:
    """The bytes of a local file, decompressed: `.read(size)` gives `size` bytes, or fewer at the end.

    Args:
        is_counted: whether they are progress of the step.
    """
    with open(path, "rb") as opened:
        file: Any = Counted(opened) if is_counted else opened
        if compression:
            yield Expanding(file, compression, os.fstat(file.fileno()).st_size, options.max_expansion)
        else:
            yield file


@contextmanager
def open_utf8(path: str, compression: str, options: ReadOptions) -> Iterator[Any]:
    """The same in UTF-8, without a byte order mark, which goes before `options.encoding`."""
    with open_bytes(path, compression, options) as stream:
        begun = stream.read(HEAD_BYTES)
        mark, encoding = mark_of(begun)
        encoding = encoding or codecs.lookup(options.encoding).name
        if not mark and encoding == "utf-8" and b"\0" in begun:
            likely = likely_encodings(begun)
            if likely and likely[0] != encoding:
                raise DamagedFile(f"it seems to be {likely[0]}, not UTF-8; --encoding {likely[0]} reads it")
        begun = begun[len(mark) :]
        yield Begun(stream, begun) if encoding == "utf-8" else Decoding(stream, encoding, begun)


def decided(path: str, compression: str, options: ReadOptions) -> ReadOptions:
    """The options with the encoding that the beginning of a file seems to have, if they leave it to the file.

    It is UTF-8 if no other is likely, so that the bytes at fault are found where they are.
    """
    if options.encoding != AUTO:
        return options
    sample = b""
    with open_bytes(path, compression, options, is_counted=False) as stream, suppress(DamagedFile):
        while data := stream.read(SAMPLE_BYTES - len(sample)):
            sample += data
    if len(sample) == SAMPLE_BYTES:
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    return replace(options, encoding=next(iter(likely_encodings(sample)), "utf-8"))
