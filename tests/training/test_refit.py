"""`aifx train --refit`: the settings of a run, trained on its training and validation rows."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import inprocess
import numpy as np
import pytest
from table_project import make_table_project

import aifx
from aifx.checkpoint.manifest import list_checkpoints, read_manifest
from aifx.core.errors import UsageError
from aifx.core.json_files import JsonLines
from aifx.core.project import Project, RunDirectory
from aifx.kinds import load_config, read_config
from aifx.training.resume_checks import open_refit
from aifx.training.run import train


def command(project: Project, *args: str, code: int = 0) -> str:
    done = inprocess.run(args, project.root, os.environ)
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout if code == 0 else done.stderr


def rows_of(run: RunDirectory, project: Project) -> dict[str, set[str]]:
    """The places in the file of the rows of each split of a run."""
    from aifx.tasks.registry import open_task

    task = open_task(read_config(run.config, project), project, run.assets)
    assert task.dataset is not None
    assert task.format is not None
    return {
        split: set(task.format.places(task.dataset, split, range(len(arrays["targets"]))))
        for split, arrays in task.dataset.splits.items()  # type: ignore[attr-defined]
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run "main" is finished, with its best checkpoint before its last. Not to be changed."""
    project = make_table_project(tmp_path_factory.mktemp("refit") / "project")
    with open(project.config_path, "a") as file:
        file.write('best_by = "max loss"\n')  # the loss falls, so the first validation is the best
    train(project, load_config(project, [], {}), "main")
    assert best_step(project.run("main")) == 2
    return project.root


def best_step(run: RunDirectory) -> int:
    return next(info.step for info in list_checkpoints(run.checkpoints) if info.is_best)


def learning_rate(run: RunDirectory, step: int) -> float:
    records = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    return next(record["learning_rate"] for record in records if record["step"] == step)


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Project:
    return Project(Path(shutil.copytree(trained, tmp_path / "project")))


@pytest.mark.slow
def test_a_refit_takes_all_rows_but_the_test_for_as_many_steps_as_the_best_checkpoint(project: Project) -> None:
    document = json.loads(command(project, "train", "--refit", "--json"))
    main, refit = project.run("main"), project.run("main-refit")
    best = best_step(main)
    assert (document["status"], document["step"], document["num_steps"]) == ("completed", best, best)
    assert learning_rate(refit, best) == learning_rate(main, best)
    before, after = rows_of(main, project), rows_of(refit, project)
    assert after["train"] == before["train"] | before["validation"]
    assert len(after["train"]) == len(before["train"]) + len(before["validation"])
    assert after["test"] == before["test"]
    assert not after["validation"]
    manifest = read_manifest(main.checkpoints / str(best))
    provenance = json.loads(refit.provenance.read_text())
    assert provenance["refitted_from"] == {"run": "main", "step": best, "state_digest": manifest.state_digest}
    kept = read_manifest(refit.checkpoints / str(best)).host["progress"]["thresholds"]
    assert kept == manifest.host["progress"]["thresholds"] != {}
    evaluated = json.loads(command(project, "eval", "--run", "main-refit", "--json"))
    assert evaluated["metrics"]["examples"] == len(before["test"])
    again = json.loads(command(project, "train", "--run", "main", "--refit", "--json"))
    assert again == document
    events = [json.loads(line)["event"] for line in refit.events.read_text().splitlines()]
    assert events.count("start") == 1, "it had ended"
    failed = command(project, "train", "--run", "main-refit", code=2)
    assert "aifx train --run main --refit" in failed


@pytest.mark.slow
def test_a_refit_has_the_settings_of_its_run_and_the_steps_that_are_asked_for(project: Project) -> None:
    path = project.root / "aifx.toml"
    path.write_text(path.read_text().replace("width = 8", "width = 16"))
    config = open_refit(project.run("main"), project, ["train.num_steps=3"]).config
    assert (config.model.width, config.train.num_steps) == (8, 3)  # type: ignore[attr-defined]
    assert config.schedule.steps_of(3) == 3
    assert (config.train.validate_every, config.data.validation_fraction) == (0, 0.0)  # type: ignore[attr-defined]
    assert (config.origin("train.num_steps").where, config.origin("train.validate_every").where) == ("--set", "--refit")
    path.write_text(config.to_toml())
    assert read_config(path, project) == config
    assert read_config(path, project).origin("train.validate_every") == config.origin("train.validate_every")


@pytest.mark.slow
def test_a_refit_from_python(project: Project) -> None:
    result = aifx.train(project.root, "main", refit=True)
    assert (result.run.name, result.status) == ("main-refit", "completed")
    with pytest.raises(UsageError, match="fork_from"):
        aifx.train(project.root, "main", refit=True, fork_from="main")


@pytest.mark.slow
def test_runs_without_a_best_step_have_no_refit(project: Project) -> None:
    config = load_config(project, ["train.validate_every=0", "train.num_steps=2", "objective.threshold_by=none"], {})
    train(project, config, "blind")
    with pytest.raises(UsageError, match="'blind' has no validation") as error:
        open_refit(project.run("blind"), project)
    assert "train.validate_every" in error.value.hint
    train(project, load_config(project, ["train.num_steps=8"], {}), "fork", fork_from="main")
    with pytest.raises(UsageError, match="'fork' is a fork"):
        open_refit(project.run("fork"), project)
    main = project.run("main")
    JsonLines(main.events).append({"time": 0.0, "event": "stop", "status": "interrupted", "step": 6})
    with pytest.raises(UsageError, match="'main' is not finished") as error:
        open_refit(main, project)
    assert error.value.hint == "aifx train --run main"


def test_data_without_rows_to_move_has_no_refit(ended: Path) -> None:
    project = Project(ended)
    with pytest.raises(UsageError, match="--refit") as error:
        open_refit(project.run("main"), project)
    assert "tiny:TinyTask" in error.value.why


@pytest.mark.parametrize("option", ["--fork", "--config"])
def test_a_refit_has_no_other_origin_and_no_other_configuration(tmp_path: Path, option: str) -> None:
    project = make_table_project(tmp_path / "project", num_rows=2)
    assert option in command(project, "train", "--refit", option, "other", code=2)


def test_without_a_share_for_validation_its_rows_are_for_training(tmp_path: Path) -> None:
    from aifx.data.sections import TableSection
    from aifx.data.table import read_splits

    project = make_table_project(tmp_path / "project")
    settings = {"path": "rows.csv", "target": "label", "ignore": ("number",)}
    _, some = read_splits(TableSection(**settings, validation_fraction=0.25, test_fraction=0.25), project)
    _, none = read_splits(TableSection(**settings, validation_fraction=0.0, test_fraction=0.25), project)
    assert some["validation"].any()
    np.testing.assert_array_equal(none["train"], some["train"] | some["validation"])
    np.testing.assert_array_equal(none["test"], some["test"])
    assert not none["validation"].any()
