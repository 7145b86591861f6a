"""`aifx ckpt diff`: two checkpoints array by array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import JsonOption, RunOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.verbs.completion import complete_checkpoint

if TYPE_CHECKING:
    from aifx.verbs.checkpoints import ArrayDifference, CheckpointDifference

SHOWN = 10
COLUMNS = ["", "norm A", "norm B", "norm of B-A", "largest change", "non-finite"]


def diff(
    first: Annotated[
        str, typer.Argument(metavar="A", help="First checkpoint: STEP or RUN:STEP.", autocompletion=complete_checkpoint)
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="Second checkpoint.", autocompletion=complete_checkpoint)],
    run: RunOption = None,
    arrays: Annotated[
        bool, typer.Option("--arrays", help=f"List every array, not only the {SHOWN} that differ most.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compare two checkpoints array by array: norms, the largest change, and elements that are not finite.

    Examples:
        aifx ckpt diff 400 800
        aifx ckpt diff best last --run main --arrays
        aifx ckpt diff main:400 fork:400 --json

    A step can also be best or last. Every array is compared with its digest while it is read.
    """
    with terminal(json) as out:
        from aifx.verbs.checkpoints import ckpt_diff

        found = ckpt_diff(first, second, run=run)
        out.result(found)
        if not json:
            _print(out, found, all_arrays=arrays)


def _print(out: Output, found: CheckpointDifference, *, all_arrays: bool) -> None:
    a, b = found.checkpoints
    out.print(f"A: {a}    B: {b}    {'equal, bit for bit' if found.equal else 'different'}")
    out.table(
        COLUMNS,
        [
            (
                f"{part.name} ({part.num_different} of {part.num_arrays} arrays differ)",
                *map(_number, (*part.norms, part.difference_norm, part.largest_change)),
                _counts(part.non_finite),
            )
            for part in found.parts
        ],
        right=COLUMNS[1:],
    )
    different = sorted((array for array in found.arrays if not array.equal), key=lambda array: -array.relative)
    rows = found.arrays if all_arrays else different[:SHOWN]
    if rows:
        out.print("")
        out.table(
            ["array", *COLUMNS[1:], "relative"], [_row(array) for array in rows], right=[*COLUMNS[1:], "relative"]
        )
    if (hidden := len(different) - SHOWN) > 0 and not all_arrays:
        out.print(f"and {hidden} more arrays with a smaller relative change (--arrays lists all)")


def _row(array: ArrayDifference) -> tuple[object, ...]:
    if array.shapes[0] != array.shapes[1]:
        only = "only in A" if array.shapes[1] is None else "only in B" if array.shapes[0] is None else "another shape"
        return array.name, *map(_number, array.norms), only, None, _counts(array.non_finite), None
    numbers = (*array.norms, array.difference_norm, array.largest_change)
    return array.name, *map(_number, numbers), _counts(array.non_finite), _number(array.relative)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _counts(pair: tuple[int | None, int | None]) -> str:
    return " ".join("-" if count is None else str(count) for count in pair)
