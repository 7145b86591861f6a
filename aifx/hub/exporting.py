"""A run becomes a folder that Hugging Face's libraries read: written aside, read back, compared, then renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from safetensors.numpy import save_file

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.inventory import list_files, sync_files, sync_folders
from aifx.checkpoint.manifest import Manifest, read_manifest
from aifx.config import Config, read_config
from aifx.config.kinds import Family, resolve
from aifx.config.sections import ModelSection
from aifx.core.errors import ConfigError, DataError, UsageError
from aifx.core.json_files import sync_directory, write_json
from aifx.core.progress import Reporter, report_progress
from aifx.core.project import Project, RunDirectory
from aifx.core.steps import StepChoice
from aifx.data.text import TOKENIZER_FILE, TokenFormat
from aifx.hub.architectures import expressed_by, named_specs
from aifx.hub.card import write_card
from aifx.hub.folder import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    TOKENIZER_CONFIG,
    WEIGHTS,
    ModelFolder,
)
from aifx.hub.origin import read_origin
from aifx.hub.weights import DIGESTS, StoredWeights, tensor_digest
from aifx.loading.restore import choose_step
from aifx.models.base import Decodes
from aifx.models.hub import Architecture, Array, Tensor
from aifx.runs.binding import binding_errors
from aifx.specs import ArraySpec
from aifx.tasks.registry import load_task

ExportType = Literal["float32", "bfloat16", "float16"]

SHARD_BYTES = 5_000_000_000
"""As transformers divides weights."""


@dataclass(frozen=True)
class ExportedFile:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportedModel:
    """What `aifx export --json` prints.

    Attributes:
        rounded: whether the weights were rounded to a narrower type than the run has.
    """

    path: str
    run: str
    step: int
    architecture: str
    parameters: int
    dtype: str
    rounded: bool
    files: list[ExportedFile]


@dataclass(frozen=True)
class _Export:
    """What is written."""

    run: RunDirectory
    config: Config
    step: int
    manifest: Manifest
    architecture: Architecture
    document: dict[str, Any]  # config.json
    tensors: list[Tensor]
    specs: Mapping[str, ArraySpec]
    part: str  # of the checkpoint: params, or ema
    form: TokenFormat
    dtype: np.dtype[Any]
    origin: dict[str, Any]  # import.json of the run that its weights go back to


def export_model(
    dest: Path,
    run: RunDirectory,
    project: Project,
    *,
    step: StepChoice | None = None,
    dtype: ExportType | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> ExportedModel:
    """Write the model of a checkpoint to the folder `dest`, which must not exist. Memory holds a shard at a time.

    Raises UsageError, ConfigError for a model that no known architecture computes, CheckpointError, DataError.
    """
    dest = dest.expanduser().absolute()
    if os.path.lexists(dest):
        raise UsageError(f"{dest} exists already", "aifx replaces no folder", f"aifx export {dest}-2")
    if not dest.parent.is_dir():
        raise UsageError(f"no folder {dest.parent}", f"{dest.name} is to be in it", f"mkdir -p {dest.parent}")
    export = _opened(run, project, step, dtype)
    staged = dest.parent / f".{dest.name}.exporting"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        digests = _write_weights(export, staged, shard_bytes)
        _write_documents(export, staged)
        described = {"architecture": export.architecture.name, "dtype": export.dtype.name}
        write_card(staged, run, export.manifest, **described, origin=export.origin)
        _compare(staged, digests)
        paths = sorted(staged.iterdir())
        files = [ExportedFile(name, size, sha) for name, (size, sha) in list_files(staged, paths).items()]
        sync_files(paths)
        sync_folders(staged)
        staged.rename(dest)
        sync_directory(dest.parent)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    stored = np.dtype(export.manifest.arrays[f"{export.part}/{next(iter(export.specs))}"].dtype)
    return ExportedModel(
        path=str(dest),
        run=run.name,
        step=export.step,
        architecture=export.architecture.name,
        parameters=sum(spec.size for spec in export.specs.values()),
        dtype=export.dtype.name,
        rounded=export.dtype != stored and export.dtype != np.float32,
        files=files,
    )


def parse_size(text: str) -> int:
    """Bytes of "5GB" or "500MB", in powers of 1000. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    size = float(match[1]) * 1000 ** " KMG".index(match[2].upper() or " ") if match else 0
    if size < 1:
        raise UsageError(f"--shard-size {text} is not a size", "it is a number with MB or GB", "--shard-size 5GB")
    return int(size)


