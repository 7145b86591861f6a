"""`aifx export`: a run's model for Hugging Face's ecosystem."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.jobs import refuse_job
from aifx.commands.console.options import JsonOption, RunOption, StepOption
from aifx.commands.console.stopping import sigterm_as_ctrl_c
from aifx.commands.console.terminal import terminal
from aifx.core.errors import UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.limits import check_limits
from aifx.core.project import find_project
from aifx.core.steps import parse_step

DestArgument = Annotated[Path, typer.Argument(metavar="DEST", help="Folder to make. It must not exist.")]

FormatOption = Annotated[str, typer.Option("--format", metavar="hf", help="Format of the folder.")]

DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype", metavar="float32|bfloat16|float16", help="Type of the weights. By default the one that the run has."
    ),
]

ShardSizeOption = Annotated[
    str, typer.Option("--shard-size", metavar="SIZE", help="Most bytes of a file of weights, such as 500MB or 5GB.")
]


def export(
    dest: DestArgument,
    run: RunOption = None,
    step: StepOption = None,
    format: FormatOption = "hf",
    dtype: DtypeOption = None,
    shard_size: ShardSizeOption = "5GB",
    json: JsonOption = False,
) -> None:
    """Write a run's model as a folder that transformers, vLLM and llama.cpp read.

    Examples:
        aifx export my-model
        aifx export my-model --run main --step best --dtype bfloat16
        aifx export my-model --shard-size 2GB --json

    aifx writes to a temporary folder, reads the weights back, compares them, and renames it.
    """
    with terminal(json) as out, sigterm_as_ctrl_c():
        at = parse_step(step)
        refuse_job("export")
        check_limits()
        if format != "hf":
            raise UsageError(f"--format {format} is not a format", "aifx writes hf", f"aifx export {dest} --format hf")
        if dtype not in (None, "float32", "bfloat16", "float16"):
            why = "weights are float32, bfloat16 or float16"
            raise UsageError(f"--dtype {dtype} is not a type of weights", why, f"aifx export {dest} --dtype bfloat16")
        project = find_project()
        directory = project.existing_run(run)
        from aifx.hub.exporting import export_model, parse_size

        size = parse_size(shard_size)
        made = export_model(dest, directory, project, step=at, dtype=dtype, shard_bytes=size)  # type: ignore[arg-type]
        out.document(made)
        rounded = ", rounded" if made.rounded else ""
        total = readable_bytes(sum(file.bytes for file in made.files))
        out.print(f"run {made.run}, step {made.step}, as {made.architecture} in {made.path}")
        out.print(f"{made.parameters:,} parameters, {made.dtype}{rounded}; {total} in {len(made.files)} files")
