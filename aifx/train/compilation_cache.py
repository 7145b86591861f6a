"""JAX's persistent compilation cache: on for every program, and quick to recover from an entry that is damaged.

JAX writes an entry in place and never replaces one that exists, so that an entry torn by SIGKILL, a full disk or a bad
disk would be read, refused and compiled anew at every start. It says so in a warning, before it compiles; the entry is
removed at that moment, and JAX then writes a good one.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import jax

from aifx.project import cache_path

MAX_BYTES = 4 * 10**9
"""Beyond this the oldest half goes: a cache, not an archive."""

_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([^']+)': (.*)", re.DOTALL)
_UNWRITABLE = re.compile(r"Error writing persistent compilation cache entry for '([^']+)': (.*)", re.DOTALL)

Report = Callable[[str], None]


def enable_compilation_cache(report: Report, folder: Path | None = None) -> Path | None:
    """Keep compiled programs in `folder` (default: `jax` in `cache_path()`); None where that cannot be written.

    Args:
        report: told, in a line, of an entry that was removed or could not be written.
    """
    if jax.config.jax_compilation_cache_dir and folder is None:
        return Path(jax.config.jax_compilation_cache_dir)  # the operator's own (JAX_COMPILATION_CACHE_DIR)
    folder = folder or cache_path() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _prune(folder, MAX_BYTES)
    except OSError as e:
        report(f"compiled programs are not kept: {folder}: {e.strerror}")
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _watch(folder, report)
    return folder


def remove_damaged(folder: Path, module: str) -> list[str]:
    """Remove the entries of the program `module` that cannot be read, all of them where none is damaged provably."""
    entries = [p for p in folder.iterdir() if p.name.startswith(f"{module}-") and p.name.endswith("-cache")]
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


def _watch(folder: Path, report: Report) -> None:
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
                report(f"compilation cache: {found[1]} was damaged and is compiled anew ({names})")
            except OSError as e:
                report(f"compilation cache: {found[1]} is damaged and cannot be removed: {e}")
        elif found := _UNWRITABLE.match(str(message)):
            report(f"compilation cache: {found[1]} could not be kept: {found[2]}")
        else:
            show(message, category, filename, lineno, file, line)

    marked: Any = watch
    marked._aifx_cache_watch = True
    warnings.showwarning = watch


def _prune(folder: Path, max_bytes: int) -> None:
    entries = [(p, p.stat()) for p in folder.iterdir() if p.name.endswith("-cache")]
    total = sum(stat.st_size for _, stat in entries)
    if total <= max_bytes:
        return
    for path, stat in sorted(entries, key=lambda e: max(e[1].st_atime, e[1].st_mtime)):
        path.unlink(missing_ok=True)
        total -= stat.st_size
        if total <= max_bytes // 2:
            return
