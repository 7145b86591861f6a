"""Runs from their beginning to their end, in this process: records, resuming, forks, refusals, bad ends."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import inprocess
import jax
import numpy as np
import pytest
from effort import IS_LONG
from stopping import StopAt

from aifx.checkpoint import faults
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.core.errors import ConfigError, EnvironmentFault, UsageError
from aifx.core.project import Project
from aifx.runs.status import run_status
from aifx.tasks.base import training_source
from aifx.training.hook import Hook
from aifx.training.records import Record, TrainResult
from aifx.training.state import to_tree


def stopped(tiny, step: int, *settings: str, run: str = "main") -> TrainResult:
    observer = StopAt(step)
    return tiny.train(*settings, run=run, hooks=[observer], stop=observer.signals)


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory, whole) -> Any:
    """A project whose run "main" was stopped after step 5. Not to be changed."""
    tiny = replace(whole.tiny, project=Project(tmp_path_factory.mktemp("stopped") / "project"))
    shutil.copytree(whole.tiny.root, tiny.root, ignore=shutil.ignore_patterns("runs"))
    stopped(tiny, 5)
    return tiny


@pytest.fixture
def halted(stopped_once, tmp_path: Path) -> Any:
    """A copy of the project of `stopped_once`."""
    return replace(stopped_once, project=Project(Path(shutil.copytree(stopped_once.root, tmp_path / "halted"))))


@pytest.mark.slow
def test_a_run_tells_its_story_on_disk(whole) -> None:
    tiny, result = whole.tiny, whole.result
    assert (result.status, result.step, result.exit_code) == ("completed", 12, 0)
    records = tiny.records()
    assert [r["step"] for r in records] == list(range(1, 13))
    assert records[-1]["loss"] == result.loss < records[0]["loss"]
    assert (records[-1]["unit"], records[-1]["units"]) == ("rows", 12 * 8)
    assert [r["step"] for r in records if "validation" in r] == [4, 8, 12]
    full = json.loads(tiny.run().metrics.read_text().splitlines()[-1])
    assert full["units_per_s"] > 0
    assert full["step_time_s"] > 0
    assert full["mfu"] > 0
    names = [e["event"] for e in tiny.events()]
    assert names[:3] == ["start", "compile", "compiled"]
    assert names[-1] == "stop"
    assert names.count("checkpoint") == 3
    assert names.count("validation") == 3
    log = tiny.run().log.read_text()
    assert "MFU = " in log
    assert "estimate" in log
    assert "completed at step 12" in log
    document = result.document()
    assert (document["unit"], document["units_per_s"]) == ("rows", result.units_per_s)
    assert json.loads(json.dumps(document)) == document


@pytest.mark.slow
def test_a_finished_run_is_told_again(whole, trained) -> None:
    first = whole.result
    left = trained.run().path / ".kernels.json.0123456789ab.tmp"  # by a process that was killed
    left.touch()
    again = trained.train()
    assert not left.exists()
    assert again.already
    for name in ("status", "step", "loss", "state_digest", "units_per_s", "best_step", "unit"):
        assert getattr(again, name) == getattr(first, name), name
    assert [e["event"] for e in trained.events()].count("start") == 1


def test_the_digest_is_that_of_the_checkpoint(whole) -> None:
    checkpoints = Checkpoints(whole.tiny.run().checkpoints, whole.tiny.config().checkpoint)
    assert checkpoints.verify(12).state_digest == whole.result.state_digest


ALL_STEPS = [1, 4, 6]


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("adamw", ALL_STEPS if IS_LONG else [1, 6]),
        pytest.param("muon", ALL_STEPS if IS_LONG else [4], marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(tiny, kind: str, steps: list[int]) -> None:
    settings = [f"optimizer.kind={kind}", "train.gradient_accumulation=2"]
    whole = tiny.train(*settings, run="whole")
    for step in steps:
        run = f"stopped-{step}"
        first = stopped(tiny, step, *settings, run=run)
        assert (first.status, first.exit_code) == ("preempted", 75)
        assert step <= first.step <= step + 2
        second = tiny.train(*settings, run=run)
        assert second.status == "completed"
        assert second.resumed_from == first.step
        assert second.state_digest == whole.state_digest
        assert second.loss == whole.loss
        assert tiny.records(run) == tiny.records("whole")
        assert second.best_validation_loss == whole.best_validation_loss


def test_a_stop_at_a_validation_leaves_it_to_the_next_process(tiny, whole) -> None:
    first = stopped(tiny, 3)  # step 4, which validates, is on the device by then
    assert first.step == 4
    assert [r["step"] for r in tiny.records()] == [1, 2, 3, 4]
    assert "validation" not in tiny.records()[-1]
    second = tiny.train()
    assert second.state_digest == whole.result.state_digest
    assert tiny.records() == whole.records


def test_what_was_written_beyond_the_checkpoint_is_written_again(halted, whole) -> None:
    metrics = halted.run().metrics
    kept = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(kept) + '{"step": 999, "loss": 1.0}\n{"step": 1000, "lo')
    halted.train()
    assert halted.records() == whole.records


@pytest.mark.slow
def test_scan_layers_may_change_in_the_middle(halted, whole, logged: list[str]) -> None:
    observer = StopAt(8)
    scanned = ["model.scan_layers=true", "log.every=2"]
    halted.train(*scanned, hooks=[observer], stop=observer.signals)
    (line,) = [line for line in logged if "last bits" in line]
    assert line.startswith("model.scan_layers")
    assert "log.every" not in line
    logged.clear()
    last = halted.train(*scanned)
    assert not [line for line in logged if "last bits" in line], "it changed before, and that was logged"
    assert last.status == "completed"
    assert last.loss == pytest.approx(whole.result.loss, rel=1e-4)


def test_another_configuration_is_refused(halted) -> None:
    with pytest.raises(ConfigError) as refused:
        halted.train("optimizer.learning_rate=0.5", "model.width=16")
    assert re.search(r"optimizer\.learning_rate.*0\.02 -> 0\.5", refused.value.why)
    assert re.search(r"model\.width.*8 -> 16", refused.value.why)
    assert "--fork" in refused.value.hint
    assert halted.train("checkpoint.keep_last=5", "log.every=2").status == "completed", "these change no number"


@pytest.mark.slow
def test_a_run_without_a_checkpoint_begins_anew(tiny) -> None:
    assert tiny.train("data.poison_steps=[1]", "guards.non_finite=stop").status == "diverged"
    assert tiny.train("optimizer.learning_rate=0.01").status == "completed"


def test_changed_data_is_refused(halted) -> None:
    provenance = json.loads(halted.run().provenance.read_text())
    provenance["data_digest"] = "0" * 64
    halted.run().provenance.write_text(json.dumps(provenance))
    with pytest.raises(ConfigError, match="data"):
        halted.train()


def test_data_that_changed_with_its_provenance_is_refused(halted) -> None:
    """By the digest that the checkpoints name."""
    (halted.root / "data.txt").write_text("other rows")
    halted.run().provenance.unlink()
    with pytest.raises(ConfigError, match="data of run 'main' has changed"):
        halted.train()


def test_a_changed_environment_is_said(halted, logged: list[str]) -> None:
    provenance = json.loads(halted.run().provenance.read_text())
    provenance["versions"]["jax"] = "0.0.1"
    halted.run().provenance.write_text(json.dumps(provenance))
    halted.train()
    assert any("jax: 0.0.1" in line and "bit for bit" in line for line in logged)


@pytest.mark.representative("a fork")
def test_fork(trained) -> None:
    forked = trained.train("train.num_steps=20", "optimizer.learning_rate=0.001", run="longer", fork_from="main")
    assert (forked.status, forked.step, forked.resumed_from) == ("completed", 20, 12)
    assert [r["step"] for r in trained.records("longer")] == list(range(13, 21))
    assert trained.records("longer")[0]["learning_rate"] < 0.002
    with pytest.raises(UsageError, match="exists"):
        trained.train("train.num_steps=20", run="longer", fork_from="main")
    with pytest.raises(UsageError, match="nothing left"):
        trained.train(run="other", fork_from="main")


@pytest.mark.slow
def test_fork_with_another_optimizer_begins_its_state_anew(trained, logged: list[str]) -> None:
    settings = ["train.num_steps=16", "optimizer.kind=muon"]
    assert trained.train(*settings, run="muon", fork_from="main").status == "completed"
    assert any("optimizer" in line for line in logged)
    with pytest.raises(ConfigError, match="another model"):
        trained.train("train.num_steps=16", "model.width=16", run="wide", fork_from="main")
    assert not trained.run("wide").exists()


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=pytest.mark.representative("a step that is not finite")) if step in (2, 4) else step
        for step in (0, 2, 3, 4)
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run(tiny, step: int) -> None:
    result = tiny.train(f"data.poison_steps=[{step}]", "checkpoint.every=2", "guards.non_finite=stop")
    assert (result.status, result.step, result.exit_code) == ("diverged", step + 1, 1)
    assert result.error is not None
    assert f"step {step + 1}" in result.error.what
    kept, command = {
        0: ("nothing was saved", "--run main"),
        2: ("the only checkpoint of step 2 holds the parameters", "--run NAME"),
        3: ("the checkpoint of step 2 is kept", "--run main --fork NAME --step 2"),
        4: ("the newest checkpoint of step 4 holds the parameters", "--run main --fork NAME --step 2"),
    }[step]
    assert kept in result.error.why
    assert "'x', row 0\n" in result.error.why
    assert result.error.hint.startswith(f"aifx train {command} ")
    saved = np.load(tiny.run().path / f"not-finite-step-{step + 1}.npz")
    programs = tiny.programs(f"data.poison_steps=[{step}]")
    expected = training_source(programs.task, programs.config).read(step, slice(0, 8))
    np.testing.assert_array_equal(saved["x"], expected["x"])
    checkpoints = Checkpoints(tiny.run().checkpoints, tiny.config().checkpoint)
    assert max(checkpoints.steps(), default=0) <= step
    for kept in checkpoints.steps():
        tree, _ = checkpoints.restore(kept, to_tree(programs.abstract[0], stacked=False))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(tree))
    assert next(e for e in tiny.events() if e["event"] == "nan")["step"] == step + 1
    assert all(r["loss"] is not None for r in tiny.records())


@pytest.mark.slow
def test_a_run_that_was_not_finite_goes_on_as_a_fork_from_before(tiny) -> None:
    settings = ["data.poison_steps=[4]", "checkpoint.every=2", "guards.non_finite=stop"]
    assert tiny.train(*settings).step == 5
    again = tiny.train(*settings)
    assert (again.status, again.step) == ("diverged", 5), "the same run comes to the same step"
    forked = tiny.train("optimizer.learning_rate=0.01", run="calmer", fork_from="main", fork_at=2)
    assert (forked.status, forked.resumed_from) == ("completed", 2)
    assert [r["step"] for r in tiny.records("calmer")] == list(range(3, 13))
    assert next(e for e in tiny.events("calmer") if e["event"] == "resume")["step"] == 2


@pytest.mark.slow
def test_early_stopping_survives_a_stop(tiny) -> None:
    settings = ["data.no_signal=true", "train.early_stopping=2", "train.num_steps=400", "train.validate_every=2",
                "optimizer.learning_rate=0.1"]  # fmt: skip
    whole = tiny.train(*settings, run="whole")
    assert whole.status == "early_stopped"
    assert whole.step == whole.best_step + 4
    stopped(tiny, whole.step - 2, *settings)
    resumed = tiny.train(*settings)
    assert (resumed.status, resumed.step, resumed.best_step) == ("early_stopped", whole.step, whole.best_step)
    assert resumed.state_digest == whole.state_digest
    assert tiny.train(*settings).already


@pytest.mark.representative("the best checkpoint")
def test_the_best_state_is_kept(tiny) -> None:
    settings = ["data.no_signal=true", "optimizer.learning_rate=0.3", "schedule.kind=constant", "train.num_steps=40"]
    settings += ["train.validate_every=5", "checkpoint.every=0", "checkpoint.keep_last=1"]
    result = tiny.train(*settings)
    checkpoints = Checkpoints(tiny.run().checkpoints, tiny.config(*settings).checkpoint)
    assert result.best_step < 40, "this run would have to overfit"
    assert set(checkpoints.steps()) == {result.best_step, 40}
    assert checkpoints.best() == result.best_step


def test_log_every(tiny) -> None:
    tiny.train("log.every=5", "train.validate_every=8")
    assert [r["step"] for r in tiny.records()] == [5, 8, 10, 12]


@pytest.mark.slow
def test_a_full_disk_is_no_bug(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    metrics = tiny.run().metrics

    def full(fd: int, data: bytes) -> int:
        if os.readlink(f"/proc/self/fd/{fd}") == str(metrics) and metrics.stat().st_size > 500:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(EnvironmentFault, match="room"):
        tiny.train("checkpoint.disk_timeout_s=0")
    monkeypatch.undo()
    assert tiny.events()[-1]["status"] == "failed"
    assert tiny.train().status == "completed"


def test_a_run_whose_folder_is_deleted_does_not_end_as_completed(tiny) -> None:
    class Deletes(Hook):
        def on_record(self, record: Record) -> None:
            if record.step == 2:
                shutil.rmtree(tiny.run().path)

    with pytest.raises(EnvironmentFault, match=r"metrics\.jsonl is gone"):
        tiny.train(hooks=[Deletes()])


def test_a_disk_that_refuses_a_checkpoint_is_told_until_it_takes_one(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = tiny.run(), []

    def refuse_until_told(directory: Path, needed: int) -> None:
        if not any(event["event"] == "checkpoint_refused" for event in tiny.events()):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(directory))
        if not seen:
            seen.extend([run_status(run), run.events.read_text()])

    monkeypatch.setattr("aifx.checkpoint.checkpoints.check_room", refuse_until_told)
    monkeypatch.setattr(faults, "RETRY_S", 0.01)
    assert tiny.train().status == "completed"
    (refused,) = (event for event in tiny.events() if event["event"] == "checkpoint_refused")
    assert refused["step"] == 4
    assert os.strerror(errno.EIO) in refused["why"]
    assert f"{run.checkpoints}: " in refused["why"]
    told = f"since step 4: {refused['why']}"
    assert seen[0].refused == told
    assert run_status(run).refused is None

    told = f"no checkpoint can be saved {told}"
    for events, is_told in ((run.events.read_text(), False), (seen[1], True)):
        run.events.write_text(events)
        for command in ("show", "watch", "watch --once"):
            answer = inprocess.run(["runs", *command.split()], tiny.root, {**os.environ, "COLUMNS": "400"})
            assert answer.returncode == 0, answer
            text = "".join(answer.stdout.split()).replace("│", "")  # a frame folds it
            assert ("".join(told.split()) in text) == is_told, answer


@pytest.mark.representative("a profile")
def test_profile_writes_a_trace(tiny) -> None:
    tiny.train(profile=True)
    assert list(tiny.run().profile.rglob("perfetto_trace.json.gz"))


def test_a_sink_without_its_package(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault) as missing:
        tiny.train('log.trackers=["tensorboard"]')
    assert missing.value.hint == "pip install 'tensorboardX>=2.6'"


def test_batches_that_do_not_fit(tiny) -> None:
    with pytest.raises(ConfigError, match="gradient_accumulation = 3"):
        tiny.train("train.gradient_accumulation=3")
    with pytest.raises(ConfigError, match=r"train\.devices = 64"):
        tiny.train("train.devices=64")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tiny, whole, logged: list[str]) -> None:
    first = stopped(tiny, 9)
    newest: Path = tiny.run().checkpoints / str(first.step)
    (newest / "manifest.json").write_text("{}")
    second = tiny.train()
    assert second.resumed_from < first.step
    assert any("damaged" in line for line in logged)
    assert second.state_digest == whole.result.state_digest
    assert tiny.records() == whole.records


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "precision", "told"), [(3.14, "auto", 1), (2.0, "auto", 0), (3.14, "float32", 0)])
def test_a_processor_that_is_fast_in_bfloat16_is_mentioned_once(
    tiny, gain: float, precision: str, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aifx.training.prepare.bfloat16_gain", lambda: gain)
    settings = [f"train.precision={precision}"]
    stopped(tiny, 4, *settings)
    tiny.train(*settings)
    log = tiny.run().log.read_text()
    assert len(re.findall('3.1 times.*train.precision = "bfloat16"', log)) == told
