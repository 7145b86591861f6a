"""What `aifx runs compare` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aifx.commands.console.format import count, figure, literal, signed
from aifx.commands.console.terminal import Output
from aifx.runs.comparison import Comparison, Pair


def comparison_document(statuses: list[dict[str, Any]], c: Comparison) -> dict[str, Any]:
    """JSON-ready; docs/json.md documents it."""
    return {
        "runs": statuses,
        "config": [{"key": key, "values": [a, b]} for key, a, b in c.settings],
        "steps": list(c.steps),
        "common_steps": c.common_steps,
        "smoothing_steps": c.smoothing_steps,
        "smoothed_loss": list(c.smoothed_loss),
        "validation": {
            "last": {name: list(pair) for name, pair in c.last_validation.items()},
            "best_loss": list(c.best_validation_loss),
            "best_step": list(c.best_step),
            "best_common_loss": list(c.best_common_validation_loss),
        },
        "metrics": [
            {
                "step": row.step,
                "loss": list(row.loss),
                "smoothed_loss": list(row.smoothed_loss),
                "validation_loss": list(row.validation_loss),
            }
            for row in c.rows
        ],
        "evaluations": [{"split": split, "metric": metric, "values": [a, b]} for split, metric, a, b in c.evaluations],
    }


def print_comparison(out: Output, first: str, second: str, c: Comparison) -> None:
    """The tables for people."""
    if c.settings:
        out.table(["setting", first, second], [(key, literal(a), literal(b)) for key, a, b in c.settings])
    else:
        out.print("the two have the same configuration")
    out.print("")
    out.table(["", first, second, "change"], _summary(c), right=[first, second, "change"])
    if c.rows:
        out.print("")
        columns = ["step", f"loss {first}", f"loss {second}", "change"]
        columns += [f"valid. {first}", f"valid. {second}", "change "]
        rows = [(row.step, *_compared(row.smoothed_loss), *_compared(row.validation_loss)) for row in c.rows]
        out.table(columns, rows, right=columns)
        out.print(f"loss: mean of the last {c.smoothing_steps:,} steps")
    if c.evaluations:
        out.print("")
        table = [(split, metric, *_compared((a, b))) for split, metric, a, b in c.evaluations]
        out.table(["split", "metric", first, second, "change"], table, right=[first, second, "change"])


def _summary(c: Comparison) -> Iterator[tuple[str | None, ...]]:
    yield "steps", *map(count, c.steps), None
    until = f" at step {c.common_steps:,}" if c.steps[0] != c.steps[1] else ""
    yield f"loss{until}", *_compared(c.smoothed_loss)
    for name, pair in c.last_validation.items():
        if name != "loss" and pair[0] == pair[1]:
            continue  # counts of the data, mostly
        yield f"last validation {name}", *_compared(pair)
    if c.best_validation_loss != (None, None):
        yield "best validation loss", *_compared(c.best_validation_loss)
        yield "  at step", *(None if step is None else f"{step:,}" for step in c.best_step), None
    if until and c.best_common_validation_loss != (None, None):
        yield f"best validation loss to step {c.common_steps:,}", *_compared(c.best_common_validation_loss)


def _compared(pair: Pair) -> tuple[str | None, str | None, str | None]:
    return figure(pair[0]), figure(pair[1]), signed(*pair)
