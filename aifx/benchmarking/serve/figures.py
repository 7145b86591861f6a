"""Compute results from answers: latencies of requests, and the throughput of the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from aifx.benchmarking.estimate import MIDDLE
from aifx.benchmarking.results import Measured
from aifx.benchmarking.serve.client import Answered, Api, Load
from aifx.benchmarking.serve.load import Level
from aifx.core.plurals import counted
from aifx.core.units import duration

MOST_SAMPLES = 1000
"""Most samples of one result in one launch. More are reduced to their quantiles, so that reports stay small."""

LATE_S = 0.01
"""A client whose event loop comes back so late in one of a hundred times is too slow to measure."""

BUSY = 0.8
"""The same for its share of a processor."""

ENERGY_BASES = ("measured", "declared", "nameplate")


@dataclass(frozen=True)
class Times:
    """The latencies of a complete answer, in seconds.

    Attributes:
        ttft_s: from sending the request to the first part of the answer.
        tpot_s: mean time per token after the first part; None for an answer of one token.
        itl_s: from part to part.
        latency_s: from sending the request to the end.
    """

    ttft_s: float
    tpot_s: float | None
    itl_s: tuple[float, ...]
    latency_s: float

    @classmethod
    def of(cls, answered: Answered) -> Times:
        times = answered.chunk_times_s or [answered.end_s]
        tokens = answered.output_tokens
        return cls(
            ttft_s=times[0] - answered.sent_s,
            tpot_s=(times[-1] - times[0]) / (tokens - 1) if tokens > 1 and len(times) > 1 else None,
            itl_s=tuple(later - earlier for earlier, later in pairwise(times)),
            latency_s=answered.end_s - answered.sent_s,
        )

    def reaches(self, slo: Mapping[str, float]) -> bool:
        """Whether it is within all limits. The limit of `itl` is for each of them."""
        found = {
            "ttft": self.ttft_s,
            "tpot": self.tpot_s,
            "latency": self.latency_s,
            "itl": max(self.itl_s, default=None),
        }
        return all((seconds := found[name]) is None or seconds <= limit for name, limit in slo.items())


def results(level: Level, load: Load, slo: Mapping[str, float], price: float | None) -> Iterator[Measured]:
    """`ttft`, `tpot`, `itl` and `latency` of the complete answers, and `throughput`: seconds per output token."""
    complete = [answered for answered in load.answered if answered.error is None]
    times = [Times.of(answered) for answered in complete]
    seen = {
        "ttft": [one.ttft_s for one in times],
        "tpot": [one.tpot_s for one in times if one.tpot_s is not None],
        "itl": [gap for one in times for gap in one.itl_s],
        "latency": [one.latency_s for one in times],
    }
    for name, seconds in seen.items():
        if seconds:
            p90, p99 = np.quantile(seconds, (0.9, 0.99)).tolist()
            yield Measured(
                name=f"serve.{name}",
                params=level.params,
                samples_s=thinned(seconds),
                compared_at=MIDDLE,
                figures={"p90_s": p90, "p99_s": p99},
            )
    span_s = load.end_s - load.begin_s
    outputs = sum(answered.output_tokens for answered in complete)
    if span_s > 0 and outputs:
        yield _throughput(level, load, times, slo, price, span_s)


def _throughput(
    level: Level, load: Load, times: Sequence[Times], slo: Mapping[str, float], price: float | None, span_s: float
) -> Measured:
    complete = [answered for answered in load.answered if answered.error is None]
    outputs = sum(answered.output_tokens for answered in complete)
    prompts = _sum((answered.usage or {}).get("prompt_tokens") for answered in complete)
    figures: dict[str, float | None] = {
        "units_per_s": outputs / span_s,
        "total_units_per_s": None if prompts is None else (outputs + prompts) / span_s,
        "requests_per_s": len(complete) / span_s,
    }
    if slo:
        good = sum(one.reaches(slo) for one in times)
        figures |= {"goodput_requests_per_s": good / span_s, "goodput_fraction": good / len(load.answered)}
    joules, basis = energy(complete)
    figures["units_per_joule"] = outputs / joules if joules else None
    cost = _sum((answered.usage or {}).get("cost") for answered in complete) if price is None else price * span_s / 3600
    figures["cost_per_million_units"] = None if cost is None else cost / outputs * 1e6
    sources = {"units_per_joule": basis} if joules else {}
    sources |= {} if cost is None else {"cost_per_million_units": "declared"}
    figures |= {"requests": len(load.answered), "failed_requests": len(load.answered) - len(complete)}
    figures |= client_figures(level, load, span_s)
    return Measured(
        name="serve.throughput",
        params=level.params,
        samples_s=[span_s / outputs],
        unit="tokens",
        figures=figures,
        sources=sources,
    )


def client_figures(level: Level, load: Load, span_s: float) -> dict[str, float | None]:
    """Delays of this client, as 0.99 quantiles: of its requests in an open loop, and of its event loop."""
    late = [answered.sent_s - answered.due_s for answered in load.answered] if level.mode != "concurrency" else []
    return {
        "schedule_lag_s": float(np.quantile(late, 0.99)) if late else None,
        "client_lag_s": float(np.quantile(load.lags_s, 0.99)) if load.lags_s else None,
        "client_cpu_fraction": load.cpu_s / span_s,
    }


def notes(level: Level, load: Load, api: Api) -> Iterator[str]:
    """Notes of the report: failures by kind, a client that was too slow, the source of counts."""
    prompts = "token ids" if api.takes_ids else "words, so that their lengths are approximate"
    counts = "counted by the server (usage)" if api.counts_usage else "counted as parts of the stream"
    yield f"serve: prompts are {prompts}; tokens are {counts}"
    name = f"serve {level.name}"
    failed = [answered for answered in load.answered if answered.error is not None]
    if failed:
        kinds = Counter(answered.error for answered in failed)
        listed = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
        first = next((f"; the first said: {one.detail}" for one in failed if one.detail), "")
        yield f"{name}: {len(failed)} of {counted(len(load.answered), 'request')} failed: {listed}{first}"
    if unanswered := load.sent - len(load.answered):
        yield f"{name}: {counted(unanswered, 'request')} had no complete answer yet, and are left out"
    yield from _client_notes(name, level, load)
    complete = [answered for answered in load.answered if answered.error is None]
    short = [one for one in complete if one.output_tokens < one.planned.output_tokens]
    if short:
        why = "" if api.ignores_end else "; the server does not take ignore_eos"
        yield f"{name}: {len(short)} of {counted(len(complete), 'answer')} ended before the length asked for{why}"


def _client_notes(name: str, level: Level, load: Load) -> Iterator[str]:
    span_s = load.end_s - load.begin_s
    if span_s <= 0:
        return
    found = client_figures(level, load, span_s)
    if max(found["client_lag_s"] or 0.0, found["schedule_lag_s"] or 0.0) > LATE_S:
        late = f"in one of a hundred cases, this client was {duration(LATE_S)} late or more"
        yield f"{name}: {late}, and may be the bottleneck: give it cores of its own"
    if (found["client_cpu_fraction"] or 0.0) > BUSY:
        yield f"{name}: this client used more than {BUSY:.0%} of a processor, and is the bottleneck"


def energy(answers: Iterable[Answered]) -> tuple[float | None, str]:
    """Joules of the answers and how the server knows them, by its `usage.energy`; None if one has none."""
    found = [(answered.usage or {}).get("energy") or {} for answered in answers]
    joules = _sum(one.get("joules") for one in found)
    bases = {one.get("basis") for one in found}
    if joules is None or len(bases) != 1 or (basis := bases.pop()) not in ENERGY_BASES:
        return None, ""
    return joules, basis


def thinned(seconds: Sequence[float]) -> list[float]:
    """The samples in order of measurement, or MOST_SAMPLES quantiles of them."""
    if len(seconds) <= MOST_SAMPLES:
        return list(seconds)
    shares = (np.arange(MOST_SAMPLES) + 0.5) / MOST_SAMPLES
    return [float(value) for value in np.quantile(seconds, shares)]


def _sum(values: Iterable[Any]) -> float | None:
    """None if one is unknown, or if there are none."""
    found = list(values)
    is_known = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
    return sum(found) if found and is_known else None
