"""The implementations of ops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.project import find_project
from aifx.verbs.arguments import Settings, StrPath, overrides

if TYPE_CHECKING:
    from aifx.kernels.report import (
        CandidateTiming,
        ChosenCall,
        ClearedKernels,
        ExplainedKernels,
        MeasuredKernels,
        TunedCall,
        TunedKernels,
    )


def kernels_explain(*, settings: Settings = None, project: StrPath = ".") -> ExplainedKernels:
    """Find which implementation each op of the project uses here, and why.

    A run that has started keeps its choices, in runs/<name>/kernels.json.

    Args:
        settings: values over those of aifx.toml, by key.
        project: a folder in the project.

    Example:
        >>> any(call.op == "attention" for call in aifx.kernels_explain().ops)
        True
    """
    from aifx.kernels.report import explain
    from aifx.kinds import load_config

    found = find_project(Path(project))
    return explain(found, load_config(found, overrides(settings)))


def kernels_tune(
    *, settings: Settings = None, on_call: Callable[[TunedCall], None] = lambda _: None, project: StrPath = "."
) -> TunedKernels:
    """Measure the implementations of each op on this device and keep the winners.

    aifx measures the calls of the project's training, evaluation and generation. Runs that start later use the winners.

    Args:
        settings: values over those of aifx.toml, by key.
        on_call: called with each call as soon as it is measured.
        project: a folder in the project.

    Example:
        >>> aifx.kernels_tune(settings={"kernels.attention": "reference"}).ops  # doctest: +SKIP
    """
    from aifx.kernels.report import tune_project
    from aifx.kinds import load_config

    found = find_project(Path(project))
    return tune_project(found, load_config(found, overrides(settings)), on_call=on_call)


def kernels_ls() -> MeasuredKernels:
    """List the winners on this kind of device with this version of JAX.

    Example:
        >>> aifx.kernels_ls().winners
        []
    """
    from aifx.kernels.report import measured

    return measured()


def kernels_clear(*, confirm: Callable[[ClearedKernels], None] | None = None) -> ClearedKernels:
    """Delete the measurements of all kinds of devices and versions of JAX. Runs keep their choices.

    Args:
        confirm: called with the files before they are deleted. What it raises ends the deletion.

    Example:
        >>> aifx.kernels_clear().removed
        []
    """
    from aifx.kernels.report import ClearedKernels, measurements

    files = measurements()
    cleared = ClearedKernels(list(map(str, files)))
    if files and confirm is not None:
        confirm(cleared)
    for path in files:
        path.unlink(missing_ok=True)
    return cleared
