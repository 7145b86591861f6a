"""How long a step takes, from what was counted of it and what was compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aifx.planning.figures import TRANSCENDENTAL_S, Rates
from aifx.planning.network import LinkUse

PASSES = 8
"""How often a step moves its activations, if no compiler says: each is written and read on the way forward and back,
with what lies between."""

_EDGES = ("all-gather", "reduce-scatter")


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step and of its parts (`aifx.planning.plan.Time`)."""

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
        return max(self.computing, self.links) + self.exposed + self.update

    @property
    def bound(self) -> str:
        """What takes longest: "products", "memory" or "links"."""
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
    """Of one device.

    Args:
        counted: the fields of `aifx.planning.counting.Counted`.
        traffic: those of `aifx.planning.hlo.Traffic`, if the step was compiled.
    """
    products = sum(flops / rates.products[dtype].value for dtype, flops in counted["product_flops"].items())
    moved = elementwise_bytes(counted)
    if traffic is not None and not traffic["unknown_loops"]:
        moved = traffic["other_bytes"]
        # Where operands arrive more slowly than they are multiplied, memory sets the pace.
        products = max(products, traffic["product_bytes"] / rates.memory.value)
    update = min(update_bytes(counted), moved) / rates.memory.value
    elementwise = moved / rates.memory.value - update
    if is_cpu:
        elementwise += counted["transcendentals"] * TRANSCENDENTAL_S
    hidden, exposed = overlapped(links)
    return StepTime(products, elementwise, hidden, exposed, update)


def update_bytes(counted: Mapping[str, Any]) -> float:
    """The optimizer's: the state is read and written, the gradients are read."""
    return float(2 * (counted["parameters"] + counted["optimizer"]) + counted["gradients"])


def elementwise_bytes(counted: Mapping[str, Any]) -> float:
    """Of a step that wasn't compiled: those of the update, of activations and of the sums of micro-batches."""
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
