"""The process of a command, before its body: what must be set before JAX is imported. Imports little."""

from __future__ import annotations

import os
import sys

from aifx.core import lifecycle


def ignore_compilers() -> None:
    """Keep JAX, which is not imported yet, from opening the devices of compilers that `aifx plan` uses."""
    from aifx.machine.present import platforms_here

    if (platforms := platforms_here(os.environ)) is not None:
        os.environ["JAX_PLATFORMS"] = platforms


class _NoPandas:
    """Finds no pandas, if it is among the finders of modules."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name=name)


def leave_out_pandas() -> None:
    """Let this process not import pandas, for a command that runs no code of users.

    pyarrow imports it, if it is installed, to see whether a value is one of its: that takes a quarter of a second.
    """
    sys.meta_path.insert(0, _NoPandas)


def leave_out_plugins() -> None:
    """Let pydantic look for no plugins in this process, for a command that runs no code of users.

    It would read the metadata of each installed package, which takes a tenth of a promotion's time.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def restart_for_large_programs() -> None:
    """Restart this process with huge pages, for a command that runs large programs. Signals wait meanwhile."""
    from aifx.machine.huge_pages import restart_with_huge_pages

    with lifecycle.blocked():
        restart_with_huge_pages()
