"""The state in which a run begins: initialized, or restored from its own latest checkpoint or another run's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aifx.core.digests import sha256_of
from aifx.core.errors import CheckpointError
from aifx.core.files import replace_file
from aifx.core.json_values import number
from aifx.core.project import RunDirectory
from aifx.data.chat.format import PreferenceData
from aifx.loading.base_weights import frozen_arrays, with_base_params
from aifx.loading.references import with_references
from aifx.loading.restore import check_frozen
from aifx.models.adapted import AdaptedModel
from aifx.programs.build import Programs
from aifx.programs.state import TrainState, first_average
from aifx.runs.binding import RunDigests
from aifx.specs import Params
from aifx.training.hooks.guard import GuardState
from aifx.training.hooks.validation import Progress
from aifx.training.records import Record
from aifx.training.resume_checks import Fork
from aifx.training.state import from_tree, to_tree

if TYPE_CHECKING:
    from aifx.checkpoint.checkpoints import Checkpoints

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialState:
    """The state that the first step takes, the frozen arrays, and what the host knew when the state was saved."""

    step: int
    state: TrainState
    frozen: Params
    units: int = 0
    loss: float | None = None
    progress: Progress = field(default_factory=Progress)
    pending_validation: Record | None = None
    guards: GuardState = field(default_factory=GuardState)


def begin(
    programs: Programs, checkpoints: Checkpoints, run: RunDirectory, frozen: Params | None = None
) -> InitialState:
    """The state of the latest checkpoint that is whole. If there is none, it is initialized.

    Args:
        frozen: the frozen arrays, if they are there already.
    """
    latest = checkpoints.latest()
    # All processes ask together, since one may not see yet what another has saved to a file system that they share.
    found = checkpoints.latest_good(to_tree(programs.abstract[0], stacked=programs.is_stacked))
    if found is not None:
        return _restored(found.step, found.state, found.host, programs, run, run, frozen)
    if latest is not None:
        logger.warning("no checkpoint is whole: the run starts again from its beginning")
    if isinstance(programs.model, AdaptedModel):
        return InitialState(0, programs.init_state(), frozen_arrays(programs, run) if frozen is None else frozen)
    state, made = programs.init()
    if frozen is None and made:  # by the program that makes them when the run resumes: this one may round otherwise
        made = frozen_arrays(programs, run)
    if programs.config.finetune.base is not None:
        state = with_base_weights(state, programs, run)
    return InitialState(0, state, made if frozen is None else frozen)


def with_base_weights(state: TrainState, programs: Programs, run: RunDirectory) -> TrainState:
    """The state with the weights of the base run, as `with_base_params` takes them."""
    params = with_base_params(state.params, programs, run)
    return replace(state, params=params, ema=first_average(params) if programs.has_ema else None)


def begin_at(step: int, programs: Programs, run: RunDirectory) -> InitialState:
    """The state of one checkpoint of a run, which stays as it is. Raises CheckpointError."""
    from aifx.checkpoint.checkpoints import Checkpoints

    wanted = to_tree(programs.abstract[0], stacked=programs.is_stacked)
    state, host = Checkpoints(run.checkpoints, programs.config.checkpoint).restore(step, wanted)
    return _restored(step, state, host, programs, run, run)


def begin_from(fork: Fork, programs: Programs, run: RunDirectory) -> InitialState:
    """Another run's checkpoint. Its optimizer state is taken if it fits, and otherwise starts again.

    If the checkpoint holds no averaged weights, their average starts from its weights. Raises CheckpointError if the
    parameters do not fit this configuration's model.
    """
    from aifx.checkpoint.checkpoints import Checkpoints
    from aifx.checkpoint.manifest import Damaged

    checkpoints = Checkpoints(fork.run.checkpoints, programs.config.checkpoint)
    wanted = to_tree(programs.abstract[0], stacked=programs.is_stacked)

    def restored_if_fit(part: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = checkpoints.restore(fork.step, {part: wanted[part]})[0]
            return found
        except Damaged:
            raise  # the parameters may be whole, but to drop the rest is not ours to decide
        except CheckpointError:
            return {}

    try:
        tree, host = checkpoints.restore(fork.step, {k: wanted[k] for k in ("step", "params")})
    except Damaged:
        raise
    except CheckpointError as unfit:
        of_model = (
            "model.",
            "task.",
            "objective.",
            "data.",
            "train.parameter_dtype",
            "train.folds",
            "finetune.",
            "lora.",
        )
        changed = [str(d) for d in fork.changes if d.key.startswith(of_model)]
        what = f"a fork of run {fork.run.name!r} cannot have another model"
        hint = "aifx train --run NAME    (a new run, from its first step)"
        raise CheckpointError(what, "\n".join([*changed, unfit.why]), hint) from unfit
    tree |= restored_if_fit("opt_state")
    if "opt_state" not in tree:
        logger.warning("the optimizer's state does not fit this configuration and starts again")
        tree["opt_state"] = to_tree(programs.init_state(), stacked=programs.is_stacked)["opt_state"]
    if programs.has_ema:
        tree |= restored_if_fit("ema") or {"ema": first_average(tree["params"])}
    initial = _restored(fork.step, tree, host, programs, fork.run, run)
    # What was best on the way here was measured under another configuration.
    return replace(initial, progress=Progress(), pending_validation=None, guards=GuardState())


def _restored(
    step: int,
    tree: Any,
    host: Mapping[str, Any],
    programs: Programs,
    saved_by: RunDirectory,
    run: RunDirectory,
    frozen: Params | None = None,
) -> InitialState:
    frozen = frozen_arrays(programs, run) if frozen is None else frozen
    check_frozen(programs, frozen, host, saved_by, step)
    pending = host.get("pending_validation")
    return InitialState(
        step=step,
        state=from_tree(tree, programs.abstract[0], stacked=programs.is_stacked),
        frozen=frozen,
        units=int(host.get("units") or 0),
        loss=number(host.get("loss")),
        progress=Progress(**(host.get("progress") or {})),
        pending_validation=Record.read(pending) if pending else None,
        guards=GuardState.read(host.get("guards")),
    )


def with_kept_references(programs: Programs, frozen: Params, run: RunDirectory, digests: RunDigests | None) -> Programs:
    """`with_references`. The process that has the run's digests keeps the file in the run, bound to its checkpoints."""
    programs = with_references(programs, frozen, run)
    dataset = programs.task.dataset
    if digests is not None and isinstance(dataset, PreferenceData):
        assert dataset.references is not None
        data = dataset.references.as_file()
        found = {run.reference.name: sha256_of(data)}
        if not found.items() <= digests.assets.items():
            replace_file(run.reference, data)
            digests.assets = {**digests.assets, **found}
            digests.write(run)
    return programs
