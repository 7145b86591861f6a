"""Files of text: their formats, compression and byte-order marks, and bytes that are not UTF-8."""

from __future__ import annotations

import codecs
import gzip
import re
import shlex
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from aifx.core.digests import Sha256
from aifx.core.errors import DataError
from aifx.core.file_states import FileState
from aifx.data.readers.likely_encodings import SAMPLE_BYTES, likely_encodings, listed

COMPRESSIONS = (".gz", ".zst")
COMPRESSIBLE = (".txt", ".jsonl")
FORMATS = (*COMPRESSIBLE, ".parquet")
SUFFIXES = (*FORMATS, *(f"{name}{compression}" for name in COMPRESSIBLE for compression in COMPRESSIONS))

DecodeErrors: TypeAlias = Literal["strict", "replace", "skip"]

BLOCK_BYTES = 1 << 20
DECODE_HANDLERS = {"strict": "strict", "replace": "replace", "skip": "ignore"}
_UNDECODABLE = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is not UTF-8
_ICONV = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE", "mac-roman": "MACINTOSH"}


@dataclass(frozen=True)
class TextFile:
    """A file that holds documents."""

    path: Path
    name: str  # for messages: relative to the project if it lies inside
    is_matched: bool = False  # by a glob, so that it may be empty

    @property
    def compression(self) -> str:
        """ ".gz", ".zst" or ""."""
        suffix = self.path.suffix.lower()
        return suffix if suffix in COMPRESSIONS else ""

    @property
    def format(self) -> str:
        """The suffix without that of a compression, one of FORMATS."""
        return Path(self.path.stem if self.compression else self.path.name).suffix.lower()

    @property
    def has_reader(self) -> bool:
        return self.format in (COMPRESSIBLE if self.compression else FORMATS)


@dataclass(frozen=True)
class FileScan:
    """What one pass over a file found."""

    digest: str  # SHA-256 of its content, decompressed
    num_bytes: int  # without a byte-order mark
    num_bad: int = 0  # bytes that are not UTF-8
    where: str = ""  # the first of them, as a message goes on after the file's name: ":3" for a line, ": row 3"
    why: str = ""  # its offset and value
    encodings: tuple[str, ...] = ()  # of such a file, it seems, the likeliest first
    state: FileState | None = field(default=None, compare=False)  # of the file before it was read


@contextmanager
def reading(file: TextFile) -> Iterator[None]:
    """Turn the refusal to read or decompress `file` into a DataError."""
    damaged: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    if file.compression == ".zst":
        from backports.zstd import ZstdError

        damaged += (ZstdError,)
    try:
        yield
    except damaged as error:
        hint = "copy it again, or leave it out"
        raise DataError(f"{file.name} cannot be decompressed", str(error), hint) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError(f"{file.name} cannot be read", why, f"ls -l {shlex.quote(file.name)}") from error


@contextmanager
def open_content(file: TextFile) -> Iterator[IO[bytes]]:
    """The file's decompressed bytes, after a UTF-8 byte-order mark. Raises DataError if it cannot be read."""
    with reading(file), _open(file) as stream:
        if stream.peek(3)[:3] == codecs.BOM_UTF8:
            stream.read(3)
        yield stream


def decode_blocks(file: TextFile, errors: DecodeErrors) -> Iterator[str]:
    """The text of a file in blocks, newlines kept. Raises DataError if it is not UTF-8 and `errors` is strict."""
    with open_content(file) as stream:
        blocks = iter(lambda: stream.read(BLOCK_BYTES), b"")
        try:
            yield from codecs.iterdecode(blocks, "utf-8", DECODE_HANDLERS[errors])
        except UnicodeDecodeError:
            raise undecodable({file: scan_text(file)}) from None


def decode_lines(file: TextFile, errors: DecodeErrors) -> Iterator[str]:
    """The lines of a file, as `decode_blocks` decodes them."""
    with open_content(file) as stream:
        try:
            for line in stream:
                yield line.decode("utf-8", DECODE_HANDLERS[errors])
        except UnicodeDecodeError:
            raise undecodable({file: scan_text(file)}) from None


