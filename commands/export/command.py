"""`aifx export`: a run's model for Hugging Face's ecosystem, or for MaxText."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.jobs import refuse_job
from aifx.commands.console.options import JsonOption, RunOption, StepOption
from aifx.commands.console.terminal import terminal
from aifx.core.errors import ExitCode, UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.lifecycle import sigterm_as_ctrl_c
from aifx.core.limits import check_limits
from aifx.core.parsing import parse_size
from aifx.core.project import find_project
from aifx.core.steps import parse_step

DestArgument = Annotated[Path, typer.Argument(metavar="DEST", help="Folder to make.")]

FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="hf|peft|orbax",
        help="Format of the folder. peft: adapters alone. orbax: a checkpoint in MaxText's layout.",
    ),
]

ScanLayersOption = Annotated[
    bool | None,
    typer.Option(
        "--scan-layers/--no-scan-layers",
        help="With orbax, write all layers in one array each, as MaxText's scan_layers, or each layer in its own. "
        "By default in one.",
        show_default=False,
    ),
]

MergeOption = Annotated[
    bool, typer.Option("--merge", help="Merge a run's adapters into the weights, and compare the logits.")
]

DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype", metavar="float32|bfloat16|float16", help="Type of the weights. By default the one that the run has."
    ),
]

ShardSizeOption = Annotated[
    str,
    typer.Option(
        "--shard-size", metavar="SIZE", help="With hf, most bytes of a file of weights, such as 500MB or 5GB."
    ),
]


def export(
    dest: DestArgument,
    run: RunOption = None,
    step: StepOption = None,
    format: FormatOption = "hf",
    scan_layers: ScanLayersOption = None,
    merge: MergeOption = False,
    dtype: DtypeOption = None,
    shard_size: ShardSizeOption = "5GB",
    json: JsonOption = False,
) -> None:
    """Write a run's model as a folder that transformers, vLLM and llama.cpp read, or MaxText.

    Examples:
        aifx export my-model
        aifx export my-model --run main --step best --dtype bfloat16
        aifx export my-model --shard-size 2GB --json
        aifx export my-adapter --run lora --format peft
        aifx export my-model --run lora --merge
        aifx export my-checkpoint --format orbax --no-scan-layers

    aifx writes to a temporary folder, reads the weights back, compares them, and renames it. It replaces no folder: if
    DEST is what the same command made before, aifx says so and exits 0.
    With --merge, exit 1 means that the merged model's logits differ from those of the run by more than rounding.
    """
    with terminal(json) as out, sigterm_as_ctrl_c():
        at = parse_step(step)
        refuse_job("export")
        check_limits()
        if format not in ("hf", "peft", "orbax"):
            why = "aifx writes hf, peft and orbax"
            raise UsageError(f"--format {format} is not a format", why, f"aifx export {dest} --format hf")
        if format == "peft" and merge:
            why = "a folder of PEFT has the adapters alone"
            raise UsageError("--merge cannot be used with --format peft", why, f"aifx export {dest} --merge")
        if scan_layers is not None and format != "orbax":
            option = "--scan-layers" if scan_layers else "--no-scan-layers"
            hint = f"aifx export {dest} --format orbax {option}"
            raise UsageError(f"{option} requires --format orbax", "other formats have each layer in its own", hint)
        if dtype not in (None, "float32", "bfloat16", "float16"):
            why = "weights are float32, bfloat16 or float16"
            raise UsageError(f"--dtype {dtype} is not a type of weights", why, f"aifx export {dest} --dtype bfloat16")
        project = find_project()
        directory = project.existing_run(run)
        from aifx.hub.exporting import export_model

        size = _bytes(shard_size)
        options: dict[str, object] = {"step": at, "dtype": dtype}
        if format == "peft":
            from aifx.hub.peft import export_adapter

            made = export_adapter(dest, directory, project, **options)  # type: ignore[arg-type]
        else:
            scanned = scan_layers is not False if format == "orbax" else None
            options |= {"shard_bytes": size, "scan_layers": scanned, "merge": merge}
            made = export_model(dest, directory, project, **options)  # type: ignore[arg-type]
        out.document(made)
        rounded = ", rounded" if made.rounded else ""
        total = readable_bytes(sum(file.bytes for file in made.files))
        there = "" if made.is_new else ", which was there already"
        out.print(f"run {made.run}, step {made.step}, as {made.architecture} in {made.path}{there}")
        out.print(f"{made.parameters:,} parameters, {made.dtype}{rounded}; {total} in {len(made.files)} files")
        if (merged := made.merged) is not None:
            out.print(
                f"largest difference of merged logits: {merged.largest_difference:.2g} of {merged.largest_logit:.3g}, "
                f"at most {merged.bound:.2g}"
            )
            if not merged.passed:
                raise SystemExit(ExitCode.VERDICT)


def _bytes(shard_size: str) -> int:
    """Raises UsageError."""
    try:
        return parse_size(shard_size)
    except ValueError:
        why = "it is a number with MB or GB"
        raise UsageError(f"--shard-size {shard_size} is not a size", why, "--shard-size 5GB") from None
