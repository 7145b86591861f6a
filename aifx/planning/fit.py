"""Settings with which a run fits its devices: batch, accumulation and recomputation, the quickest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aifx.config import Config
from aifx.planning.counting import Counted
from aifx.planning.figures import rates_of
from aifx.planning.hardware import GPU_NAMES, Hardware, find_hardware
from aifx.planning.plan import PASSES, capacity_of


@dataclass(frozen=True)
class Candidate:
    """Settings and what they need: bytes on each device, seconds for a step."""

    settings: dict[str, Any]
    needed_bytes: int
    step_s: float


def candidates(
    config: Config, hardware: Hardware, cores: int, count: Callable[[Config], Counted]
) -> tuple[list[Candidate], Candidate]:
    """Settings that fit by count, the quickest first, and those that need the least memory.

    The global batch stays, unless the devices cannot share it evenly. Memory is linear in the rows of a micro-batch,
    so that two counts tell it for all.
    """
    n, wanted = hardware.num_devices, config.train.global_batch_size
    batch = max(round(wanted / n), 1) * n
    found, activations = list[Candidate](), 0
    for remat in _remats(config):
        one, two = (
            count(apply_settings(config, {**remat, "train.global_batch_size": rows * n,
                                          "train.gradient_accumulation": 1}))
            for rows in (1, 2)
        )  # fmt: skip
        # Recomputed activations are moved as often as kept ones, and once more.
        activations = 4 * activations // 3 or one.activations
        rows = batch // n
        for micro in (size for size in range(rows, 0, -1) if rows % size == 0):
            settings = {"train.global_batch_size": batch, "train.gradient_accumulation": rows // micro, **remat}
            needed = _extrapolated(needed_bytes(one, hardware), needed_bytes(two, hardware), micro)
            found.append(Candidate(settings, needed, _step_s(one, hardware, cores, rows, rows // micro, activations)))
    capacity = capacity_of(hardware).value
    fitting = sorted((one for one in found if one.needed_bytes <= capacity), key=lambda one: one.step_s)
    return fitting, min(found, key=lambda one: one.needed_bytes)


def apply_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with other values: {"train.global_batch_size": 64}."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    changed = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return replace(config, **changed)


def needed_bytes(counted: Counted, hardware: Hardware) -> int:
    """Of one device, by count."""
    state = counted.parameters + counted.frozen + counted.optimizer + counted.batch
    copy = counted.state if hardware.platform == "cpu" else 0
    return state + copy + counted.gradients + counted.activations + counted.copies + 2 * counted.logits


def smallest_machine(needed: int) -> str | None:
    """The GPU or TPU of the catalogue with the least memory of one device that is enough; None if none is."""
    chips = [find_hardware(name) for name in (*GPU_NAMES, "v4-8", "v5e-1", "v5p-8", "v6e-1", "tpu7x-4")]
    enough = [one for one in chips if capacity_of(one).value >= needed]
    return min(enough, key=lambda one: capacity_of(one).value).name if enough else None


def _remats(config: Config) -> Iterator[dict[str, Any]]:
    if not hasattr(config.model, "remat"):
        yield {}
        return
    yield {"model.remat": "none"}
    yield {"model.remat": "full"}


def _extrapolated(one: int, two: int, rows: int) -> int:
    return one + (rows - 1) * (two - one)


def _step_s(one: Counted, hardware: Hardware, cores: int, rows: int, micro_batches: int, activations: int) -> float:
    """Of products, activations and the sums of micro-batches: enough to compare settings of one machine.

    Args:
        one: of one row.
        activations: bytes that one row moves PASSES times.
    """
    rates = rates_of(hardware, list(one.product_flops), cores)
    products = sum(rows * flops / rates.products[dtype].value for dtype, flops in one.product_flops.items())
    moved = PASSES * rows * activations + 3 * (micro_batches - 1) * one.gradients
    return products + moved / rates.memory.value
