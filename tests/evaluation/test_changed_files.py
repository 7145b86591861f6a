"""A run's tokenizer, kernel choices or settings that were changed behind its back are found, not used."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from trained_project import aifx

from aifx.core.errors import CheckpointError
from aifx.core.project import Project, RunDirectory
from aifx.evaluation.held_out import evaluate
from aifx.kinds import load_config
from aifx.loading.restore import restore_run
from aifx.training.run import train

pytestmark = pytest.mark.representative("an evaluation")  # they share a training that costs seconds


def swap_tokens(run: RunDirectory) -> Path:
    path = run.assets / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    path.write_text(json.dumps(tokenizer))
    return path


def change_theta(run: RunDirectory) -> Path:
    text, count = re.subn(r"rope_theta = \S+", "rope_theta = 500000.0", run.config.read_text())
    assert count == 1
    run.config.write_text(text)
    return run.config


def change_kernel(run: RunDirectory) -> Path:
    document = json.loads(run.kernels.read_text())
    ((_, choices),) = document["devices"].items()
    choices[0]["implementation"] = "reference"
    run.kernels.write_text(json.dumps(document))
    return run.kernels


def drop_kernels(run: RunDirectory) -> Path:
    run.kernels.unlink()
    return run.kernels


def drop_tokenizer(run: RunDirectory) -> Path:
    (run.assets / "tokenizer.json").unlink()
    return run.assets / "tokenizer.json"


@pytest.mark.parametrize("change", [swap_tokens, drop_tokenizer, change_theta, change_kernel, drop_kernels])
def test_a_changed_file_is_refused(project: Path, change: Callable[[RunDirectory], Path]) -> None:
    found = Project(project)
    run = found.run("main")
    path = change(run)
    config = load_config(found, ["model.rope_theta=500000.0"] if change is change_theta else [], {})
    for use in (
        lambda: evaluate(run, found),
        lambda: restore_run(run, found),
        lambda: train(found, config, "main"),
    ):
        with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))} .*step 12") as error:
            use()
        assert str(path) in error.value.hint
        assert "aifx train --run main --fork NAME" in error.value.hint


def test_an_evaluation_writes_nothing_that_a_checkpoint_is_bound_to(project: Path) -> None:
    run = Project(project).run("main")
    names = (run.digests, run.kernels, run.config)
    before = [path.read_bytes() for path in names]
    assert aifx(project, "eval", "--split", "validation").returncode == 0
    assert [path.read_bytes() for path in names] == before


def test_each_checkpoint_names_the_kernel_choices_until_then(project: Path) -> None:
    """Validation, the first time at step 4, adds choices: step 4 and later name them, and each of them is whole."""
    run = Project(project).run("main")
    manifests = [json.loads((run.checkpoints / str(s) / "manifest.json").read_text())["content"] for s in (4, 8, 12)]
    ((kind, choices),) = json.loads(run.kernels.read_text())["devices"].items()
    assert [m["run"]["kernels"][kind]["count"] for m in manifests] == [len(choices)] * 3
    assert len({json.dumps(m["run"]) for m in manifests}) == 1
    for step in (4, 8):
        assert evaluate(run, Project(project), step=step).step == step
