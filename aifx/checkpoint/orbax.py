"""Checkpoints of Orbax, written and read through its public API alone.

Orbax takes a second to import, so it is imported when it is used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aifx.checkpoint.manifest import STATE
from aifx.checkpoint.naming import nest
from aifx.core.artifact import MANIFEST
from aifx.core.errors import DataError, UsageError
from aifx.core.logs import at_level
from aifx.core.results import Result


@dataclass(frozen=True)
class OrbaxArray:
    """A leaf of a tree.

    Attributes:
        name: its path in the tree, joined by "/".
        dtype: NumPy's name, or `bfloat16`; "string" for text.
        size_bytes: of its elements; None for text.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int | None


@dataclass(frozen=True)
class OrbaxItem:
    """A tree in a checkpoint.

    Attributes:
        name: of its folder in that of the checkpoint, such as "items"; "." if the folder is the tree's own.
        metadata: what its writer kept with it, as JSON.
    """

    name: str
    path: str
    arrays: tuple[OrbaxArray, ...]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class OrbaxCheckpoint(Result):
    """A checkpoint of Orbax, without its arrays: what `aifx ckpt show FOLDER --json` prints."""

    path: str
    size_bytes: int
    items: tuple[OrbaxItem, ...]


def read_orbax(folder: Path) -> OrbaxCheckpoint:
    """The trees in a checkpoint of Orbax: its own, or those of its items. Reads no arrays.

    Raises UsageError for another folder, DataError for a tree that Orbax cannot read.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}", "a checkpoint of Orbax is a folder", f"ls {folder.parent}")
    folder = folder.resolve()  # Orbax takes absolute paths
    if (own := _read_item(folder, ".")) is not None:
        items: tuple[OrbaxItem, ...] = (own,)
    else:
        within = sorted(path for path in folder.iterdir() if path.is_dir())
        items = tuple(item for path in within if (item := _read_item(path, path.name)) is not None)
        if not items:
            raise _no_checkpoint(folder, within)
    size = sum(array.size_bytes or 0 for item in items for array in item.arrays)
    return OrbaxCheckpoint(str(folder), size, items)


def restore_orbax(item: OrbaxItem, names: Collection[str]) -> dict[str, np.ndarray[Any, Any]]:
    """These arrays of a tree of dictionaries, by name; the others are not read. Raises DataError."""
    import jax
    import orbax.checkpoint as ocp

    wanted = nest(dict.fromkeys(names, 0))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    arguments = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
    try:
        with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(item.path, args=arguments)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(Path(item.path), error) from error
    return dict(_leaves(tree))


def save_orbax(folder: Path, arrays: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, Any]) -> None:
    """Write arrays to a new `folder` as a tree, by their names.

    Args:
        metadata: JSON that is kept with them.
    """
    import orbax.checkpoint as ocp

    arguments = ocp.args.PyTreeSave(nest(arrays), custom_metadata=dict(metadata))
    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_zarr3=True)) as checkpointer:
        checkpointer.save(folder, args=arguments)


def _read_item(folder: Path, name: str) -> OrbaxItem | None:
    """None if `folder` holds no tree."""
    import orbax.checkpoint as ocp

    try:
        with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            found = checkpointer.metadata(folder).item_metadata
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(folder, error) from error
    if found is None:
        return None
    arrays = tuple(_array(path, leaf) for path, leaf in _leaves(found.tree))
    return OrbaxItem(name, str(folder), arrays, dict(found.custom_metadata or {}))


def _array(name: str, leaf: Any) -> OrbaxArray:
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None or dtype is None:
        return OrbaxArray(name, "string", (), None)
    kind = np.dtype(dtype)
    return OrbaxArray(name, kind.name, tuple(shape), math.prod(shape) * kind.itemsize)


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    import jax

    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _quiet() -> Any:
    """Orbax warns of folders that are no tree, and of files that a tree need not have."""
    return at_level("absl", logging.ERROR)


def _no_checkpoint(folder: Path, within: list[Path]) -> UsageError:
    what = f"{folder} is no checkpoint of Orbax"
    if (folder / MANIFEST).is_file() and (folder / STATE).is_dir():
        return UsageError(what, "aifx wrote it, as that of a run", f"aifx ckpt show {folder.name} --run RUN")
    if steps := [int(path.name) for path in within if path.name.isdecimal()]:
        return UsageError(what, "it has checkpoints, one per step", f"aifx ckpt show {folder}/{max(steps)}")
    return UsageError(what, "neither it nor a folder in it holds a tree that Orbax wrote", f"ls {folder}")


def _unreadable(folder: Path, error: Exception) -> DataError:
    why = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    return DataError(f"{folder}: Orbax cannot read this tree", why, f"ls -l {folder}")
