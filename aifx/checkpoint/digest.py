"""Digests of arrays and of a whole state; docs/checkpoints.md gives the layout of the bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from aifx.checkpoint.naming import Tree, flat_names


def is_key(leaf: Any) -> bool:
    """Whether an array, or an abstract one, is a typed PRNG key."""
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def key_data(leaf: Any) -> Any:
    """The data of a typed PRNG key; any other leaf unchanged."""
    return jax.random.key_data(leaf) if isinstance(leaf, jax.Array) and is_key(leaf) else leaf


def host_array(leaf: Any) -> np.ndarray[Any, Any]:
    """A leaf of a state as a NumPy array, sharing memory where it can; a typed PRNG key as its data."""
    return np.asarray(key_data(leaf))


def array_bytes(array: np.ndarray[Any, Any]) -> memoryview:
    """The elements in C order, little-endian."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.byteorder == ">" or (flat.dtype.byteorder == "=" and not np.little_endian):
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    return memoryview(flat.view(np.uint8))


def array_digest(array: np.ndarray[Any, Any]) -> str:
    """SHA-256 of the array's bytes alone, in hexadecimal."""
    return hashlib.sha256(array_bytes(array)).hexdigest()


def array_digests(arrays: Mapping[str, np.ndarray[Any, Any]], workers: int = 1) -> dict[str, str]:
    """`array_digest` of each; hashing lets other threads run, so `workers` share it."""
    if workers <= 1:
        return {name: array_digest(array) for name, array in arrays.items()}
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(arrays, pool.map(array_digest, arrays.values()), strict=True))


def state_digest(tree: Tree) -> str:
    """SHA-256 over the state's arrays in order of their names: name, dtype, shape and bytes of each."""
    flat = flat_names(tree)
    return digest_in_order((name, host_array(flat[name])) for name in in_order(flat))


def in_order(names: Iterable[str]) -> list[str]:
    """Names in the order of their bytes in UTF-8, in which the state's digest takes them."""
    return sorted(names, key=str.encode)


def digest_in_order(arrays: Iterable[tuple[str, np.ndarray[Any, Any]]]) -> str:
    """`state_digest` of arrays that come by name `in_order`, one after the other."""
    digest = hashlib.sha256()
    for name, array in arrays:
        shape = ",".join(str(n) for n in array.shape)
        digest.update(f"{name}\0{array.dtype.name}\0{shape}\0".encode())
        digest.update(array_bytes(array))
    return digest.hexdigest()
