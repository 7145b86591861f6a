"""JAX's persistent compilation cache: on for every program, and quick to recover from an entry that is damaged.

JAX writes an entry in place and never replaces one that exists, so that an entry torn by SIGKILL, a full disk or a bad
disk would be read, refused and compiled anew at every start. It says so in a warning, before it compiles; the entry is
removed at that moment, and JAX then writes a good one.
"""

from __future__ import annotations

import os
import re
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import jax

from aifx.core.private_folders import make_private
from aifx.core.project import cache_path

MAX_BYTES = 4 * 10**9
"""Beyond this the oldest half goes: a cache, not an archive."""

KEEP_ALL = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}
"""Small programs too."""

_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([^']+)': (.*)", re.DOTALL)
_UNWRITABLE = re.compile(r"Error writing persistent compilation cache entry for '([^']+)': (.*)", re.DOTALL)


def enable_compilation_cache(say: Callable[[str], None]) -> Path | None:
    """Keep compiled programs in the operator's folder (JAX_COMPILATION_CACHE_DIR), else in `jax` of `cache_path()`.

    What else JAX_PERSISTENT_CACHE_... variables say stands. Returns the folder; None where it cannot be written, or is
    not of this machine's file system ("gs://..."). Raises EnvironmentFault if another user can write there.

    Args:
        say: told, in a line, of an entry that was removed or could not be written.
    """
    own = jax.config.jax_compilation_cache_dir
    if own and "://" in own:
        return None
    folder = Path(own) if own else cache_path("jax")
    try:
        make_private(folder)
        if not own:
            _prune(folder, MAX_BYTES)
    except OSError as e:
        say(f"compiled programs are not kept: {folder}: {e.strerror}")
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in KEEP_ALL.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    _watch(folder, say)
    return folder


def remove_damaged(folder: Path, module: str) -> list[str]:
    """Remove the entries of the program `module` that cannot be read, all of them where none is damaged provably."""
    entries = list(folder.glob(f"{module}-*-cache"))
    damaged = [p for p in entries if not _is_whole(p)]
    removed = damaged or entries
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


def _watch(folder: Path, say: Callable[[str], None]) -> None:
    warnings.filterwarnings("always", message="Error (reading|writing) persistent compilation cache entry")
    if getattr(warnings.showwarning, "_aifx_cache_watch", False):
        return
    show = warnings.showwarning

    def watch(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if found := _UNREADABLE.match(str(message)):
            try:
                removed = remove_damaged(folder, found[1])
                names = ", ".join(removed) or "already gone"
                say(f"compilation cache: {found[1]} was damaged and is compiled anew ({names})")
            except OSError as e:
                say(f"compilation cache: {found[1]} is damaged and cannot be removed: {e}")
        elif found := _UNWRITABLE.match(str(message)):
            say(f"compilation cache: {found[1]} could not be kept: {found[2]}")
        else:
            show(message, category, filename, lineno, file, line)

    marked: Any = watch
    marked._aifx_cache_watch = True
    warnings.showwarning = watch


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
