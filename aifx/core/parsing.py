"""Parse JSON and TOML of other people's files, whose nesting has a limit, and text and sizes of a command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import tomli

from aifx.core.errors import UsageError
from aifx.core.os_errors import first_line

MAX_DEPTH = 64
"""Levels of a document: deeper ones would break code that walks them. Documents of aifx have fewer than ten."""

TOO_DEEP = f"it is nested more than {MAX_DEPTH} levels deep"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?", re.IGNORECASE)


def parse_json(data: bytes | str, make_object: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON document. Raises ValueError, also for one that is nested too deeply.

    Args:
        make_object: makes each object from its keys and values; by default a dict with the last value of each key.
    """
    try:
        value = json.loads(data, object_pairs_hook=make_object)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    text = data.decode("latin-1") if isinstance(data, bytes) else data
    if text.count("[") + text.count("{") > MAX_DEPTH:  # walking each line of a long file would take long
        _check_depth(value)
    return value


def fault_in(error: Exception) -> str:
    """The fault of a document on one line: the first of pydantic's errors, as "step.name: Field required"."""
    from pydantic_core import ValidationError

    if not isinstance(error, ValidationError):
        return first_line(error)
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, "))))


def check_utf8(name: str, text: str) -> None:
    """Raise UsageError for bytes of an argument that are not UTF-8, which Python keeps as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the {name} is not UTF-8", f"character {error.start + 1} of it", "iconv -t UTF-8") from None


def parse_size(text: str) -> int:
    """Bytes of "5GB" or "500M" in powers of 1000, of "2GiB" in powers of 1024. Raises ValueError, also for 0."""
    match = _SIZE.fullmatch(text.strip())
    size = float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index((match[2] or " ").upper()) if match else 0
    if size < 1:
        raise ValueError(f"{text} is not a size")
    return int(size)


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML document. Raises ValueError, tomli.TOMLDecodeError with the line where it can."""
    try:
        tables = tomli.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    _check_depth(tables)  # a dotted key is as deep as it has dots
    return tables


def _check_depth(value: Any) -> None:
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
        if not level:
            return
    raise ValueError(TOO_DEEP)
