"""aifx: the toolkit of people who operate AI factories.

`import aifx` loads nothing else: the functions below come from `aifx.api` when they are first used. docs/api.md
documents them. `aifx.extend` has the names for tasks of a project's own. Everything else is private, and may change
without notice. `aifx.commands` is the terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aifx.core.version import __version__

if TYPE_CHECKING:
    from aifx.api import bench, doctor, evaluate, generate, init, load, predict, train

__all__ = ["__version__", "bench", "doctor", "evaluate", "generate", "init", "load", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from aifx import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