def _opened(run: RunDirectory, project: Project, step: StepChoice | None, dtype: ExportType | None) -> _Export:
    config = read_config(run.config, project, environ={})
    at = choose_step(run, config, step)
    manifest = read_manifest(run.checkpoints / str(at))
    for error in binding_errors(run, config, at, manifest.run):
        raise error
    task = load_task(config, project, run.assets)
    family = config.parts.kinds.get("model")
    if not (isinstance(family, Family) and family.hub and isinstance(task.format, TokenFormat)):
        what = f"run {run.name} cannot be exported"
        raise ConfigError(what, "its model has no map to an architecture of Hugging Face", "docs/export.md")
    model = task.model
    assert isinstance(model, Decodes)
    changes = {"vocab_size": model.vocab_size, "max_seq_len": model.max_seq_len, "scan_layers": False}
    section = config.model.model_copy(update=changes)
    assert isinstance(section, ModelSection)
    origin = read_origin(run, project)
    architecture = expressed_by(family, section, origin.get("architecture"))
    part = "ema" if config.optimizer.ema_decay else "params"
    name = dtype or ("float32" if part == "ema" else config.train.parameter_dtype)
    return _Export(
        run=run,
        config=config,
        step=at,
        manifest=manifest,
        architecture=architecture,
        document=_document(architecture, section, task.format, origin, name),
        tensors=list(architecture.tensors(section)),
        specs=named_specs(resolve(family.make)(section, task.data).specs()),
        part=part,
        form=task.format,
        dtype=np.dtype(name),
        origin=origin,
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
    head = {"architectures": [architecture.name], "model_type": architecture.model_type, "torch_dtype": dtype}
    return {**head, **tokens, **architecture.write(section), "use_cache": True}


def _write_weights(export: _Export, folder: Path, shard_bytes: int) -> dict[str, str]:
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


def _num_bytes(export: _Export, tensor: Tensor) -> int:
    return sum(export.specs[name].size for name in tensor.arrays) * export.dtype.itemsize


def _shards(export: _Export, most: int) -> list[list[Tensor]]:
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


def _tensors(export: _Export, shard: Sequence[Tensor], progress: Reporter) -> Iterator[tuple[str, Array]]:
    """Each tensor by key, from arrays whose digests were verified."""
    checkpoints, entries = Checkpoints(export.run.checkpoints, export.config.checkpoint), export.manifest.arrays
    host = jax.devices("cpu")[0]
    for tensor in shard:
        names = [f"{export.part}/{name}" for name in tensor.arrays]
        place = jax.sharding.SingleDeviceSharding(host)
        wanted = {n: jax.ShapeDtypeStruct(entries[n].shape, entries[n].dtype, sharding=place) for n in names}
        read = checkpoints.read(export.step, wanted)
        arrays = {name: np.asarray(read[full]) for name, full in zip(tensor.arrays, names, strict=True)}
        joined = tensor.join(arrays, export.specs)
        with np.errstate(over="ignore"):  # found below
            value: Array = joined.astype(export.dtype, copy=False)
        if export.dtype == np.float16 and not np.isfinite(value).all():
            what = f"run {export.run.name}: {tensor.key} has numbers beyond float16's {np.finfo(np.float16).max:,.0f}"
            raise DataError(what, "they would become infinite", "--dtype bfloat16")
        yield tensor.key, value
        progress.advance(value.nbytes)


def _write_documents(export: _Export, folder: Path) -> None:
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


def _compare(folder: Path, digests: Mapping[str, str]) -> None:
    """Read the files back as `aifx import` does. Raises DataError for a tensor that is not what was written."""
    stored = StoredWeights(ModelFolder(folder, str(folder)))
    found = {key: tensor_digest(value) for key, value in stored.read(list(stored.tensors))}
    if found != dict(digests):
        key = next(key for key in sorted({*found, *digests}) if found.get(key) != digests.get(key))
        raise DataError(f"{folder}: tensor {key} is not what was written", "the disk changed it", f"df -h {folder}")
