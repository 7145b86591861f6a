"""The encodings of text: byte order marks, what a sample of bytes may be written in, bytes that are not UTF-8."""

from __future__ import annotations

import codecs
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aifx.core.digests import Sha256
from aifx.core.errors import DataError
from aifx.core.file_states import FileState
from aifx.core.plurals import either

if TYPE_CHECKING:
    from aifx.data.readers.sources import SourceFile

DecodeErrors: TypeAlias = Literal["strict", "replace", "skip"]

BLOCK_BYTES = 1 << 20
DECODE_HANDLERS = {"strict": "strict", "replace": "replace", "skip": "ignore"}
_UNDECODABLE = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is not UTF-8
_ICONV = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE", "mac-roman": "MACINTOSH"}

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks; that of UTF-32-LE begins with that of UTF-16-LE."""

SAMPLE_BYTES = 1 << 20
"""Bytes at the beginning of a file: enough to decide."""

EXCERPT_BYTES = 1 << 14
"""Bytes that are compared with languages, from the first one on that is not ASCII."""

AUTO = "auto"
"""The name of an encoding that each file decides."""

MOST_NAMED = 3
"""Encodings that a message names."""

WIDE = ("utf_16_le", "utf_16_be")
OTHER_SCRIPTS = (
    "cp1251", "koi8_r", "cp866", "iso8859_5", "cp1253", "cp1255", "cp1256", "cp874",
    "cp932", "euc_jp", "gb18030", "big5", "cp949",
)  # fmt: skip

_WESTERN = (
    "äöüß", "àâæçéèêëîïôœùûüÿ", "áéíñóúü¿¡ºª", "ãáàâçéêíóôõúü", "åäöé", "æøåé", "àèéìîòù", "éëïóöü", "áðéíóúýþæö",
    "àçéèíïóòúü",
)  # fmt: skip
_CENTRAL = ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áéíóöőúüű", "ăâîșțşţ", "čćđšž", "áäčďéíĺľňóôŕšťúýž")
LATIN = {  # the more common first
    "cp1252": _WESTERN,
    "cp1250": _CENTRAL,
    "cp1254": ("çğıöşüâîû\u0307",),
    "cp1257": ("ąčęėįšųūž", "āčēģīķļņšūž", "äõöüšž"),
    "iso8859_2": _CENTRAL,
    "mac_roman": _WESTERN,
    "cp850": _WESTERN,
}
"""Code pages of Latin letters, each with the letters beyond ASCII of the languages that are written in it."""

_PUNCTUATION = frozenset("“”„‘’‚–—…«»€°§\xa0")  # of all languages
_CONTROL = re.compile("[\0-\x08\x0e-\x1a\x1c-\x1f]")

HEAD_BYTES = 1 << 12
"""Bytes at the beginning of a file that show a byte order mark, or UTF-16 without one."""


def mark_of(data: bytes) -> tuple[bytes, str]:
    """The byte order mark that a text begins with, and its encoding; both are empty if there is none."""
    return next(((mark, encoding) for mark, encoding in BOMS if data.startswith(mark)), (b"", ""))


def likely_encodings(sample: bytes) -> list[str]:
    """The encodings that a text may have, as Python calls them, the likeliest first. None if it seems to be no text.

    The same bytes give the same list. It is ["utf-8"] if most of the text is UTF-8.

    Args:
        sample: from the first byte of a character on. Its last character may be cut.
    """
    # 1. A byte order mark decides.
    # 2. Bytes of another encoding are hardly ever valid UTF-8 by chance. So a text is UTF-8 with damage if its valid
    #    characters beyond ASCII outnumber the bytes that are invalid.
    # 3. A text has no control characters but white space. UTF-16 has a zero byte or another low one for each letter.
    # 4. charset-normalizer decodes other bytes by each code page, and ranks these by how well the result reads.
    # 5. It cannot tell code pages of Latin letters apart, in which the same bytes are other letters with marks. The one
    #    in which the largest share of these letters belongs to one language is best, and of equals the more common.
    if marked := mark_of(sample)[1]:
        return [marked if marked == "utf-8" else marked[:6]]  # "utf-16" takes the mark away
    text = sample.decode("utf-8", "surrogateescape")
    is_utf8 = _is_mostly_utf8(sample, text)
    if controls := len(_CONTROL.findall(text)):
        # UTF-16 of Latin or Cyrillic letters may be UTF-8, too, with a control character for each of them.
        return [] if is_utf8 and controls * 4 < len(text) else _wide(sample)
    if is_utf8:
        return ["utf-8"]
    from charset_normalizer import from_bytes

    excerpt = _excerpt(sample)
    matches = from_bytes(excerpt, cp_isolation=[*LATIN, *OTHER_SCRIPTS])
    names = [name for match in matches for name in (match.encoding, *match.could_be_from_charset)]
    if names and names[0] in LATIN:
        names = _latin(excerpt)
    return [codecs.lookup(name).name for name in dict.fromkeys(names)]


def _wide(sample: bytes) -> list[str]:
    """UTF-16 without a mark, which half of the bytes of a character make look like control characters."""
    from charset_normalizer import from_bytes

    sample = sample[: min(len(sample), EXCERPT_BYTES) & ~1]
    names = [codecs.lookup(match.encoding).name for match in from_bytes(sample, cp_isolation=[*WIDE])]
    if len(names) > 1:  # a few letters, which are Chinese in the other order of their bytes
        names = ["utf-16-be" if sample[::2].count(0) > sample[1::2].count(0) else "utf-16-le"]
    return names


def _is_mostly_utf8(sample: bytes, text: str) -> bool:
    """Whether characters beyond ASCII outnumber bytes that are not UTF-8, or the last character is cut."""
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.start < len(sample) - 1:
            return True
        bad = sum("\udc80" <= character <= "\udcff" for character in text)
        return sum(character > "\x7f" for character in text) > 2 * bad
    return True


def _excerpt(sample: bytes) -> bytes:
    """Lines that are not ASCII."""
    found = re.search(rb"[\x80-\xff]", sample)
    assert found is not None
    first = found.start()
    start = max(sample.rfind(b"\n", 0, first) + 1, first - EXCERPT_BYTES // 2)
    lines = sample[start : start + EXCERPT_BYTES]
    if last := re.match(rb"(?s).*[\0-/]", lines):  # is a whole character in each of the encodings
        lines = lines[: last.end()] if start + EXCERPT_BYTES < len(sample) else lines
    return b"\n".join(line for line in lines.split(b"\n") if not line.isascii())


def _latin(excerpt: bytes) -> list[str]:
    """Code pages of Latin letters, by the share of the letters beyond ASCII that one language has."""
    shares = {}
    for name, alphabets in LATIN.items():
        try:
            text = excerpt.decode(name).lower()
        except UnicodeDecodeError:
            continue
        letters = [character for character in text if character > "\x7f" and character not in _PUNCTUATION]
        known = max(sum(letter in alphabet for letter in letters) for alphabet in alphabets)
        shares[name] = known / len(letters) if letters else 1.0
    return sorted(shares, key=lambda name: -shares[name])


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


@dataclass(frozen=True)
class FileScan:
    """The results of one pass over a file."""

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
        parts.append(f"it seems to be {either(first.encodings[:MOST_NAMED])}")
    if total:
        parts.append(f"{total:,} bad byte{'s' * (total > 1)} in {place}")
    hint = conversion(file, first.encodings)
    if is_utf8 and line_encodings and line_encodings[0] != "utf-8":
        parts.insert(1, f"the line seems to be {either(line_encodings[:MOST_NAMED])}")
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
