"""The best checkpoint is the one that is best by the metric that counts."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

import inprocess
import pytest

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.config.best_by import LOSS, BestBy, Score, best_by_of, parse_best_by, with_best_by
from aifx.config.gates import parse_gate
from aifx.core.errors import ConfigError
from aifx.evaluation.held_out import better_last
from aifx.training.hooks.validation import Progress

ACCURACY = BestBy("accuracy", "max")
TASK = """\
from tiny import TinyObjective, TinyTask


class Scored(TinyObjective):
    calls = 0

    def metrics(self, totals, data):
        Scored.calls += 1
        return {**super().metrics(totals, data), "accuracy": ACCURACIES[Scored.calls % len(ACCURACIES)]}


class ScoredTask(TinyTask):
    objective_class = Scored
"""


@pytest.fixture
def scored(tiny):
    """A project whose validations at steps 4, 8 and 12 report accuracies of 0.9, 0.5 and 0.7, whatever the loss is."""
    (tiny.root / "scored.py").write_text(TASK + "\n\nACCURACIES = [0.1, 0.1, 0.9, 0.5, 0.7]\n")
    path = tiny.root / "aifx.toml"
    path.write_text(path.read_text().replace("tiny:TinyTask", "scored:ScoredTask"))
    return tiny


def aifx(tiny: Any, *args: str) -> str:
    done = inprocess.run(args, tiny.root, os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_progress_follows_the_metric() -> None:
    progress = Progress()
    for step, loss, accuracy in ((1, 3.0, 0.5), (2, 2.0, 0.7), (3, 1.0, 0.6), (4, 0.5, float("nan"))):
        progress = progress.after(step, {"loss": loss, "accuracy": accuracy}, ACCURACY)
    assert progress == Progress(2.0, 2, 2, 0.5, 0.7, 1, recent=[0.6])
    by_loss = Progress()
    for step, loss in ((1, 3.0), (2, 2.0), (3, float("nan"))):
        by_loss = by_loss.after(step, {"loss": loss}, LOSS)
    assert by_loss == Progress(2.0, 2, 1, None, 2.0, 1, recent=[2.0])
    assert Progress(**json.loads(json.dumps(asdict(progress)))) == progress


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        ([], LOSS),
        (["accuracy >= 0.8", "loss <= 2"], ACCURACY),
        (["bits_per_byte < 2"], BestBy("bits_per_byte", "min")),
        (["images == 10", "per_class.Shirt.recall > 0.5"], BestBy("per_class.Shirt.recall", "max")),
    ],
)
def test_the_default_is_the_metric_of_the_first_gate(tiny, gates: list[str], expected: BestBy) -> None:
    config = tiny.config(f"eval.gates={json.dumps(gates)}")
    assert best_by_of(config) == expected
    fixed = with_best_by(config)
    assert fixed.checkpoint.best_by == str(expected)
    assert best_by_of(fixed) == expected
    assert with_best_by(config, "max f1").checkpoint.best_by == "max f1"
    assert best_by_of(tiny.config("checkpoint.best_by=max f1", f"eval.gates={json.dumps(gates)}")).metric == "f1"


@pytest.mark.parametrize("text", ["accuracy", "max", "most accuracy", "", "max "])
def test_what_is_no_direction_and_metric_is_refused(tiny, text: str) -> None:
    with pytest.raises(ConfigError, match="best_by"):
        tiny.config(f'checkpoint.best_by="{text}"')


def test_a_nested_metric_may_hold_spaces() -> None:
    best_by = parse_best_by("max per_class.T-shirt or top.recall")
    assert best_by.value({"per_class": {"T-shirt or top": {"recall": 0.5}}}) == 0.5


def test_a_run_keeps_what_is_best_by_the_gate_and_not_by_the_loss(scored) -> None:
    gates = 'eval.gates=["accuracy >= 0.8"]'
    result = scored.train(gates, "checkpoint.keep_last=1")
    assert (result.best_step, result.best_by, result.best_value) == (4, "max accuracy", 0.9)
    assert result.best_validation_loss > result.validation_loss, "the loss got better, and the accuracy did not"
    checkpoints = Checkpoints(scored.run().checkpoints, scored.config().checkpoint)
    assert checkpoints.steps() == [4, 12]
    assert checkpoints.best() == 4
    assert [i.score for i in checkpoints.infos()] == [Score("accuracy", "max", 0.9), Score("accuracy", "max", 0.7)]
    document = json.loads(aifx(scored, "runs", "show", "main", "--json"))
    assert (document["best_step"], document["best_by"], document["best_value"]) == (4, "max accuracy", 0.9)
    assert document["best_validation_loss"] == result.best_validation_loss
    assert [c["is_best"] for c in document["checkpoints"]] == [True, False]

    # Gates may change; what makes a checkpoint the best does not.
    again = scored.train('eval.gates=["loss <= 3"]', "checkpoint.keep_last=1")
    assert (again.already, again.best_step, again.best_by) == (True, 4, "max accuracy")
    with pytest.raises(ConfigError) as error:
        scored.train(gates, "checkpoint.best_by=min loss")
    assert '"max accuracy" -> "min loss"' in error.value.why
    assert "best_by" in scored.run().config.read_text()


def test_a_run_keeps_what_is_best_over_several_validations(scored) -> None:
    """The means of two validations are 0.9, 0.7 and 0.6 of the metric, and each checkpoint has its own."""
    result = scored.train("checkpoint.best_by=min accuracy", "checkpoint.best_over=2", "checkpoint.keep_best=2")
    assert (result.best_step, result.best_value) == (12, pytest.approx(0.6))
    checkpoints = Checkpoints(scored.run().checkpoints, scored.config().checkpoint)
    scores = {info.step: info.score.value for info in checkpoints.infos() if info.score}
    assert scores == {8: pytest.approx(0.7), 12: pytest.approx(0.6)}
    document = json.loads(aifx(scored, "runs", "show", "main", "--json"))
    assert (document["best_step"], document["best_value"]) == (12, pytest.approx(0.6))
    assert (result.best_over, document["best_over"]) == (2, 2)
    assert scored.events()[-1]["best_over"] == 2
    best = "accuracy 0.6000 at step 12 (mean of 2)"
    assert best in " ".join(aifx(scored, "runs", "show", "main").split())
    assert f"best validation {best}" in aifx(scored, "train", "--set", "checkpoint.best_over=2")


def test_the_first_validation_is_its_own_mean(scored) -> None:
    result = scored.train("checkpoint.best_by=max accuracy", "checkpoint.best_over=2")
    assert (result.best_step, result.best_value, result.best_over) == (4, 0.9, 1)
    assert "mean of" not in aifx(scored, "runs", "show", "main")


@pytest.mark.slow
def test_the_last_one_that_beats_the_best_is_remarked(scored) -> None:
    result = scored.train("checkpoint.best_by=min accuracy", "checkpoint.keep_last=1")
    assert result.best_step == 8
    run, gate = scored.run(), parse_gate("accuracy >= 0.8")
    found = better_last(run, [gate])
    assert found is not None
    assert (found.best_by, found.last_step, found.last_value) == ("max accuracy", 12, 0.7)
    assert (found.best_step, found.best_value) == (8, 0.5)
    assert better_last(run, [parse_gate("accuracy <= 0.8")]) is None
    assert better_last(run, [parse_gate("other <= 0.8")]) is None
    assert better_last(run, []) is None

    out = aifx(scored, "eval", "--gate", "accuracy >= 0.05")
    remark = "the last checkpoint beats the best one by accuracy: 0.7000 at step 12, 0.5000 at step 8"
    assert remark in " ".join(out.split())
    out = aifx(scored, "eval", "--gate", "accuracy >= 0.05", "--step", "last", "--json")
    assert json.loads(out)["better_last"] is None


def test_a_metric_that_validation_does_not_report_is_refused_before_the_first_step(scored) -> None:
    with pytest.raises(ConfigError, match="'acuracy'") as error:
        scored.train("checkpoint.best_by=max acuracy")
    assert error.value.why == "did you mean 'accuracy'?"
    assert not scored.run().metrics.exists()
    assert scored.train("checkpoint.best_by=max acuracy", "train.validate_every=0").status == "completed"


@pytest.mark.parametrize(("limit", "warnings"), [(0, 1), (4, 0), (20, 1)])
def test_validations_without_improvement_are_reported_once(tiny, limit: int, warnings: int, logged) -> None:
    (tiny.root / "scored.py").write_text(TASK + "\n\nACCURACIES = [0.5]\n")
    path = tiny.root / "aifx.toml"
    path.write_text(path.read_text().replace("tiny:TinyTask", "scored:ScoredTask"))
    tiny.train("checkpoint.best_by=max accuracy", "train.validate_every=1", f"train.early_stopping={limit}")
    text = "4 validations in a row without a better accuracy: the best is 0.5000, of step 1"
    told = [event["text"] for event in tiny.events() if event["event"] == "warning"]
    assert [line.startswith(text) for line in told] == [True] * warnings
    assert [f"warning: {line}" for line in told] == [line for line in logged if text in line]
    assert tiny.run().log.read_text().count(text) == warnings
    assert all(("train.early_stopping" in line) == (limit == 0) for line in told)
