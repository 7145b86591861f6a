"""The time of a step, from its counts, and what follows for a run.

This is a roofline with three roofs: products at the device's rate of operations, everything else at its rate of memory,
collectives at the rate of the links. Products and other operations are taken to follow each other. Collectives in loops
run beside them in part (`Shares.overlap`). The other collectives and the optimizer's update come on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aifx.machine.catalogue import peak_of
from aifx.planning.figures import SHARES, TRANSCENDENTAL_S, Figure, Rates
from aifx.planning.hardware import Hardware
from aifx.planning.network import LinkUse

PASSES = 8
"""Times that a step moves its activations, if no compiler says: each is written and read on the way forward and back,
with what lies between."""

ATTENTION_SHARE = 0.6
"""Share of the rate of other products that attention reaches on an accelerator. The published rates fit about as well
with anything from 0.5 to 1; those of long sequences want 0.4 to 0.9."""

SPREAD = 0.72, 1.19
"""Multiples of the predicted rate between which 80 % of the rates of another program are expected.

They are from the errors of published rates, each predicted without its own source: `benchmarks/plan_published.py`."""

_EDGES = ("all-gather", "reduce-scatter")


@dataclass(frozen=True)
class Assumptions:
    """Values that the user declares.

    Attributes:
        price: of a chip for an hour, in any currency.
        power_w: of a chip.
    """

    price: float | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class Time:
    """Seconds of one step and what follows from them. What follows from `step_s` has its interval.

    Attributes:
        products_s: of matrix products and convolutions.
        elementwise_s: of everything else but the optimizer.
        links_s: of collectives in loops, of which a part runs while the device computes.
        exposed_s: of collectives that the device waits for.
        update_s: of the optimizer.
        step_s: the longer of computing and links_s with a part of the shorter, with exposed_s and update_s.
        bound: what takes longest: "products", "memory" or "links".
        mfu: None if the catalogue has no peak, or only an estimate that is exceeded.
    """

    products_s: Figure
    elementwise_s: Figure
    links_s: Figure
    exposed_s: Figure
    update_s: Figure
    step_s: Figure
    bound: str
    mfu: Figure | None
    units_per_s: Figure
    units_per_s_per_device: Figure
    hours: Figure
    energy_kwh: Figure | None
    cost: Figure | None


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step and of its parts, as in `Time`."""

    products: float
    elementwise: float
    links: float
    exposed: float
    update: float

    @property
    def computing(self) -> float:
        return self.products + self.elementwise

    @property
    def step(self) -> float:
        shorter, longer = sorted((self.computing, self.links))
        return longer + (1 - SHARES.overlap) * shorter + self.exposed + self.update

    @property
    def bound(self) -> str:
        """The part that takes longest: "products", "memory" or "links"."""
        waiting = self.exposed + (self.links if self.links > self.computing else 0.0)
        return max((self.products, "products"), (self.elementwise + self.update, "memory"), (waiting, "links"))[1]


def step_time(
    counted: Mapping[str, Any],
    traffic: Mapping[str, Any] | None,
    links: Sequence[LinkUse],
    rates: Rates,
    *,
    is_cpu: bool,
) -> StepTime:
    """The time of a step on one device.

    On a processor, a compiled step says what is moved. On accelerators the count says it, since published rates were
    compared with counts; a compiled step takes as long as its bytes at the full bandwidth at least.

    Args:
        counted: the fields of `aifx.planning.counting.Counted`.
        traffic: those of `aifx.planning.hlo.Traffic`, if the step was compiled.
    """
    flops, memory = counted["product_flops"], rates.memory.value
    products = sum(count / rates.products[dtype].value for dtype, count in flops.items())
    moved = elementwise_bytes(counted)
    elementwise = (moved - update_bytes(counted)) / memory
    update = update_bytes(counted) / memory
    if not is_cpu and flops:
        most = max(flops, key=flops.__getitem__)
        products += counted["attention_flops"] * (1 / ATTENTION_SHARE - 1) / rates.products[most].value
    if traffic is not None and not traffic["unknown_loops"]:
        other, full = traffic["other_bytes"], rates.full_memory
        # Where operands arrive more slowly than they are multiplied, memory sets the pace.
        products = max(products, traffic["product_bytes"] / full)
        if is_cpu:
            update = min(update_bytes(counted), other) / memory
            elementwise = other / memory - update
        else:
            elementwise = max(elementwise, other / full - update)
    if is_cpu:
        elementwise += counted["transcendentals"] * TRANSCENDENTAL_S
    hidden, exposed = overlapped(links)
    return StepTime(products, elementwise, hidden, exposed, update)


