"""`aifx ckpt`: list and show checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from aifx.commands.console.options import JsonOption, RunOption
from aifx.commands.console.terminal import Output, terminal
from aifx.core.errors import CheckpointError, ExitCode, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from aifx.checkpoint.listing import CheckpointInfo
    from aifx.core.project import RunDirectory

app = typer.Typer(
    help="""List and show checkpoints.

    Examples:
        aifx ckpt ls                   list the checkpoints of the newest run
        aifx ckpt show best            verify the best checkpoint and print its digest
    """
)


@app.command()
def ls(run: RunOption = None, json: JsonOption = False) -> None:
    """List a run's checkpoints by their manifests, without reading arrays.

    Examples:
        aifx ckpt ls
        aifx ckpt ls --run main --json
    """
    with terminal(json) as out:
        from aifx.checkpoint.listing import list_checkpoints
        from aifx.checkpoint.manifest import set_aside_folders
        from aifx.commands.runs.page import print_checkpoints
        from aifx.core.project import find_project

        directory = find_project().existing_run(run)
        checkpoints = list_checkpoints(directory.checkpoints)
        aside = [folder.name for folder in set_aside_folders(directory.checkpoints)]
        documents = [asdict(c) for c in checkpoints]
        out.document({"run": directory.name, "checkpoints": documents, "set_aside": aside})
        if not checkpoints:
            out.say(f"run {directory.name} has no checkpoint")
        else:
            print_checkpoints(out, checkpoints)
        for name in aside:
            out.print(f"set aside as damaged: {directory.checkpoints / name}")


@app.command()
def show(
    step: Annotated[
        Optional[str],  # noqa: UP045 (typer reads it at run time)
        typer.Argument(metavar="[STEP|best|last]", help="Checkpoint to show. By default the last.", show_default=False),
    ] = None,
    run: RunOption = None,
    arrays: Annotated[bool, typer.Option("--arrays", help="List every array with its shape and digest.")] = False,
    json: JsonOption = False,
) -> None:
    """Read a checkpoint, compare every array with its saved digest, and print the state's digest.

    Examples:
        aifx ckpt show
        aifx ckpt show best --run main
        aifx ckpt show 400 --json

    Exits 1 if the checkpoint is damaged.
    """
    with terminal(json) as out:
        from aifx.checkpoint.listing import list_checkpoints
        from aifx.core.project import find_project

        directory = find_project().existing_run(run)
        info = _choose(directory, list_checkpoints(directory.checkpoints), step)
        folder = directory.checkpoints / str(info.step)
        digest, damage = _verify(directory, info.step)
        entries = _entries(folder) if arrays and not info.damaged else []
        document = {"run": directory.name, **asdict(info), "state_digest": digest, "damaged": damage}
        out.document({**document, "arrays": entries} if arrays else document)
        if not json:
            _print(out, directory, info, digest, damage, entries)
        if damage:
            raise SystemExit(ExitCode.VERDICT)


def _choose(run: RunDirectory, checkpoints: list[CheckpointInfo], step: str | None) -> CheckpointInfo:
    """Return the checkpoint that `step` names.

    Raises:
        UsageError: `step` is not a number, "best" or "last".
        CheckpointError: there is no such checkpoint.
    """
    if not checkpoints:
        raise CheckpointError(
            f"run {run.name} has no checkpoint", "nothing was saved yet", f"aifx train --run {run.name}"
        )
    if step in (None, "last"):
        return checkpoints[-1]
    if step == "best":
        best = next((c for c in checkpoints if c.is_best), None)
        if best is None:
            raise CheckpointError(
                f"run {run.name} has no best checkpoint", "none was validated", f"aifx ckpt show last --run {run.name}"
            )
        return best
    if not step.isascii() or not step.isdigit():
        raise UsageError(
            f"{step!r} is not a step", "a step is a number, best or last", f"aifx ckpt ls --run {run.name}"
        )
    found = next((c for c in checkpoints if c.step == int(step)), None)
    if found is None:
        there = ", ".join(str(c.step) for c in checkpoints)
        raise CheckpointError(
            f"run {run.name} has no checkpoint of step {step}", f"it has {there}", f"aifx ckpt ls --run {run.name}"
        )
    return found


def _verify(run: RunDirectory, step: int) -> tuple[str | None, list[str]]:
    """Return the state's digest, and the names of damaged arrays or the reason why nothing can be read."""
    from aifx.checkpoint import Checkpoints, Damaged
    from aifx.config.sections import CheckpointSection

    try:
        found = Checkpoints(run.checkpoints, CheckpointSection.model_validate({})).verify(step)
    except Damaged as e:
        return None, [e.why]
    return found.state_digest, list(found.damaged)


def _entries(folder: Path) -> list[dict[str, Any]]:
    from aifx.checkpoint.manifest import read_manifest

    return [{"name": name, **asdict(entry)} for name, entry in read_manifest(folder).arrays.items()]


def _print(
    out: Output,
    run: RunDirectory,
    info: CheckpointInfo,
    digest: str | None,
    damage: list[str],
    entries: list[dict[str, Any]],
) -> None:
    from aifx.commands.console.format import date, figure
    from aifx.core.json_files import readable_bytes

    score = info.score
    rows = [
        ("run", run.name),
        ("step", f"{info.step}{' (best)' if info.is_best else ''}"),
        ("saved", date(info.saved_at)),
        ("validation loss", figure(info.validation_loss)),
        (f"validation {score.metric}", figure(score.value)) if score and score.metric != "loss" else ("", None),
        ("parameters", f"{info.num_parameters:,}" if info.num_arrays else None),
        ("size", f"{readable_bytes(info.size_bytes)} in {info.num_arrays} arrays" if info.num_arrays else None),
        ("state digest", digest),
        ("verdict", "damaged" if damage else "whole: every array equals what was saved"),
    ]
    out.table(["checkpoint", str(run.checkpoints / str(info.step))], [row for row in rows if row[1] is not None])
    for name in damage:
        out.print(f"damaged: {name}")
    if entries:
        out.print("")
        shapes = [(e["name"], f"{e['dtype']}[{', '.join(map(str, e['shape']))}]", e["sha256"][:16]) for e in entries]
        out.table(["array", "", "sha256"], shapes)
