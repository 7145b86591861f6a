"""What people have set, and where: the file, the environment, the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from aifx.config.config import SECTION_NAMES, section_models
from aifx.config.diagnostics import Mistake
from aifx.config.foreign_keys import own_key, own_section, suggestion
from aifx.config.lines import key_lines
from aifx.config.origins import Origin
from aifx.core.errors import ConfigError, did_you_mean, nearest
from aifx.core.files import read_file
from aifx.core.parsing import parse_toml

_VARIABLE = re.compile(r"AIFX_(.*?)__(.*)")


@dataclass(frozen=True)
class Given:
    """A value that somebody set. `raw` is its text where it was typed without TOML's quotes."""

    value: Any
    origin: Origin
    raw: str | None = None


@dataclass
class Layers:
    """By section and key, the value that wins so far; later layers win over earlier ones."""

    given: dict[str, dict[str, Given]] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def get(self, section: str, key: str) -> Given | None:
        return self.given.get(section, {}).get(key)

    def put(self, section: str, key: str, given: Given) -> None:
        self.given.setdefault(section, {})[key] = given

    def add_file(self, path: Path, label: str, *, follow: bool = False) -> str:
        """Adds a TOML file and returns its text. Raises ConfigError if it cannot be read as TOML.

        Args:
            follow: accept a link: `aifx.toml` of a project may be one, `config.toml` of a run may not.
        """
        text = _read(path, label, follow=follow)
        document = _parse(text, label)
        lines = key_lines(text)
        for section, values in document.items():
            where = f"{label}:{lines[(section,)]}"
            if section not in SECTION_NAMES:
                self.mistakes.append(_unknown_section(section, values, where))
            elif not isinstance(values, dict):
                self.mistakes.append(_no_table(section, values, where))
            else:
                for key, value in values.items():
                    origin = Origin("file", f"{label}:{lines[(section, key)]}")
                    self.put(section, key, Given(value, origin))
        return text

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """Adds `AIFX_SECTION__KEY` variables; others that begin with `AIFX_` are not ours to judge."""
        for name in sorted(environ):
            if match := _VARIABLE.fullmatch(name):
                section, key = (part.lower() for part in match.groups())
                if section not in SECTION_NAMES:
                    reason = _nearest_name(section, key)
                    self.mistakes.append(Mistake(name, f"no section [{section}]", reason, f"unset {name}"))
                else:
                    self.put(section, key, _typed(environ[name], Origin("env", name)))

    def add_overrides(self, overrides: Sequence[str]) -> list[str]:
        """Adds `--set section.key=value` strings and returns their keys."""
        keys = []
        for override in overrides:
            name, equals, text = override.partition("=")
            section, dot, key = name.strip().partition(".")
            if not equals:
                problem, reason = f"{override!r} has no value", "it is written section.key=value"
                self.mistakes.append(
                    Mistake("--set", problem, reason, f"--set {override.strip() or 'train.seed'}=VALUE")
                )
            elif not dot:
                self.mistakes.append(_no_section(section, text))
            elif section not in SECTION_NAMES:
                reason = _nearest_name(section, key)
                self.mistakes.append(
                    Mistake("--set", f"{name.strip()!r}: no section [{section}]", reason, "aifx config keys")
                )
            else:
                self.put(section, key, _typed(text, Origin("set", "--set")))
                keys.append(f"{section}.{key}")
        return keys


def sections_with(key: str) -> Iterator[str]:
    """The sections that have this key, of the bundled tasks."""
    for section in SECTION_NAMES:
        if any(key in kind.model_fields for kind in section_models(section)):
            yield section


def _read(path: Path, label: str, *, follow: bool) -> str:
    try:
        data = read_file(path, follow=follow)
    except OSError as error:
        raise ConfigError(f"{label} cannot be read", error.strerror or str(error), f"a readable file {path}") from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{label}:{line}: not UTF-8 text",
            f"byte {error.start} is 0x{data[error.start]:02x}",
            "save the file as UTF-8",
        ) from error


def _parse(text: str, label: str) -> dict[str, Any]:
    try:
        return parse_toml(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(
            f"{label}:{error.lineno}:{error.colno}: not TOML", str(error), "https://toml.io/en/v1.0.0 has the syntax"
        ) from error
    except ValueError as error:  # a number of thousands of digits, brackets a thousand deep
        raise ConfigError(f"{label}: not a configuration", str(error).splitlines()[0], "see docs/config.md") from error


def _typed(text: str, origin: Origin) -> Given:
    """The TOML value of `text`, otherwise `text` itself."""
    try:
        document = parse_toml(f"value = {text}")
    except ValueError:
        return Given(text, origin, text)
    return Given(document["value"], origin, text) if document.keys() == {"value"} else Given(text, origin, text)


def _nearest_name(section: str, key: str) -> str:
    """What `section.key` may have meant, if there is no such section."""
    if ours := own_key(section, key, full_keys()):
        return suggestion(key, ours)
    if (own := own_section(section)) is None:
        return did_you_mean(section, SECTION_NAMES)
    return f"did you mean {own}.{key}?" if own in sections_with(key) else f"did you mean {own!r}?"


def _no_section(key: str, text: str) -> Mistake:
    if ours := own_key("", key, full_keys()):
        return Mistake("--set", f"{key!r} has no section", suggestion(key, ours), f"--set {ours}={text}")
    homes = list(sections_with(key)) or list(sections_with(nearest(key, all_keys()) or ""))
    key = key if list(sections_with(key)) else nearest(key, all_keys()) or key
    reason = " or ".join(f"{home}.{key}" for home in homes)
    return Mistake(
        "--set",
        f"{key!r} has no section",
        f"did you mean {reason}?" if homes else "it is written section.key=value",
        "aifx config keys",
    )


def all_keys() -> set[str]:
    """Every key of the bundled tasks, without its section."""
    return {key for section in SECTION_NAMES for kind in section_models(section) for key in kind.model_fields}


def full_keys() -> set[str]:
    """Every key of the bundled tasks, with its section."""
    return {
        f"{section}.{key}" for section in SECTION_NAMES for kind in section_models(section) for key in kind.model_fields
    }


def _unknown_section(section: str, values: Any, where: str) -> Mistake:
    if not isinstance(values, dict) and (homes := list(sections_with(section))):
        reason = " or ".join(f"[{home}]" for home in homes)
        return Mistake(
            where, f"{section!r} is outside of a section", f"it belongs to {reason}", f"move it below {reason}"
        )
    if not isinstance(values, (dict, list)):
        if ours := own_key("", section, full_keys()):
            hint = f"aifx config keys {ours.partition('.')[0]}"
            return Mistake(where, f"{section!r} is outside of a section", suggestion(section, ours), hint)
        return Mistake(where, f"{section!r} is no section", did_you_mean(section, SECTION_NAMES), "aifx config keys")
    own = own_section(section)
    reason = f"did you mean {own!r}?" if own else did_you_mean(section, SECTION_NAMES)
    if isinstance(values, dict):
        meant = [f"{key} is {ours}" for key in values if (ours := own_key(section, key, full_keys()))]
        reason += f" Its {', '.join(meant[:4])}" if meant else ""
    return Mistake(where, f"no section [{section}]", reason, "aifx config keys")


def _no_table(section: str, values: Any, where: str) -> Mistake:
    many = isinstance(values, list) and bool(values) and all(isinstance(value, dict) for value in values)
    written = f"[[{section}]]" if many else f"{section} = ..."
    return Mistake(
        where, f"{written} is no section", f"a section is written [{section}]", f"write [{section}], keys below it"
    )
