"""Where a run begins: at nothing, at its own latest checkpoint, or at another run's; and when it must not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax

from aifx.config import Config
from aifx.core.errors import CheckpointError
from aifx.runs.status import number
from aifx.training.records import Record
from aifx.training.resume_checks import Fork
from aifx.training.state import TrainState, from_tree, initial_state, to_tree
from aifx.training.step import StepSpec
from aifx.training.validation import Progress

if TYPE_CHECKING:
    from aifx.checkpoint import Checkpoints

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialState:
    """The state that the first step takes, and what the host knew when it was saved."""

    step: int
    state: TrainState
    units: int = 0
    loss: float | None = None
    progress: Progress = field(default_factory=Progress)
    pending_validation: Record | None = None


def begin(step_spec: StepSpec, abstract: TrainState, checkpoints: Checkpoints, config: Config) -> InitialState:
    """The latest checkpoint that is whole, or the initial state; never both."""
    if checkpoints.latest() is None:
        return InitialState(0, initialize(step_spec, abstract))
    found = checkpoints.latest_good(to_tree(abstract, stacked=step_spec.is_stacked))
    if found is None:
        logger.warning("no checkpoint is whole: the run starts again from its beginning")
        return InitialState(0, initialize(step_spec, abstract))
    return _restored(found.step, found.state, found.host, abstract, step_spec)


def begin_from(fork: Fork, step_spec: StepSpec, abstract: TrainState, config: Config) -> InitialState:
    """Another run's checkpoint. Its optimizer state is taken where it fits, else begun anew.

    Raises CheckpointError where the parameters do not fit this configuration's model.
    """
    from aifx.checkpoint import Checkpoints, Damaged

    checkpoints = Checkpoints(fork.run.checkpoints, config.checkpoint)
    wanted = to_tree(abstract, stacked=step_spec.is_stacked)
    try:
        tree, host = checkpoints.restore(fork.step, wanted)
    except Damaged:
        raise  # its parameters may be whole, but to drop the rest is not ours to decide
    except CheckpointError:
        try:
            tree, host = checkpoints.restore(fork.step, {k: wanted[k] for k in ("step", "params")})
        except Damaged:
            raise
        except CheckpointError as unfit:
            changed = [str(d) for d in fork.changes if d.key.startswith(("model.", "task."))]
            raise CheckpointError(
                f"a fork of run {fork.run.name!r} cannot have another model",
                "\n".join([*changed, unfit.why]),
                "aifx train --run NAME    (a new run, from its first step)",
            ) from unfit
        logger.warning("the optimizer's state does not fit this configuration and starts again")
        fresh = to_tree(initialize(step_spec, abstract), stacked=step_spec.is_stacked)
        tree = {**tree, "opt_state": fresh["opt_state"]}
    begun = _restored(fork.step, tree, host, abstract, step_spec)
    # What was best on the way here was measured under another configuration.
    return InitialState(begun.step, begun.state, begun.units, begun.loss)


def initialize(step_spec: StepSpec, abstract: TrainState) -> TrainState:
    """The state before the first update, made where it will live."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract)

    def init() -> TrainState:
        return initial_state(step_spec.specs, step_spec.optimizer, step_spec.seed)

    # Run once, so that compiling it is all its cost: LLVM's first optimization level halves that and draws as fast.
    is_cpu = step_spec.mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 1} if is_cpu else None
    state: TrainState = jax.jit(init, out_shardings=shardings, compiler_options=options)()
    return state


def _restored(step: int, tree: Any, host: Mapping[str, Any], abstract: TrainState, step_spec: StepSpec) -> InitialState:
    pending = host.get("pending_validation")
    return InitialState(
        step=step,
        state=from_tree(tree, abstract, stacked=step_spec.is_stacked),
        units=int(host.get("units") or 0),
        loss=number(host.get("loss")),
        progress=Progress.from_document(host.get("progress") or {}),
        pending_validation=Record(**pending) if pending else None,
    )
