"""The batches of a run that taught it nothing, from its ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aifx.runs.status import is_step


@dataclass(frozen=True)
class Skips:
    """Batches by their number, from 0.

    Attributes:
        left_out: those that no step takes, in rising order.
        reasons: why, of each of them and of those whose update was not applied.
    """

    left_out: tuple[int, ...]
    reasons: Mapping[int, str]


def find_skips(events: Iterable[Mapping[str, Any]]) -> Skips:
    """From the events of a run, in order. A run that starts again from nothing has none of those before."""
    left_out: set[int] = set()
    reasons: dict[int, str] = {}
    for event in events:
        match event.get("event"):
            case "start":
                left_out, reasons = set(), {}
            case "skip":
                why = f"the update of step {event.get('step')} was not applied ({event.get('reason')})"
                reasons |= dict.fromkeys(_batches([event.get("batch")]), why)
            case "rollback":
                batches = _batches(event.get("batches"))
                left_out |= batches
                went_back = f"went back from step {event.get('from_step')} ({event.get('reason')})"
                why = f"no step takes it since the run {went_back}"
                reasons |= dict.fromkeys(batches, why)
    return Skips(tuple(sorted(left_out)), reasons)


def _batches(numbers: Any) -> set[int]:
    """The numbers of batches in a list of a ledger; a damaged line has others too."""
    return {n for n in numbers if is_step(n)} if isinstance(numbers, list) else set()
