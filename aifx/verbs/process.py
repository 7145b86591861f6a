"""The process of a command, before its body: what must be set before JAX is imported. Imports little."""

from __future__ import annotations

import os

from aifx.core import lifecycle


def ignore_compilers() -> None:
    """Keep JAX, which is not imported yet, from opening the devices of compilers that `aifx plan` uses."""
    from aifx.machine.present import platforms_here

    if (platforms := platforms_here(os.environ)) is not None:
        os.environ["JAX_PLATFORMS"] = platforms


def restart_for_large_programs() -> None:
    """Restart this process with huge pages, for a command that runs large programs. Signals wait meanwhile."""
    from aifx.machine.huge_pages import restart_with_huge_pages

    with lifecycle.blocked():
        restart_with_huge_pages()
