"""The load on a server: the number, lengths and times of its requests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from aifx.benchmarking.serve.lengths import BLOCK, Lengths, check_lengths, read_trace
from aifx.core.errors import UsageError

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
