"""Steps that go wrong: what is applied, what is reported, where a run ends, and that a resumed run decides alike."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stopping import StopAt

from aifx.checkpoint.digest import state_digest
from aifx.checkpoint.manifest import read_manifest
from aifx.config.sections import GuardsSection
from aifx.data.order import batch_number
from aifx.tasks.base import training_source
from aifx.training.dispatcher import EventDispatcher
from aifx.training.hook import Hook
from aifx.training.hooks.guard import Guard, GuardState, Rollback, spike_score
from aifx.training.records import Record
from aifx.training.replay import replay
from aifx.training.state import to_tree

EVERY_2 = ("checkpoint.every=2", "checkpoint.keep_last=9", "checkpoint.asynchronous=false")


def bad_at(*batches: int) -> str:
    return f"data.poison_steps={list(batches)}"


def of_kind(tiny: Any, name: str) -> list[dict[str, Any]]:
    return [event for event in tiny.events() if event["event"] == name]


def digest_by_hand(tiny: Any, numbers: list[int | None]) -> str:
    """The digest of the state after an update from each of these batches; None leaves it out, and counts the step."""
    programs = tiny.programs()
    source = training_source(programs.task, programs.config)
    state, frozen = programs.init()
    step = programs.train_step.lower().compile()
    for number in numbers:
        if number is None:
            state = replace(state, step=state.step + 1)
        else:
            state, _ = step(state, frozen, programs.place(source.read(number, slice(0, 8))))
    return state_digest(to_tree(state, stacked=False))


class CrashAt(Hook):
    """Ends the process, as far as the run can tell, at a record of a step or at an event."""

    def __init__(self, step: int = 0, event: str = "") -> None:
        self.step, self.name = step, event

    def on_record(self, record: Any) -> None:
        if record.step == self.step:
            raise RuntimeError("the machine is gone")

    def on_event(self, name: str, fields: Any) -> None:
        if name == self.name:
            raise RuntimeError("the machine is gone")


@pytest.mark.representative("a step that is not finite")
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("more", [(), ("optimizer.kind=muon", "optimizer.ema_decay=0.9"), ("model.scan_layers=true",)])
def test_an_update_that_is_not_finite_is_not_applied(tiny, more: tuple[str, ...], platform: str) -> None:
    programs = tiny.programs(bad_at(2), *more)
    source = training_source(programs.task, programs.config)
    step = jax.jit(replace(programs.step, layout=replace(programs.layout, platform=platform)))
    state, frozen = programs.init()
    for number in (0, 1):
        state, _ = step(state, frozen, programs.place(source.read(number, slice(0, 8))))
    before = jax.tree.map(np.asarray, state)
    state, numbers = step(state, frozen, programs.place(source.read(2, slice(0, 8))))
    assert not np.isfinite(np.asarray(numbers)[:2]).any()
    assert (int(before.step), int(state.step)) == (2, 3)
    for old, new in zip(*(jax.tree.leaves((s.params, s.opt_state, s.ema)) for s in (before, state)), strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))
    kept = jax.tree.map(np.asarray, state.params)
    state, numbers = step(state, frozen, programs.place(source.read(3, slice(0, 8))))
    assert np.isfinite(np.asarray(numbers)).all()
    moved = [
        np.any(a != np.asarray(b)) for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(state.params), strict=True)
    ]
    assert all(moved)


def test_an_infinite_gradient_of_a_finite_loss_is_seen(tiny) -> None:
    programs = tiny.programs()
    compute = programs.step.loss_and_gradients

    def infinite(*arguments: Any) -> Any:
        loss, gradients = compute(*arguments)
        return loss, jax.tree.map(lambda g: g.at[(0,) * g.ndim].set(jnp.inf), gradients)

    object.__setattr__(programs.step, "loss_and_gradients", infinite)
    state, frozen = programs.init()
    before = jax.tree.map(np.asarray, state.params)
    batch = training_source(programs.task, programs.config).read(0, slice(0, 8))
    state, numbers = jax.jit(programs.step)(state, frozen, programs.place(batch))
    assert [bool(np.isfinite(n)) for n in np.asarray(numbers)[:2]] == [True, False]
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))


def test_one_bad_batch_does_not_end_a_run(tiny, logged: list[str]) -> None:
    result = tiny.train(bad_at(4), *EVERY_2)
    assert (result.status, result.step, result.exit_code) == ("completed", 12, 0)
    (skip,) = of_kind(tiny, "skip")
    assert (skip["step"], skip["batch"], skip["reason"], skip["rows"]) == (5, 4, "non_finite", [[0, 8]])
    assert "'x', row 0" in skip["fault"]
    assert skip["loss"] is None
    assert any("step 5" in line and "batch 4" in line and "row 0" in line for line in logged)
    records = tiny.records()
    assert [r["step"] for r in records] == list(range(1, 13))
    assert [r["step"] for r in records if r.get("is_skipped")] == [5]
    assert [r["step"] for r in records if r["loss"] is None] == [5]
    assert records[-1]["units"] == 11 * 8, "a batch that was skipped taught nothing"

    assert result.state_digest == digest_by_hand(tiny, [0, 1, 2, 3, None, *range(5, 12)])


@pytest.mark.slow
def test_a_skipped_step_may_be_the_last_or_validate(tiny) -> None:
    assert tiny.train(bad_at(3, 11)).status == "completed"
    records = tiny.records()
    assert [r["step"] for r in records if "validation" in r] == [4, 8, 12]
    assert [r["step"] for r in records if r.get("is_skipped")] == [4, 12]
    assert of_kind(tiny, "stop")[0]["loss"] == records[-2]["loss"], "of the last update"


def test_a_validation_that_is_not_finite_is_a_warning(tiny, logged: list[str]) -> None:
    assert tiny.train("data.poison_validation=true").status == "completed"
    assert sum("validation is not finite" in line for line in logged) == 1
    assert [event["improved"] for event in tiny.events() if event["event"] == "validation"] == [False] * 3


def test_so_many_in_a_row_end_the_run(tiny) -> None:
    result = tiny.train(bad_at(4, 5, 6), *EVERY_2)
    assert (result.status, result.step, result.exit_code) == ("diverged", 7, 1)
    assert "2 steps before" in result.error.why
    assert "guards.max_in_a_row" in result.error.why
    assert "--run main --fork NAME --step 2 " in result.error.hint
    assert [e["step"] for e in of_kind(tiny, "skip")] == [5, 6, 7]
    assert [e["step"] for e in of_kind(tiny, "checkpoint")] == [2, 4], "none among the steps that were skipped"
    assert of_kind(tiny, "nan")[0]["step"] == 7


@pytest.mark.representative("a step that is not finite")
def test_a_checkpoint_waits_for_a_step_that_is_not_skipped(tiny) -> None:
    assert tiny.train(bad_at(3, 4, 11), *EVERY_2, "train.validate_every=0").status == "completed"
    assert [e["step"] for e in of_kind(tiny, "checkpoint")] == [2, 6, 8, 10, 12]
    assert tiny.train(bad_at(3), *EVERY_2, "train.validate_every=0", run="other").status == "completed"
    assert [e["step"] for e in tiny.events("other") if e["event"] == "checkpoint"] == [2, 5, 6, 8, 10, 12]


@pytest.mark.representative("a step that is not finite")
def test_a_resumed_run_skips_the_same_steps(tiny) -> None:
    whole = tiny.train(bad_at(3, 5), *EVERY_2, run="whole")
    with pytest.raises(RuntimeError, match="gone"):
        tiny.train(bad_at(3, 5), *EVERY_2, hooks=[CrashAt(7)])
    assert tiny.train(bad_at(3, 5), *EVERY_2).state_digest == whole.state_digest
    assert tiny.records() == tiny.records("whole")


@pytest.mark.representative("a step that is not finite")
def test_a_stop_among_skipped_steps_counts_on(tiny) -> None:
    settings = (bad_at(4, 5, 6), *EVERY_2)
    observer = StopAt(5)
    first = tiny.train(*settings, hooks=[observer], stop=observer.signals)
    saved = tiny.run().checkpoints / str(first.step)
    assert read_manifest(saved).host["guards"]["in_a_row"] == first.step - 4 > 0
    result = tiny.train(*settings)
    assert (result.status, result.step) == ("diverged", 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skip", "stop"])
def test_the_policy_may_change_between_two_processes(tiny, name: str) -> None:
    assert tiny.train(bad_at(4), *EVERY_2, "guards.non_finite=stop").status == "diverged"
    wanted = {"skip": "completed", "stop": "diverged"}[name]
    assert tiny.train(bad_at(4), *EVERY_2, f"guards.non_finite={name}").status == wanted


def test_the_batches_left_out_are_those_that_no_step_takes() -> None:
    rng = np.random.default_rng(0)
    for count in range(12):
        left_out = sorted(rng.choice(30, count, replace=False).tolist())
        taken = [batch_number(step, left_out) for step in range(1, 31)]
        assert taken == [n for n in range(60) if n not in left_out][:30]


def test_the_score_of_a_spike() -> None:
    rng = np.random.default_rng(0)
    losses = rng.normal(3.0, 0.2, 2000).tolist()
    assert spike_score(3.2 + 0.2, losses) == pytest.approx(2.0, rel=0.1), "standard deviations, of normal losses"
    losses[::5] = [1e6] * 400
    assert spike_score(3.2 + 0.2, losses) < 2.5, "spikes among the losses hide no other"
    assert spike_score(1.05, [1.0] * 50) == pytest.approx(5.0), "losses that do not differ make no spike of 5 %"
    assert spike_score(0.0, [0.0] * 9) == 0.0


def judged(losses: list[float]) -> Guard:
    """A guard that has seen these losses."""
    guard = Guard(GuardsSection(spike="roll_back"), EventDispatcher(None, []), {})
    for step, loss in enumerate(losses, 1):
        guard.after_step(Record(step, loss, 1.0, 0.01, "images", 32 * step, 1.0, 1.0, None, None, 0.0, 0.0), {})
    return guard


def test_a_loss_near_zero_is_no_spike() -> None:
    """digits_losses.json: of a network of 128 units that learned scikit-learn's digits, 32 per step.

    The first losses, and 128 losses before one that is ten times their median, and still a seventieth of the first.
    """
    digits = json.loads((Path(__file__).parent / "digits_losses.json").read_text())
    first, before, loss = digits["first"], digits["before"], digits["loss"]
    assert spike_score(loss, before) > 10, "beside the losses before it"
    guard = judged([*first, *before, loss])
    assert guard.state.start == pytest.approx(np.median(first))
    assert GuardState.read(guard.state.document()) == guard.state
    with pytest.raises(Rollback) as rollback:
        judged([*first, *before, 0.5])
    assert (rollback.value.reason, rollback.value.first) == ("spike", 137)
    with pytest.raises(Rollback):
        judged([loss * 1e-3 for loss in (*first, *before, 0.5)])  # the loss of a task may have any scale


ROLL_BACK = (*EVERY_2, "guards.non_finite=roll_back", "guards.max_in_a_row=2")


def test_a_run_goes_back_and_leaves_out_the_batches_at_fault(tiny) -> None:
    result = tiny.train(bad_at(2, 6, 7), *ROLL_BACK)
    assert result.status == "completed"
    (rollback,) = of_kind(tiny, "rollback")
    assert (rollback["from_step"], rollback["to_step"], rollback["batches"]) == (8, 6, [6, 7])
    assert result.state_digest == digest_by_hand(tiny, [0, 1, None, 3, 4, 5, *range(8, 14)])
    records = tiny.records()
    assert [r["step"] for r in records] == list(range(1, 13))
    assert [r["step"] for r in records if r.get("is_skipped")] == [3], "records of what was given up are gone"
    assert [r["step"] for r in records if "validation" in r] == [4, 8, 12]
    assert read_manifest(tiny.run().checkpoints / "12").host["guards"]["left_out"] == [6, 7]

    def show_batch(*args: str) -> dict[str, Any]:
        code, out, err = tiny.command("data", "show", "--run", "main", "--json", *args)
        assert code == 0, err
        return json.loads(out)

    assert [show_batch("--step", str(step))["batch"] for step in (6, 7, 12)] == [5, 8, 13]
    left_out = show_batch("--batch", "6")
    assert (left_out["step"], left_out["left_out"]) == (None, [6, 7])
    assert re.search("step 8.*non_finite", left_out["skipped"])
    assert "'x', row 0" in left_out["fault"]
    assert "nan" in left_out["rows"][0]["fields"]["x"]
    assert re.search("step 3.*non_finite", show_batch("--step", "3")["skipped"])
    code, _, err = tiny.command("data", "show", "--run", "main", "--step", "13")
    assert (code, "train.num_steps = 12" in err) == (2, True)


SPIKE = (*EVERY_2, "guards.spike=roll_back", "guards.spike_window=8", "data.spike_steps=[9]")


def test_the_batch_of_a_spike_is_left_out(tiny, logged: list[str]) -> None:
    result = tiny.train(*SPIKE)
    (rollback,) = of_kind(tiny, "rollback")
    assert (rollback["to_step"], rollback["step"], rollback["batches"]) == (8, 10, [9])
    assert rollback["reason"] == "spike"
    assert any("step 10" in line and "spike" in line for line in logged)
    assert result.state_digest == digest_by_hand(tiny, [*range(9), 10, 11, 12])
    again = replay(tiny.run(), tiny.project, 6, 4)
    assert (again.compared_with, again.different_arrays) == ("checkpoint", []), "from before it went back"


def test_a_spike_is_only_a_warning_by_default(tiny, logged: list[str]) -> None:
    assert tiny.train("guards.spike_window=8", "data.spike_steps=[9,10]").status == "completed"
    assert len([line for line in logged if "is a spike" in line]) == 1, "once for spikes in a row"
    assert not of_kind(tiny, "rollback")


@pytest.mark.slow
@pytest.mark.parametrize("crash", [CrashAt(event="rollback"), CrashAt(step=9), CrashAt(step=11)])
def test_a_run_that_was_killed_leaves_out_the_same_batches(tiny, crash: CrashAt) -> None:
    settings = (bad_at(2, 6, 7), *ROLL_BACK)
    whole = tiny.train(*settings, run="whole")
    with pytest.raises(RuntimeError, match="gone"):
        tiny.train(*settings, hooks=[crash])
    assert tiny.train(*settings).state_digest == whole.state_digest
    assert tiny.records() == tiny.records("whole")
    assert len(of_kind(tiny, "rollback")) == (2 if crash.name else 1), "the checkpoint that it went back to has them"


def test_the_checkpoint_that_it_went_back_to_keeps_its_validation(tiny) -> None:
    tiny.train(bad_at(4, 5), *ROLL_BACK, "train.validate_every=4")
    before, after = (read_manifest(tiny.run().checkpoints / step) for step in ("4", "12"))
    assert before.score is not None
    assert before.host["guards"]["left_out"] == after.host["guards"]["left_out"] == [4, 5]


@pytest.mark.representative("a step that is not finite")
def test_going_back_ends(tiny) -> None:
    result = tiny.train(bad_at(*range(4, 60)), *ROLL_BACK)
    assert (result.status, result.exit_code) == ("diverged", 1)
    assert [e["to_step"] for e in of_kind(tiny, "rollback")] == [4, 2, 4, 2, 4]
    assert tiny.train(bad_at(*range(4, 60)), *ROLL_BACK).status == "diverged", "also in the next process"


@pytest.mark.representative("a step that is not finite")
def test_a_run_without_a_checkpoint_goes_back_to_its_beginning(tiny) -> None:
    result = tiny.train(bad_at(0, 1), "guards.non_finite=roll_back", "guards.max_in_a_row=2")
    assert of_kind(tiny, "rollback")[0]["to_step"] == 0
    assert result.state_digest == digest_by_hand(tiny, list(range(2, 14)))
    result = tiny.train(bad_at(*range(9)), "guards.non_finite=roll_back", "guards.max_in_a_row=2", run="other")
    assert result.status == "diverged"
