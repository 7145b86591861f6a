"""What `aifx runs compare` prints."""

from __future__ import annotations

from collections.abc import Iterator

from aifx.commands.console.format import count, figure, literal, signed
from aifx.commands.console.output import Output
from aifx.runs.comparison import Comparison, Pair


def print_comparison(out: Output, c: Comparison) -> None:
    """The tables for people."""
    first, second = (status.run for status in c.runs)
    if c.config:
        out.table(["setting", first, second], [(pair.key, *map(literal, pair.values)) for pair in c.config])
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
        table = [(pair.split, pair.metric, *_compared(pair.values)) for pair in c.evaluations]
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
