"""The loop of a run put together from its parts: all hooks, in the order in which the loop calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from aifx.core.stop_signals import StopSignals
from aifx.parallel.group import Group
from aifx.programs.build import Programs
from aifx.training.dispatcher import EventDispatcher
from aifx.training.hook import Hook
from aifx.training.hooks.guard import Guard
from aifx.training.hooks.sampling import Sampling
from aifx.training.hooks.saving import Saving
from aifx.training.hooks.step_timing import StepTiming
from aifx.training.hooks.stop_vote import StopVote
from aifx.training.hooks.validation import EarlyStopping, Validation
from aifx.training.hooks.verification import Verification
from aifx.training.hooks.watchdog import Watchdog
from aifx.training.loop import Loop, StepFn
from aifx.training.meter import Meter
from aifx.training.records import RunInfo
from aifx.training.restore import InitialState

if TYPE_CHECKING:
    from aifx.checkpoint.checkpoints import Checkpoints


class Assembled(NamedTuple):
    """A loop, and those of its hooks that its caller asks as well."""

    loop: Loop
    validation: Validation
    saving: Saving


def assemble(
    info: RunInfo,
    programs: Programs,
    step_fn: StepFn,
    initial: InitialState,
    checkpoints: Checkpoints,
    dispatcher: EventDispatcher,
    signals: StopSignals,
    *,
    group: Group | None = None,
    watch: Watchdog | None = None,
    own_hooks: Sequence[Hook] = (),
    frozen_digest: str | None = None,
) -> Assembled:
    """The loop of a run that begins at `initial`.

    Args:
        own_hooks: those of the project.
    """
    config, frozen, group = programs.config, initial.frozen, group or Group()
    meter = Meter(info, initial.units, initial.loss)
    guard = Guard(
        config.guards, dispatcher, programs.layout.rows_by_process(config.train.global_batch_size), initial.guards
    )
    stop = StopVote(programs, signals)
    validation = Validation(
        programs, frozen, stop, group, dispatcher, initial.progress, pending=initial.pending_validation
    )
    early_stopping = EarlyStopping(config.train.early_stopping, validation)
    if early_stopping.is_due:  # the process before ended between its last checkpoint and its last word
        stop.stop_early(initial.step)
    saving = Saving(programs, checkpoints, group, dispatcher, meter, guard, stop, validation, frozen_digest)
    has_sample = config.log.sample is not None
    # The loop calls `after_step` of all hooks first, so a step that ends the run or rolls it back is never reported.
    # Then each hook has its turn: `at_pause`, if the run has paused, and `on_record`. `around_step` of an earlier hook
    # encloses that of a later one.
    in_order: list[Hook | None] = [
        guard,  # judges a step before others learn from it
        watch,
        stop,  # the processes agree before anything that takes long, and each hook after it knows how
        StepTiming(group, dispatcher),  # compares the processes while they are where the steps left them
        validation,  # adds to the record, or gives way to a signal and votes again
        early_stopping,
        Sampling(info.run, programs, frozen, signals, dispatcher) if has_sample else None,
        *own_hooks,  # they see what validation found, and may add to it or stop the run before anything is written
        dispatcher,
        *(hook for hook in dispatcher.hooks if hook not in own_hooks),  # metrics.jsonl, the log, trackers, the panel
        # Computes aifx's own step twice, not what other hooks do around it, which may differ each time.
        Verification(group, config.guards.verify_every),
        saving,  # last: what a checkpoint has is in metrics.jsonl, and it is known whether the run stops here
    ]
    called = (hook for hook in in_order if hook is not None and (hook.all_processes or group.is_first))
    loop = Loop(programs, step_fn, frozen, meter, stop, tuple(called), dispatcher.account, group)
    return Assembled(loop, validation, saving)
