"""The line of each key in a TOML text, which TOML readers do not report."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import tomli

KeyPath = tuple[str, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:[^"\\\n]|\\.)*"|' r"'[^'\n]*'",
    re.DOTALL,
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of the first occurrence of each table and key of a TOML text, by path: `("train", "seed")`.

    The text must have passed a TOML reader: nothing is checked here.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


@dataclass
class _Scanner:
    text: str
    at: int = 0
    lines: dict[KeyPath, int] = field(default_factory=dict)
    _counted_to: int = 0
    _line: int = 1

    def document(self) -> None:
        table: KeyPath = ()
        self.skip(_BLANK)
        while self.at < len(self.text):
            if self.peek() == "[":
                start = self.at
                while self.peek() == "[":
                    self.at += 1
                    self.skip(_SPACE)
                table = self.key_path()
                self.add(table, start)
                while self.peek() == "]":
                    self.at += 1
                    self.skip(_SPACE)
            else:
                self.key_value(table)
            self.skip(_BLANK)

    def key_value(self, table: KeyPath) -> None:
        start = self.at
        path = table + self.key_path()
        self.add(path, start)
        self.at += 1  # the equals sign
        self.skip(_SPACE)
        self.value(path)

    def key_path(self) -> KeyPath:
        parts = []
        while True:
            self.skip(_SPACE)
            token = self.skip(_STRING if self.peek() in "\"'" else _BARE_KEY)
            parts.append(tomli.loads(f"v = {token}")["v"] if token[0] in "\"'" else token)
            self.skip(_SPACE)
            if self.peek() != ".":
                return tuple(parts)
            self.at += 1

    def value(self, path: KeyPath) -> None:
        first = self.peek()
        if first in ('"', "'"):
            self.skip(_STRING)
        elif first in ("[", "{"):
            self.at += 1
            self.skip(_BLANK)
            while self.peek() not in ("]", "}"):
                self.value(path) if first == "[" else self.key_value(path)
                self.skip(_BLANK)
                if self.peek() == ",":
                    self.at += 1
                    self.skip(_BLANK)
            self.at += 1
        else:
            self.skip(_SCALAR)

    def add(self, path: KeyPath, start: int) -> None:
        self._line += self.text.count("\n", self._counted_to, start)
        self._counted_to = start
        for depth in range(1, len(path) + 1):
            self.lines.setdefault(path[:depth], self._line)

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        assert match is not None, f"not TOML at {self.at}"
        self.at = match.end()
        return match.group()
