"""Trainings with different settings, and their ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.core.errors import ExitCode
from aifx.core.project import find_project
from aifx.core.results import Result
from aifx.sweeps.space import SEED
from aifx.verbs.arguments import StrPath

if TYPE_CHECKING:
    from aifx.sweeps.ranking import RankedSetting, SweepReport
    from aifx.sweeps.starting import PlannedSweep


@dataclass(frozen=True)
class Swept(Result):
    """The ranks after a sweep has trained.

    Attributes:
        failed: runs of the trials that failed.
        code: OK if all trials have ended.
    """

    report: SweepReport
    failed: tuple[str, ...]
    code: ExitCode

    @property
    def exit_code(self) -> ExitCode:
        return self.code

    def document(self) -> dict[str, Any]:
        return self.report.document()


def sweep(
    name: str = "sweep",
    settings: Mapping[str, Any] | Sequence[str] = (),
    *,
    sampler: str | None = None,
    trials: int | None = None,
    parallel: int | None = None,
    prune: bool | None = None,
    seed: int | None = None,
    config: StrPath | None = None,
    stop: Sequence[int] = (),
    project: StrPath = ".",
) -> Swept:
    """Train with different settings, each in a run of its own, and rank them.

    After a stop, a crash or a lost machine, call it again: the sweep continues where it was.

    Args:
        name: of the sweep to start or continue.
        settings: values to try, by key: a list, or a text such as "LOW..HIGH" or "LOW..HIGH:log". One value holds for
            all trials.
        sampler: how to choose settings: "grid", "random" or "tpe", which needs Optuna; by default "grid".
        trials: number of trials; by default the whole grid.
        parallel: trials at a time; by default one per GPU, or one.
        prune: stop poor trials early; by default they are stopped.
        seed: of the sampler; by default 0.
        config: file to read instead of the project's aifx.toml.
        stop: numbers of signals. As soon as it has one, the trials get it, and the sweep ends with them.
        project: a folder in the project.

    Example:
        >>> swept = aifx.sweep("lr", {"optimizer.learning_rate": [1e-3, 1e-2]})
        >>> swept.report.num_ended, swept.failed
        (2, ())
    """
    from aifx.sweeps.ranking import report
    from aifx.sweeps.record import SweepFile, hold_sweep, sweep_folder
    from aifx.sweeps.running import Runner, slots
    from aifx.sweeps.starting import Options, open_sweep

    found = find_project(Path(project))
    options = Options(_swept(settings), sampler, trials, seed, prune, None if config is None else Path(config))
    places, folder = slots(parallel, os.environ), sweep_folder(found, name)
    open_sweep(found, name, options)  # before anything is written
    with ExitStack() as stack:
        stack.enter_context(hold_sweep(folder))
        opened = open_sweep(found, name, options)
        file = SweepFile(folder, opened)
        stack.callback(file.close)
        file.append("sweep", design=opened.design, num_trials=opened.num_trials, prune=opened.prune)
        runner = Runner(found, file, places, stack)
        code = runner.run(stop)
        ranked = report(found, name, opened)
    return Swept(ranked, tuple(trial.run for trial in runner.failed), ExitCode(code))


def sweep_plan(
    name: str = "sweep",
    settings: Mapping[str, Any] | Sequence[str] = (),
    *,
    sampler: str | None = None,
    trials: int | None = None,
    prune: bool | None = None,
    seed: int | None = None,
    config: StrPath | None = None,
    project: StrPath = ".",
) -> tuple[PlannedSweep, list[str]]:
    """List the trials of a sweep that there are and those to come, as far as they are known, and the keys that differ.

    The arguments are those of `sweep`. Nothing is written.

    Example:
        >>> planned, keys = aifx.sweep_plan("sizes", {"model.embed_dim": [16, 32]})
        >>> planned.num_trials, keys
        (2, ['model.embed_dim'])
    """
    from aifx.sweeps.starting import Options, open_sweep, plan

    options = Options(_swept(settings), sampler, trials, seed, prune, None if config is None else Path(config))
    opened = open_sweep(find_project(Path(project)), name, options)
    return plan(opened, name), opened.design.space.keys


def sweep_show(name: str | None = None, *, html: StrPath | None = None, project: StrPath = ".") -> SweepReport:
    """Rank the settings of a sweep, whether it has ended or not.

    Args:
        name: of the sweep; by default the one written last.
        html: file to write the report to, too, as a page with plots.
        project: a folder in the project.

    Example:
        >>> [one.rank for one in aifx.sweep_show("lr", html="lr.html").settings]
        [1, 2]
    """
    from aifx.sweeps.ranking import report
    from aifx.sweeps.record import existing_sweep

    found = find_project(Path(project))
    ranked = report(found, *existing_sweep(found, name))
    if html is not None:
        from aifx.core.pages import write_page
        from aifx.sweeps.page import report_page

        write_page(report_page(ranked), Path(html))
    return ranked


def _swept(settings: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Values to try as `--set` takes them."""
    from aifx.config.toml import literal

    if not isinstance(settings, Mapping):
        return list(settings)
    texts = {
        key: ",".join(map(literal, values)) if isinstance(values, list | tuple) else values
        for key, values in settings.items()
    }
    return [f"{key}={text if isinstance(text, str) else literal(text)}" for key, text in texts.items()]
