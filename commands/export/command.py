"""`aifx export`: a run's model for Hugging Face's ecosystem, or for MaxText."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption, ModelOption, RunOption, StepOption, TrustCodeOption
from aifx.commands.console.terminal import terminal
from aifx.core.json_files import readable_bytes
from aifx.core.lifecycle import sigterm_as_ctrl_c
from aifx.core.limits import check_limits
from aifx.verbs.jobs import refuse_job

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
    model: ModelOption = None,
    trust_code: TrustCodeOption = None,
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
        refuse_job("export")
        check_limits()
        from aifx.verbs.exchange import export_model
        from aifx.verbs.models import choose_model

        made = export_model(
            choose_model(run, model),
            dest,
            step=step,
            format=format,
            scan_layers=scan_layers,
            merge=merge,
            dtype=dtype,
            shard_size=shard_size,
            trust_code=trust_code,
        )
        out.result(made)
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
