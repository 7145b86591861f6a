"""The weights of a base run: all of them, or the frozen arrays of a run that trains adapters for them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.manifest import ArrayEntry, Manifest
from aifx.checkpoint.naming import flat_names, nest
from aifx.checkpoint.peers import peers_of
from aifx.checkpoint.verification import DeviceDigests
from aifx.config.sections import CheckpointSection, LoraSection
from aifx.core.artifact import DamagedArtifact
from aifx.core.errors import CheckpointError, ConfigError
from aifx.core.project import RunDirectory
from aifx.data.spec import need_spec
from aifx.models.adapted import AdaptedModel
from aifx.nn.adapters import BASE, A, B, merged_matrix, quantize_array
from aifx.nn.stacking import stack_layers, unstack_layers
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import Layout
from aifx.programs.build import Programs
from aifx.programs.state import head_names, make_frozen
from aifx.registry.versions import BASE as VERSION_BASE
from aifx.registry.versions import WEIGHTS, ModelDirectory, find_first_weights, level_of, open_base, prefix_of
from aifx.registry.weight_file import PUSH_AGAIN, Array, WeightFile
from aifx.runs.binding import BaseRun, base_manifest, read_digests, weights_digest, weights_of
from aifx.runs.provenance import read_provenance
from aifx.specs import ArraySpec, Params, Specs, array_names, is_spec

logger = logging.getLogger(__name__)

CHUNK_BYTES = 64 << 20
"""Most bytes of arrays that are read together, unless one array is larger."""


class BaseWeights:
    """The weights of a base run as evaluation uses them, by name: its adapters are merged into their matrices.

    Raises CheckpointError if the checkpoint is missing, or has other weights than `run` was trained with.

    Args:
        groups: groups of the model's matrices that may have adapters, and that are quantized with them.
    """

    def __init__(self, run: RunDirectory, base: BaseRun, groups: Collection[str]) -> None:
        self.step, self._groups = base.step, groups
        self.run: RunDirectory = run
        self._level = level_of(base) if isinstance(run, ModelDirectory) else 0
        if isinstance(run, ModelDirectory):  # it has the weights of its base
            manifest = run.content.manifest(self._level)
        elif base.version is not None:
            self.run = version = open_base(run, base)
            manifest = version.content.manifest()
        else:
            self.run, manifest = run.sibling(base.run), base_manifest(run, base)
        self._own = weights_of(manifest)
        self._part = "ema" if f"ema/{next(iter(self._own))}" in manifest.arrays else "params"
        own_base = manifest.run.get("base")
        self._base = BaseWeights(self.run, BaseRun(**own_base), groups) if own_base else None
        self.entries: Mapping[str, ArrayEntry] = self._own if self._base is None else self._base.entries

    @classmethod
    def of_run(cls, run: RunDirectory, manifest: Manifest, groups: Collection[str]) -> BaseWeights:
        """The weights of a run itself."""
        name = f"{VERSION_BASE}0" if isinstance(run, ModelDirectory) else run.name
        return cls(run, BaseRun(name, manifest.step, weights_digest(manifest)), groups)

    @functools.cached_property
    def adapters(self) -> tuple[LoraSection, bool]:
        """The run's `[lora]`, and whether its adapters were trained beside int8 matrices."""
        if isinstance(self.run, ModelDirectory):
            level = self.run.content.levels[self._level]
            values, quantize = level.lora or {}, level.quantize
        else:
            settings = read_digests(self.run).settings
            values = {key.removeprefix("lora."): value for key, value in settings.items() if key.startswith("lora.")}
            quantize = str(settings.get("finetune.base_quantize"))
        return LoraSection(**values), quantize == "int8"

    def read(self, wanted: Mapping[str, Any], specs: Mapping[str, ArraySpec]) -> dict[str, jax.Array]:
        """Arrays by name, with their stored types and the shardings of `wanted`.

        Args:
            wanted: `jax.ShapeDtypeStruct` by name.
            specs: of the whole model, by name.
        """
        if self._base is None:
            return self._read(wanted)
        arrays = self._base.read(wanted, specs)
        section, is_quantized = self.adapters
        for name, array in arrays.items():
            spec, place = specs[name], wanted[name].sharding
            is_matrix = spec.matrix is not None and bool(set(name.split("/")) & set(self._groups))
            node: Params = quantize_array(array, spec) if is_quantized and is_matrix else {BASE: array}
            if self.has_adapter(name):
                everywhere = NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else place
                node = {BASE: node if is_quantized else array} | self.read_adapter(name, everywhere)
            if node.keys() != {BASE}:
                arrays[name] = jax.device_put(merged_matrix(node, spec, section), place)
        return arrays

    def has_adapter(self, name: str) -> bool:
        return f"{name}/{A}" in self._own

    def read_adapter(self, name: str, place: Any) -> dict[str, jax.Array]:
        """The two matrices beside the array `name`, as `adapted_specs` calls them."""
        entries = {f"{name}/{part}": self._own[f"{name}/{part}"] for part in (A, B)}
        structs = {n: jax.ShapeDtypeStruct(e.shape, e.dtype, sharding=place) for n, e in entries.items()}
        return {n.rpartition("/")[2]: array for n, array in self._read(structs).items()}

    def difference(self, name: str, shape: tuple[int, ...]) -> str:
        """Text for an error: the shape of a model's array, and that of the base run's."""
        entry = self.entries.get(name)
        there = "that run has none" if entry is None else f"it is {list(entry.shape)} there"
        return f"{name} is {list(shape)}, and {there}"

    def misfit(self, differences: list[str], allowed: str) -> ConfigError:
        """The error for a model that differs from the base run's."""
        more = f"; {len(differences) - 3} more" if len(differences) > 3 else ""
        what = f"the model does not fit the weights of {self.run.title}, which finetune.base names"
        show = (
            f"config show --run {self.run.name}" if self.run.model_digest is None else f"registry show {self.run.name}"
        )
        hint = f"aifx {show}    ({allowed})"
        return ConfigError(what, "; ".join(differences[:3]) + more, hint)

    def _read(self, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
        if isinstance(self.run, ModelDirectory):
            return read_stored(self.run, self._level, wanted)
        named = {f"{self._part}/{name}": struct for name, struct in wanted.items()}
        read = Checkpoints(self.run.checkpoints, CheckpointSection()).read(self.step, named)
        return {name.partition("/")[2]: array for name, array in read.items()}


def read_stored(version: ModelDirectory, level: int, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Arrays of a model version by name, in the shapes and shardings of `wanted`. Their digests are verified.

    Args:
        level: of `ModelContent.levels`.

    Raises CheckpointError if an array is missing or differs in shape or type, DamagedArtifact.
    """
    file, entries, digests = WeightFile(version.weights), version.content.levels[level].arrays, DeviceDigests()
    found: dict[str, jax.Array] = {}
    for name, struct in wanted.items():
        entry = entries.get(name)
        dtype = np.dtype(struct.dtype)
        if entry is None or (entry.shape, entry.dtype) != (tuple(struct.shape), dtype.name):
            there = "there is none" if entry is None else f"there it is {entry.dtype}{list(entry.shape)}"
            why = f"{name} is {dtype.name}{list(struct.shape)}, and {there}"
            raise CheckpointError(
                f"the arrays of {version.name} do not fit its model", why, "use the aifx that made it"
            )
        stored = file.read(f"{prefix_of(level)}/{name}")
        if (stored.shape, stored.dtype) != (entry.shape, dtype):
            why = f"{WEIGHTS}: array {name} is {stored.dtype.name}{list(stored.shape)}"
            raise DamagedArtifact(version.path, why, PUSH_AGAIN)
        # Copied: JAX may use memory that it is given, and that of the file changes with the file.
        part = functools.partial(_copy_of, stored)
        found[name] = jax.make_array_from_callback(entry.shape, struct.sharding, part)
        digests.add(name, found[name])
    if damaged := digests.damaged(entries, peers_of(f"the model {version.artifact.digest}")):
        raise DamagedArtifact(
            version.path, f"{WEIGHTS}: bytes differ from what was saved: {', '.join(damaged[:3])}", PUSH_AGAIN
        )
    return found


def _copy_of(stored: Array, index: tuple[slice, ...]) -> Array:
    return np.array(stored[index])


def with_base_params(params: Params, programs: Programs, run: RunDirectory) -> Params:
    """`params` with the weights that `run` began with, a run or a model version; unchanged if they were random.

    Arrays of equal name and shape are taken. Those of the head may differ and then keep their first values. With other
    classes than in the base run, all of the head does.

    Args:
        params: the initial ones, as `programs` take them.

    Raises CheckpointError if the checkpoint is not the one that is named, ConfigError if other arrays differ.
    """
    if isinstance(run, ModelDirectory):
        if run.content.tuned_from is None:
            return params
        weights = BaseWeights.of_run(*find_first_weights(run), programs.model.adapts)
    elif named := read_provenance(run).get("finetuned_from"):
        weights = BaseWeights(run, BaseRun(**named), programs.model.adapts)
    else:
        return params
    stacked, specs = programs.is_stacked, programs.model.specs()
    ours = flat_names(unstack_layers(params) if stacked else params)
    head = head_names(programs.model, ForwardContext(programs.layout.single))
    is_other_head = need_spec(weights.run.assets).classes != programs.task.data.classes
    wanted, differing = {}, []
    for name, array in ours.items():
        entry = weights.entries.get(name)
        if entry is None or entry.shape != array.shape:
            differing.append((name, weights.difference(name, array.shape)))
        elif is_other_head and name in head:
            differing.append((name, f"{name} is for other classes there"))
        else:
            wanted[name] = jax.ShapeDtypeStruct(array.shape, entry.dtype, sharding=array.sharding)
    if unfit := [text for name, text in differing if name not in head]:
        raise weights.misfit(unfit, "only the head may differ")
    read = weights.read(wanted, flat_names(unstack_layers(specs) if stacked else specs))
    if differing:
        logger.info(f"the head starts from its initial values: {'; '.join(text for _, text in differing)}")
    taken = nest(ours | {name: array.astype(ours[name].dtype) for name, array in read.items()})
    places = jax.tree.map(lambda x: x.sharding, programs.abstract[0].params)
    found: Params = jax.device_put(stack_layers(taken) if stacked else taken, places)
    return found


def frozen_arrays(programs: Programs, run: RunDirectory) -> Params:
    """The arrays that no step of `run` changes: its base run's, or without adapters those made from the seed."""
    model = programs.model
    if not isinstance(model, AdaptedModel):
        return make_frozen(programs.frozen_specs, programs.config.train.seed, programs.layout)
    base = run.content.manifest().run["base"] if isinstance(run, ModelDirectory) else read_digests(run).base
    assert base is not None
    weights = BaseWeights(run, BaseRun(**base), model.adapts)
    return read_frozen(weights, model.model.specs(), programs.frozen_specs, programs.layout)


def read_frozen(weights: BaseWeights, plain: Specs, frozen: Specs, layout: Layout) -> Params:
    """The arrays of the specs `frozen`, which `adapted_specs` made of `plain`. A chunk is in memory twice.

    Raises ConfigError if the base run has other arrays.
    """
    leaves = jax.tree_util.tree_leaves_with_path(plain, is_leaf=is_spec)
    by_name = {name: _layer_spec(spec, shape) for path, spec in leaves for name, shape in _names(path, spec)}
    found: dict[str, jax.Array] = {}
    there = {name: entry.shape for name, entry in weights.entries.items()}
    if unfit := [n for n in {**by_name, **there} if n not in by_name or there.get(n) != by_name[n].shape]:
        known = [weights.difference(name, by_name[name].shape) for name in unfit if name in by_name]
        raise weights.misfit(known or [f"it has {name} there" for name in unfit], "an adapter changes none of it")
    for chunk in _chunks(leaves):
        wanted = {
            name: jax.ShapeDtypeStruct(
                shape, weights.entries[name].dtype, sharding=NamedSharding(layout.mesh, layout.partition(by_name[name]))
            )
            for path, spec in chunk
            for name, shape in _names(path, spec)
        }
        read = weights.read(wanted, by_name)
        for path, spec in chunk:
            names = [name for name, _ in _names(path, spec)]
            place, node = "/".join(part.key for part in path), frozen
            for part in path:
                node = node[part.key]
            if isinstance(node, dict) and BASE in node:
                node, place = node[BASE], f"{place}/{BASE}"
            is_stack = by_name[names[0]].shape != spec.shape
            parts = [read.pop(name) for name in names]
            found |= _join_layers(parts, is_stack, spec, place, node, layout)
    return nest(found)


def _join_layers(
    parts: list[jax.Array], is_stack: bool, spec: ArraySpec, place: str, node: Any, layout: Layout
) -> dict[str, jax.Array]:
    """The array `place` of a model, from those of its layers: as the specs `node` have it, maybe quantized."""
    places = layout.of_params(node)
    if isinstance(node, dict):
        made = _quantize_layers(parts, is_stack, spec, tuple(places.values()))
        return {f"{place}/{name}": array for name, array in made.items()}
    array = jnp.stack(parts) if is_stack else parts[0]
    return {place: jax.device_put(array.astype(node.dtype), places)}


def _quantize_layers(parts: list[jax.Array], is_stack: bool, spec: ArraySpec, places: Any) -> dict[str, jax.Array]:
    quantized = [_quantize(part, _layer_spec(spec, part.shape)) for part in parts]
    joined = {key: [one[key] for one in quantized] for key in quantized[0]}
    whole = {key: jnp.stack(values) if is_stack else values[0] for key, values in joined.items()}
    return {key: jax.device_put(array, place) for (key, array), place in zip(whole.items(), places, strict=True)}


@functools.partial(jax.jit, static_argnums=1)
def _quantize(array: jax.Array, spec: ArraySpec) -> dict[str, jax.Array]:
    return quantize_array(array, spec)


def _names(path: Any, spec: ArraySpec) -> list[tuple[str, tuple[int, ...]]]:
    names, shape = array_names([str(part.key) for part in path], spec)
    return [(name, shape) for name in names]


def _layer_spec(spec: ArraySpec, shape: tuple[int, ...]) -> ArraySpec:
    """The spec of a layer of this shape, of which `spec` may be a stack."""
    if shape == spec.shape:
        return spec
    matrix = None if spec.matrix is None else tuple(tuple(i - 1 for i in axes) for axes in spec.matrix)
    return replace(spec, shape=shape, axes=spec.axes[1:], matrix=matrix)  # type: ignore[arg-type]


def _chunks(leaves: list[tuple[Any, ArraySpec]]) -> Iterator[list[tuple[Any, ArraySpec]]]:
    chunk: list[tuple[Any, ArraySpec]] = []
    held = 0
    for path, spec in leaves:
        size = 4 * spec.size
        if chunk and held + size > CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append((path, spec))
        held += size
    if chunk:
        yield chunk
