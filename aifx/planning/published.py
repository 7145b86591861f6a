"""Rates of training that others published (`published.toml`), which `benchmarks/plan_published.py` compares with plans.
Imports no JAX."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aifx.config.sections import Remat
from aifx.planning.hardware import find_hardware


@dataclass(frozen=True)
class PublishedRate:
    """A row of the table.

    Attributes:
        source: the project that published it.
        where: it was read.
        name: of the model.
        model: values of `[model]`.
        mesh: sizes of its axes above 1.
        batch: sequences of a step.
        rate: of a chip: tokens per second, or 10^12 of the model's operations per second.
    """

    source: str
    where: str
    name: str
    model: Mapping[str, Any]
    hardware: str
    mesh: Mapping[str, int]
    seq_len: int
    batch: int
    micro_batches: int
    remat: Remat
    rate: float
    unit: Literal["tokens/s", "TFLOP/s"]


def published_rates() -> list[PublishedRate]:
    """All rows, in the order of the table."""
    document = tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))
    return [
        PublishedRate(
            source=table["source"],
            where=table["where"],
            name=name,
            model=document["models"][name],
            hardware=hardware,
            mesh=_mesh(mesh),
            seq_len=seq_len,
            batch=batch,
            micro_batches=micro_batches,
            remat=remat,
            rate=rate,
            unit=table["unit"],
        )
        for table in document["tables"]
        for name, hardware, mesh, seq_len, batch, micro_batches, remat, rate in table["rows"]
    ]


@functools.cache
def published_chips() -> frozenset[str]:
    """The catalogue's names of the chips that have a rate."""
    chips = (find_hardware(rate.hardware).chip for rate in published_rates())
    return frozenset(chip.name for chip in chips if chip is not None)


def _mesh(text: str) -> dict[str, int]:
    """Of "data=2 x fsdp=8"."""
    parts = (part.partition("=") for part in text.split(" x ") if part)
    return {axis: int(size) for axis, _, size in parts}
