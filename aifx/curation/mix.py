"""Mixing data sets: a version that names its parents with weights, and has no rows of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.core.artifact import short_reference
from aifx.core.errors import UsageError
from aifx.curation.step import Limits, Outcome, Step
from aifx.data.versions.catalog import MIX, Catalog

LEAST_SHARE = 0.002
"""Training takes rows in cycles of 1,000, which hold at least one of a set with this share."""

EXAMPLE = "aifx data mix blend web:0.7 books:0.3"


@dataclass(frozen=True)
class Mix(Step):
    """A mix of its parents.

    Attributes:
        weights: shares of the training tokens; they need not sum to 1.
        epochs: how often training may read each row of a parent; without a bound if None.
    """

    weights: tuple[float, ...]
    epochs: tuple[float | None, ...]

    name = MIX

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        return {
            "mixed_rows": sum(parent.manifest.rows for parent in self.parents),
            "mixed_bytes": sum(parent.manifest.bytes for parent in self.parents),
        }

    def tasks(self) -> Sequence[tuple[str, int]]:
        return []

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        return iter(())


def parse_sets(sets: Sequence[str], epochs: Sequence[str]) -> dict[str, tuple[float, float | None]]:
    """The weight and the epochs of each set of a command line.

    Args:
        sets: "NAME:WEIGHT" each.
        epochs: "NAME:EPOCHS", or "EPOCHS" for all.

    Raises UsageError.
    """
    weights: dict[str, float] = {}
    for text in sets:
        reference, weight = _pair(text, "weight")
        if reference in weights:
            raise UsageError(f"{reference} is named twice", "each data set has one weight", EXAMPLE)
        weights[reference] = weight
    if len(weights) < 2:
        raise UsageError("a mix has two data sets or more", f"{len(weights)} is named", EXAMPLE)
    whole = sum(weights.values())
    for reference, weight in weights.items():
        if weight < LEAST_SHARE * whole:
            why = f"{weight:g} of {whole:g} is less than {LEAST_SHARE:.1%}, the least that training can keep to"
            raise UsageError(f"the weight of {reference} is too small", why, EXAMPLE)
    bounds: dict[str, float | None] = dict.fromkeys(weights)
    for text in epochs:
        if ":" not in text:
            bounds = dict.fromkeys(weights, _number(text, f"--epochs {text}", "epochs"))
            continue
        reference, most = _pair(text, "epochs")
        if reference not in weights:
            why = f"the mix has {', '.join(weights)}"
            raise UsageError(f"--epochs {text} names no data set of the mix", why, EXAMPLE)
        bounds[reference] = most
    return {reference: (weight, bounds[reference]) for reference, weight in weights.items()}


def mix_of(sets: Mapping[str, tuple[float, float | None]], catalog: Catalog) -> Mix:
    """The step that mixes these versions. Raises UsageError, DataError."""
    parents = []
    for reference in sets:
        parent = catalog.open(reference)
        manifest = parent.manifest
        if manifest.step.name == MIX:
            why = "a mix is made of data sets that have rows"
            names = ", ".join(map(short_reference, manifest.parents))
            raise UsageError(f"{reference} is a mix itself", why, f"name its sets: {names}")
        if manifest.kind != "text":
            why = f"it holds {manifest.kind}, and training reads mixes of text"
            raise UsageError(f"{reference} cannot be mixed", why, "aifx data ls")
        parents.append(parent)
    if twice := {parent.reference for parent in parents if parents.count(parent) > 1}:
        raise UsageError(f"{min(twice)} is named twice", "each version has one weight", EXAMPLE)
    return Mix(tuple(parents), *zip(*sets.values(), strict=True))


def _pair(text: str, what: str) -> tuple[str, float]:
    reference, colon, number = text.rpartition(":")
    if not colon or not reference:
        raise UsageError(f"{text!r} has no {what}", f"it is written NAME:{what.upper()}", EXAMPLE)
    return reference, _number(number, text, what)


def _number(text: str, argument: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UsageError(f"{argument!r}: {text!r} cannot be used", f"{what} is a number above 0", EXAMPLE)
    return number
