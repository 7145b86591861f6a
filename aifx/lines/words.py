"""Commands of a line file: words, and the names in braces that are put into them.

A command is split first, and then values are put into each word. So a value never becomes two words. It never becomes
an option either: it cannot begin a word with "-", and no name can stand in the name of an option.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aifx.core.errors import ConfigError, UsageError, did_you_mean

FIXED = ("date", "time", "tick", "key")
_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"date|time|tick|key|data\.[\w.-]+|models\.[\w.-]+\.[\w-]+|stations\.[\w-]+\.[\w.-]+")


@dataclass(frozen=True)
class Binding:
    """A name in braces: `date`, `data.payments`, `models.fraud.production` or `stations.train.run`."""

    name: str

    @property
    def station(self) -> str:
        """The station whose outputs it reads; empty if it is another name."""
        return self.name.split(".")[1] if self.name.startswith("stations.") else ""

    @property
    def field(self) -> tuple[str, ...]:
        """The keys that lead to the value in the station's document."""
        return tuple(self.name.split(".")[2:])


@dataclass(frozen=True)
class Word:
    """A word of a command: text and bindings in turn."""

    parts: tuple[str | Binding, ...]

    def bindings(self) -> Iterator[Binding]:
        return (part for part in self.parts if isinstance(part, Binding))

    @property
    def written(self) -> str:
        """The word as the file has it, with names in braces."""
        return "".join(f"{{{part.name}}}" if isinstance(part, Binding) else part for part in self.parts)

    def text(self, value_of: Callable[[Binding], str]) -> str:
        """The word with its values. Raises UsageError for a value that would become another argument."""
        made: list[str] = []
        for part in self.parts:
            value = part if isinstance(part, str) else value_of(part)
            if isinstance(part, Binding):
                _check_value(part, value, begins=not any(made))
            made.append(value)
        return "".join(made)


def _check_value(binding: Binding, value: str, *, begins: bool) -> None:
    why = ""
    if not value or "\0" in value:
        why = "it is empty" if not value else "it has a NUL"
    elif begins and value.startswith("-"):
        why = f"{value[:40]!r} would be read as an option"
    if why:
        raise UsageError(f"{{{binding.name}}} cannot be put into a command", why, f"write --option={{{binding.name}}}")


def split_command(text: str) -> tuple[Word, ...]:
    """The words of a command. Raises ConfigError."""
    try:
        words = shlex.split(text)
    except ValueError as e:
        raise ConfigError(f"run = {text!r} cannot be split into words", str(e), "close the quotation mark") from None
    if not words or "\0" in text:
        raise ConfigError(f"run = {text!r} is no command", "it has no words" if not words else "it has a NUL", "")
    return tuple(_word(word, text) for word in words)


def _word(word: str, command: str) -> Word:
    parts: list[str | Binding] = []
    end = 0
    for match in _PART.finditer(word):
        parts.append(word[end : match.start()])
        end = match.end()
        if match[0] in ("{{", "}}"):
            parts.append(match[0][0])
        elif match[1] is None:
            raise ConfigError(
                f"run = {command!r}: a brace alone in {word!r}", "names stand in braces", "write {{ or }}"
            )
        else:
            parts.append(_binding(match[1], command))
    parts.append(word[end:])
    made = Word(tuple(part for part in _merged(parts) if part != ""))
    before = made.parts[0] if made.parts and isinstance(made.parts[0], str) else ""
    if len(made.parts) > 1 and (before == "-" or (before.startswith("--") and "=" not in before)):
        why = "a value cannot be part of the name of an option"
        raise ConfigError(f"run = {command!r}: {word!r} cannot be used", why, "write --option={...}")
    return made


def _merged(parts: list[str | Binding]) -> Iterator[str | Binding]:
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
        else:
            yield text
            yield part
            text = ""
    yield text


def _binding(name: str, command: str) -> Binding:
    if _NAME.fullmatch(name):
        return Binding(name)
    known = (*FIXED, "data.NAME", "models.NAME.ALIAS", "stations.STATION.FIELD")
    raise ConfigError(f"run = {command!r}: no name {{{name}}}", did_you_mean(name, known), "docs/line.md has the names")
