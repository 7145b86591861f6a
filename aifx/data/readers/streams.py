"""The bytes of source files: decompressed, and in UTF-8.

A stream has `read1(size)` as `io.BufferedReader` has it: some bytes, `size` at most, and none at the end. So the rows
of standard input are read as they come.
"""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from aifx.core.calls import advance
from aifx.data.readers.base import BLOCK_BYTES, DamagedFile, ReadOptions
from aifx.data.readers.compression import CODECS, damages, decompressed
from aifx.data.readers.likely_encodings import AUTO, SAMPLE_BYTES, likely_encodings, mark_of

if TYPE_CHECKING:
    from aifx.data.readers.sources import SourceFile

SMALL_EXPANSION = 1 << 30
"""A compressed file may always expand to this size."""

COMPRESSED_BLOCK = 1 << 17
"""Bytes of a compressed file that its decompressor reads at a time, at most."""

HEAD_BYTES = 1 << 12
"""Of a file, in which a byte order mark shows, or UTF-16 without one."""


class CountedFile(io.FileIO):
    """A file whose bytes are progress of the step that reads it."""

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        advance(count)
        return count


class Expanding:
    """The decompressed bytes of a file. Raises DamagedFile beyond the limit, and after all bytes before damage."""

    def __init__(self, file: IO[bytes], compression: str, max_expansion: float) -> None:
        self._file, self._compression = file, compression
        self._damages = damages(compression)
        self._stream = decompressed(file, compression)
        self._limit = max(SMALL_EXPANSION, os.fstat(file.fileno()).st_size * max_expansion)
        self._max_expansion = max_expansion
        self._read = 0
        self._damage: DamagedFile | None = None
        self._rest = b""  # before the damage

    def read1(self, size: int) -> bytes:
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

    read = read1

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


class Dripping:
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
    while size and (data := stream.read1(size)):
        parts.append(data)
        size -= len(data)
    return b"".join(parts) if len(parts) != 1 else parts[0]


class Utf8:
    """The bytes of a stream in UTF-8, after a byte order mark. Bytes that cannot be decoded stay as they are.

    Attributes:
        head: its first bytes, after the mark.
        mark_bytes: 0 if it has no mark.
    """

    def __init__(self, stream: Any, encoding: str | None = None) -> None:
        """Read the mark.

        Args:
            encoding: of a stream without a mark. If it is None, only the mark of UTF-8 is one.
        """
        head = stream.read1(HEAD_BYTES)
        while 0 < len(head) < len(codecs.BOM_UTF32_LE) and (more := stream.read1(HEAD_BYTES)):
            head += more
        mark, marked = mark_of(head)
        if encoding is None and marked != "utf-8":
            mark, marked = b"", ""
        self._stream, self.mark_bytes = stream, len(mark)
        self.head: bytes = head[len(mark) :]
        self._rest = self.head
        self.encoding = marked or codecs.lookup(encoding or "utf-8").name
        self._decoder: Any = None
        if self.encoding != "utf-8":
            is_wide = self.encoding.startswith(("utf-16", "utf-32"))
            self._errors = "surrogatepass" if is_wide else "surrogateescape"
            self._decoder = codecs.getincrementaldecoder(self.encoding)(self._errors)
            self._rest = self._decoded(self.head)

    def read1(self, size: int) -> bytes:
        while not self._rest and (data := self._stream.read1(size)):
            self._rest = data if self._decoder is None else self._decoded(data)
        if not self._rest and self._decoder is not None:
            self._rest, self._decoder = self._decoded(b""), None
        found: bytes = self._rest[:size]
        self._rest = self._rest[size:]
        return found

    def _decoded(self, data: bytes) -> bytes:
        try:
            text: str = self._decoder.decode(data, final=not data)
            return text.encode("utf-8", self._errors)
        except UnicodeError:
            self._decoder.reset()
            return b"\xff"  # half a character at the end, or one that does not exist


@contextmanager
def open_bytes(file: SourceFile, options: ReadOptions, *, is_counted: bool = True) -> Iterator[Any]:
    """The bytes of a file on this machine, decompressed within limits. Raises DamagedFile.

    Args:
        is_counted: whether they are progress of the step.
    """
    with io.BufferedReader((CountedFile if is_counted else io.FileIO)(file.location)) as opened:
        yield Expanding(opened, file.compression, options.max_expansion) if file.compression else opened


@contextmanager
def open_utf8(file: SourceFile, options: ReadOptions) -> Iterator[Utf8]:
    """The same in UTF-8, without a byte order mark, which goes before `options.encoding`."""
    with open_bytes(file, options) as opened:
        stream = Utf8(opened, options.encoding)
        if stream.encoding == "utf-8" and not stream.mark_bytes and b"\0" in stream.head:
            likely = likely_encodings(stream.head)
            if likely and likely[0] != "utf-8":
                raise DamagedFile(f"it seems to be {likely[0]}, not UTF-8; --encoding {likely[0]} reads it")
        yield stream


def decided(file: SourceFile, options: ReadOptions) -> ReadOptions:
    """The options with the encoding that the beginning of a file seems to have, if they leave it to the file.

    It is UTF-8 if no other is likely, so that the bytes at fault are found where they are.
    """
    if options.encoding != AUTO:
        return options
    sample = b""
    with open_bytes(file, options, is_counted=False) as stream, suppress(DamagedFile):
        while data := stream.read1(SAMPLE_BYTES - len(sample)):
            sample += data
    if len(sample) == SAMPLE_BYTES:
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    return replace(options, encoding=next(iter(likely_encodings(sample)), "utf-8"))
