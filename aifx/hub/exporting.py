"""A run becomes a folder that Hugging Face's libraries read, which is read back and compared before it appears."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from safetensors.numpy import save_file

from aifx.checkpoint.manifest import Manifest
from aifx.checkpoint.naming import nest
from aifx.config import Config
from aifx.config.parts import resolve
from aifx.config.sections import ModelSection
from aifx.core.digests import sha256_of_json
from aifx.core.errors import ConfigError, DataError, UsageError
from aifx.core.json_files import write_json
from aifx.core.progress import Reporter, report_progress
from aifx.core.project import Project, RunDirectory
from aifx.core.steps import StepChoice
from aifx.core.version import __version__
from aifx.data.text import TOKENIZER_FILE, TokenFormat
from aifx.hub.architectures import expressed_by, map_tensors, named_specs, read_arrays
from aifx.hub.card import write_card
from aifx.hub.comparison import LogitComparison, compare_merged
from aifx.hub.exported import ExportContent, ExportedModel, folder_path, make_folder
from aifx.hub.folder import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    TOKENIZER_CONFIG,
    WEIGHTS,
    ModelFolder,
)
from aifx.hub.orbax import OrbaxWeights, in_maxtext, write_weights
from aifx.hub.weights import DIGESTS, StoredWeights, Weights, tensor_digest
from aifx.kinds import read_config
from aifx.loading.base_weights import BaseWeights
from aifx.loading.restore import restore_run, verified_manifest
from aifx.loading.steps import choose_step
from aifx.models import Family
from aifx.models.adapted import plain_model
from aifx.models.base import Decodes
from aifx.models.hub import Architecture, Array, Tensor
from aifx.registry.origins import read_origin
from aifx.registry.versions import ModelDirectory
from aifx.specs import ArraySpec, Specs
from aifx.tasks.registry import load_task

ExportType = Literal["float32", "bfloat16", "float16"]

SHARD_BYTES = 5_000_000_000
"""As transformers divides weights."""


@dataclass(frozen=True)
class Export:
    """A checkpoint with all that its export writes."""

    run: RunDirectory
    config: Config
    step: int
    manifest: Manifest
    architecture: Architecture
    document: dict[str, Any]  # config.json
    tensors: list[Tensor]
    section: ModelSection
    plain_specs: Specs
    specs: Mapping[str, ArraySpec]  # the same by name
    weights: BaseWeights
    form: TokenFormat
    dtype: np.dtype[Any]
    origin: dict[str, Any]  # import.json of the run that its weights go back to
    scan_layers: bool | None  # in MaxText's layout; None in that of Hugging Face

    def exported(self, dest: Path, parameters: int, *, is_rounded: bool) -> ExportedModel:
        """The document of the command, without the folder's files."""
        return ExportedModel(
            path=str(dest),
            run=self.run.name,
            step=self.step,
            architecture=self.architecture.name,
            parameters=parameters,
            dtype=self.dtype.name,
            rounded=is_rounded,
            files=[],
            merged=None,
            is_new=True,
        )

    def content(
        self, form: Literal["hf", "peft", "orbax"], shard_bytes: int | None = None, *, merge: bool = False
    ) -> ExportContent:
        """The sources of the folder, by which the same command recognizes it."""
        return ExportContent(
            aifx=__version__,
            format=form,
            run=self.run.name,
            step=self.step,
            state_digest=self.run.model_digest or self.manifest.state_digest,
            binding_digest=sha256_of_json(self.manifest.run),
            dtype=self.dtype.name,
            shard_bytes=shard_bytes,
            scan_layers=self.scan_layers,
            merge=merge,
        )


def export_model(
    dest: Path,
    run: RunDirectory,
    project: Project,
    *,
    step: StepChoice | None = None,
    dtype: ExportType | None = None,
    shard_bytes: int = SHARD_BYTES,
    scan_layers: bool | None = None,
    merge: bool = False,
) -> ExportedModel:
    """Write the model of a checkpoint to the folder `dest`. Memory holds a shard at a time, with Orbax the model.

    If `dest` is there already and was made of the same, nothing is written. With `merge`, the adapters of the run are
    merged into the weights, and the result has how far that moves logits.

    Args:
        shard_bytes: most bytes of a file of safetensors.
        scan_layers: write a checkpoint of Orbax in MaxText's layout instead, with all layers in one array each or not.

    Raises UsageError, ConfigError for a model that no known architecture computes, CheckpointError, DataError.
    """
    dest = folder_path(dest)
    export = open_export(run, project, step, dtype, scan_layers)
    _check_merge(export, merge, dest)
    parameters = sum(spec.size for spec in export.specs.values())

    def write(folder: Path) -> LogitComparison | None:
        digests = _write_weights(export, folder, shard_bytes) if scan_layers is None else _write_tree(export, folder)
        _write_documents(export, folder)
        write_card(
            folder,
            run,
            export.manifest,
            architecture=export.architecture.name,
            parameters=parameters,
            dtype=export.dtype.name,
            origin=export.origin,
        )
        _compare(_open_weights(export, folder), digests)
        return _compare_logits(export, project, folder) if merge else None

    stored = np.dtype(export.weights.entries[next(iter(export.specs))].dtype)
    is_rounded = export.dtype != stored and export.dtype != np.float32
    made = export.exported(dest, parameters, is_rounded=is_rounded)
    if scan_layers is None:
        return make_folder(made, export.content("hf", shard_bytes, merge=merge), write)
    return make_folder(made, export.content("orbax", merge=merge), write)


