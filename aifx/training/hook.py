"""Hooks around the steps of a run: one protocol, for aifx's own and for those of a project.

Imports no jax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

if TYPE_CHECKING:
    import jax

    from aifx.data.base import Batch
    from aifx.programs.state import TrainState
    from aifx.training.records import Record, RunInfo, TrainResult

TakeStep: TypeAlias = "Callable[[int, TrainState, Batch], tuple[TrainState, jax.Array]]"
"""Takes a step: from its number, the state and a batch of the host to the next state and STEP_METRICS."""


@dataclass(frozen=True)
class Stop:
    """The answer of `Hook.at_pause` that ends the run after this pause, with the status early_stopped."""

    why: str = ""


class Hook:
    """Methods that the loop calls around its steps, in the thread that trains; each does nothing by default.

    `on_event` is also called from other threads, while other methods run.

    The host is one step ahead of the device. A method that waits for the device belongs into `at_pause`. What a method
    raises ends the run.
    """

    all_processes: ClassVar[bool] = False
    """Whether every process of a job calls the hook. By default the first one alone does, which writes the records."""

    def start(self, info: RunInfo) -> None:
        """Called once, when the first step is about to run."""

    def pauses(self, step: int) -> bool:
        """Whether the run pauses after `step`. Asked before it is known how the step ended."""
        return False

    def around_step(self, take_step: TakeStep) -> TakeStep:
        """The function that takes each step, in place of `take_step`, which it calls."""
        return take_step

    def after_step(self, record: Record, batch: Batch) -> None:
        """The numbers of a step are known, one step late unless the run pauses; it is not yet reported or saved.

        Args:
            batch: its rows that this process read.
        """

    def at_pause(self, state: TrainState, record: Record) -> Record | Stop | None:
        """The run has paused after the step of `record`, which left `state`. The device is idle.

        Returns the record that the hooks after this one get, or Stop, or None to change nothing.
        """

    def on_record(self, record: Record) -> None:
        """A step is reported, with its validation if it has one: in step order, and before its checkpoint is saved."""

    def on_event(self, name: str, fields: Mapping[str, Any]) -> None:
        """An event of events.jsonl other than "stop", in the thread that reports it."""

    def stop(self, result: TrainResult | None) -> None:
        """The run has ended; `result` is None if it failed. Also called if `start` was not."""
