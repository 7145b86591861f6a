"""Predictions of `aifx plan` for runs whose rates others published, and the fit of the shares that it predicts with.

    python benchmarks/plan_published.py [--write] [--json]

Each row of `aifx/planning/published.toml` is counted as `aifx plan --no-compile` counts it, from its settings alone.
`--write` counts all rows again, a few seconds each, and keeps what the fit needs in plan_published.json beside this
file.

The fit chooses five shares: of the peak that products reach on a TPU, an A100 and an H100 or H200, of the memory's
bandwidth, and of links that run beside computing. It minimizes the errors of log(rate), those above 10 % by their size
and not by their square. Every source has the same weight, however many rows it has. Each source is then predicted by a
fit to the others, and the interval is made of these errors so that it holds 80 % of those of one source more. Whether
an interval keeps that promise is tested on each source by one that was made without it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.planning.figures import CHIPS, PublishedRate, Shares, chip_kind, published_rates, rates_of
from aifx.planning.hardware import Hardware, find_hardware
from aifx.planning.network import LinkUse
from aifx.planning.step_time import ATTENTION_SHARE, step_time

KEPT = Path(__file__).with_suffix(".json")
LARGE = 0.1
"""Errors of log(rate) above it count by their size."""

INSIDE = 0.8
"""Share of the rates of a source that is not in the table, which the interval is to hold."""

LOWEST, HIGHEST = Shares((0.3,) * len(CHIPS), 0.2, 0.0), Shares((1.0,) * len(CHIPS), 1.0, 1.0)
FULL = Shares((1.0,) * len(CHIPS), 1.0, 0.0)


@dataclass(frozen=True)
class Counts:
    """Seconds of the parts of a row's step on one device, at the full rates of its peak and memory."""

    products: float
    elementwise: float
    update: float
    links: float
    exposed: float
    model_flops: float
    units: float


class Rows:
    """The published rates as arrays, one value per row."""

    def __init__(self, rates: Sequence[PublishedRate], counts: Sequence[Counts]) -> None:
        hardware = [find_hardware(rate.hardware) for rate in rates]
        self.sources = np.array([rate.source for rate in rates])
        self.chips = np.array([CHIPS.index(chip_kind(chip_of(one))) for one in hardware])
        self.parts = {name: np.array([getattr(one, name) for one in counts]) for name in asdict(counts[0])}
        work = [
            one.units if rate.unit == "tokens/s" else one.model_flops / 1e12
            for rate, one in zip(rates, counts, strict=True)
        ]
        self.step_s = np.array([
            done / (rate.rate * one.num_chips) for done, rate, one in zip(work, rates, hardware, strict=True)
        ])  # fmt: skip

    def predicted(self, shares: Shares, at: np.ndarray) -> np.ndarray:
        """Seconds of a step: the formula of `aifx.planning.step_time`, for many rows at once."""
        part = {name: values[at] for name, values in self.parts.items()}
        computing = part["products"] / np.array(shares.products)[self.chips[at]] + part["elementwise"] / shares.memory
        longer, shorter = np.maximum(computing, part["links"]), np.minimum(computing, part["links"])
        return longer + (1 - shares.overlap) * shorter + part["exposed"] + part["update"] / shares.memory

    def errors(self, shares: Shares, at: np.ndarray) -> np.ndarray:
        """log(published rate / predicted rate)."""
        return np.log(self.predicted(shares, at) / self.step_s[at])

    def weights(self, at: np.ndarray) -> np.ndarray:
        """So that every source has the same."""
        sources, index, counts = np.unique(self.sources[at], return_inverse=True, return_counts=True)
        return 1 / counts[index] / len(sources)

    def fit(self, at: np.ndarray) -> Shares:
        weights = np.sqrt(self.weights(at))

        def residuals(values: np.ndarray) -> np.ndarray:
            scaled = self.errors(_shares(values), at) / LARGE
            return weights * np.sign(scaled) * np.sqrt(2 * (np.sqrt(1 + scaled**2) - 1))

        start = [0.7] * len(CHIPS) + [0.7, 0.5]
        found = least_squares(residuals, start, bounds=(_values(LOWEST), _values(HIGHEST)))
        return _shares(found.x)

    def held_out(self, at: np.ndarray) -> np.ndarray:
        """The errors of each source, by a fit to the others."""
        errors = np.empty(len(at))
        for source in np.unique(self.sources[at]):
            own = self.sources[at] == source
            errors[own] = self.errors(self.fit(at[~own]), at[own])
        return errors

    def interval(self, errors: np.ndarray, at: np.ndarray) -> tuple[float, float]:
        """The interval of errors, by weight.

        Of n sources it holds the share INSIDE (n + 1) / n, since one source more is further from the middle than these
        are from their own: conformal prediction (Vovk, Gammerman and Shafer 2005).
        """
        order, weights = np.argsort(errors), self.weights(at)
        below = np.cumsum(weights[order]) - weights[order] / 2
        sources = len(np.unique(self.sources[at]))
        inside = min(INSIDE * (sources + 1) / sources, 1.0)
        low, high = np.interp([(1 - inside) / 2, (1 + inside) / 2], below, errors[order])
        return float(low), float(high)