def _check_merge(export: Export, merge: bool, dest: Path) -> None:
    """Raise UsageError if adapters would be lost, or if there are none to merge."""
    run, is_adapted = export.run, export.config.finetune.adapter != "none"
    if is_adapted and not merge:
        why = "this format has whole weights"
        hint = f"aifx export {dest} {run.option} --merge    (or --format peft: the adapters alone)"
        raise UsageError(f"{run.title} trained adapters", why, hint)
    if merge and not is_adapted:
        hint = f"aifx export {dest} {run.option}"
        raise UsageError(f"{run.title} has no adapters to merge", "--merge is for them", hint)


def _compare_logits(export: Export, project: Project, folder: Path) -> LogitComparison:
    """The logits of the folder's weights, compared with those of the run with its adapters."""
    stored = _open_weights(export, folder)
    written = map_tensors(stored, export.architecture, export.section, export.plain_specs)
    arrays = {name: array for name, array, _ in read_arrays(stored, written)}
    step = None if export.run.model_digest else export.step
    trained = restore_run(export.run, project, step=step)
    return compare_merged(trained, nest(arrays), export.dtype)


def open_export(
    run: RunDirectory,
    project: Project,
    step: StepChoice | None,
    dtype: ExportType | None,
    scan_layers: bool | None = None,
) -> Export:
    """The export of a run's checkpoint, before anything is written. Raises UsageError, ConfigError, CheckpointError.

    Args:
        scan_layers: as `export_model` takes it.
    """
    config = read_config(run.config, project, environ={})
    is_version = isinstance(run, ModelDirectory)
    manifest = verified_manifest(run, project, step if is_version else choose_step(run, config, step))
    task = load_task(config, project, run.assets)
    family = config.parts.kinds.get("model")
    if not (isinstance(family, Family) and family.hub and isinstance(task.format, TokenFormat)):
        what = f"{run.title} cannot be exported"
        raise ConfigError(what, "it is not a language model of a family that aifx can write", "docs/export.md")
    model = plain_model(task.model)
    assert isinstance(model, Decodes)
    changes = {"vocab_size": model.vocab_size, "max_seq_len": model.max_seq_len, "scan_layers": False}
    section = config.model.model_copy(update=changes)
    origin = read_origin(run, project)
    preferred = origin.get("architecture")
    architecture = expressed_by(family, section, preferred, in_maxtext=scan_layers is not None)
    if scan_layers is not None:
        architecture = in_maxtext(architecture, is_scanned=scan_layers)
    name = dtype or ("float32" if config.optimizer.ema_decay else config.train.parameter_dtype)
    plain_specs = resolve(family.make)(section, task.data).specs()
    return Export(
        run=run,
        config=config,
        step=manifest.step,
        manifest=manifest,
        architecture=architecture,
        document=_document(architecture, section, task.format, origin, name),
        tensors=list(architecture.tensors(section)),
        section=section,
        plain_specs=plain_specs,
        specs=named_specs(plain_specs),
        weights=BaseWeights.of_run(run, manifest, model.adapts),
        form=task.format,
        dtype=np.dtype(name),
        origin=origin,
        scan_layers=scan_layers,
    )


def _document(
    architecture: Architecture, section: ModelSection, form: TokenFormat, origin: Mapping[str, Any], dtype: str
) -> dict[str, Any]:
    """`config.json`, in the spelling that older versions of transformers read as well."""
    ends = sorted(form.tokenizer.end_ids)
    tokens = {
        "bos_token_id": form.tokenizer.begin_ids[0] if form.tokenizer.begin_ids else None,
        "eos_token_id": form.tokenizer.eos_id if len(ends) == 1 else ends,
        "pad_token_id": origin.get("config", {}).get("pad_token_id"),
    }
    assert architecture.write is not None
    head = {"architectures": [architecture.name], "model_type": architecture.model_type, "torch_dtype": dtype}
    return {**head, **tokens, **architecture.write(section), "use_cache": True}


