"""What of a report a picture shows, on a page or in a terminal: series of points, parts of a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aifx.benchmarking import units
from aifx.benchmarking.results import Report, Result
from aifx.machine.device_memory import BEYOND

PARTS = ("forward", "backward", "optimizer")
"""Of a training step, in the order in which the device does them."""

BESIDE = ("data_wait", "dispatch")
"""What the host does while the device works: it is longer than the device's work, or costs nothing."""

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
    """A share of a step.

    Attributes:
        fraction: of the whole.
    """

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


@dataclass(frozen=True)
class Headline:
    """A figure that is shown above all others."""

    label: str
    value: str


def machine(report: Report) -> str | None:
    """What it was measured on, in a line; None where that is not known."""
    hardware = report.fingerprint.hardware
    if not {"num_devices", "device_kind", "cpu", "cores"} <= hardware.keys():
        return None
    return f"{hardware['num_devices']} x {hardware['device_kind']} ({hardware['cpu']}, {hardware['cores']} cores)"


def headlines(report: Report) -> list[Headline]:
    """What an operator asks first, of what was measured: how long a step, what the silicon reaches."""
    found = []
    if whole := _whole(report):
        found.append(Headline("training step", units.duration(whole.median_s)))
        # The loop shows what training reaches; the step shows the rest.
        step = report.find("train.step") or whole
        figures = {**step.figures, **whole.figures}
        rates = {name: figures.get(name) for name in ("units_per_s", "mfu", "units_per_joule")}
        found += [Headline(*units.figure(n, value, step.unit)) for n, value in rates.items() if value is not None]
    best: dict[str, float] = {}
    for result in of_name(report, "hardware.matmul"):
        dtype = str(result.params.get("dtype"))
        best[dtype] = max(best.get(dtype, 0.0), result.flops_per_s or 0.0)
    found += [Headline(f"{dtype} products", units.rate(flops, "FLOP/s")) for dtype, flops in best.items() if flops]
    if memory := memory_rate(report):
        found.append(Headline("memory", units.rate(memory, "B/s")))
    for name, label in TIMES.items():
        if times := report.find(name):
            found.append(Headline(label, units.duration(times.median_s)))
    return found


def memory_rate(report: Report) -> float | None:
    """Bytes a second of the main memory: the best of the largest size, where no cache holds it."""
    sized = [(size, r.bytes_per_s) for r in beyond_caches(report) if (size := size_of(r)) and r.bytes_per_s]
    return max(sized)[1] if sized else None


def beyond_caches(report: Report) -> list[Result]:
    """Of the memory, sizes that the caches cannot hold; none where a bench that was ended, or had no room, came to
    none."""
    return [r for r in of_name(report, "hardware.memory") if (r.figures.get(TIMES_CACHE) or BEYOND) >= BEYOND]


def of_name(report: Report, name: str) -> list[Result]:
    return [result for result in report.results if result.name == name]


def by_size(
    results: Iterable[Result], rate: Callable[[Result], float | None], *split_by: str
) -> dict[str, list[Point]]:
    """A series for each value of the params `split_by`, from the smallest size up, of what has a size and a rate."""
    found: dict[str, list[Point]] = {}
    for result in results:
        x, y = size_of(result), rate(result)
        if x and y:
            low, high = (y * result.median_s / end if end > 0 else y for end in reversed(result.interval_s))
            name = " ".join(str(result.params[param]) for param in split_by if param in result.params)
            found.setdefault(name, []).append(Point(x, y, low, high, result))
    return {name: sorted(points, key=lambda point: point.x) for name, points in found.items()}


def size_of(result: Result) -> float | None:
    """The param that is its size."""
    for name in ("num_bytes", "bytes", "size"):
        value = result.params.get(name, result.figures.get(name))
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def bus_rate(result: Result) -> float | None:
    """Of a collective: the bus bandwidth, which the same links reach whatever the kind (nccl-tests, PERFORMANCE.md)."""
    for name in ("bus_bytes_per_s", "busbw_bytes_per_s"):
        if value := result.figures.get(name):
            return value
    return result.bytes_per_s


def step_of(report: Report) -> Step | None:
    """None if no step was measured, or none of its parts."""
    whole = _whole(report)
    if whole is None or whole.median_s <= 0:
        return None

    def part(name: str, seconds: float) -> Part:
        return Part(name.replace("_", " "), seconds, seconds / whole.median_s)

    parts, beside = (
        [part(name, found.median_s) for name in names if (found := report.find(f"train.{name}"))]
        for names in (PARTS, BESIDE)
    )
    rest = whole.median_s - sum(part.seconds for part in parts)
    if not parts:
        return None
    if rest > 0:
        parts.append(part("the rest", rest))
    return Step(whole.median_s, parts, beside, max(-rest, 0.0))


def _whole(report: Report) -> Result | None:
    """The step as training runs it, or at least its program."""
    return report.find("train.loop") or report.find("train.step")
