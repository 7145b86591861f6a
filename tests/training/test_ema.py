"""Averaged weights: what they are, that they survive a stop, that whatever evaluates uses them, and forks."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from test_training import stopped

from aifx.checkpoint.manifest import read_manifest
from aifx.core.errors import CheckpointError
from aifx.core.project import RunDirectory
from aifx.evaluation.held_out import evaluate
from aifx.loading.restore import restore_run
from aifx.optim import select_weights
from aifx.programs.build import tree_bytes
from aifx.tasks.base import training_source
from aifx.training.hook import Hook
from aifx.training.records import Record

EMA = "optimizer.ema_decay=0.9"


class Killed(BaseException):
    pass


class KillAt(Hook):
    """Ends the process's part of the run where it stands: nothing is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_record(self, record: Record) -> None:
        if record.step == self.step:
            raise Killed


def arrays(run: RunDirectory, step: int, part: str) -> dict[str, str]:
    """The digests of the arrays under a part of a checkpoint."""
    found = read_manifest(run.checkpoints / str(step)).arrays
    return {name.removeprefix(f"{part}/"): entry.digest for name, entry in found.items() if name.startswith(f"{part}/")}


@pytest.mark.slow
def test_the_average_is_that_of_the_weights_after_each_update(tiny) -> None:
    programs, plain = tiny.programs(EMA), tiny.programs()
    source = training_source(programs.task, programs.config)
    states = [programs.init()[0], plain.init()[0]]
    _, frozen = plain.init()
    mean: Any = jax.tree.map(np.float64, jax.device_get(states[1].params))
    for step in range(14):
        batch = programs.place(source.read(step, slice(0, 8)))
        states = [p.train_step(s, frozen, batch)[0] for p, s in zip((programs, plain), states, strict=True)]
        params, share = jax.device_get(states[1].params), max(1 - 0.9, 3 / (4 + step))
        mean = jax.tree.map(lambda m, p, share=share: m + share * (p - m), mean, params)
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, atol=1e-6), states[0].ema, mean)
    assert states[0].evaluated is states[0].ema
    assert states[1].evaluated is states[1].params
    weights = select_weights(states[1].params, plain.trained_specs)
    more = {name: size - plain.state_bytes()[name] for name, size in programs.state_bytes().items()}
    assert more == {"parameters": 0, "frozen": 0, "optimizer": tree_bytes(weights), "gradients": 0}


@pytest.mark.representative("a resumed average of weights")
def test_a_run_goes_on_bit_for_bit_after_a_stop_and_a_kill(tiny) -> None:
    settings = [EMA, "optimizer.kind=muon"]
    whole = tiny.train(*settings, run="whole")
    stopped(tiny, 5, *settings, run="stopped")
    with pytest.raises(Killed):
        tiny.train(*settings, run="killed", hooks=[KillAt(7)])
    for run in ("stopped", "killed"):
        again = tiny.train(*settings, run=run)
        assert again.resumed_from in (4, 5, 6, 7)
        assert again.state_digest == whole.state_digest
        assert tiny.records(run) == tiny.records("whole")
    stopped(tiny, 5, *settings, run="scanned")
    assert tiny.train(*settings, "model.scan_layers=true", run="scanned").loss == pytest.approx(whole.loss, rel=1e-4)


@pytest.mark.slow
def test_whatever_evaluates_uses_the_average(tiny) -> None:
    tiny.train(EMA)
    run = tiny.run()
    validated = tiny.records()[-1]["validation"]["loss"]
    assert evaluate(run, tiny.project, split="validation", step=12).metrics["loss"] == validated
    raw = evaluate(run, tiny.project, split="validation", step=12, overrides=["optimizer.ema_decay=0"])
    assert raw.metrics["loss"] != validated
    kept = restore_run(run, tiny.project, step=12).params
    assert set(arrays(run, 12, "ema")) == set(arrays(run, 12, "params"))
    plain = restore_run(run, tiny.project, step=12, overrides=["optimizer.ema_decay=0"]).params
    assert not np.array_equal(kept["bias"], plain["bias"])
    tiny.train(run="plain")
    with pytest.raises(CheckpointError, match="ema"):
        restore_run(tiny.run("plain"), tiny.project, step=12, overrides=[EMA])


@pytest.mark.slow
def test_forks_take_the_average_or_begin_one(trained) -> None:
    trained.train(EMA, "train.num_steps=16", run="first", fork_from="main")
    first = trained.run("first")
    assert arrays(first, 12, "ema") == arrays(first, 12, "params") == arrays(trained.run(), 12, "params")
    assert arrays(first, 16, "ema") != arrays(first, 16, "params")
    longer = trained.train("optimizer.ema_decay=0.5", "train.num_steps=20", run="longer", fork_from="first")
    assert longer.resumed_from == 16
    for part in ("ema", "params", "opt_state"):
        assert arrays(trained.run("longer"), 16, part) == arrays(first, 16, part)
    trained.train("train.num_steps=20", run="without", fork_from="first")
    assert arrays(trained.run("without"), 20, "ema") == {}
    trained.train(EMA, "optimizer.kind=muon", "train.num_steps=20", run="muon", fork_from="first")
    assert arrays(trained.run("muon"), 16, "ema") == arrays(first, 16, "ema")


@pytest.mark.slow
def test_a_finetuned_run_begins_with_the_average(trained) -> None:
    trained.train(EMA, run="base")
    base = trained.run("base")
    best = max(int(folder.name) for folder in base.checkpoints.iterdir() if folder.name.isdigit())
    trained.train(EMA, "finetune.base=base", "train.num_steps=1", "optimizer.learning_rate=1e-30", run="tuned")
    assert arrays(trained.run("tuned"), 1, "params") == arrays(base, best, "ema")
