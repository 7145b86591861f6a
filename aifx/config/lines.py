"""The line of each table and key in a TOML text, which TOML readers do not report."""

from __future__ import annotations

import re
from collections.abc import Iterator

import tomli

KeyPath = tuple[str, ...]

_STRING = r'"""(?:[^\\]|\\.)*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:[^"\\\n]|\\.)*"|' r"'[^'\n]*'"
_TOKEN = re.compile(rf"{_STRING}|#[^\n]*|[\[\]{{}}\n]", re.DOTALL)
_NAME = rf"(?:{_STRING}|[A-Za-z0-9_-]+)"
_KEY = re.compile(rf"[ \t]*(?P<header>\[?)[ \t\[]*(?P<path>{_NAME}(?:[ \t]*\.[ \t]*{_NAME})*)")


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of the first occurrence of each table and key of a TOML text, by path: `("train", "seed")`.

    Keys within an inline table are left out. The text must have passed a TOML reader: nothing is checked here.
    """
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for line, statement in _statements(text):
        if match := _KEY.match(statement):
            path = tuple(map(_unquoted, re.findall(_NAME, match["path"])))
            if match["header"]:
                table = path
            else:
                path = table + path
            for depth in range(1, len(path) + 1):
                lines.setdefault(path[:depth], line)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each line of a TOML text, together with those on which its value goes on, and its number."""
    start, line, depth = 0, 1, 0
    for token in _TOKEN.finditer(text + "\n"):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        elif token[0] == "\n" and depth == 0:
            statement = text[start : token.end()]
            yield line, statement
            start, line = token.end(), line + statement.count("\n")


def _unquoted(name: str) -> str:
    return str(tomli.loads(f"name = {name}")["name"]) if name[0] in "\"'" else name
