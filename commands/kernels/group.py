"""`aifx kernels`: show, measure and list the implementations of ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import JsonOption, SetOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import UsageError

if TYPE_CHECKING:
    from aifx.verbs.kernels import CandidateTiming, ChosenCall, ClearedKernels, TunedCall

NO_CALLS = "this project's programs call no op of jax_kernels"

app = typer.Typer(
    help="""Show, measure and list the implementations of ops.

    Examples:
        aifx kernels explain   show the implementation of each op, and why
        aifx kernels tune      measure the implementations and keep the fastest
        aifx kernels ls        list the fastest
    """
)


@app.command()
def explain(set_: SetOption = None, json: JsonOption = False) -> None:
    """Show which implementation each op of the project uses here, and why.

    A run that has started keeps its choices, in runs/<name>/kernels.json.

    Examples:
        aifx kernels explain
        aifx kernels explain --set kernels.attention=reference
    """
    with terminal(json) as out:
        from aifx.verbs.kernels import kernels_explain

        found = kernels_explain(settings=set_)
        out.result(found)
        _table(out, found.ops, NO_CALLS)
        for limit in found.jax_cannot:
            out.log(f"{limit.implementation}: {limit.reason}")


@app.command()
def tune(set_: SetOption = None, json: JsonOption = False) -> None:
    """Measure the implementations of each op on this device and keep the winners.

    aifx measures the calls of the project's training, evaluation and generation. Runs that start later use the winners.

    Examples:
        aifx kernels tune
        aifx kernels tune --set train.global_batch_size=16
    """
    with terminal(json) as out:
        from aifx.verbs.kernels import kernels_tune

        tuned = kernels_tune(settings=set_, on_call=lambda call: _print_timings(out, call))
        out.result(tuned)
        out.log(f"kept in {tuned.kept_in}" if tuned.ops else NO_CALLS)


@app.command()
def ls(json: JsonOption = False) -> None:
    """List the winners on this kind of device with this version of JAX.

    Examples:
        aifx kernels ls
        aifx kernels ls --json
    """
    with terminal(json) as out:
        from aifx.verbs.kernels import kernels_ls

        found = kernels_ls()
        out.result(found)
        _table(out, found.winners, "nothing was measured here yet: aifx kernels tune")


@app.command()
def clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False, json: JsonOption = False
) -> None:
    """Delete the measurements of all kinds of devices and versions of JAX.

    Runs keep their choices.

    Examples:
        aifx kernels clear --yes
    """
    with terminal(json) as out:
        from aifx.verbs.kernels import kernels_clear

        def confirm(cleared: ClearedKernels) -> None:
            names = ", ".join(cleared.removed)
            raise UsageError("deleting measurements requires --yes", names, "aifx kernels clear --yes")

        found = kernels_clear(confirm=None if yes else confirm)
        out.result(found)
        out.log("\n".join(f"removed {path}" for path in found.removed) or "nothing was measured here")


def _table(out: Output, calls: Sequence[ChosenCall], otherwise: str) -> None:
    if not calls:
        out.log(otherwise)
        return
    rows = []
    for call in calls:
        parts = f" ({', '.join(call.parts)})" if call.parts else ""
        rows.append((call.op, f"{call.shapes}{parts}", call.implementation, _config(call.config), call.reason))
    out.table(["op", "call", "implementation", "with", "why"], rows)


def _print_timings(out: Output, call: TunedCall) -> None:
    columns = [call.op, "with", "forward ms", "backward ms"]
    rows = [(t.implementation, _config(t.config), *_milliseconds(t)) for t in call.timings]
    out.table(columns, rows, right=columns[2:])


def _config(config: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in config.items())


def _milliseconds(timing: CandidateTiming) -> tuple[str, str]:
    """Format the results of the forward and the backward pass, or the reason why there are none."""
    if timing.failure is not None:
        return timing.failure, ""
    passes = (timing.forward_s, timing.backward_s)
    forward, backward = ("" if seconds is None else f"{seconds * 1e3:.3g}" for seconds in passes)
    return forward, backward
