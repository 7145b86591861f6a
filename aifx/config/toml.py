"""A configuration as TOML."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import tomlkit

from aifx.config.origins import Origin
from aifx.core.sanitize import escape_in_json

_WRITTEN_ORIGIN = re.compile(r"  # (default|preset \S+|\S+\.toml:\d+|AIFX_\w+|--set)$")


def to_toml(sections: Mapping[str, Mapping[str, Any]], origin: Callable[[str], Origin] | None) -> str:
    """Every section with every key, values in the order of their declaration; what is not set is a comment.

    Args:
        origin: of a key ("train.seed"), which becomes a comment; None for no such comments.
    """
    blocks = []
    for name, values in sections.items():
        pairs = [(key, literal(value)) if value is not None else (key, None) for key, value in values.items()]
        width = min(max((len(f"{key} = {text}") for key, text in pairs if text), default=0), 48)
        lines = [f"[{name}]"]
        for key, text in pairs:
            line = f"# {key} = (not set)" if text is None else f"{literal_key(key)} = {text}"
            if origin is not None and text is not None:
                line = f"{line:<{width}}  # {origin(f'{name}.{key}').where}"
            lines.append(line)
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def written_origin(line: str) -> Origin | None:
    """The origin that `to_toml` wrote behind the value on this line, if it did."""
    match = _WRITTEN_ORIGIN.search(line.rstrip())
    if match is None:
        return None
    where = match.group(1)
    if where.startswith("preset "):
        return Origin("preset", where)
    if where.startswith("AIFX_"):
        return Origin("env", where)
    if where == "default":
        return Origin("default", where)
    return Origin("set", where) if where == "--set" else Origin("file", where)


def literal(value: Any) -> str:
    """One value, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal_key(k)} = {literal(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    return escape_in_json(str(tomlkit.item(value).as_string()))


def literal_key(key: str) -> str:
    """A key, quoted where TOML wants it."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else literal(key)
