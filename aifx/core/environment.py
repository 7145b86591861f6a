"""The environment of this process: variables that libraries read, and programs.

aifx starts programs by absolute path, never one that lies in the working directory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from aifx.core.errors import EnvironmentFault


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables of the environment in this block; those with None are absent."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def find_program(name: str, more: Sequence[str] = ()) -> str | None:
    """The absolute path of the program `name`, or None. Folders of `more` are searched after those of PATH."""
    return shutil.which(name, path=os.pathsep.join([*_folders(), *more]))


def need_program(name: str, why: str, more: Sequence[str] = ()) -> str:
    """The path that `find_program` finds. Raises EnvironmentFault, with `why` it is needed, if there is none."""
    found = find_program(name, more)
    if found is None:
        raise EnvironmentFault(f"there is no {name} here", why, f"install {name}")
    return found


def _folders() -> list[str]:
    """The entries of PATH but for the empty and relative ones, which mean the working directory."""
    return [entry for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(entry)]


@contextmanager
def with_safe_path() -> Iterator[None]:
    """Set PATH to its absolute entries in this block, for libraries that look programs up by themselves."""
    folders = _folders() or [os.defpath]  # an empty PATH means the working directory
    with environment({"PATH": os.pathsep.join(folders)}):
        yield
