"""The bytes of source files: decompressed, in UTF-8, as lines.

A stream has `read1(size)` as `io.BufferedReader` has it: some bytes, `size` at most, and none at the end. So the rows
of standard input are read as they come.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from aifx.core.calls import advance
from aifx.core.errors import DataError
from aifx.data.readers.base import BLOCK_BYTES, ROW_BYTES, DamagedFile, ReadOptions
from aifx.data.readers.encodings import (
    AUTO,
    DECODE_HANDLERS,
    SAMPLE_BYTES,
    DecodeErrors,
    FileScan,
    Utf8,
    likely_encodings,
    scan_text,
    undecodable,
)
from aifx.data.readers.formats import CODECS, damages, decompressed

if TYPE_CHECKING:
    from aifx.data.readers.sources import SourceFile

SMALL_EXPANSION = 1 << 30
"""A compressed file may always expand to this size."""

COMPRESSED_BLOCK = 1 << 17
"""Bytes of a compressed file that its decompressor reads at a time, at most."""


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
