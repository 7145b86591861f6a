"""`aifx kernels`: show, measure and list the implementations of ops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.console.options import JsonOption, SetOption
from aifx.commands.console.terminal import Output, terminal
from aifx.core.errors import UsageError

if TYPE_CHECKING:
    from aifx.kernels.choice import ProjectCall
    from jax_kernels.op import Choice, Op
    from jax_kernels.tuning import Timing

NO_CALLS = "this project's programs call no op of jax_kernels"

app = typer.Typer(
    help="""Explain, tune and list the implementations of the hot loops.

    Examples:
        aifx kernels explain           show the implementation of each op of this project here, and why
        aifx kernels tune              measure the candidates on this device and keep the winners
        aifx kernels ls                list the measurements
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
        rows = [_row(call) for call in _calls(set_)]
        out.document({"device": _device(), "jax_cannot": _limits(), "ops": rows})
        _table(out, rows, NO_CALLS)
        for limit in _limits():
            out.say(f"{limit['implementation']}: {limit['reason']}")


@app.command()
def tune(set_: SetOption = None, json: JsonOption = False) -> None:
    """Measure the implementations of each op on this device and keep the winners.

    aifx measures the calls of the project's training, evaluation and generation. Runs that start later use the winners.

    Examples:
        aifx kernels tune
        aifx kernels tune --set train.global_batch_size=16
    """
    with terminal(json) as out:
        import logging

        from aifx.config import load_config
        from aifx.core.private_folders import make_private
        from aifx.core.project import find_project
        from aifx.kernels.choice import project_calls_isolated, winners_path
        from jax_kernels.trials import TrialProcess
        from jax_kernels.tuning import TuningCache, check_or_time, tune

        project = find_project()
        device, calls, log = project_calls_isolated(project, load_config(project, set_ or ()))
        for record in log:
            logging.getLogger(record.name).handle(record)
        tuning_cache = TuningCache(winners_path(), device)
        make_private(tuning_cache.path.parent)
        documents = []
        with TrialProcess(check_or_time) as trials:
            for found in calls:
                out.say(f"{found.op.name}: {found.call}")
                is_trained = "training" in found.parts
                winner, timings = tune(found.op, found.call, device, trials, is_trained=is_trained, tell=out.say)
                tuning_cache.put(found.op, found.call, winner)
                documents.append(_row(found) | winner.document() | {"timings": [_timing(t) for t in timings]})
                if not json:
                    shown = [(t.implementation, _config(dict(t.config)), *_milliseconds(t)) for t in timings]
                    columns = [found.op.name, "with", "forward ms", "backward ms"]
                    out.table(columns, shown, right=columns[2:])
        out.document({"device": device.kind, "ops": documents, "kept_in": str(tuning_cache.path)})
        out.say(f"kept in {tuning_cache.path}" if documents else NO_CALLS)


@app.command()
def ls(json: JsonOption = False) -> None:
    """List the winners on this kind of device with this version of JAX.

    Examples:
        aifx kernels ls
        aifx kernels ls --json
    """
    with terminal(json) as out:
        from aifx.kernels.choice import winners_path
        from jax_kernels.implementations import current_device
        from jax_kernels.ops import read_key
        from jax_kernels.tuning import TuningCache, is_current

        tuning_cache = TuningCache(winners_path(), current_device())
        rows = []
        for key, choice in tuning_cache.choices().items():
            try:
                op, call = read_key(key)
            except (KeyError, TypeError):  # of another version of aifx
                continue
            note = {} if is_current(op, choice) else {"reason": f"not used, its code has changed: {choice.reason}"}
            rows.append(_document(op, call, choice) | note)
        out.document({"device": _device(), "path": str(tuning_cache.path), "winners": rows})
        _table(out, rows, "nothing was measured here yet: aifx kernels tune")


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
        from aifx.kernels.choice import winners_path

        files = sorted(p for p in winners_path().glob("*") if p.suffix in (".json", ".damaged"))
        if files and not yes:
            raise UsageError(
                "deleting measurements requires --yes", ", ".join(map(str, files)), "aifx kernels clear --yes"
            )
        for path in files:
            path.unlink(missing_ok=True)
        out.document({"removed": [str(path) for path in files]})
        out.say("".join(f"removed {path}\n" for path in files).rstrip() or "nothing was measured here")


def _calls(settings: list[str] | None) -> list[ProjectCall]:
    from aifx.config import load_config
    from aifx.core.project import find_project
    from aifx.kernels.choice import project_calls
    from aifx.machine.compilation_cache import enable_compilation_cache

    project = find_project()
    enable_compilation_cache()
    return project_calls(project, load_config(project, settings or ()))


def _limits() -> list[dict[str, Any]]:
    """Return what the installed JAX cannot express."""
    from jax_kernels.versions import limits_here

    return [{"implementation": limit.implementation, "op": limit.op, "reason": limit.reason} for limit in limits_here()]


def _device() -> str:
    from jax_kernels.implementations import current_device

    return current_device().kind


def _row(found: ProjectCall) -> dict[str, Any]:
    return _document(found.op, found.call, found.choice) | {"parts": list(found.parts)}


def _document(op: Op, call: Any, choice: Choice) -> dict[str, Any]:
    from dataclasses import asdict

    return {"op": op.name, "shapes": str(call), "call": asdict(call), **choice.document()}


def _table(out: Output, rows: list[dict[str, Any]], otherwise: str) -> None:
    if not rows:
        out.say(otherwise)
        return
    shown = [
        (row["op"], f"{row['shapes']}{_parts(row)}", row["implementation"], _config(row["config"]), row["reason"])
        for row in rows
    ]
    out.table(["op", "call", "implementation", "with", "why"], shown)


def _parts(row: dict[str, Any]) -> str:
    return f" ({', '.join(row['parts'])})" if "parts" in row else ""


def _config(config: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in config.items())


def _timing(timing: Timing) -> dict[str, Any]:
    return {
        "implementation": timing.implementation,
        "config": dict(timing.config),
        "forward_s": timing.forward_s,
        "backward_s": timing.backward_s,
        "failure": timing.failure,
    }


def _milliseconds(timing: Timing) -> tuple[str, str]:
    """Of the forward and the backward pass, or why there are none."""
    if timing.failure is not None:
        return timing.failure, ""
    forward, backward = (
        "" if seconds is None else f"{seconds * 1e3:.3g}" for seconds in (timing.forward_s, timing.backward_s)
    )
    return forward, backward
