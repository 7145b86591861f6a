"""`aifx import`: a model of Hugging Face's ecosystem, or of MaxText, becomes a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from aifx.commands.console.jobs import refuse_job
from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.core.errors import ExitCode, UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.lifecycle import sigterm_as_ctrl_c
from aifx.core.limits import check_limits
from aifx.core.project import Project, find_project

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
        kind = _dtype(dtype, source)
        _check_format(source, format, config, tokenizer, check=check)
        project, is_new = _project()
        from aifx.hub import comparison
        from aifx.hub.documents import ImportDocument
        from aifx.hub.folder import open_folder
        from aifx.hub.importing import import_model
        from aifx.hub.orbax import open_orbax
        from aifx.hub.starting import STARTS, start_project

        if check:
            comparison.need_transformers()
        folder = open_orbax(source, config, tokenizer) if config and tokenizer else open_folder(source)
        made = import_model(folder, project, name, dtype=kind, ignored=ignore or ())
        run = project.run(made.run)
        if is_new:
            start_project(project, run)
        compared = None
        if check:
            from aifx.loading.restore import restore_run

            compared = comparison.compare_logits(source, restore_run(run, project))
        out.document(ImportDocument(made, str(project.config_path) if is_new else None, compared))
        rounded = ", rounded" if made.rounded else ""
        size = readable_bytes(made.size_bytes)
        there = "" if made.is_new else ", which was there already"
        out.print(
            f"run {made.run}: {made.architecture}, {made.parameters:,} parameters, {made.dtype}{rounded}, {size}{there}"
        )
        start = STARTS[made.task]
        if is_new:
            out.print(f"started a project: {project.config_path}; to fine-tune the model, put {start.data}")
        if compared is not None:
            out.print(
                f"logits differ from transformers by {compared.largest_difference:.2g} at most; "
                f"the largest is {compared.largest_logit:.3g}, the bound {compared.bound:.2g}"
            )
        out.print(f"next: {start.use.format(run=made.run)}")
        if compared is not None and not compared.passed:
            raise SystemExit(ExitCode.VERDICT)


def _check_format(source: str, format: str, config: Path | None, tokenizer: Path | None, *, check: bool) -> None:
    """Raise UsageError for options that do not belong together."""
    if format not in ("hf", "orbax"):
        raise UsageError(f"--format {format} is not a format", "aifx reads hf and orbax", f"aifx import {source}")
    files = {"--config": config, "--tokenizer": tokenizer}
    given = {option: file for option, file in files.items() if file is not None}
    if format == "hf" and given:
        why = "with hf, the model's folder has it"
        raise UsageError(f"{next(iter(given))} requires --format orbax", why, f"aifx import {source}")
    if format == "orbax" and len(given) < len(files):
        lacking = next(option for option in files if option not in given)
        words = [f"{option} {given.get(option, 'FILE')}" for option in files]
        hint = f"aifx import {source} --format orbax {' '.join(words)}"
        raise UsageError(f"--format orbax requires {lacking}", "a checkpoint of Orbax has arrays alone", hint)
    if format == "orbax" and check:
        why = "transformers reads no checkpoint of Orbax"
        raise UsageError("--check cannot be used with --format orbax", why, "aifx export FOLDER --run RUN")


def _dtype(given: str | None, source: str) -> Literal["float32", "bfloat16"] | None:
    if given is None or given == "float32" or given == "bfloat16":
        return given  # type: ignore[return-value]
    why = "weights are kept as float32 or bfloat16"
    raise UsageError(f"--dtype {given} is not a type of weights", why, f"aifx import {source} --dtype float32")


def _project() -> tuple[Project, bool]:
    """The project of the working directory, and whether it is still to be started there."""
    try:
        return find_project(), False
    except UsageError:
        return Project(Path.cwd()), True
