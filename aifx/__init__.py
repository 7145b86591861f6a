"""aifx: the toolkit of people who operate AI factories.

A library with no terminal in it; `aifx.commands` is the terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aifx.core.version import DISTRIBUTION, __version__

if TYPE_CHECKING:
    from os import PathLike

    from aifx.loading.model import LoadedModel

__all__ = ["DISTRIBUTION", "__version__", "load"]


def load(run: str | PathLike[str], *, step: int | str | None = None) -> LoadedModel:
    """The model of a run, ready to make predictions. Needs the run alone, not the data that it was trained on.

    >>> model = aifx.load("runs/main")
    >>> for prediction in model.predict([{"text": "Call me Ishmael."}]):
    ...     print(prediction["bits_per_byte"])

    Args:
        run: the run's folder.
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint` of the run's project.

    Raises UsageError where there is no run, CheckpointError for a checkpoint that is missing or damaged.
    """
    from aifx.loading.model import load as load_run  # late: `import aifx` loads nothing else

    return load_run(run, step=step)
