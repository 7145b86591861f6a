"""Training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import UsageError
from aifx.core.project import find_project
from aifx.core.steps import parse_step
from aifx.verbs.arguments import Settings, StrPath, overrides

if TYPE_CHECKING:
    from aifx.training.records import TrainResult


def train(
    project: StrPath = ".",
    run: str = "main",
    *,
    config: StrPath | None = None,
    settings: Settings = None,
    fork_from: str | None = None,
    fork_at: int | str = "last",
    refit: bool = False,
) -> TrainResult:
    """Train a run to its end, from its last checkpoint if it has one.

    A loss that is not finite is a result with the status "diverged". Ctrl-C raises KeyboardInterrupt; the next call
    resumes from the last checkpoint.

    Args:
        project: a folder in the project.
        run: name of the run to start or to resume.
        config: a file to read instead of the project's `aifx.toml`.
        settings: values over those of the file, by key: `{"train.num_steps": 100}`.
        fork_from: start the run from a checkpoint of this one.
        fork_at: which checkpoint: a step, "best" or "last".
        refit: train the settings of the finished run `run` on its training and validation rows, as the run `RUN-refit`.

    Example:
        >>> result = aifx.train(settings={"train.num_steps": 3})
        >>> result.status, result.step
        ('completed', 3)
        >>> forked = aifx.train(run="other", fork_from="main", fork_at=3, settings={"train.num_steps": 4})
        >>> forked.step
        4
    """
    from aifx.kinds import load_config
    from aifx.training.run import train as train_run

    found = find_project(Path(project))
    if refit:
        from aifx.training.resume_checks import open_refit

        if (other := "config" if config is not None else "fork_from" if fork_from is not None else None) is not None:
            why = "a refit is a new run with the settings of its origin"
            raise UsageError(f"refit and {other} cannot be used together", why, f"remove {other}")
        refitted = open_refit(found.existing_run(run), found, overrides(settings))
        return train_run(found, refitted.config, f"{run}-refit", refit=refitted)
    loaded = load_config(found, overrides(settings), file=None if config is None else Path(config))
    at = parse_step(fork_at)
    return train_run(found, loaded, run, fork_from=fork_from, fork_at="last" if at is None else at)