def _write_weights(export: Export, folder: Path, shard_bytes: int) -> dict[str, str]:
    """Write the tensors; return the SHA-256 of each."""
    shards = _shards(export, shard_bytes)
    total = sum(_num_bytes(export, tensor) for shard in shards for tensor in shard)
    digests: dict[str, str] = {}
    places: dict[str, str] = {}
    with report_progress(f"exporting {export.run.name}", total, "bytes") as progress:
        for number, shard in enumerate(shards, 1):
            name = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            arrays = dict(_tensors(export, shard, progress))
            own = {key: tensor_digest(value) for key, value in arrays.items()}
            save_file(arrays, folder / name, {"format": "pt", DIGESTS: json.dumps(own)})
            digests |= own
            places |= dict.fromkeys(arrays, name)
    if len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    return digests


def _write_tree(export: Export, folder: Path) -> dict[str, str]:
    """Write the arrays of MaxText's layout; return the SHA-256 of each."""
    total = sum(_num_bytes(export, tensor) for tensor in export.tensors)
    with report_progress(f"exporting {export.run.name}", total, "bytes") as progress:
        return write_weights(folder, dict(_tensors(export, export.tensors, progress)))


def _open_weights(export: Export, folder: Path) -> Weights:
    """The weights that were written to `folder`, as `aifx import` reads them."""
    if export.scan_layers is None:
        return StoredWeights(ModelFolder(folder, str(folder)))
    return OrbaxWeights(ModelFolder(folder, str(folder)))


def _num_bytes(export: Export, tensor: Tensor) -> int:
    return sum(export.specs[name].size for name in tensor.arrays) * export.dtype.itemsize


def _shards(export: Export, most: int) -> list[list[Tensor]]:
    """The tensors in files of at most `most` bytes each, unless one tensor is larger."""
    shards: list[list[Tensor]] = [[]]
    held = 0
    for tensor in export.tensors:
        size = _num_bytes(export, tensor)
        if shards[-1] and held + size > most:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += size
    return shards


def _tensors(export: Export, shard: Sequence[Tensor], progress: Reporter) -> Iterator[tuple[str, Array]]:
    """Each tensor by key, from arrays whose digests were verified."""
    place, entries = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0]), export.weights.entries
    for tensor in shard:
        wanted = {n: jax.ShapeDtypeStruct(entries[n].shape, entries[n].dtype, sharding=place) for n in tensor.arrays}
        arrays = {name: np.asarray(array) for name, array in export.weights.read(wanted, export.specs).items()}
        joined = tensor.join(arrays, export.specs)
        with np.errstate(over="ignore"):  # found below
            value: Array = joined.astype(export.dtype, copy=False)
        if export.dtype == np.float16 and not np.isfinite(value).all():
            what = f"run {export.run.name}: {tensor.key} has numbers beyond float16's {np.finfo(np.float16).max:,.0f}"
            raise DataError(what, "they would become infinite", "--dtype bfloat16")
        yield tensor.key, value
        progress.advance(value.nbytes)


def _write_documents(export: Export, folder: Path) -> None:
    write_json(folder / CONFIG, export.document)
    tokenizer, assets = export.form.tokenizer, export.run.assets
    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG, GENERATION_CONFIG, CHAT_TEMPLATE):
        if (assets / name).exists():
            shutil.copyfile(assets / name, folder / name)
    if not (folder / GENERATION_CONFIG).exists():
        ids = {key: export.document[key] for key in ("bos_token_id", "eos_token_id")}
        write_json(folder / GENERATION_CONFIG, ids)
    if not (folder / TOKENIZER_CONFIG).exists():
        description = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.token(tokenizer.eos_id)}
        if tokenizer.begin_ids:
            description["bos_token"] = tokenizer.token(tokenizer.begin_ids[0])
        write_json(folder / TOKENIZER_CONFIG, description)


def _compare(stored: Weights, digests: Mapping[str, str]) -> None:
    """Read the files back. Raises DataError for a tensor that is not what was written."""
    folder = stored.folder.path
    found = {key: tensor_digest(value) for key, value in stored.read(list(stored.tensors))}
    if found != dict(digests):
        key = next(key for key in sorted({*found, *digests}) if found.get(key) != digests.get(key))
        raise DataError(f"{folder}: tensor {key} is not what was written", "the disk changed it", f"df -h {folder}")
