"""Changes to aifx that break one promise each, made in the process of a drilled training before it starts."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

PROGRAM = "import sys; sys.path.append({tests!r}); import sabotage; sabotage.{name}(); sys.path.pop(); {program}"


def program(name: str) -> str:
    """The program of a training that function `name` of this module sabotages."""
    from aifx.core.processes import PROGRAM as WHOLE

    return PROGRAM.format(tests=str(Path(__file__).parent), name=name, program=WHOLE)


def scaled_state() -> None:
    from aifx.checkpoint.checkpoints import Checkpoints

    restored = Checkpoints.latest_good

    def scaled(self: Any, abstract: Any) -> Any:
        import jax

        found = restored(self, abstract)
        if found is None:
            return None
        params = jax.tree.map(lambda array: array * (1 + 1e-6), found.state["params"])
        return replace(found, state={**found.state, "params": params})

    Checkpoints.latest_good = scaled  # type: ignore[method-assign]


def lost_record() -> None:
    from aifx.training.hooks.run_files import MetricsFile

    start = MetricsFile.start

    def cut(self: Any, info: Any) -> None:
        start(self, replace(info, recorded_step=max(info.recorded_step - 1, 0)))

    MetricsFile.start = cut  # type: ignore[method-assign]


def repeated_batch() -> None:
    from aifx.training import run

    prefetch = run.prefetch

    def repeated(source: Any, steps: range, *args: Any, **options: Any) -> Any:
        is_resumed = steps.start > 0
        return prefetch(source, range(steps.start - is_resumed, steps.stop - is_resumed), *args, **options)

    run.prefetch = repeated  # type: ignore[assignment]


def unsaved_stop() -> None:
    from aifx.training.hooks.saving import Saving

    save = Saving.save

    def save_what_is_due(saving: Any, state: Any, step: int, *args: Any, **options: Any) -> None:
        if saving.is_due(step):
            save(saving, state, step, *args, **options)

    Saving.save = save_what_is_due  # type: ignore[method-assign]


def taken_damage() -> None:
    from aifx.checkpoint.checkpoints import Checkpoints
    from aifx.checkpoint.manifest import Damaged

    restore = Checkpoints.restore

    def restore_anyway(self: Any, step: int, abstract: Any) -> Any:
        import jax
        import jax.numpy as jnp

        try:
            return restore(self, step, abstract)
        except Damaged:
            found = jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), abstract)
            return found, dict(self._open(step)[1].host)

    Checkpoints.restore = restore_anyway  # type: ignore[method-assign]


def left_out_rollback() -> None:
    from aifx.training.hooks.guard import Guard

    Guard._rollback = lambda *_: None  # type: ignore[method-assign]


def applied_nan() -> None:
    import jax.numpy as jnp

    from aifx.programs import train_step

    class Blind:
        isfinite = staticmethod(lambda array: jnp.full(array.shape, True))

        def __getattr__(self, name: str) -> Any:
            return getattr(jnp, name)

    train_step.jnp = Blind()  # type: ignore[assignment]


def unseen_hang() -> None:
    """The reader goes on once the hang should have been seen."""
    from aifx.training.hooks.watchdog import Watchdog

    init = Watchdog.__init__
    released = Path(os.environ["DRILL_FAULT"]).with_suffix(".released")

    def blind(self: Any, section: Any, group: Any, _: Callable[[Any], None]) -> None:
        init(self, section, group, lambda hang: released.touch())

    Watchdog.__init__ = blind  # type: ignore[method-assign]


def impatient_watchdog() -> None:
    """The watchdog counts the time in which the process was stopped, and looks before the step goes on."""
    from aifx.parallel.group import Progress
    from aifx.training.hooks import watchdog

    watchdog.AWAKE_S, watchdog.SLOWER = math.inf, 0.0
    move = Progress.move

    def move_late(self: Any, *args: Any) -> None:
        if time.monotonic() - self.moved_at > 4.0:
            time.sleep(2.0)  # the watchdog looks four times in each
        move(self, *args)

    Progress.move = move_late  # type: ignore[method-assign]


def dropped_records() -> None:
    from aifx.core.errors import EnvironmentFault
    from aifx.core.json_files import JsonLines

    append = JsonLines.append

    def append_or_drop(self: Any, record: Any) -> None:
        self._is_patient = False
        with suppress(EnvironmentFault, OSError):
            append(self, record)

    JsonLines.append = append_or_drop  # type: ignore[method-assign]


def other_exit_code() -> None:
    from aifx.core.errors import AifxError, ExitCode

    AifxError.exit_code = ExitCode.BUG


def reread_batch() -> None:
    from aifx.core.errors import DataError
    from aifx.training import run

    training_source = run.training_source

    def stubborn(*args: Any) -> Any:
        source = training_source(*args)
        read = source.read

        def read_again(step: int, rows: slice) -> Any:
            try:
                return read(step, rows)
            except DataError:
                return read(step, rows)

        source.read = read_again
        return source

    run.training_source = stubborn


def fresh_start() -> None:
    """In the processes of a job."""
    from aifx.checkpoint.checkpoints import Checkpoints
    from aifx.core import processes

    processes.PROGRAM = program("fresh_start")
    Checkpoints.latest_good = lambda *_: None  # type: ignore[method-assign]


def slow_disk() -> None:
    """Breaks no promise: a checkpoint is complete only when the next one is due."""
    from aifx.checkpoint import folders
    from aifx.checkpoint.checkpoints import Checkpoints

    save, wait, commit = Checkpoints.save, Checkpoints.wait, folders.commit
    asked = [0.0]

    def save_next(self: Any, step: int, *args: Any, **options: Any) -> None:
        asked.append(step)
        save(self, step, *args, **options)

    def wait_for_all(self: Any, *args: Any) -> bool:
        asked.append(math.inf)
        return wait(self, *args)

    def commit_late(place: Path) -> None:
        while max(asked) <= int(place.name):
            time.sleep(0.01)
        commit(place)

    Checkpoints.save, Checkpoints.wait, folders.commit = save_next, wait_for_all, commit_late  # type: ignore[method-assign]
