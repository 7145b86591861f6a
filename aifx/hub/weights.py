"""The weights of a model's folder: tensors in safetensors files, read one at a time.

The library checks each header: its size, offsets and overlaps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from aifx.core.digests import sha256_of, size_and_sha256
from aifx.core.errors import DataError
from aifx.core.files import open_file
from aifx.core.parsing import parse_json
from aifx.hub.folder import INDEX, WEIGHTS, ModelFolder
from aifx.models.hub import Array

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Types of tensors that aifx imports, by safetensors' names."""

DIGESTS = "sha256"
"""Key of a file's metadata, in which `aifx export` puts the SHA-256 of each tensor, as JSON by name."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\.safetensors")
_POSITIONS = re.compile(r"(.*\.)?position_ids")
_BLOB = re.compile(r"[0-9a-f]{64}")
_CHUNK = 8 << 20


@dataclass(frozen=True)
class StoredTensor:
    """A file's description of a tensor."""

    file: str
    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    digest: str | None  # SHA-256 of its bytes, if the file has it


class Weights(Protocol):
    """The tensors of a model's folder, by key."""

    folder: ModelFolder
    tensors: dict[str, StoredTensor]
    hint: str  # for errors of tensors that are missing

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        ...

    def read(self, keys: list[str]) -> Iterator[tuple[str, Array]]:
        """These tensors in the order in which they are stored.

        Raises DataError for one that holds NaN or infinity, or is not what its digest says.
        """
        ...

    def file_digests(self) -> Iterator[tuple[str, int, str]]:
        """The name, the bytes and the SHA-256 of each file."""
        ...


def types_of(weights: Weights) -> set[str]:
    """The types of the weights, by safetensors' names."""
    return {tensor.dtype for tensor in weights.tensors.values() if tensor.dtype in DTYPES}


