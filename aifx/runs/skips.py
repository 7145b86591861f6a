"""The batches of a run that taught it nothing, from its ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


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
                reasons[event["batch"]] = f"the update of step {event['step']} was not applied ({event['reason']})"
            case "rollback":
                left_out |= set(event["batches"])
                why = f"no step takes it since the run went back from step {event['from_step']} ({event['reason']})"
                reasons |= dict.fromkeys(event["batches"], why)
    return Skips(tuple(sorted(left_out)), reasons)
