"""Text for a terminal: control characters, which could steer it or end a line, are escaped, and long text is cut."""

from __future__ import annotations

import re
import unicodedata

JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: scripts and emoji need them, and they move nothing."""

_NOT_ASCII_TEXT = re.compile("[^ -~]")
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def shorten(text: str, most: int) -> str:
    """A text of at most `most` characters, the last of which is "…" if it was cut."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def escape_controls(text: str, keep: str = "\n\t") -> str:
    r"""Replace each control character by its escape, such as `\x1b`.

    Control characters are C0 and C1, marks of reading direction, line and paragraph separators and lone surrogates.
    Those in `keep` stay.
    """
    if text.isprintable():
        return text

    def escape(match: re.Match[str]) -> str:
        c = match[0]
        # Unassigned characters (Cn) may be letters of a newer Unicode, and a terminal only shows them.
        is_harmless = c.isprintable() or c in JOINERS or unicodedata.category(c) in ("Zs", "Cn", "Co")
        return c if is_harmless or c in keep else c.encode("unicode_escape", "backslashreplace").decode("ascii")

    return _NOT_ASCII_TEXT.sub(escape, text)


def one_line(text: str) -> str:
    """`text` on one line, control characters escaped."""
    return escape_controls(" ".join(text.split("\n")), keep="")


def escape_in_json(document: str) -> str:
    r"""Escape characters that JSON allows in a string and a terminal obeys: C1 controls, marks of reading direction.

    The escapes (`\u009b`) are also those of TOML's basic strings.
    """
    return _UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", document)
