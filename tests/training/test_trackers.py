"""Trackers, read back: each step once, the same numbers as metrics.jsonl."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_training import stopped

END_S = 300


def join(tracker: str) -> None:
    """Wait for the thread that writes to a tracker; the end of a run does not wait for a slow one."""
    for thread in threading.enumerate():
        if thread.name == f"aifx-{tracker}":
            thread.join(END_S)


def events(folder: Path) -> Iterator[Any]:
    """The events of each file in turn. TFRecord framing: length (8 bytes), checksum (4), message, checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.rglob("events.out.tfevents.*")):
        data = path.read_bytes()
        at = 0
        while at + 12 <= len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def tensorboard(folder: Path) -> dict[tuple[str, int], list[float]]:
    """Values by tag and step as TensorBoard shows them: what a restart took back left out."""
    values: dict[tuple[str, int], list[float]] = {}
    for event in events(folder):
        if event.HasField("session_log") and event.session_log.status == 1:  # START
            values = {k: v for k, v in values.items() if k[1] < event.step}
        for value in event.summary.value:
            values.setdefault((value.tag, event.step), []).append(value.simple_value)
    return values


def test_tensorboard(tiny) -> None:
    pytest.importorskip("tensorboardX")
    trackers = 'log.trackers=["tensorboard"]'
    stopped(tiny, 5, trackers)
    join("tensorboard")
    tiny.train(trackers)
    join("tensorboard")
    found = tensorboard(tiny.run().trackers / "tensorboard")
    for record in tiny.records():
        for name in ("loss", "grad_norm", "learning_rate"):
            (value,) = found[name, record["step"]]
            assert value == pytest.approx(record[name], rel=1e-6)
        if "validation" in record:
            assert found["validation/loss", record["step"]] == pytest.approx([record["validation"]["loss"]])
    assert {step for tag, step in found if tag == "loss"} == set(range(1, 13))


@pytest.mark.parametrize("kept", [4, pytest.param(0, marks=pytest.mark.representative("an interrupted training"))])
def test_tensorboard_shows_steps_that_were_taken_again_once(tiny, kept: int) -> None:
    """As SIGKILL leaves it: beyond its checkpoint, or before its first, a run has told of steps that it takes again."""
    trackers = 'log.trackers=["tensorboard"]'
    stopped(tiny, 6, trackers)
    join("tensorboard")
    for folder in tiny.run().checkpoints.iterdir():
        if int(folder.name) > kept:
            shutil.rmtree(folder)
    tiny.train(trackers)
    join("tensorboard")
    folder = tiny.run().trackers / "tensorboard"
    losses = [event.step for event in events(folder) for value in event.summary.value if value.tag == "loss"]
    assert losses.count(5) == 2 or not kept, "the files themselves hold it twice"
    found = tensorboard(folder)
    assert {step for tag, step in found if tag == "loss"} == set(range(1, 13))
    assert all(len(values) == 1 for values in found.values())


@pytest.mark.slow
def test_mlflow(tiny) -> None:
    client = pytest.importorskip("mlflow.tracking").MlflowClient
    trackers = 'log.trackers=["mlflow"]'
    first = stopped(tiny, 5, trackers)
    join("mlflow")
    tiny.train(trackers)
    join("mlflow")
    folder = tiny.run().trackers
    reader = client((folder / "mlflow").absolute().as_uri())
    run_id = (folder / "mlflow-run-id").read_text()
    history = reader.get_metric_history(run_id, "loss")
    assert [m.step for m in history] == list(range(1, 13))
    assert [m.value for m in history] == [r["loss"] for r in tiny.records()]
    run = reader.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.learning_rate"] == "0.02"
    assert first.step < 12


@pytest.mark.slow
def test_wandb_offline(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", str(END_S))
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", str(END_S))
    tiny.train('log.trackers=["wandb"]')
    join("wandb")
    (written,) = (tiny.run().trackers / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + END_S  # wandb's own process writes, some moments behind ours
    while not all(name in written.read_bytes() for name in (b"grad_norm", b"validation")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert any(path.is_symlink() for path in written.parents[1].iterdir()), "wandb links to its newest folder"
    shutil.rmtree(tiny.run().checkpoints / "12")
    tiny.train('log.trackers=["wandb"]')  # resumes beside those links
    join("wandb")
    assert "given up" not in tiny.run().log.read_text()


def test_a_sink_that_fails_does_not_end_the_run(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from aifx.training.hooks import trackers

    def broken(self: object, info: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(trackers.TensorBoard, "open", broken)
    assert tiny.train('log.trackers=["tensorboard"]').status == "completed"
    assert "no route to host" in tiny.run().log.read_text()
