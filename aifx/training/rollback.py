"""Going back: the state of a checkpoint before a fault, from which the run goes on without the batches at fault."""

from __future__ import annotations

from dataclasses import replace

from aifx.programs.build import Programs
from aifx.specs import Params
from aifx.training.guards import Rollback
from aifx.training.prepare import Job
from aifx.training.restore import InitialState, begin


def roll_back(fault: Rollback, job: Job, programs: Programs, frozen: Params) -> InitialState:
    """The newest checkpoint before the fault that is whole, or else the initial state, with the batches left out.

    Later checkpoints are removed: the next process would resume from them. If this one is killed on the way, the next
    one resumes from a checkpoint that is there, comes to the same fault, and goes back as this one does.
    """
    job.group.mark("going back", "start")
    job.checkpoints.wait()
    job.checkpoints.remove_from(fault.below)
    begun = begin(programs, job.checkpoints, job.run, frozen)
    begun = replace(begun, guards=begun.guards.after_rollback(fault, begun.step))
    batches = list(fault.batches)
    job.dispatcher.event(
        "rollback", from_step=fault.last, to_step=begun.step, reason=fault.reason, batches=batches, step=fault.first
    )
    which = f"batch {batches[0]}" if len(batches) == 1 else f"batches {batches[0]} to {batches[-1]}"
    job.dispatcher.warn(f"the run went back from step {fault.last} to step {begun.step}, and leaves out {which}")
    return begun
