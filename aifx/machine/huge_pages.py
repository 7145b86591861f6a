"""Memory of this machine for programs that XLA runs on its CPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Start this program again, as the same process, with an allocator that asks for huge pages. Returns if not needed.

    XLA takes a program's temporaries from the allocator again each time that it runs, hundreds of megabytes for a small
    transformer. The kernel then hands them out and zeroes them by 4 KiB pages: a quarter of a training step's time
    (benchmarks/train_vs_pytorch.py). By 2 MiB pages it is a thirtieth. glibc reads the setting when a process starts
    and never again, so call this first of all, before anything was read or written.
    """
    environ = with_huge_pages(os.environ)
    if environ is not None and sys.executable:
        try:
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)
        except OSError:
            return  # slower, and right


def with_huge_pages(environ: Mapping[str, str]) -> dict[str, str] | None:
    """The environment in which glibc asks for huge pages; None if glibc cannot, or if the operator has decided."""
    tunables = environ.get("GLIBC_TUNABLES", "")
    if TUNABLE in tunables or not _glibc_can() or not _pages_on_request():
        return None
    return {**environ, "GLIBC_TUNABLES": ":".join(filter(None, (tunables, f"{TUNABLE}=1")))}


def _glibc_can() -> bool:
    """Whether the C library is glibc 2.35 or newer, the first with the tunable."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) >= (2, 35)
    except (ValueError, OSError, AttributeError):
        return False


def _pages_on_request() -> bool:
    """Whether the kernel gives huge pages to those who ask: with "always" all have them, with "never" none."""
    try:
        return "[madvise]" in HUGE_PAGES.read_text()
    except OSError:
        return False
