"""The load on a server: the number, lengths and times of its requests."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

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


REQUESTS = 64
GOALS = ("ttft", "tpot", "itl", "latency")
UNITS_S = {"ms": 1e-3, "s": 1.0}

Mode = Literal["concurrency", "rate", "trace"]


class LoadOptions(BaseModel):
    """The options of `aifx bench serve`, which a report keeps so that a gate measures the same again.

    Attributes:
        url: of the server; None measures a run, which aifx then serves with the settings `set`.
        concurrency: closed loops: numbers of clients, each of which waits for its answer before it asks again.
        rate: open loops: requests per second, which arrive as a Poisson process whatever the server does.
        slo: what a request must reach to count as goodput, such as "ttft=500ms,tpot=50ms".
        price: of the server per hour.
        key_variable: the environment variable with the server's key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = None
    run: str | None = None
    set: tuple[str, ...] = ()
    model: str | None = None
    chat: bool = False
    concurrency: tuple[int, ...] = ()
    rate: tuple[float, ...] = ()
    trace: str | None = None
    requests: int | None = Field(None, ge=1)
    warmup: int | None = Field(None, ge=0)
    prompt_tokens: str = "128"
    output_tokens: str = "64"
    shared_prefix: int = Field(0, ge=0)
    slo: str | None = None
    price: float | None = None
    seed: int = 0
    timeout_s: float = Field(600.0, gt=0)
    key_variable: str = "AIFX_SERVE__API_KEY"

    def check(self) -> None:
        """Check the options together. Raises UsageError, or DataError for a trace."""
        if (self.url is None) == (self.run is None):
            why = "there are both" if self.url else "there is neither"
            raise UsageError("aifx bench serve requires URL or --run NAME", why, "aifx bench serve --run main")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise UsageError(
                f"{self.url} is no URL", "expected http:// or https://", f"aifx bench serve http://{self.url}"
            )
        if self.url is not None and "@" in self.url:
            why = "reports keep the URL; the key does not belong in it"
            raise UsageError("the URL holds a name or password", why, f"export {self.key_variable}=KEY")
        if self.url is not None and self.set:
            raise UsageError("--set requires --run", "aifx does not start this server", "aifx bench serve --run main")
        if self.concurrency and self.rate:
            why = "clients either wait for their answers or do not"
            raise UsageError("--rate and --concurrency exclude each other", why, "aifx bench serve URL --rate 2")
        check_lengths(self.prompt_tokens, "--prompt-tokens")
        check_lengths(self.output_tokens, "--output-tokens")
        parse_slo(self.slo)
        if self.trace is not None:
            read_trace(Path(self.trace))


@dataclass(frozen=True)
class Level:
    """One load: `value` clients at once, `value` requests per second, or a trace at its own times."""

    mode: Mode
    value: float = 0.0

    @property
    def params(self) -> dict[str, int | float | str]:
        """The parameters that distinguish its results from those of another load."""
        if self.mode == "trace":
            return {"load": "trace"}
        return {self.mode: int(self.value) if float(self.value).is_integer() else self.value}

    @property
    def name(self) -> str:
        return " ".join(f"{name} {value}" for name, value in self.params.items())


def levels(options: LoadOptions) -> list[Level]:
    """The loads, one after the other. Without an option, a trace keeps its times; otherwise one client asks."""
    if options.rate:
        return [Level("rate", rate) for rate in options.rate]
    if options.trace is not None and not options.concurrency:
        return [Level("trace")]
    return [Level("concurrency", float(count)) for count in options.concurrency or (1,)]


@dataclass(frozen=True)
class Planned:
    """A request to come.

    Attributes:
        at_s: when, after the load begins; 0 in a closed loop, where a client sends it once it has its last answer.
        prompt_tokens: its own, after the shared prefix.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


def plan(options: LoadOptions, level: Level) -> list[Planned]:
    """The requests of a load: lengths and times are a function of the seed. Raises UsageError, DataError."""
    rng = np.random.default_rng([options.seed, 1])
    if options.trace is not None:
        rows = read_trace(Path(options.trace))[: options.requests]
        found = [Planned(row.at_s, row.prompt_tokens, row.output_tokens, row.blocks) for row in rows]
    else:
        count = options.requests or REQUESTS
        prompts, outputs = (Lengths(text).draw(rng, count) for text in (options.prompt_tokens, options.output_tokens))
        found = [Planned(0.0, *lengths) for lengths in zip(prompts, outputs, strict=True)]
    if level.mode == "trace":
        return found
    times: Sequence[float] = [0.0] * len(found)
    if level.mode == "rate":
        gaps = np.random.default_rng([options.seed, 2]).exponential(1 / level.value, len(found))
        times = np.cumsum(gaps).tolist()
    return [
        Planned(at_s, one.prompt_tokens, one.output_tokens, one.blocks) for at_s, one in zip(times, found, strict=True)
    ]


class PromptWriter:
    """Prompts of token ids, or of words.

    What they say is new in each launch, so that no server finds one in a cache, apart from the parts that are to be
    shared.
    """

    def __init__(self, ids: Sequence[int], words_per_token: float, shared_prefix: int) -> None:
        """
        Args:
            ids: tokens to draw from; empty for prompts of words.
            words_per_token: of the words that are drawn otherwise.
        """
        self._ids, self._words_per_token = np.asarray(ids, np.int64), words_per_token
        self._shared_prefix = shared_prefix
        self._salt = int.from_bytes(os.urandom(8), "big")
        self._count = 0

    def write(self, planned: Planned) -> list[int] | str:
        """The next prompt."""
        self._count += 1
        parts = [(self._shared_prefix, 0, 0)]
        rest = planned.prompt_tokens
        for block in planned.blocks:
            parts.append((min(rest, BLOCK), 1, block))
            rest -= parts[-1][0]
        parts.append((rest, 2, self._count))
        if not self._ids.size:
            return " ".join(filter(None, (self._words(*part) for part in parts)))
        return [int(token) for part in parts for token in self._draw(self._ids, part[0], *part[1:])]

    def _words(self, tokens: int, *key: int) -> str:
        return " ".join(self._draw(np.asarray(WORDS), round(tokens * self._words_per_token), *key))

    def _draw(self, values: np.ndarray, count: int, *key: int) -> np.ndarray:
        return np.random.default_rng([self._salt, *key]).choice(values, count)


_TEXT = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother
area money story fact month lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car city community name president team minute idea body information
back parent face others level office door health person art war history party result change morning reason
research
"""
WORDS = _TEXT.split()
"""Common English words: most tokenizers have a token for each."""


def parse_slo(text: str | None) -> dict[str, float]:
    """Limits in seconds, by name. Raises UsageError."""
    found: dict[str, float] = {}
    for part in text.split(",") if text else ():
        name, _, limit = part.strip().partition("=")
        unit = next((unit for unit in UNITS_S if limit.endswith(unit)), "")
        try:
            seconds = float(limit.removesuffix(unit)) * UNITS_S[unit]
        except (ValueError, KeyError):
            seconds = 0.0
        if name not in GOALS or not 0 < seconds < float("inf"):
            why = f"expected NAME=TIME with a unit, and NAME one of {', '.join(GOALS)}"
            raise UsageError(f"--slo {part.strip()} is no limit", why, "--slo ttft=500ms,tpot=50ms")
        found[name] = seconds
    return found
