"""Which architecture a model's folder has, and how its tensors become arrays."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from aifx.config.sections import ModelSection
from aifx.core.errors import ConfigError, DataError
from aifx.core.json_values import plain
from aifx.hub.folder import CONFIG, ModelFolder
from aifx.hub.weights import Weights
from aifx.kinds import families
from aifx.models import Family
from aifx.models.hub import Architecture, HubConfig, Tensor
from aifx.specs import ArraySpec, Specs, is_spec


def architectures() -> dict[str, tuple[Family, Architecture]]:
    """All that the families of aifx have maps to, by name."""
    found = {}
    for family in families():
        if family.hub is not None:
            for architecture in importlib.import_module(family.hub).ARCHITECTURES:
                found[architecture.name] = family, architecture
    return found


def architecture_of(folder: ModelFolder, config: Mapping[str, Any]) -> tuple[Family, Architecture]:
    """The architecture that a `config.json` names. Raises DataError for one that aifx does not know."""
    known, path = architectures(), folder.place(CONFIG)
    if isinstance(quantized := config.get("quantization_config"), Mapping):
        raise _quantized(f"{path}: quantization_config, quant_method = {quantized.get('quant_method')!r}")
    named, model_type = config.get("architectures"), config.get("model_type")
    if named is None:
        named = [name for name, (_, one) in known.items() if one.model_type == model_type]
    name = named[0] if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str) else ""
    if name not in known:
        found = repr(named)[:80] if named else f"(not set), model_type = {model_type!r}"
        why = f"aifx has no such model; it has {', '.join(sorted(known))}"
        raise DataError(f"{path}: architectures = {found}", why, _LIST)
    family, architecture = known[name]
    if model_type != architecture.model_type:
        why = f"{architecture.name} is of model_type {architecture.model_type!r}"
        raise DataError(f"{path}: model_type = {model_type!r}", why, _LIST)
    return family, architecture


def expressed_by(
    family: Family, section: ModelSection, preferred: str | None, *, in_maxtext: bool = False
) -> Architecture:
    """An architecture that computes what a `[model]` does: `preferred` if that does, otherwise the first.

    What one can express is found by writing its `config.json` and reading that back. Raises ConfigError.

    Args:
        in_maxtext: among those whose layout in MaxText is known.
    """
    assert family.hub is not None
    known: list[Architecture] = list(importlib.import_module(family.hub).ARCHITECTURES)
    if in_maxtext:
        known = [architecture for architecture in known if architecture.maxtext is not None]
    found: dict[str, list[str]] = {}
    for architecture in sorted(known, key=lambda one: one.name != preferred):
        assert architecture.write is not None
        try:
            values = architecture.read(HubConfig(architecture.write(section), CONFIG, ""))
            read_back = family.section(**plain(values))
        except (ConfigError, ValueError):
            continue
        assert isinstance(read_back, ModelSection)
        if not (lost := section.differences(read_back)):
            return architecture
        found[architecture.name] = lost
    name, lost = min(found.items(), key=lambda item: len(item[1]), default=("", []))
    why = f"{name} comes nearest, and has no {', '.join(f'model.{key}' for key in lost)} like this" if name else ""
    layout = " in MaxText's layout" if in_maxtext else ""
    raise ConfigError(f"no architecture that aifx knows{layout} computes this model", why, "docs/export.md")


_LIST = "docs/import.md lists what aifx imports"


def _quantized(what: str) -> DataError:
    why = "its weights are quantized, and aifx trains and exports the numbers that they were rounded from"
    hint = "import the model without quantization; aifx serve --quantize int8 quantizes it again"
    return DataError(what, why, hint)


def named_specs(specs: Specs) -> dict[str, ArraySpec]:
    """The specs of an unrolled model by name, "layers/0/attention/query"."""
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)
    return {"/".join(str(part.key) for part in path): spec for path, spec in leaves}


@dataclass(frozen=True)
class TensorMap:
    """The tensors of a folder and the arrays of a model that they become.

    Attributes:
        tensors: by key in the folder.
        specs: by name of the array.
        tied: key of an output projection that must be the embedding, `embedding`, in every bit.
        ignored: keys of buffers, which the model computes.
    """

    tensors: Mapping[str, Tensor]
    specs: Mapping[str, ArraySpec]
    tied: str | None
    embedding: str | None
    ignored: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """All keys that are read."""
        return [*self.tensors, *([self.tied] if self.tied is not None else [])]


def check_keys(weights: Weights, architecture: Architecture, section: ModelSection) -> None:
    """Raise DataError for the first tensor that is missing, before anything is made for each layer."""
    in_file = _names_in_file(weights, architecture)
    for tensor in architecture.tensors(section):
        if (key := in_file(tensor.key)) not in weights.tensors:
            packed = f"{key.removesuffix('weight')}qweight"
            if packed in weights.tensors:  # AWQ and GPTQ; their first programs wrote no quantization_config
                raise _quantized(f"{weights.folder.path}: tensor {packed}")
            what = f"{weights.folder.path}: no tensor {key}"
            raise DataError(what, f"{architecture.name} with this {CONFIG} has it", weights.hint)


def _names_in_file(weights: Weights, architecture: Architecture) -> Callable[[str], str]:
    """A function from a tensor's key to that in the file: a model that was saved without its head lacks the prefix."""
    has_prefix = any(key.startswith(architecture.prefix) for key in weights.tensors)
    return lambda key: key if has_prefix else key.removeprefix(architecture.prefix)


