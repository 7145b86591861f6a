"""`aifx import`: a model of Hugging Face's ecosystem, or of MaxText, becomes a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.core.json_files import readable_bytes
from aifx.core.lifecycle import sigterm_as_ctrl_c
from aifx.core.limits import check_limits
from aifx.verbs.jobs import refuse_job

SourceArgument = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="Folder of the model or checkpoint, or ORG/MODEL in the Hub's local cache."),
]

FormatOption = Annotated[
    str,
    typer.Option(
        "--format", metavar="hf|orbax", help="Format of SOURCE. orbax: a checkpoint of Orbax in MaxText's layout."
    ),
]

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="With orbax, Hugging Face's config.json of the model.")
]

TokenizerOption = Annotated[
    Path | None,
    typer.Option("--tokenizer", metavar="PATH", help="With orbax, the model's tokenizer.json, or the folder with it."),
]

NameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of the run. By default the last part of SOURCE.")
]

DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="float32|bfloat16",
        help="Type of the weights. By default bfloat16 if all of the source's are, otherwise float32.",
    ),
]

CheckOption = Annotated[
    bool, typer.Option("--check", help="Compare logits with transformers, which must be installed.")
]

IgnoreOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore", metavar="KEY", help="Key of config.json that aifx does not know and may ignore. Can be repeated."
    ),
]


def import_(
    source: SourceArgument,
    format: FormatOption = "hf",
    config: ConfigOption = None,
    tokenizer: TokenizerOption = None,
    name: NameOption = None,
    dtype: DtypeOption = None,
    check: CheckOption = False,
    ignore: IgnoreOption = None,
    json: JsonOption = False,
) -> None:
    """Make a run of an open model, with its weights as step 0.

    Examples:
        aifx import ~/models/SmolLM2-135M
        aifx import HuggingFaceTB/SmolLM2-135M --name smol
        aifx import Qwen/Qwen3-0.6B --dtype float32 --check
        aifx import google/vit-base-patch16-224 --name vit
        aifx import ckpt/1000 --format orbax --config config.json --tokenizer .

    Outside a project, aifx starts one in the working directory, whose aifx.toml fine-tunes the model. aifx reads
    safetensors files and checkpoints of Orbax, and opens no pickle. Code in the model's folder does not run. If the run
    is what the same command made before, aifx says so and exits 0. A folder that aifx export wrote is first compared
    with its manifest.json.
    """
    with terminal(json) as out, sigterm_as_ctrl_c():
        refuse_job("import")
        check_limits()
        from aifx.verbs.exchange import import_model

        found = import_model(
            source,
            format=format,
            config=config,
            tokenizer=tokenizer,
            name=name,
            dtype=dtype,
            check=check,
            ignore=ignore or (),
        )
        out.result(found)
        made, compared = found.imported, found.check
        rounded = ", rounded" if made.rounded else ""
        size = readable_bytes(made.size_bytes)
        there = "" if made.is_new else ", which was there already"
        out.print(
            f"run {made.run}: {made.architecture}, {made.parameters:,} parameters, {made.dtype}{rounded}, {size}{there}"
        )
        data, use = found.next_steps()
        if found.started_project is not None:
            out.print(f"started a project: {found.started_project}; to fine-tune the model, put {data}")
        if compared is not None:
            out.print(
                f"logits differ from transformers by {compared.largest_difference:.2g} at most; "
                f"the largest is {compared.largest_logit:.3g}, the bound {compared.bound:.2g}"
            )
        out.print(f"next: {use}")
