"""Several processes save to one folder on a disk of their host, and go on from there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from held_run import held_at
from test_several_processes import ONE_DEVICE, Trainer

from aifx.checkpoint.manifest import step_directories
from aifx.core.json_files import read_jsonl


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    trainer = Trainer(tmp_path / "project")
    yield trainer
    trainer.end()


def damage(checkpoint: Path) -> None:
    """Change the arrays that process 1 saved."""
    for path in (checkpoint / "state" / "process_1" / "d").iterdir():
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))


@pytest.mark.slow
def test_two_processes_go_on_from_local_checkpoints(trainer: Trainer, tmp_path: Path) -> None:
    """After a kill, and after another one and damage to what the process that was not first has saved."""
    local = tmp_path / "local"
    local.mkdir()
    values = ("every=100", "keep_best=0", f"local_dir={local}", "local_every=3", "asynchronous=false")
    settings = [word for value in values for word in ("--set", f"checkpoint.{value}")]
    sharded = ["--set", "mesh.fsdp=2", "--set", "model.width=64"]  # of arrays that have files of their own
    settings += sharded
    undisturbed = trainer.train("undisturbed", 2, *sharded, **ONE_DEVICE)
    resumed: list[int] = []
    for victim, least in ((1, 10), (0, 16)):
        with held_at(trainer.root, least + 1):
            job = trainer.start("pair", 2, *settings, **ONE_DEVICE)
            job.wait_for_step(least)
            assert job.strike(victim) == [75], job.wait()
        (folder,) = local.iterdir()
        resumed.append(max(step_directories(folder)))
    damage(folder / str(resumed[-1]))
    last = trainer.start("pair", 2, *settings, **ONE_DEVICE)
    (code, out, err), (other, _, other_err) = last.wait()
    assert (code, other) == (0, 0), out + err
    document = json.loads(out)
    assert sorted(step_directories(last.run / "checkpoints")) == [3, 20]  # the first one and the last one
    started = [event["step"] for event in read_jsonl(last.run / "events.jsonl") if event["event"] == "resume"]
    assert started == resumed
    assert resumed[0] >= 9
    assert document["resumed_from"] == resumed[1] - 3
    assert re.search(rf"step {resumed[1]}\b.* not used", err)
    assert "not used" not in other_err
    assert document["state_digest"] == undisturbed["state_digest"]
    assert trainer.records("pair") == trainer.records("undisturbed")
    assert list(local.iterdir()) == []
