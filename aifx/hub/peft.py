"""The adapters of a run as PEFT loads them: `adapter_config.json` and `adapter_model.safetensors`.

Source: `peft/tuners/lora` and `peft/utils/save_and_load.py` of PEFT 0.21.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from aifx.checkpoint.manifest import read_manifest
from aifx.core.errors import DataError, UsageError
from aifx.core.json_files import write_json
from aifx.core.parsing import parse_json
from aifx.core.project import Project, RunDirectory
from aifx.core.steps import StepChoice
from aifx.hub.card import write_card
from aifx.hub.exported import ExportedModel, folder_path, make_folder
from aifx.hub.exporting import Export, ExportType, open_export
from aifx.hub.weights import DIGESTS, tensor_digest
from aifx.models.hub import Array, Tensor, plain_shape
from aifx.nn.adapters import A, B
from aifx.registry.versions import ModelDirectory, open_base
from aifx.runs.binding import BaseRun

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


def export_adapter(
    dest: Path, run: RunDirectory, project: Project, *, step: StepChoice | None = None, dtype: ExportType | None = None
) -> ExportedModel:
    """Write the adapters of a checkpoint to the folder `dest`, as `export_model` does. Raises what it raises."""
    dest = folder_path(dest)
    export = open_export(run, project, step, dtype)
    if export.config.finetune.adapter == "none":
        hint = f"aifx export {dest} {run.option} --format hf"
        raise UsageError(f"{run.title} has no adapters", "--format peft is for them", hint)
    found = dict(_adapters(export))
    arrays = {key: value for pair in found.values() for key, value in pair.items()}
    parameters = sum(value.size for value in arrays.values())

    def write(staged: Path) -> None:
        digests = {key: tensor_digest(value) for key, value in arrays.items()}
        save_file(arrays, staged / ADAPTER, {"format": "pt", DIGESTS: json.dumps(digests)})
        write_json(staged / ADAPTER_CONFIG, _config(export, found))
        write_card(
            staged,
            run,
            export.manifest,
            architecture=f"LoRA of {export.architecture.name}",
            parameters=parameters,
            dtype=export.dtype.name,
            origin=export.origin,
            library="peft",
        )
        for key, value in load_file(staged / ADAPTER).items():
            if tensor_digest(value) != digests[key]:
                raise DataError(f"{staged}: {key} is not what was written", "the disk changed it", f"df -h {staged}")

    made = export.exported(dest, parameters, is_rounded=export.dtype.itemsize < 4)
    return make_folder(made, export.content("peft"), write)


def base_source(export: Export) -> str | None:
    """The source that the base was imported from; None if its weights are not those of an imported model."""
    if isinstance(version := export.run, ModelDirectory):
        return version.imported_from if len(version.content.levels) == 2 else None
    base = BaseRun(**export.manifest.run["base"])
    if base.version is not None:
        version = open_base(export.run, base)
        return version.imported_from if len(version.content.levels) == 1 else None
    origin = export.run.sibling(base.run)
    if read_manifest(origin.checkpoints / str(base.step)).run.get("base") or not origin.imported.exists():
        return None
    source = parse_json(origin.imported.read_bytes()).get("source")
    return source if isinstance(source, str) else None


def _adapters(export: Export) -> Iterator[tuple[str, dict[str, Array]]]:
    """The module of each adapted tensor, and its two matrices by key."""
    for tensor in export.tensors:
        if any(export.weights.has_adapter(name) for name in tensor.arrays):
            module = tensor.key.removesuffix(".weight")
            a, b = _matrices(export, tensor)
            pair = {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
            yield module, {key: np.ascontiguousarray(value.astype(export.dtype)) for key, value in pair.items()}


def _matrices(export: Export, tensor: Tensor) -> tuple[Array, Array]:
    """`[rank, inputs]` and `[outputs, rank]`. Adapters of the matrices that a tensor joins become one block each."""
    place = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    rank, firsts = export.config.lora.rank, []
    seconds: list[tuple[int, Array | None]] = []
    for name in tensor.arrays:
        outputs = plain_shape(export.specs[name])[1]
        seconds.append((outputs, None))
        if export.weights.has_adapter(name):
            found = export.weights.read_adapter(name, place)
            firsts.append(np.asarray(found[A]).reshape(-1, rank).T)
            seconds[-1] = outputs, np.asarray(found[B]).reshape(rank, -1).T
    joined = np.zeros((sum(outputs for outputs, _ in seconds), rank * len(firsts)), np.float32)
    row = column = 0
    for outputs, b in seconds:
        if b is not None:
            joined[row : row + outputs, column : column + rank] = b
            column += rank
        row += outputs
    return np.concatenate(firsts), joined


def _config(export: Export, found: dict[str, dict[str, Array]]) -> dict[str, Any]:
    lora = export.config.lora
    ranks = {".".join(module.split(".")[-2:]): next(iter(pair.values())).shape[0] for module, pair in found.items()}
    joined = {module: rank for module, rank in ranks.items() if rank != lora.rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_source(export),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(ranks),
        "bias": "none",
        "inference_mode": True,
        "fan_in_fan_out": any(t.key.removesuffix(".weight") in found and not t.is_transposed for t in export.tensors),
        "rank_pattern": joined,
        "alpha_pattern": {module: lora.alpha * rank / lora.rank for module, rank in joined.items()},
    }
