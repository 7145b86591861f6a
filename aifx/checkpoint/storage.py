"""Arrays and a manifest on disk through Orbax. Everything here blocks; `Checkpoints` calls it from its own thread."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aifx.checkpoint.manifest import FILE, ITEM, Manifest, write_inventory
from aifx.checkpoint.naming import flat_names, nest
from aifx.core.json_files import sync_directory
from aifx.core.os_errors import naming

STATE = "state"
"""The item of the checkpoint that holds the arrays: any Orbax program can restore it as a tree."""

_importing = threading.Lock()


def load_orbax() -> Any:
    """`orbax.checkpoint`, imported when first needed (half a second), from any thread."""
    with _importing:
        orbax = importlib.import_module("orbax.checkpoint")
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _WithoutOrbax) for f in logger.filters):
            logger.addFilter(_WithoutOrbax())
    return orbax


def write_checkpoint(directory: Path, arrays: Mapping[str, np.ndarray[Any, Any]], manifest: Manifest) -> None:
    """Write a checkpoint to `directory`, which must not exist, and make it survive a loss of power.

    The arrays must not change until this returns.
    """
    ocp = load_orbax()
    # Orbax refuses arrays without elements; the manifest says all there is to know of them.
    state = nest({name: array for name, array in arrays.items() if array.size})
    args = ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(state), ITEM: ocp.args.JsonSave(manifest.to_json())})
    failures: list[Exception] = []
    try:
        _checkpointer(ocp, failures).save(directory, args=args)
    finally:
        if failures:
            raise failures[0]
    write_inventory(directory)
    sync_tree(directory)


def read_arrays(directory: Path, manifest: Manifest, names: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays called `names` (all in the manifest) as they are on disk, not verified. Raises what Orbax raises."""
    ocp = load_orbax()
    entries = {name: manifest.arrays[name] for name in names}
    stored = [name for name, entry in entries.items() if entry.size]
    found = {name: np.zeros(e.shape, np.dtype(e.dtype)) for name, e in entries.items() if not e.size}
    if stored:
        wanted = nest({name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored})
        args = ocp.args.PyTreeRestore(item=nest(dict.fromkeys(stored, 0)), restore_args=wanted, partial_restore=True)
        tree = _checkpointer(ocp).restore(directory, args=ocp.args.Composite(**{STATE: args}))[STATE]
        arrays = flat_names(tree)
        found |= {name: np.asarray(arrays[name]) for name in stored}
    return {name: found[name] for name in names}


def sync_tree(directory: Path) -> None:
    """fsync every file and folder below `directory`. Orbax does so for arrays, not for its small files."""
    for folder, _, files in os.walk(directory):
        for file in files:
            handle = os.open(os.path.join(folder, file), os.O_RDONLY)
            try:
                with naming(Path(folder, file)):
                    os.fsync(handle)
            finally:
                os.close(handle)
        sync_directory(Path(folder))


def _checkpointer(ocp: Any, failures: list[Exception] | None = None) -> Any:
    types = ocp.type_handlers

    class Arrays(types.NumpyHandler):  # type: ignore[misc,name-defined]
        """Let every operation end before raising the first failure. Orbax would leave the others to a closed event
        loop, which prints tracebacks and writes files into a folder that is being removed."""

        async def _open_and_write(self, *args: Any, **kwargs: Any) -> None:
            try:
                await super()._open_and_write(*args, **kwargs)
            except Exception as e:
                if failures is None:
                    raise
                failures.append(e)

        async def deserialize(self, infos: Sequence[Any], args: Sequence[Any] | None = None) -> list[Any]:
            one_by_one = zip(infos, args or [None] * len(infos), strict=True)
            read = super().deserialize
            reads = [read([info], None if arg is None else [arg]) for info, arg in one_by_one]
            results: list[Any] = await asyncio.gather(*reads, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            return [result[0] for result in results]

    # No copy of the arrays: that was made before, into memory that is reused.
    registry = types.create_type_handler_registry((np.ndarray, Arrays(deepcopy_host_arrays=False)))
    # Trained weights hardly compress (8 % by zstd), and the cores it takes are the training's.
    state = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False)
    handlers = {STATE: state, ITEM: ocp.JsonCheckpointHandler(FILE)}
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers))


class _WithoutOrbax(logging.Filter):
    """Keep off the terminal what Orbax logs, and what asyncio logs for it ("exception was never retrieved").

    The first failure is also raised, and aifx reports that one.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return f"{os.sep}orbax{os.sep}checkpoint{os.sep}" not in record.pathname and "tensorstore" not in str(error)