def scan_text(file: TextFile) -> FileScan:
    """Read a text file once: its digest, and the bytes that are not UTF-8.

    UTF-16 without a byte-order mark counts as such bytes, although much of it is valid.
    """
    digest = Sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    num_bytes = num_lines = num_bad = 0
    where = why = ""
    encodings: list[str] = []
    head = b""
    with open_content(file) as stream:
        start = stream.tell()
        while True:
            block = stream.read(BLOCK_BYTES)
            digest.update(block)
            if not head and (head := block[:SAMPLE_BYTES]) and b"\0" in head:
                encodings = likely_encodings(head)
                if encodings and encodings[0] != "utf-8":
                    first = head.index(0)
                    line = head.count(b"\n", 0, first) + 1
                    where, why = f":{line}", f"byte {start + first} is 0x00"
            kept = decoder.getstate()[0]
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # From here on each byte that is not UTF-8 becomes a lone surrogate, to be counted.
                decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
                decoder.setstate((kept, 0))
                text = decoder.decode(block, final=not block)
                line = num_lines + error.object.count(b"\n", 0, error.start) + 1
                place = start + num_bytes - len(kept) + error.start
                why = f"byte {place} is 0x{error.object[error.start]:02x} ({error.reason})"
                where, encodings = f":{line}", encodings or likely_encodings(error.object)
            if where:
                num_bad += len(_UNDECODABLE.findall(text))
            else:
                num_lines += block.count(b"\n")
            num_bytes += len(block)
            if not block:
                return FileScan(digest.hexdigest(), num_bytes, num_bad, where, why, tuple(encodings))


def undecodable(scans: dict[TextFile, FileScan]) -> DataError:
    """The error for files that hold bytes that are not UTF-8: the first place, all counts, and the way out."""
    bad = {file: scan for file, scan in scans.items() if scan.where}
    file, first = next(iter(bad.items()))
    total = sum(scan.num_bad for scan in bad.values())
    place = "this file"
    if len(bad) > 1:
        most = sorted(bad.items(), key=lambda item: -item[1].num_bad)
        counts = ", ".join(f"{other.name} {scan.num_bad:,}" for other, scan in most[:5])
        place = f"{len(bad)} of {len(scans)} files: {counts}" + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    is_utf8 = first.encodings[:1] == ("utf-8",)
    parts = [first.why]
    if first.encodings and not is_utf8:
        parts.append(f"it seems to be {listed(first.encodings)}")
    if total:
        parts.append(f"{total:,} bad byte{'s' * (total > 1)} in {place}")
    hint = "aifx train --set data.errors=replace  # most of it is UTF-8"
    return DataError(
        f"{file.name}{first.where}: not UTF-8", "; ".join(parts), hint if is_utf8 else conversion(file, first.encodings)
    )


def report_bad_bytes(scans: dict[TextFile, FileScan], errors: DecodeErrors) -> list[str]:
    """A line per file with bytes that are not UTF-8 and were dropped or replaced; five at most."""
    done = "dropped" if errors == "skip" else "replaced by U+FFFD"
    bad = [(file.name, scan.num_bad) for file, scan in scans.items() if scan.num_bad]
    if rest := bad[5:]:
        bad[5:] = [(f"{len(rest)} more files", sum(count for _, count in rest))]
    return [f"{name}: {count:,} bytes are not UTF-8; {done}" for name, count in bad]


def conversion(file: TextFile, encodings: Sequence[str]) -> str:
    """A command that converts a file to UTF-8, from the likeliest of `encodings`."""
    name = shlex.quote(file.name)
    if not encodings:
        return f"file -i {name}  # it seems to be no text: leave it out"
    encoding = encodings[0]
    convert = f"iconv -f {_ICONV.get(encoding, encoding.replace('_', '-').upper())} -t UTF-8"
    if encoding == "utf-8":
        convert = "iconv -c -f UTF-8 -t UTF-8"
    reader = {".gz": "zcat", ".zst": "zstdcat"}.get(file.compression)
    return f"{reader} {name} | {convert} > fixed{file.format}" if reader else f"{convert} {name} > fixed{file.format}"


def _open(file: TextFile) -> Any:
    """A buffered reader of the decompressed bytes."""
    if file.compression == ".gz":
        return gzip.open(file.path, "rb")
    if file.compression == ".zst":
        from backports import zstd

        return zstd.open(file.path, "rb")
    return open(file.path, "rb")
