"""Files of text: their byte order marks, and bytes that are not UTF-8."""

from __future__ import annotations

import codecs
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from aifx.core.digests import Sha256
from aifx.core.errors import DataError
from aifx.core.file_states import FileState
from aifx.core.plurals import either
from aifx.data.readers.likely_encodings import SAMPLE_BYTES, SHOWN, likely_encodings
from aifx.data.readers.streams import Utf8

if TYPE_CHECKING:
    from aifx.data.readers.sources import SourceFile

DecodeErrors: TypeAlias = Literal["strict", "replace", "skip"]

BLOCK_BYTES = 1 << 20
DECODE_HANDLERS = {"strict": "strict", "replace": "replace", "skip": "ignore"}
_UNDECODABLE = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is not UTF-8
_ICONV = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE", "mac-roman": "MACINTOSH"}


@dataclass(frozen=True)
class FileScan:
    """What one pass over a file found."""

    digest: str  # SHA-256 of its content, decompressed
    num_bytes: int  # without a byte-order mark
    num_bad: int = 0  # bytes that are not UTF-8
    where: str = ""  # the first of them, as a message goes on after the file's name: ":3" for a line, ": row 3"
    why: str = ""  # its offset and value
    encodings: tuple[str, ...] = ()  # of such a file, it seems, the likeliest first
    # Of the file before it was read; for one of a store the tag that the store gave it.
    state: FileState | str | None = field(default=None, compare=False)


def decode_blocks(file: SourceFile, errors: DecodeErrors) -> Iterator[str]:
    """The text of a file in blocks, newlines kept. Raises DataError if it is not UTF-8 and `errors` is strict."""
    with file.open() as opened:
        stream = Utf8(opened)
        blocks = iter(lambda: stream.read1(BLOCK_BYTES), b"")
        try:
            yield from codecs.iterdecode(blocks, "utf-8", DECODE_HANDLERS[errors])
        except UnicodeDecodeError:
            raise undecodable({file: scan_text(file)}) from None


def scan_text(file: SourceFile) -> FileScan:
    """Read a text file once: its digest, and the bytes that are not UTF-8.

    UTF-16 without a byte-order mark counts as such bytes, although much of it is valid.
    """
    digest = Sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    num_bytes = num_lines = num_bad = 0
    where = why = ""
    encodings: list[str] = []
    head = b""
    with file.open() as opened:
        stream = Utf8(opened)
        start = stream.mark_bytes
        while True:
            block = stream.read1(BLOCK_BYTES)
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


def undecodable(
    scans: dict[SourceFile, FileScan], *, is_replaceable: bool = True, line_encodings: Sequence[str] = ("utf-8",)
) -> DataError:
    """The error for files that hold bytes that are not UTF-8: the first place, all counts, and the way out.

    Args:
        is_replaceable: whether training with `data.errors` may replace the bytes.
        line_encodings: that the first line with such bytes may have, in a file most of which is UTF-8.
    """
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
        parts.append(f"it seems to be {either(first.encodings[:SHOWN])}")
    if total:
        parts.append(f"{total:,} bad byte{'s' * (total > 1)} in {place}")
    hint = conversion(file, first.encodings)
    if is_utf8 and line_encodings and line_encodings[0] != "utf-8":
        parts.insert(1, f"the line seems to be {either(line_encodings[:SHOWN])}")
        hint = conversion(file, line_encodings, first.where.removeprefix(":"))
    if is_utf8 and is_replaceable:
        hint = "aifx train --set data.errors=replace  # most of it is UTF-8"
    return DataError(f"{file.name}{first.where}: not UTF-8", "; ".join(parts), hint)


def report_bad_bytes(scans: dict[SourceFile, FileScan], errors: DecodeErrors) -> list[str]:
    """A line per file with bytes that are not UTF-8 and were dropped or replaced; five at most."""
    done = "dropped" if errors == "skip" else "replaced by U+FFFD"
    bad = [(file.name, scan.num_bad) for file, scan in scans.items() if scan.num_bad]
    if rest := bad[5:]:
        bad[5:] = [(f"{len(rest)} more files", sum(count for _, count in rest))]
    return [f"{name}: {count:,} bytes are not UTF-8; {done}" for name, count in bad]


def conversion(file: SourceFile, encodings: Sequence[str], line: str = "") -> str:
    """A command that converts a file to UTF-8, or shows a line of it in UTF-8, from the likeliest of `encodings`."""
    name = shlex.quote(file.name)
    if not encodings:
        return f"file -i {name}  # it seems to be no text: leave it out"
    encoding = encodings[0]
    convert = f"iconv -f {_ICONV.get(encoding, encoding.replace('_', '-').upper())} -t UTF-8"
    if encoding == "utf-8":
        convert = "iconv -c -f UTF-8 -t UTF-8"
    reader = {".gz": "zcat", ".zst": "zstdcat"}.get(file.compression)
    if line:
        return f"{reader} {name} | sed -n {line}p | {convert}" if reader else f"sed -n {line}p {name} | {convert}"
    return f"{reader} {name} | {convert} > fixed{file.suffix}" if reader else f"{convert} {name} > fixed{file.suffix}"
