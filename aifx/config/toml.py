"""A configuration as TOML, with the origin of each value in a comment."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aifx.core.sanitize import escape_in_json

OriginKind = Literal["default", "preset", "file", "env", "set", "auto"]
"""In order of precedence, the lowest first."""

_WRITTEN: Mapping[OriginKind, str] = {
    "default": "default",
    "preset": r"preset \S+",
    "file": r"\S+\.toml:\d+",
    "env": r"AIFX_\w+",
    "set": "--set|--refit",
    "auto": r"mesh\.auto",
}


@dataclass(frozen=True)
class Origin:
    """The origin of a value. `where`: "default", "preset gpt2-124m", "aifx.toml:12", "AIFX_TRAIN__SEED", "--set",
    "--refit", "mesh.auto"."""

    kind: OriginKind
    where: str


DEFAULT = Origin("default", "default")


def to_toml(sections: Mapping[str, Mapping[str, Any]], origin: Callable[[str], Origin] | None) -> str:
    """Every section with every key, in the order of declaration; what is not set is a comment.

    So is the `origin` of each key ("train.seed"), unless that is None.
    """
    blocks = []
    for name, values in sections.items():
        pairs = {key: f"{literal_key(key)} = {literal(value)}" for key, value in values.items() if value is not None}
        width = min(max(map(len, pairs.values()), default=0), 48)
        lines = [f"[{name}]"]
        for key in values:
            line = pairs.get(key, f"# {key} = (not set)")
            if origin is not None and key in pairs:
                line = f"{line:<{width}}  # {origin(f'{name}.{key}').where}"
            lines.append(line)
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def written_origin(line: str) -> Origin | None:
    """The origin that `to_toml` wrote behind the value on this line, if it did."""
    _, mark, where = line.rstrip().rpartition("  # ")
    found = (Origin(kind, where) for kind, pattern in _WRITTEN.items() if re.fullmatch(pattern, where))
    return next(found, None) if mark else None


def literal(value: Any) -> str:
    """One value, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal_key(k)} = {literal(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    import tomlkit  # most commands write no TOML

    return escape_in_json(str(tomlkit.item(value).as_string()))


def literal_key(key: str) -> str:
    """A key, quoted where TOML wants it."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else literal(key)