def _values(shares: Shares) -> list[float]:
    return [*shares.products, shares.memory, shares.overlap]


def _shares(values: Any) -> Shares:
    *products, memory, overlap = map(float, values)
    return Shares(tuple(products), memory, overlap)


def chip_of(hardware: Hardware) -> Any:
    assert hardware.chip is not None
    return hardware.chip


def count_row(rate: PublishedRate) -> Counts:
    """Counted as `aifx plan --no-compile` counts it."""
    from aifx.planning.work import Work
    from aifx.planning.worker import counted_event
    from aifx.tasks.registry import describe_task

    hardware = find_hardware(rate.hardware)
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        (project.root / "aifx.toml").write_text(project_toml(rate, hardware))
        config = load_config(project)
        work = Work(describe_task(config, project), hardware)
        event = counted_event(hardware, work.count(config), work.asked)
    return counts_of(hardware, event)


def counts_of(hardware: Hardware, event: Mapping[str, Any]) -> Counts:
    """The counts of a run, from the event of its count."""
    rates = rates_of(hardware, list(event["product_flops"]), 1, FULL)
    uses = [LinkUse(**use) for use in event["links"]]
    time = step_time(event, None, uses, rates, is_cpu=False)
    return Counts(
        time.products,
        time.elementwise,
        time.update,
        time.links,
        time.exposed,
        event["model_flops"],
        event["units_per_step"],
    )


def project_toml(rate: PublishedRate, hardware: Hardware) -> str:
    """`aifx.toml` of a row. Attention runs as it does on a device where kernels were verified."""
    kernel = "pallas_tpu" if hardware.platform == "tpu" else "pallas_triton"
    model = {**rate.model, "max_seq_len": rate.seq_len, "scan_layers": True, "remat": rate.remat}
    sections = {
        "data": {"vocab_size": rate.model.get("vocab_size", 128256), "seq_len": rate.seq_len},
        "model": model,
        "train": {"global_batch_size": rate.batch, "gradient_accumulation": rate.micro_batches},
        "mesh": rate.mesh,
        "kernels": {"attention": kernel},
    }
    return "\n".join(
        "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())])
        for name, values in sections.items()
    )


def read_counts() -> list[Counts]:
    return [Counts(*values) for values in json.loads(KEPT.read_text())]


def write_counts(rates: Sequence[PublishedRate]) -> None:
    lines = []
    for number, rate in enumerate(rates):
        lines.append(json.dumps([float(f"{value:.6g}") for value in asdict(count_row(rate)).values()]))
        sys.stderr.write(f"{number + 1}/{len(rates)} {rate.source}: {rate.name} on {rate.hardware}\n")
    KEPT.write_text("[\n" + ",\n".join(lines) + "\n]\n")


@dataclass(frozen=True)
class Judged:
    """A source, predicted without it: `error` is the median of the predicted rate over the published one, less 1.

    Attributes:
        interval: of the published rate over the predicted one, from the other sources.
        inside: share of its rows in the interval.
    """

    source: str
    rows: int
    error: float
    size: float
    interval: tuple[float, float]
    inside: float


def judge(rows: Rows) -> Iterator[Judged]:
    every = np.arange(len(rows.sources))
    errors = rows.held_out(every)
    for source in dict.fromkeys(rows.sources.tolist()):
        own = rows.sources == source
        others = every[~own]
        low, high = rows.interval(rows.held_out(others), others)
        inside = (errors[own] >= low) & (errors[own] <= high)
        rates = np.expm1(-errors[own])
        interval = float(np.exp(low)), float(np.exp(high))
        yield Judged(
            source,
            int(own.sum()),
            float(np.median(rates)),
            float(np.median(abs(rates))),
            interval,
            float(inside.mean()),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="count all rows again")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rates = published_rates()
    if arguments.write:
        write_counts(rates)
    rows = Rows(rates, read_counts())
    every = np.arange(len(rates))
    shares, errors = rows.fit(every), rows.held_out(every)
    sizes = abs(np.expm1(-errors))
    judged = list(judge(rows))
    low, high = rows.interval(errors, every)
    found = {
        "rows": len(rates),
        "sources": len(judged),
        "shares": asdict(shares),
        "attention_share": ATTENTION_SHARE,
        "spread": [float(np.exp(low)), float(np.exp(high))],
        "median_error": float(np.median(sizes)),
        "within_15_percent": float((sizes <= 0.15).mean()),
        "inside": sum(one.inside * one.rows for one in judged) / len(rates),
        "inside_by_source": float(np.mean([one.inside for one in judged])),
        "by_source": [asdict(one) for one in judged],
    }
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for key, value in found.items():
        if key != "by_source":
            sys.stdout.write(f"{key}: {value}\n")
    sys.stdout.write(
        "\n| source | rows | error | size of error | interval without it | inside |\n| --- |" + " --- |" * 5 + "\n"
    )
    for one in judged:
        cells = [
            one.source, str(one.rows), f"{one.error:+.0%}", f"{one.size:.0%}",
            f"{one.interval[0]:.2f} to {one.interval[1]:.2f}", f"{one.inside:.0%}",
        ]  # fmt: skip
        sys.stdout.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
