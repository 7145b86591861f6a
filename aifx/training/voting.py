"""How the processes of a job agree to stop, and count what each of them reads."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import numpy as np

from aifx.data.base import Batch
from aifx.evaluation.held_out import own_parts
from aifx.parallel.tally import Sums, Tally
from aifx.programs.build import Programs
from aifx.tasks.base import dataset_of
from aifx.training.signals import StopSignals


class Interrupted(Exception):
    """Validation gave way to a signal; the state is as it was."""


def votes(requested: signal.Signals | None) -> tuple[int, int]:
    """A process's part of the sums from which `agreed` tells why all of them stop."""
    return int(requested == signal.SIGINT), int(requested in (signal.SIGTERM, signal.SIGHUP))


def agreed(votes: Sequence[int]) -> signal.Signals | None:
    """Why the processes of a job stop, from the sums of their `votes`; None if none asks to. A person comes first."""
    interrupts, terminations = votes
    if interrupts:
        return signal.SIGINT
    return signal.SIGTERM if terminations else None


def agree(tally: Tally, stop: StopSignals) -> signal.Signals | None:
    """Why all processes stop, if one of them asks to; waits for all of them."""
    return agreed(np.asarray(tally((0, *votes(stop.requested))))[1:].tolist())


def count_units(programs: Programs, batch: Batch, rows: int) -> int:
    """Units ("tokens") in those rows of a batch that this process counts; `rows` are all of them."""
    count, unit = dataset_of(programs.task).counts, programs.objective.unit
    return sum(count(part)[unit] for part in own_parts(programs.layout, batch, rows))


class Ballot:
    """Lets processes agree before each batch of a validation that they give it up. They learn it one batch late."""

    def __init__(self, tally: Tally, stop: StopSignals) -> None:
        self._tally, self._stop = tally, stop
        self._before: Sums | None = None

    def __call__(self) -> None:
        """Raises Interrupted."""
        cast = self._tally((0, *votes(self._stop.requested)))
        known = cast if isinstance(cast, np.ndarray) else self._before
        if known is not None and agreed(np.asarray(known)[1:].tolist()) is not None:
            raise Interrupted
        self._before = cast