def update_bytes(counted: Mapping[str, Any]) -> float:
    """The optimizer's: the state is read and written, the gradients are read."""
    return float(2 * (counted["parameters"] + counted["optimizer"]) + counted["gradients"])


def elementwise_bytes(counted: Mapping[str, Any]) -> float:
    """Bytes of a step that wasn't compiled: of the update, of activations and of the sums of micro-batches."""
    micro_batches = counted["micro_batches"]
    sums = 3 * (micro_batches - 1) * counted["gradients"]
    return update_bytes(counted) + float(PASSES * micro_batches * counted["touched"] + sums)


def overlapped(links: Sequence[LinkUse]) -> tuple[float, float]:
    """Seconds of collectives that computing can hide, and of those that it can't: outside loops, and in loops the first
    gather and the last scatter."""
    in_loops = [use for use in links if use.in_loop]
    edges = sum(max((use.turn_s for use in in_loops if use.kind == kind), default=0.0) for kind in _EDGES)
    hidden = sum(use.seconds for use in in_loops) - edges
    return hidden, edges + sum(use.seconds for use in links if not use.in_loop)


def mfu_of(hardware: Hardware, counted: Mapping[str, Any], step_s: float) -> tuple[float, str] | None:
    """MFU by the model's own operations, with the peak in words; None if the catalogue has no peak."""
    peak = peak_of(hardware.device_kind, hardware.platform, hardware.num_devices, counted["dtype"])
    if peak is None:
        return None
    return counted["model_flops"] / step_s / peak.flops, peak.formula.removeprefix("estimate: ")


def time_of(
    hardware: Hardware, num_steps: int, counted: Mapping[str, Any], found: StepTime, rates: Rates, given: Assumptions
) -> Time:
    """The time of a run of `num_steps` whose step is as long as `found` says."""
    by = "; ".join(figure.source for figure in rates.products.values())
    is_measured = all(figure.basis == "measured" for figure in rates.products.values())
    n, step, steps = hardware.num_devices, found.step, num_steps
    units, mfu = counted["units_per_step"], mfu_of(hardware, counted, found.step)
    mfu = mfu if mfu and mfu[0] <= 1 else None
    hours = steps * step / 3600
    slow, fast = (1.0, 1.0) if hardware.chip is None else SPREAD
    fast = min(fast, 1 / mfu[0]) if mfu else fast  # no device is faster than its peak
    of_step = f"from the predicted step time and {steps:,} steps"
    power, price = _power(hardware, given), given.price

    def part(value: float, source: str) -> Figure:
        return Figure(value, "estimated", source)

    def seconds(value: float, source: str) -> Figure:
        return _between(value, source, value / fast, value / slow)

    def rate(value: float, source: str) -> Figure:
        return _between(value, source, value * slow, value * fast)

    return Time(
        products_s=part(found.products, f"counted operations at a{'' if is_measured else 'n assumed'} rate: {by}"),
        elementwise_s=part(found.elementwise, f"bytes that other operations move: {rates.memory.source}"),
        links_s=part(found.links, "collectives in loops, partly while the device computes"),
        exposed_s=part(found.exposed, "the other collectives, with the first and the last of each loop"),
        update_s=part(found.update, f"state and gradients: {rates.memory.source}"),
        step_s=seconds(step, "computing and links, partly at once, then exposed links and the update"),
        bound=found.bound,
        mfu=rate(*mfu) if mfu else None,
        units_per_s=rate(units / step, f"{units:,} per step"),
        units_per_s_per_device=rate(units / step / n, "the same, of each device"),
        hours=seconds(hours, f"{of_step}, without compiling, validation and saving"),
        energy_kwh=None if power is None else seconds(
            power.value * hardware.num_chips * hours / 1e3, f"{hardware.num_chips} x {power.value:g} W: {power.source}"
        ),
        cost=None if price is None else seconds(
            price * hardware.num_chips * hours, f"{hardware.num_chips} x {price:g} per chip and hour, as declared"
        ),
    )  # fmt: skip


def _between(value: float, source: str, low: float, high: float) -> Figure:
    return Figure(value, "estimated", source, low, high) if low < high else Figure(value, "estimated", source)


def _power(hardware: Hardware, given: Assumptions) -> Figure | None:
    if given.power_w is not None:
        return Figure(given.power_w, "declared", "as declared")
    if hardware.chip is not None and hardware.chip.power_w is not None:
        return Figure(hardware.chip.power_w, "nameplate", "board power, without the host")
    return None
