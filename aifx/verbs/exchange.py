"""Models of other programs as runs, and runs as their models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from aifx.core.artifact import short_reference
from aifx.core.errors import AifxError, CheckpointError, UsageError
from aifx.core.licensing import LicenseConflict
from aifx.core.os_errors import in_brief
from aifx.core.parsing import parse_size
from aifx.core.project import Project, RunDirectory, find_project
from aifx.core.steps import parse_step
from aifx.verbs.arguments import Step, StrPath
from aifx.verbs.models import open_model

if TYPE_CHECKING:
    from aifx.hub.exported import ExportedModel
    from aifx.hub.starting import ImportDocument

log = logging.getLogger(__name__)


def import_model(
    source: str,
    *,
    format: str = "hf",
    config: StrPath | None = None,
    tokenizer: StrPath | None = None,
    name: str | None = None,
    dtype: str | None = None,
    check: bool = False,
    ignore: Sequence[str] = (),
    project: StrPath = ".",
) -> ImportDocument:
    """Make a run of an open model, with its weights as step 0.

    Outside a project, this starts one in the folder, whose aifx.toml fine-tunes the model. aifx reads safetensors files
    and checkpoints of Orbax, and opens no pickle. Code in the model's folder does not run.

    Args:
        source: folder of the model or checkpoint, or "ORG/MODEL" in the Hub's local cache.
        format: "hf", or "orbax": a checkpoint of Orbax in MaxText's layout.
        config: with "orbax", Hugging Face's config.json of the model.
        tokenizer: with "orbax", the model's tokenizer.json, or the folder with it.
        name: of the run; by default the last part of the source.
        dtype: of the weights, "float32" or "bfloat16"; by default bfloat16 if all of the source's are, else float32.
        check: compare logits with transformers, which must be installed. The verdict is bad if they differ.
        ignore: keys of config.json that aifx does not know and may ignore.
        project: a folder in the project, or the folder of a new one.

    Example:
        >>> imported = aifx.import_model("exported", name="imported").imported
        >>> imported.run, imported.architecture
        ('imported', 'LlamaForCausalLM')
    """
    files = {"--config": config, "--tokenizer": tokenizer}
    _check_format(source, format, {option: file for option, file in files.items() if file is not None}, check=check)
    if dtype not in (None, "float32", "bfloat16"):
        why, hint = "weights are kept as float32 or bfloat16", f"aifx import {source} --dtype float32"
        raise UsageError(f"--dtype {dtype} is not a type of weights", why, hint)
    try:
        found, is_new = find_project(Path(project)), False
    except UsageError:
        found, is_new = Project(Path(project).absolute()), True
    from aifx.hub import comparison
    from aifx.hub.folder import open_folder
    from aifx.hub.importing import import_model
    from aifx.hub.orbax import open_orbax
    from aifx.hub.starting import ImportDocument, start_project

    if check:
        comparison.need_transformers()
    folder = open_orbax(source, Path(config), Path(tokenizer)) if config and tokenizer else open_folder(source)
    kind = cast(Literal["float32", "bfloat16"] | None, dtype)
    made = import_model(folder, found, name, dtype=kind, ignored=ignore)
    run = found.run(made.run)
    if is_new:
        start_project(found, run)
    compared = None
    if check:
        from aifx.loading.restore import restore_run

        compared = comparison.compare_logits(source, restore_run(run, found))
    return ImportDocument(made, str(found.config_path) if is_new else None, compared)


def _check_format(source: str, format: str, given: dict[str, StrPath], *, check: bool) -> None:
    """Raise UsageError for arguments that do not belong together."""
    if format not in ("hf", "orbax"):
        raise UsageError(f"--format {format} is not a format", "aifx reads hf and orbax", f"aifx import {source}")
    if format == "hf" and given:
        why = "with hf, the model's folder has it"
        raise UsageError(f"{next(iter(given))} requires --format orbax", why, f"aifx import {source}")
    needed = ("--config", "--tokenizer")
    if format == "orbax" and len(given) < len(needed):
        lacking = next(option for option in needed if option not in given)
        words = [f"{option} {given.get(option, 'FILE')}" for option in needed]
        hint = f"aifx import {source} --format orbax {' '.join(words)}"
        raise UsageError(f"--format orbax requires {lacking}", "a checkpoint of Orbax has arrays alone", hint)
    if format == "orbax" and check:
        why = "transformers reads no checkpoint of Orbax"
        raise UsageError("--check cannot be used with --format orbax", why, "aifx export FOLDER --run RUN")


def _check_licenses(run: RunDirectory, project: Project) -> tuple[LicenseConflict, ...]:
    """Warn of licences of the data sets behind a run that exclude each other, or refuse them, as the project has it.

    Returns the conflicts. The data sets of the runs that it was fine-tuned or forked from count, too; one of these that
    cannot be read is a warning, or CheckpointError if the project refuses licences.
    """
    from aifx.data.versions.catalog import open_catalog
    from aifx.data.versions.licenses import check_licenses
    from aifx.data.versions.manifest import Manifest
    from aifx.kinds import load_config
    from aifx.registry.versions import ModelDirectory
    from aifx.runs.provenance import data_behind

    if not project.config_path.is_file():
        return ()
    project = load_config(project).apply_to(project)
    if isinstance(run, ModelDirectory):
        references = list((run.content.data or {}).get("versions", ()))
    else:
        try:
            references = data_behind(run, project)
        except CheckpointError as e:
            if project.license_allow or project.license_conflicts == "refuse":
                raise
            log.warning("the licences of %s are not known: %s", run.title, in_brief(e))
            return ()
    if not references:
        return ()
    catalog = open_catalog(project.datasets, project)
    manifests: list[Manifest] = []
    for reference in references:
        try:
            manifests.append(catalog.manifest(reference))
        except AifxError as e:  # it was deleted, or its store does not answer
            log.warning("the licences of %s are not known: %s", short_reference(reference), e.what)
    return check_licenses(manifests, catalog, project, f"the data of run {run.name}")


def export_model(
    run: StrPath,
    folder: StrPath,
    *,
    step: Step = None,
    format: str = "hf",
    scan_layers: bool | None = None,
    merge: bool = False,
    dtype: str | None = None,
    shard_size: str = "5GB",
    trust_code: str | None = None,
) -> ExportedModel:
    """Write a run's model as a folder that transformers, vLLM and llama.cpp read, or MaxText.

    aifx reads the weights back and compares them before the folder has its name. It replaces no folder.

    Args:
        run: the run's folder, or a model version: "fraud@production".
        folder: to make.
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint`.
        format: "hf"; "peft" writes the adapters alone, "orbax" a checkpoint in MaxText's layout.
        scan_layers: with "orbax", write all layers in one array each, or each layer in its own; by default in one.
        merge: merge a run's adapters into the weights, and compare the logits. The verdict is bad if they differ.
        dtype: of the weights, "float32", "bfloat16" or "float16"; by default the one that the run has.
        shard_size: with "hf", most bytes of a file of weights.
        trust_code: digest of a model version whose own code may run.

    Example:
        >>> aifx.export_model("runs/main", "exported").architecture
        'LlamaForCausalLM'
    """
    at, dest = parse_step(step), Path(folder)
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
    try:
        shard_bytes = parse_size(shard_size)
    except ValueError:
        why = "it is a number with MB or GB"
        raise UsageError(f"--shard-size {shard_size} is not a size", why, "--shard-size 5GB") from None
    directory, project = open_model(run, trust_code)
    conflicts = _check_licenses(directory, project)
    kind = cast(Literal["float32", "bfloat16", "float16"] | None, dtype)
    if format == "peft":
        from aifx.hub.peft import export_adapter

        adapter = export_adapter(dest, directory, project, step=at, dtype=kind)
        return replace(adapter, license_conflicts=conflicts)
    from aifx.hub.exporting import export_model

    scanned = scan_layers is not False if format == "orbax" else None
    exported = export_model(
        dest,
        directory,
        project,
        step=at,
        dtype=kind,
        shard_bytes=shard_bytes,
        scan_layers=scanned,
        merge=merge,
    )
    return replace(exported, license_conflicts=conflicts)
