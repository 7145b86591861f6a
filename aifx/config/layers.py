"""The layers of settings and their origins: the file, the environment, the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from aifx.config.config import SECTION_NAMES
from aifx.config.diagnostics import Mistake
from aifx.config.foreign_keys import own_key, own_section, suggestion
from aifx.config.kinds import Kinds
from aifx.config.lines import key_lines
from aifx.config.toml import DEFAULT, Origin, written_origin
from aifx.core.errors import ConfigError, did_you_mean, nearest
from aifx.core.files import read_file
from aifx.core.parsing import parse_toml
from aifx.core.project import CONFIG_NAME

_VARIABLE = re.compile(r"AIFX_(.*?)__(.*)")

SECRETS = {("serve", "api_key"): "AIFX_SERVE__API_KEY"}
"""Keys that only the environment may hold, by their variable: files are copied, and `ps` shows `--set`."""


@dataclass(frozen=True)
class Given:
    """A value that somebody set. `raw` is its text where it was typed without TOML's quotes."""

    value: Any
    origin: Origin
    raw: str | None = None


@dataclass
class Layers:
    """By section and key, the value that wins so far; later layers win over earlier ones.

    Attributes:
        kinds: what mistakes are compared with.
        label: the file's name, for messages about what it lacks.
    """

    kinds: Kinds
    label: str = CONFIG_NAME
    given: dict[str, dict[str, Given]] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def get(self, section: str, key: str) -> Given | None:
        return self.given.get(section, {}).get(key)

    def put(self, section: str, key: str, given: Given) -> None:
        self.given.setdefault(section, {})[key] = given

    def text(self, section: str, key: str) -> str | None:
        given = self.get(section, key)
        return given.value if given is not None and isinstance(given.value, str) else None

    def origin(self, section: str, key: str) -> Origin:
        given = self.get(section, key)
        return given.origin if given is not None else DEFAULT

    def add_file(self, path: Path, label: str, *, is_run: bool = False) -> None:
        """Adds a TOML file. Raises ConfigError if it cannot be read as TOML.

        The `config.toml` of a run (`is_run`) may not be a link, and notes the origin of each value.
        """
        text = _read(path, label, follow=not is_run)
        document = _parse(text, label)
        rows, lines = text.split("\n"), key_lines(text)
        for section, values in document.items():
            where = f"{label}:{lines[(section,)]}"
            if section not in SECTION_NAMES:
                self.mistakes.append(_unknown_section(self.kinds, section, values, where))
            elif not isinstance(values, dict):
                many = isinstance(values, list) and bool(values) and all(isinstance(value, dict) for value in values)
                problem = f"[[{section}]] is no section" if many else f"{section} = ... is no section"
                hint = f"write [{section}], keys below it"
                self.mistakes.append(Mistake(where, problem, f"a section is written [{section}]", hint))
            else:
                for key, value in values.items():
                    if (variable := SECRETS.get((section, key))) is not None:
                        self.mistakes.append(_secret(f"{label}:{lines[(section, key)]}", section, key, variable))
                        continue
                    line = lines.get((section, key), lines[(section,)])
                    origin = written_origin(rows[line - 1]) if is_run else None
                    self.put(section, key, Given(value, origin or Origin("file", f"{label}:{line}")))

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """Adds `AIFX_SECTION__KEY` variables; others that begin with `AIFX_` are not ours to judge."""
        for name in sorted(environ):
            if match := _VARIABLE.fullmatch(name):
                section, key = (part.lower() for part in match.groups())
                if (section, key) in SECRETS:
                    continue
                if section in SECTION_NAMES:
                    self.put(section, key, _typed(environ[name], Origin("env", name)))
                else:
                    reason = _nearest_name(self.kinds, section, key)
                    self.mistakes.append(Mistake(name, f"no section [{section}]", reason, f"unset {name}"))

    def add_overrides(self, overrides: Sequence[str]) -> list[str]:
        """Adds `--set section.key=value` strings and returns their keys."""
        keys = []
        for override in overrides:
            name, equals, text = override.partition("=")
            name = name.strip()
            section, dot, key = name.partition(".")
            if not equals:
                reason, hint = "it is written section.key=value", f"--set {name or 'train.seed'}=VALUE"
                self.mistakes.append(Mistake("--set", f"{override!r} has no value", reason, hint))
            elif not dot:
                self.mistakes.append(_no_section(self.kinds, section, text))
            elif section not in SECTION_NAMES:
                problem, reason = f"{name!r}: no section [{section}]", _nearest_name(self.kinds, section, key)
                self.mistakes.append(Mistake("--set", problem, reason, "aifx config keys"))
            elif (section, key) in SECRETS:
                self.mistakes.append(_secret("--set", section, key, SECRETS[section, key]))
            else:
                self.put(section, key, _typed(text, Origin("set", "--set")))
                keys.append(f"{section}.{key}")
        return keys


