"""The model of a checkpoint of Orbax in MaxText's layout. Its `config.json` and its tokenizer lie elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from aifx.checkpoint.orbax import OrbaxArray, OrbaxItem, read_orbax, restore_orbax, save_orbax
from aifx.core.artifact import files_below
from aifx.core.errors import DataError, UsageError
from aifx.hub.folder import CONFIG, TOKENIZER, ModelFolder
from aifx.hub.weights import DIGESTS, DTYPES, StoredTensor, check_finite, file_digest, tensor_digest
from aifx.models.hub import Architecture, Array

ITEM = "items"
"""The folder of an exported tree, by the name that MaxText's checkpoints have for it."""

_PARAMS = "params/"
_LAYERS = "params/params/decoder/layers/"
_GROUP_BYTES = 1 << 30
"""About as many bytes of arrays as are read together: Orbax reads the whole description of the tree for each call."""


@dataclass(frozen=True)
class OrbaxFolder(ModelFolder):
    """A checkpoint of Orbax with the files that belong to it."""

    config: Path
    tokenizer: Path  # tokenizer.json, whatever its name; beside it may be what else belongs to it

    @property
    def command(self) -> str:
        files = f"--config {self.config} --tokenizer {self.tokenizer}"
        return f"aifx import {self.source} --format orbax {files}"

    @property
    def sealed(self) -> Path:
        path = self.path.absolute()
        return path.parent if path.name == ITEM else path

    def place(self, name: str) -> Path:
        return {CONFIG: self.config, TOKENIZER: self.tokenizer}.get(name, self.tokenizer.parent / name)


def open_orbax(source: str, config: Path, tokenizer: Path) -> OrbaxFolder:
    """The checkpoint in the folder `source`.

    Args:
        config: Hugging Face's `config.json` of the model.
        tokenizer: its `tokenizer.json`, or the folder with it.

    Raises UsageError for a file that is missing.
    """
    config, tokenizer = config.expanduser(), tokenizer.expanduser()
    if tokenizer.is_dir():
        tokenizer /= TOKENIZER
    for option, path in (("--config", config), ("--tokenizer", tokenizer)):
        if not path.is_file():
            raise UsageError(f"{option}: no file {path}", "the model is not whole without it", f"ls {path.parent}")
    return OrbaxFolder(Path(source).expanduser(), source, config.absolute(), tokenizer.absolute())


class OrbaxWeights:
    """The arrays of a model in a checkpoint of Orbax. Opening reads their description alone."""

    def __init__(self, folder: ModelFolder) -> None:
        """Open a checkpoint. Raises UsageError for another folder, DataError for arrays of no model of MaxText."""
        self.folder = replace(folder, path=folder.path.absolute())
        self.hint = f"aifx ckpt show {self.folder.path}    (lists its arrays)"
        self._item = self._model(read_orbax(folder.path).items)
        kept = self._item.metadata.get(DIGESTS)
        digests = kept if isinstance(kept, dict) else {}
        self.tensors = {array.name: self._stored(array, digests.get(array.name)) for array in self._arrays(self._item)}

    @property
    def is_scanned(self) -> bool:
        """Whether all layers are in one array each."""
        return any(key.startswith(_LAYERS) for key in self.tensors)

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._files())

    def read(self, keys: list[str]) -> Iterator[tuple[str, Array]]:
        for group in self._groups(keys):
            arrays = restore_orbax(self._item, group)
            for key in group:
                value, stored = arrays.pop(key), self.tensors[key]
                if stored.digest is not None and tensor_digest(value) != stored.digest:
                    why = f"array {key} is not what its digest in the tree's metadata says"
                    raise DataError(f"{self._item.path} is damaged", why, "export or copy it again")
                check_finite(Path(self._item.path), key, value)
                yield key, value

    def file_digests(self) -> Iterator[tuple[str, int, str]]:
        for path in self._files():
            yield str(path.relative_to(self._item.path)), *file_digest(path)

    def _model(self, items: tuple[OrbaxItem, ...]) -> OrbaxItem:
        """The one with weights. Raises DataError if there is none, or several."""
        found = [item for item in items if self._arrays(item)]
        if len(found) == 1:
            return found[0]
        path, names = self.folder.path, ", ".join(item.name for item in found or items)
        if found:
            what = f"{path} has {len(found)} trees with weights"
            raise DataError(what, f"{names}: name one of them", f"aifx import {path}/{found[0].name}")
        why = f"no array of {names} is below {_PARAMS}params, where MaxText has a model's"
        raise DataError(f"{path} has no model in MaxText's layout", why, self.hint)

    @staticmethod
    def _arrays(item: OrbaxItem) -> list[OrbaxArray]:
        return [array for array in item.arrays if array.name.startswith(_PARAMS)]

    def _stored(self, array: OrbaxArray, digest: str | None) -> StoredTensor:
        for name, dtype in DTYPES.items():
            if dtype.name == array.dtype:
                return StoredTensor(self._item.name, name, array.shape, digest)
        why = f"aifx imports {', '.join(dtype.name for dtype in DTYPES.values())}"
        raise DataError(f"{self._item.path}: array {array.name} is of type {array.dtype}", why, self.hint)

    def _groups(self, keys: list[str]) -> Iterator[list[str]]:
        group: list[str] = []
        size = 0
        for key in keys:
            stored = self.tensors[key]
            num_bytes = DTYPES[stored.dtype].itemsize * int(np.prod(stored.shape))
            if group and size + num_bytes > _GROUP_BYTES:
                yield group
                group, size = [], 0
            group.append(key)
            size += num_bytes
        if group:
            yield group

    def _files(self) -> list[Path]:
        return files_below(Path(self._item.path))


def in_maxtext(architecture: Architecture, *, is_scanned: bool) -> Architecture:
    """The architecture with MaxText's arrays in place of its tensors. Raises DataError if aifx does not know them."""
    if architecture.maxtext is None:
        why = "aifx knows MaxText's layout of LlamaForCausalLM"
        raise DataError(f"{architecture.name} cannot be read from a checkpoint of Orbax", why, "docs/import.md")
    tensors = partial(architecture.maxtext, is_scanned=is_scanned)
    return replace(architecture, tensors=tensors, prefix="", buffers="(?!)", embedding_key=None)


def write_weights(folder: Path, arrays: dict[str, Array]) -> dict[str, str]:
    """Write the arrays of a model to a new tree in `folder`; return the SHA-256 of each, which the tree has as well."""
    digests = {key: tensor_digest(value) for key, value in arrays.items()}
    save_orbax(folder / ITEM, arrays, {DIGESTS: digests})
    return digests
