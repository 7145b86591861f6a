"""JAX's persistent compilation cache: on for every program, and quick to recover from an entry that is damaged.

JAX writes an entry in place and never replaces one that exists, so that an entry torn by SIGKILL, a full disk or a bad
disk would be read, refused and compiled again at every start. JAX warns before it compiles. At that moment aifx removes
the entry, and JAX then writes a good one. aifx hears the warning if the process logs Python's warnings
(`logging.captureWarnings(True)`), as each command does; otherwise the user sees JAX's own warning.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
from jax._src import compiler, distributed

from aifx.core.files import make_private
from aifx.core.project import cache_path

logger = logging.getLogger(__name__)

MAX_BYTES = 4 * 10**9
"""Beyond this the oldest half goes: a cache, not an archive."""

KEEP_ALL = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}
"""Small programs too."""

_WARNING = re.compile(r"Error (reading|writing) persistent compilation cache entry for '([^']+)': (.*)")


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs in the operator's folder (JAX_COMPILATION_CACHE_DIR) or in `jax` of `cache_path()`.

    The settings in JAX_PERSISTENT_CACHE_... variables are kept. Returns the folder; None if it cannot be written, or is
    not in this machine's file system ("gs://..."). Raises EnvironmentFault if another user can write there.
    """
    own = jax.config.jax_compilation_cache_dir
    if own and "://" in own:
        return None
    folder = Path(own) if own else cache_path("jax")
    if _subfolder and folder.name != _subfolder:
        folder /= _subfolder
    try:
        make_private(folder)
        if not own:
            _prune(folder, MAX_BYTES)
    except OSError as e:
        logger.warning(f"compiled programs are not kept: {folder}: {e.strerror}")
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in KEEP_ALL.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    warnings.filterwarnings("always", message="Error (reading|writing) persistent compilation cache entry")
    log = logging.getLogger("py.warnings")
    log.filters[:] = [other for other in log.filters if not isinstance(other, _DamagedEntries)]
    log.addFilter(_DamagedEntries(folder))
    return folder


def store_in_each_process(index: int) -> None:
    """Let this process of several store what it compiles. Call it before `enable_compilation_cache`.

    JAX lets process 0 alone write, to spare file systems that all processes share, although on a CPU each process has
    programs of its own. So each of the others gets a folder of its own, and there JAX takes itself for process 0.
    """
    global _subfolder
    _subfolder = f"process-{index}" if index else ""

    class AsFirst:
        process_id = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(distributed.global_state, name)

    compiler.distributed = SimpleNamespace(global_state=AsFirst())  # type: ignore[attr-defined,assignment]


_subfolder = ""


def remove_damaged(folder: Path, module: str) -> list[str]:
    """Remove the entries of the program `module` that cannot be read, all of them if none is provably damaged."""
    entries = list(folder.glob(f"{module}-*-cache"))
    removed = [path for path in entries if not _is_whole(path)] or entries
    for path in removed:
        path.unlink(missing_ok=True)
    return [p.name for p in removed]


def _is_whole(path: Path) -> bool:
    """Whether zlib's checksum over the entry holds. JAX compresses with zlib unless zstandard is installed."""
    try:
        data = path.read_bytes()
        if data[:4] == b"\x28\xb5\x2f\xfd":  # Zstandard's magic number (RFC 8878): judged by JAX alone
            return True
        zlib.decompress(data)
    except (OSError, zlib.error):
        return False
    return True


class _DamagedEntries(logging.Filter):
    """Takes JAX's warnings about entries from the log of Python's warnings, and removes those that cannot be read."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def filter(self, record: logging.LogRecord) -> bool:
        found = _WARNING.search(record.getMessage())
        if found is None:
            return True
        _, module, why = found.groups()
        if found[1] == "writing":
            logger.warning(f"compilation cache: {module} cannot be stored: {why}")
            return False
        try:
            names = ", ".join(remove_damaged(self._folder, module)) or "already gone"
            logger.warning(f"compilation cache: {module} was damaged and is compiled again ({names})")
        except OSError as e:
            logger.warning(f"compilation cache: {module} is damaged and cannot be removed: {e}")
        return False


def _prune(folder: Path, max_bytes: int) -> None:
    entries = []
    for path in folder.glob("*-cache"):
        with suppress(FileNotFoundError):  # another process prunes as well
            entries.append((path, path.stat()))
    total = sum(stat.st_size for _, stat in entries)
    if total <= max_bytes:
        return
    for path, stat in sorted(entries, key=lambda e: max(e[1].st_atime, e[1].st_mtime)):
        path.unlink(missing_ok=True)
        total -= stat.st_size
        if total <= max_bytes // 2:
            return
