"""Views of a report for plots and tables: series of points, parts of a step, headlines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aifx.benchmarking.results import Param, Report, Result
from aifx.core import units
from aifx.machine.device_memory import BEYOND

PARTS = ("forward", "backward", "optimizer")
"""Parts of a training step, in the order in which the device runs them."""

BESIDE = ("data_wait", "dispatch")
"""Work of the host while the device works: it is longer than the device's work, or costs nothing."""

TIMES = {
    "checkpoint.stall": "save stall",
    "checkpoint.save": "save",
    "checkpoint.restore": "restore",
    "startup.cold": "cold start",
    "startup.warm": "warm start",
}
"""Results whose median is a headline."""

TIMES_CACHE = "times_cache"
"""The figure of `hardware.memory` that is compared with BEYOND: how often the caches would hold its arrays."""

SPLIT_BY = {
    "hardware.matmul": ("dtype",),
    "hardware.memory": ("op",),
    "hardware.copy": ("direction", "memory"),
    "hardware.collective": ("kind",),
}
"""Results that are measured by size, and the params that distinguish one series from another."""


@dataclass(frozen=True)
class Point:
    """One result in a series: its place, its height, and the interval of the height."""

    x: float
    y: float
    low: float
    high: float
    result: Result


@dataclass(frozen=True)
class Part:
    """A part of a step, and its share of the whole."""

    name: str
    seconds: float
    fraction: float


@dataclass(frozen=True)
class Step:
    """A training step and its parts.

    Attributes:
        whole_s: from a step to the next, as training runs it.
        parts: the device's, each measured by itself, then the rest of the whole.
        beside: the host's, at the same time.
        over_s: by how much the parts are longer than the whole, which is one program.
    """

    whole_s: float
    parts: list[Part]
    beside: list[Part]
    over_s: float


def machine(report: Report) -> str | None:
    """The machine of a report, in a line; None if it is not known."""
    hardware = report.fingerprint.hardware
    if not {"num_devices", "device_kind", "cpu", "cores"} <= hardware.keys():
        return None
    return f"{hardware['num_devices']} x {hardware['device_kind']} ({hardware['cpu']}, {hardware['cores']} cores)"


def headlines(report: Report) -> list[tuple[str, str]]:
    """The most important figures of a report as (label, value): the time of a step, rates of the devices."""
    found = []
    if whole := _whole(report):
        found.append(("training step", units.duration(whole.median_s)))
        # The loop shows what training reaches; the step shows the rest.
        step = report.find("train.step") or whole
        figures = {**step.figures, **whole.figures}
        rates = {name: figures.get(name) for name in ("units_per_s", "mfu", "units_per_joule")}
        found += [units.figure(name, value, step.unit) for name, value in rates.items() if value is not None]
    products = best_products(report).items()
    found += [(f"{dtype} products", units.rate(flops, "FLOP/s")) for dtype, flops in products]
    if memory := memory_rate(report):
        found.append(("memory", units.rate(memory, "B/s")))
    for name, label in TIMES.items():
        if times := report.find(name):
            found.append((label, units.duration(times.median_s)))
    return found


def best_products(report: Report) -> dict[str, float]:
    """Operations a second of the fastest product by dtype."""
    best: dict[str, float] = {}
    for result in of_name(report, "hardware.matmul"):
        if result.flops_per_s:
            dtype = str(result.params.get("dtype"))
            best[dtype] = max(best.get(dtype, 0.0), result.flops_per_s)
    return best


def memory_rate(report: Report) -> float | None:
    """Bytes a second of the main memory: the best of the largest size, where no cache holds it."""
    return largest_rate(beyond_caches(report))


def largest_rate(results: Iterable[Result]) -> float | None:
    """Bytes a second of the largest; None if there is none."""
    sized = [(size, result.bytes_per_s) for result in results if (size := size_of(result)) and result.bytes_per_s]
    return max(sized)[1] if sized else None


def beyond_caches(report: Report) -> list[Result]:
    """Memory results of sizes that the caches cannot hold.

    None if a bench was ended before it measured such sizes, or had no room for them.
    """
    return [r for r in of_name(report, "hardware.memory") if (r.figures.get(TIMES_CACHE) or BEYOND) >= BEYOND]


def of_name(report: Report, name: str) -> list[Result]:
    return [result for result in report.results if result.name == name]


def shared_params(results: Sequence[Result]) -> dict[str, Param]:
    """The params that are the same in all of them."""
    first = results[0].params if results else {}
    return {name: value for name, value in first.items() if all(r.params.get(name) == value for r in results)}


def by_size(results: Iterable[Result], name: str) -> dict[str, list[Point]]:
    """The series of what has this name, a size and a rate, each from the smallest size up."""
    found: dict[str, list[Point]] = {}
    for result in results:
        x, y = size_of(result), rate_of(result)
        if result.name == name and x and y:
            low, high = (y * result.median_s / end if end > 0 else y for end in reversed(result.interval_s))
            label = " ".join(str(result.params[param]) for param in SPLIT_BY[name] if param in result.params)
            found.setdefault(label, []).append(Point(x, y, low, high, result))
    return {label: sorted(points, key=lambda point: point.x) for label, points in found.items()}


def size_of(result: Result) -> float | None:
    """The param that is its size: bytes, or rows of a product."""
    value = result.params.get("num_bytes", result.params.get("size"))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def rate_of(result: Result) -> float | None:
    """Operations or bytes a second; of a collective the bus bandwidth, which the same links reach whatever the kind
    (nccl-tests, PERFORMANCE.md)."""
    return result.figures.get("bus_bytes_per_s") or result.flops_per_s or result.bytes_per_s


def step_of(report: Report) -> Step | None:
    """None if no step was measured, or none of its parts."""
    whole = _whole(report)
    if whole is None or whole.median_s <= 0:
        return None

    def parts_of(names: Iterable[str]) -> list[Part]:
        found = {name: result.median_s for name in names if (result := report.find(f"train.{name}"))}
        return [Part(name.replace("_", " "), s, s / whole.median_s) for name, s in found.items()]

    parts = parts_of(PARTS)
    if not parts:
        return None
    rest = whole.median_s - sum(part.seconds for part in parts)
    if rest > 0:
        parts.append(Part("the rest", rest, rest / whole.median_s))
    return Step(whole.median_s, parts, parts_of(BESIDE), max(-rest, 0.0))


def _whole(report: Report) -> Result | None:
    """The step as training runs it, or at least its program."""
    return report.find("train.loop") or report.find("train.step")
