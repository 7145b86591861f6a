"""LoRA adapters over one base, loaded beside each other, of which each request names one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aifx.checkpoint.manifest import Manifest, read_manifest
from aifx.core.errors import UsageError
from aifx.core.project import Project, RunDirectory
from aifx.kinds import read_config
from aifx.loading.base_weights import BaseWeights
from aifx.loading.restore import choose_step
from aifx.models.adapted import AdaptedModel
from aifx.nn.adapters import A, B
from aifx.nn.lora import LoraBank
from aifx.nn.quantized import Int8Table, QuantizedMatrix
from aifx.runs.base_run import weights_digest
from aifx.runs.binding import read_digests
from aifx.specs import ArraySpec, Params, Specs, array_names
from aifx.tasks.registry import load_task

COLUMNS = 16
"""A bank has a multiple of so many columns, of zeros if need be: XLA's CPU backend adds up a row of a narrower product
in another order when a program has another number of rows."""


@dataclass(frozen=True)
class Adapter:
    """The adapter of a run: its two matrices by the name of the array that they correct, `b` scaled."""

    name: str
    digest: str
    matrices: Mapping[str, tuple[np.ndarray, np.ndarray]]
    rank: int


def read_adapters(project: Project, base: RunDirectory, step: int, names: Sequence[str]) -> list[Adapter]:
    """The adapters `NAME=RUN`. Raises UsageError for what is not an adapter of this checkpoint of the base."""
    digest = weights_digest(read_manifest(base.checkpoints / str(step)))
    found: dict[str, Adapter] = {}
    for entry in names:
        name, equals, run_name = entry.partition("=")
        if not (name and equals and run_name):
            raise UsageError(f"--adapter {entry}", "it is NAME=RUN", "aifx serve --adapter french=run-3")
        if name in found:
            raise UsageError(f"--adapter {entry}", f"there is an adapter {name} already", "give it another name")
        found[name] = _read(name, project.existing_run(run_name), project, base, digest)
    return list(found.values())


def _read(name: str, run: RunDirectory, project: Project, base: RunDirectory, digest: str) -> Adapter:
    config = read_config(run.config, project)
    step = choose_step(run, config, None)
    manifest: Manifest = read_manifest(run.checkpoints / str(step))
    own_base = read_digests(run).base
    if config.finetune.adapter != "lora" or own_base is None:
        why = f'its finetune.adapter is "{config.finetune.adapter}": it has weights of its own'
        raise UsageError(f"run {run.name} is not an adapter", why, f"aifx serve --run {run.name}")
    if own_base["digest"] != digest:
        why = f"it was trained for step {own_base['step']} of run {own_base['run']}"
        hint = f"aifx serve --run {own_base['run']} --step {own_base['step']} --adapter {name}={run.name}"
        raise UsageError(f"run {run.name} is not an adapter of the weights of run {base.name}", why, hint)
    model = load_task(config, project, run.assets).model
    assert isinstance(model, AdaptedModel)
    weights = BaseWeights.of_run(run, manifest, model.adapts)
    section, place = weights.adapters[0], jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    names = [key for key in weights.entries if weights.has_adapter(key)]
    matrices = {}
    for key in names:
        pair = weights.read_adapter(key, place)
        a, b = (np.asarray(pair[part], np.float32) for part in (A, B))
        scaled = section.alpha / section.rank * b.reshape(section.rank, -1)
        matrices[key] = a.reshape(-1, section.rank), scaled
    return Adapter(name, weights_digest(manifest), matrices, section.rank)


def with_banks(params: Params, specs: Specs, adapters: Sequence[Adapter], dtype: Any) -> Params:
    """Params of a model, quantized or not, with a LoraBank in place of each matrix that an adapter corrects."""
    if not adapters:
        return params
    rank = max(adapter.rank for adapter in adapters)
    rank += next(more for more in range(COLUMNS) if len(adapters) * (rank + more) % COLUMNS == 0)

    def banked(node: Any, spec: Specs | ArraySpec, path: tuple[str, ...]) -> Any:
        if not isinstance(spec, ArraySpec):
            return {name: banked(node[name], child, (*path, name)) for name, child in spec.items()}
        names = array_names(list(path), spec)[0]
        if not any(name in adapter.matrices for adapter in adapters for name in names):
            return node
        assert spec.matrix is not None
        inputs, outputs = spec.matrix_shape[-2:]
        layers = [_joined(adapters, name, rank, inputs, outputs) for name in names]
        is_stack = len(spec.matrix_shape) == 3
        a, b = (jnp.asarray(np.stack(parts) if is_stack else parts[0], dtype) for parts in zip(*layers, strict=True))
        base = node if isinstance(node, QuantizedMatrix | Int8Table) else node.reshape(spec.matrix_shape)
        return LoraBank(base, a, b, len(adapters), rank)

    found: Params = banked(params, specs, ())
    return found


def _joined(
    adapters: Sequence[Adapter], name: str, rank: int, inputs: int, outputs: int
) -> tuple[np.ndarray, np.ndarray]:
    """The matrices of all adapters side by side, `[inputs, count * rank]` and `[count * rank, outputs]`."""
    a, b = np.zeros((inputs, len(adapters), rank), np.float32), np.zeros((len(adapters), rank, outputs), np.float32)
    for index, adapter in enumerate(adapters):
        if name in adapter.matrices:
            a[:, index, : adapter.rank], b[index, : adapter.rank] = adapter.matrices[name]
    return a.reshape(inputs, -1), b.reshape(-1, outputs)
