"""Numbers of tokens, drawn from a distribution or read from a trace."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from aifx.core.errors import DataError, UsageError
from aifx.core.files import RECORDS_LIMIT, read_input
from aifx.core.parsing import parse_json
from aifx.data.readers.csv import CsvRow, NotCsv, csv_rows

MAX_TOKENS = 1 << 20
BLOCK = 512
"""Tokens of a block that a Mooncake trace names in `hash_ids` (kvcache-ai/Mooncake, README: "block size of 512")."""

_ONE = re.compile(r"\d+")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_LOGNORMAL = re.compile(r"lognormal:(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Lengths:
    """`128`, `64..512` (uniform, both included), or `lognormal:MEDIAN,SIGMA`; SIGMA is that of the logarithm."""

    text: str

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """Each is from 1 to MAX_TOKENS. Raises UsageError from `check_lengths`."""
        if found := _RANGE.fullmatch(self.text):
            low, high = map(int, found.groups())
            drawn = rng.integers(low, high, count, endpoint=True).astype(float)
        elif found := _LOGNORMAL.fullmatch(self.text):
            median, sigma = map(float, found.groups())
            drawn = rng.lognormal(math.log(median), sigma, count)
        else:
            drawn = np.full(count, float(self.text))
        return [int(value) for value in np.clip(np.round(drawn), 1, MAX_TOKENS)]


def check_lengths(text: str, option: str) -> Lengths:
    """Parse a distribution of lengths. Raises UsageError."""
    if _ONE.fullmatch(text):
        bounds = [int(text)]
    elif found := _RANGE.fullmatch(text):
        bounds = [int(bound) for bound in found.groups()]
    elif found := _LOGNORMAL.fullmatch(text):
        bounds = [round(float(found[1]))]
    else:
        bounds = []
    if not bounds or bounds != sorted(bounds) or bounds[0] < 1 or bounds[-1] > MAX_TOKENS:
        why = f"a number of tokens up to {MAX_TOKENS}, LOW..HIGH, or lognormal:MEDIAN,SIGMA"
        raise UsageError(f"{option} {text} is no number of tokens", why, f"{option} 64..512")
    return Lengths(text)


@dataclass(frozen=True)
class TraceRow:
    """A request of a trace.

    Attributes:
        at_s: since the first one.
        blocks: names of the prompt's blocks of BLOCK tokens; requests whose first names are equal begin alike.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


def read_trace(path: Path) -> list[TraceRow]:
    """The requests of a trace in order of their times: JSON lines as Mooncake publishes them (`timestamp` in
    milliseconds, `input_length`, `output_length`, `hash_ids`), or CSV as Azure does (`TIMESTAMP`, `ContextTokens`,
    `GeneratedTokens`).

    Raises DataError, which names the line.
    """
    try:
        text = read_input(path, limit=RECORDS_LIMIT).decode("utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read", error.strerror or str(error), "aifx bench serve --trace FILE"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no trace", "it is not UTF-8", "aifx bench serve --trace FILE") from None
    rows = _read_csv(path, text) if text.startswith("TIMESTAMP") else _read_lines(path, text)
    if not rows:
        raise DataError(f"{path} is no trace", "it has no requests", "aifx bench serve --trace FILE")
    rows.sort(key=lambda row: row.at_s)
    first_s = rows[0].at_s
    return [TraceRow(row.at_s - first_s, row.prompt_tokens, row.output_tokens, row.blocks) for row in rows]


def _read_lines(path: Path, text: str) -> list[TraceRow]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise _wrong(path, number, "it is no JSON object")
        blocks = value.get("hash_ids") or []
        if not isinstance(blocks, list) or not all(type(block) is int and block >= 0 for block in blocks):
            raise _wrong(path, number, f"hash_ids: expected numbers of blocks, got {json.dumps(blocks)[:60]}")
        prompt, output = (_count(path, number, value, key) for key in ("input_length", "output_length"))
        at_ms = value.get("timestamp")
        if isinstance(at_ms, bool) or not isinstance(at_ms, int | float) or not math.isfinite(at_ms):
            raise _wrong(path, number, f"timestamp: expected milliseconds, got {at_ms!r}")
        rows.append(TraceRow(at_ms / 1e3, prompt, output, tuple(blocks)))
    return rows


def _read_csv(path: Path, text: str) -> list[TraceRow]:
    rows = []
    for number, value in _records(path, text):
        prompt, output = (_count(path, number, value, key) for key in ("ContextTokens", "GeneratedTokens"))
        at = value.get("TIMESTAMP", "")
        try:
            at_s = datetime.fromisoformat(at).timestamp()
        except ValueError:
            raise _wrong(path, number, f"TIMESTAMP: expected a date and time, got {at!r}") from None
        rows.append(TraceRow(at_s, prompt, output))
    return rows


def _records(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row below the header with the line that it begins on."""
    try:
        rows = csv_rows(io.StringIO(text, newline=""))
        names = next(rows, CsvRow(1, [], "")).cells
        for number, cells, _ in rows:
            yield number, dict(zip(names, cells, strict=False))
    except NotCsv as error:
        raise _wrong(path, error.line, str(error)) from None


def _count(path: Path, number: int, value: Mapping[str, Any], key: str) -> int:
    """A number of tokens, at least one: an empty prompt or answer measures nothing."""
    found = value.get(key)
    try:
        count = int(found) if isinstance(found, int | str) and not isinstance(found, bool) else -1
    except ValueError:
        count = -1
    if not 0 <= count <= MAX_TOKENS:
        raise _wrong(path, number, f"{key}: expected a number of tokens up to {MAX_TOKENS}, got {found!r}")
    return max(count, 1)


def _wrong(path: Path, number: int, why: str) -> DataError:
    keys = "timestamp, input_length, output_length (JSON lines) or TIMESTAMP,ContextTokens,GeneratedTokens (CSV)"
    return DataError(f"line {number} of {path} is no request of a trace", why, f"a trace has {keys}")