def _read(path: Path, label: str, *, follow: bool) -> str:
    try:
        data = read_file(path, follow=follow)
    except OSError as error:
        raise ConfigError(f"{label} cannot be read", error.strerror or str(error), f"a readable file {path}") from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        why = f"byte {error.start} is 0x{data[error.start]:02x}"
        raise ConfigError(f"{label}:{line}: not UTF-8 text", why, "save the file as UTF-8") from error


def _parse(text: str, label: str) -> dict[str, Any]:
    try:
        return parse_toml(text)
    except tomli.TOMLDecodeError as error:
        what = f"{label}:{error.lineno}:{error.colno}: not TOML"
        raise ConfigError(what, str(error), "https://toml.io/en/v1.0.0 has the syntax") from error
    except ValueError as error:  # a number of thousands of digits, brackets a thousand deep
        raise ConfigError(f"{label}: not a configuration", str(error).splitlines()[0], "see docs/config.md") from error


def _typed(text: str, origin: Origin) -> Given:
    """The TOML value of `text`, otherwise `text` itself."""
    try:
        document = parse_toml(f"value = {text}")
    except ValueError:
        document = {}
    return Given(document["value"] if document.keys() == {"value"} else text, origin, text)


def _secret(where: str, section: str, key: str, variable: str) -> Mistake:
    return Mistake(
        where, f"{section}.{key} is a secret", "only the environment may hold it", f"export {variable}=VALUE"
    )


def _nearest_name(kinds: Kinds, section: str, key: str) -> str:
    """The name that `section.key` may have meant, if there is no such section."""
    if ours := own_key(section, key, kinds.full_keys()):
        return suggestion(key, ours)
    if (own := own_section(section)) is None:
        return did_you_mean(section, SECTION_NAMES)
    return f"did you mean {own}.{key}?" if own in kinds.sections_with(key) else f"did you mean {own!r}?"


def _no_section(kinds: Kinds, key: str, text: str) -> Mistake:
    known = kinds.full_keys()
    if ours := own_key("", key, known):
        return Mistake("--set", f"{key!r} has no section", suggestion(key, ours), f"--set {ours}={text}")
    near = nearest(key, (name.partition(".")[2] for name in known)) or key
    meant = " or ".join(f"{home}.{near}" for home in kinds.sections_with(near))
    reason = f"did you mean {meant}?" if meant else "it is written section.key=value"
    return Mistake("--set", f"{key!r} has no section", reason, "aifx config keys")


def _unknown_section(kinds: Kinds, section: str, values: Any, where: str) -> Mistake:
    outside = f"{section!r} is outside of a section"
    if not isinstance(values, dict) and (homes := kinds.sections_with(section)):
        places = " or ".join(f"[{home}]" for home in homes)
        return Mistake(where, outside, f"it belongs to {places}", f"move it below {places}")
    if not isinstance(values, (dict, list)):
        if ours := own_key("", section, kinds.full_keys()):
            return Mistake(where, outside, suggestion(section, ours), f"aifx config keys {ours.partition('.')[0]}")
        return Mistake(where, f"{section!r} is no section", did_you_mean(section, SECTION_NAMES), "aifx config keys")
    own = own_section(section)
    reason = f"did you mean {own!r}?" if own else did_you_mean(section, SECTION_NAMES)
    if isinstance(values, dict):
        meant = [f"{key} is {ours}" for key in values if (ours := own_key(section, key, kinds.full_keys()))]
        reason += f" Its {', '.join(meant[:4])}" if meant else ""
    return Mistake(where, f"no section [{section}]", reason, "aifx config keys")