class StoredWeights:
    """The tensors of a model's folder in safetensors files. Opening reads the headers alone."""

    hint = "download the model again"

    def __init__(self, folder: ModelFolder) -> None:
        """Open the files. Raises DataError for one that is missing, torn or no safetensors file, or a wrong index."""
        self.folder = folder
        index = None
        if not folder.has(WEIGHTS):
            if not folder.has(INDEX):
                folder.refuse_pickles()
            index = self._index()
        self.files = [WEIGHTS] if index is None else sorted(set(index.values()))
        self.tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            for key, tensor in self._header(file):
                if key in self.tensors:
                    why = f"{self.tensors[key].file} has it as well"
                    raise DataError(f"{self._path(file)}: tensor {key}", why, "download the model again")
                self.tensors[key] = tensor
        if index is not None:
            self._check_index(index)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self._path(file).stat().st_size for file in self.files)

    def read(self, keys: list[str]) -> Iterator[tuple[str, Array]]:
        """These tensors in the order in which they are stored.

        Raises DataError for one that holds NaN or infinity, or is not what its digest says.
        """
        for file in self.files:
            wanted = [key for key in keys if self.tensors[key].file == file]
            with self._open(file) as opened:
                for key in wanted:
                    try:
                        value: Array = opened.get_tensor(key)
                    except (SafetensorError, OSError) as error:
                        raise self._damaged(file, f"tensor {key}: {error}") from None
                    self._check(key, value)
                    yield key, value

    def file_digests(self) -> Iterator[tuple[str, int, str]]:
        """The name, the bytes and the SHA-256 of each file.

        Raises DataError for one that is not what the Hub's cache, which names files by their SHA-256, has it for.
        """
        for file in self.files:
            path = self._path(file)
            size, digest = file_digest(path)
            name = path.resolve().name
            if _BLOB.fullmatch(name) and path.resolve().parent.name == "blobs" and digest != name:
                raise self._damaged(file, "its SHA-256 is not the one that the Hub's cache names it by")
            yield file, size, digest

    def _check(self, key: str, value: Array) -> None:
        stored = self.tensors[key]
        if stored.digest is not None and tensor_digest(value) != stored.digest:
            raise self._damaged(stored.file, f"tensor {key} is not what its digest in the file's metadata says")
        check_finite(self._path(stored.file), key, value)

    def _path(self, file: str) -> Path:
        return self.folder.path / file

    def _open(self, file: str) -> Any:
        path = self._path(file)
        try:
            with open(open_file(path, follow=True), "rb"):
                pass
            return safe_open(path, framework="np", backend="pread")
        except FileNotFoundError:
            raise DataError(f"{path} is missing", f"{INDEX} names it", "download the model again") from None
        except IsADirectoryError:
            raise DataError(f"{path} is a folder", "weights are a file", f"ls -l {path}") from None
        except (SafetensorError, OSError) as error:
            raise self._damaged(file, str(error)) from None

    def _header(self, file: str) -> Iterator[tuple[str, StoredTensor]]:
        with self._open(file) as opened:
            digests = self._digests(file, opened.metadata() or {})
            for key in opened.keys():  # noqa: SIM118  # no mapping
                part = opened.get_slice(key)
                dtype, shape = part.get_dtype(), tuple(part.get_shape())
                is_weight = shape and not _POSITIONS.fullmatch(key)  # a scalar is a counter, as of batch norm
                if dtype not in DTYPES and is_weight:
                    why = f"aifx imports {', '.join(DTYPES)}; quantized weights lack what others need to read them"
                    hint = "import the model that they were made of"
                    raise DataError(f"{self._path(file)}: tensor {key} is of type {dtype}", why, hint)
                yield key, StoredTensor(file, dtype, shape, digests.get(key))

    def _digests(self, file: str, metadata: Mapping[str, str]) -> dict[str, str]:
        if DIGESTS not in metadata:
            return {}
        try:
            found = parse_json(metadata[DIGESTS])
            return {str(key): str(value) for key, value in found.items()}
        except (ValueError, AttributeError):
            raise self._damaged(file, "its metadata has digests that cannot be read") from None

    def _index(self) -> dict[str, str]:
        places = self.folder.document(INDEX).get("weight_map")
        path = self._path(INDEX)
        if not isinstance(places, dict) or not places:
            raise DataError(f"{path}: no weight_map", "it names the file of each tensor", "download the model again")
        for key, file in places.items():
            if not isinstance(file, str) or not _PLAIN_NAME.fullmatch(file):
                why = f"it places {key} in {file!r}, which is no name of a .safetensors file in this folder"
                raise DataError(f"{path} cannot be used", why, "do not use this model")
        return places

    def _check_index(self, index: Mapping[str, str]) -> None:
        for key, file in index.items():
            found = self.tensors.get(key)
            if found is None or found.file != file:
                where = "no file has it" if found is None else f"it is in {found.file}"
                raise DataError(f"{self._path(file)}: no tensor {key}", f"{INDEX} says so; {where}", _AGAIN)
        if extra := self.tensors.keys() - index.keys():
            key = min(extra)
            raise DataError(f"{self._path(self.tensors[key].file)}: tensor {key}", f"{INDEX} does not name it", _AGAIN)

    def _damaged(self, file: str, why: str) -> DataError:
        return DataError(f"{self._path(file)} is damaged, or no safetensors file", why, _AGAIN)


_AGAIN = "download the model again"


def check_finite(path: Path, key: str, value: Array) -> None:
    """Raise DataError for a tensor of the file or folder `path` that holds NaN or infinity."""
    flat = value.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        if not np.isfinite(flat[start : start + _CHUNK]).all():
            raise DataError(f"{path}: tensor {key} holds NaN or infinity", "no model computes with it", _AGAIN)


def file_digest(path: Path) -> tuple[int, str]:
    """The bytes of a file, and their SHA-256."""
    with open(open_file(path, follow=True), "rb") as file:
        return size_and_sha256(file)


def tensor_digest(value: Array) -> str:
    """SHA-256 of a tensor's bytes as safetensors stores them."""
    return sha256_of(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
