"""The encodings that bytes of text may be written in, from a sample of them."""

from __future__ import annotations

import codecs
import re

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks; that of UTF-32-LE begins with that of UTF-16-LE."""

SAMPLE_BYTES = 1 << 20
"""Of the beginning of a file, enough to decide."""

EXCERPT_BYTES = 1 << 14
"""That are compared with languages, from the first byte on that is not ASCII."""

AUTO = "auto"
"""The name of an encoding that each file decides."""

SHOWN = 3
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


def mark_of(data: bytes) -> tuple[bytes, str]:
    """The byte order mark that a text begins with, and its encoding; both are empty if there is none."""
    return next(((mark, encoding) for mark, encoding in BOMS if data.startswith(mark)), (b"", ""))


def likely_encodings(sample: bytes) -> list[str]:
    """The encodings that a text may have, as Python calls them, the likeliest first. None if it seems to be no text.

    The same bytes give the same list. It is ["utf-8"] if most of the text is UTF-8. charset-normalizer finds the script
    of other bytes; code pages of Latin letters differ too little for it, so letters of their languages decide.

    Args:
        sample: from the first byte of a character on. Its last character may be cut.
    """
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