def map_tensors(weights: Weights, architecture: Architecture, section: ModelSection, specs: Specs) -> TensorMap:
    """Map the tensors of a folder, which has all of them, to the arrays of a model with these specs.

    Raises DataError for a key that is not used, or whose tensor has another shape than the model's.
    """
    arrays, stored = named_specs(specs), weights.tensors
    in_file = _names_in_file(weights, architecture)
    tensors = {in_file(tensor.key): tensor for tensor in architecture.tensors(section)}
    for key, tensor in tensors.items():
        wanted = tensor.shape(arrays)
        if stored[key].shape != wanted:
            what = f"{weights.folder.path / stored[key].file}: tensor {key} is {list(stored[key].shape)}"
            raise DataError(what, f"with this {CONFIG} it is {list(wanted)}", f"compare {CONFIG} with the model's")
    rest = stored.keys() - tensors.keys()
    has_tied = architecture.embedding_key is not None and architecture.tied_key in rest
    tied = architecture.tied_key if has_tied else None
    buffers = re.compile(f"({re.escape(architecture.prefix)})?({architecture.buffers})")
    ignored = sorted(key for key in rest if buffers.fullmatch(key))
    if unused := sorted(rest - set(ignored) - {tied}):
        more = f", and {len(unused) - 1} more" if len(unused) > 1 else ""
        what = f"{weights.folder.path / stored[unused[0]].file}: tensor {unused[0]}{more}"
        raise DataError(what, f"{architecture.name} with this {CONFIG} does not use it", _LIST)
    embedding = in_file(architecture.embedding_key) if architecture.embedding_key is not None else None
    return TensorMap(tensors, arrays, tied, embedding, tuple(ignored))


def read_arrays(weights: Weights, tensors: TensorMap) -> Iterator[tuple[str, Any, int]]:
    """Each array of the model by name, and the bytes of the tensors read so far. One tensor is in memory at a time."""
    from aifx.hub.weights import tensor_digest

    compared: dict[str, str] = {}
    done = 0
    for key, value in weights.read(tensors.keys):
        done += value.nbytes
        if tensors.tied is not None and key in (tensors.tied, tensors.embedding):
            compared[key] = tensor_digest(value)
        if key in tensors.tensors:
            for name, array in tensors.tensors[key].divide(value, tensors.specs):
                yield name, array, done
        del value  # before the next one is read
    if len(set(compared.values())) > 1:
        what = f"{weights.folder.path}: tensor {tensors.tied} is not {tensors.embedding}"
        raise DataError(what, f"{CONFIG} says tie_word_embeddings, so they are one", '"tie_word_embeddings": false')
