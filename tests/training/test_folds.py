"""`train.folds`: an ensemble whose members are each trained without a fold of the rows, which validates them."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import inprocess
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from table_project import make_table_project

from aifx.core.errors import ConfigError, DataError
from aifx.core.project import Project
from aifx.data.arrays import FOLD
from aifx.data.sections import TableSection
from aifx.data.table import TableFormat
from aifx.kinds import load_config
from aifx.loading.restore import RestoredRun, restore_run
from aifx.objectives.base import Objective, outputs
from aifx.objectives.classification import Classification, Multilabel
from aifx.objectives.quantile import Quantile
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import local_layout
from aifx.programs.build import Programs, build
from aifx.serving.predictor import fields_of, fields_of_spec
from aifx.specs import Params
from aifx.tasks.ensemble import Ensemble
from aifx.tasks.registry import open_task
from aifx.training.resume_checks import open_refit
from aifx.training.run import train

FOLDS = 3
TIMES = {"time", "step_time_s", "units_per_s", "mfu", "ceiling_fraction", "data_wait_s"}
KILLED_AT = 5


def command(project: Project, *args: str, code: int = 0) -> str:
    done = inprocess.run(args, project.root, os.environ)
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout if code == 0 else done.stderr


def open_folds(project: Project, **settings: Any) -> tuple[TableFormat, dict[str, dict[str, np.ndarray]]]:
    section = TableSection(path="rows.csv", target="label", **settings)
    (project.root / "assets").mkdir(exist_ok=True)
    form, dataset = TableFormat.open(section, project, project.root / "assets", FOLDS)
    return form, {split: dict(arrays) for split, arrays in dataset.splits.items()}


def fold_by_number(project: Project, **settings: Any) -> dict[int, int]:
    """The fold of each row by its "number", which decides the label's place in no order."""
    form, splits = open_folds(project, columns={"number": "numeric"}, **settings)
    (column,) = (i for i, found in enumerate(form.spec.columns) if found.name == "number")
    mean, scale = form.spec.columns[column].mean, form.spec.columns[column].scale
    numbers = np.round(splits["train"]["inputs"][:, column].astype(np.float64) * scale + mean).astype(int)
    return dict(zip(numbers.tolist(), splits["train"][FOLD].tolist(), strict=True))


def test_every_row_but_those_of_the_test_is_trained_on_and_validated_and_has_a_fold(tmp_path: Path) -> None:
    project = make_table_project(tmp_path / "project")
    form, splits = open_folds(project, ignore=("number",), validation_fraction=0.25, test_fraction=0.25)
    for name, values in splits["train"].items():
        np.testing.assert_array_equal(values, splits["validation"][name])
    assert len(splits["train"][FOLD]) + len(splits["test"][FOLD]) == 160
    assert set(splits["train"][FOLD].tolist()) == set(range(FOLDS))
    assert set(splits["test"][FOLD].tolist()) == {-1}
    row = {"number": "1", "x": "0.5", "y": "0.5"}
    assert fields_of_spec(form.spec) == fields_of(form.encode(row)), "a server compiles for rows without a fold"
    assert list(form.baselines(TableFormat.open(form.section, project, tmp_path, 3)[1], "validation")) == []


def test_a_hash_of_the_row_decides_its_fold_wherever_it_is(tmp_path: Path) -> None:
    project = make_table_project(tmp_path / "project")
    before = fold_by_number(project)
    with open(project.root / "rows.csv", newline="") as file:
        head, *rows = list(csv.reader(file))
    random.Random(0).shuffle(rows)
    with open(project.root / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    shutil.rmtree(project.root / "assets")
    assert fold_by_number(project) == before


@pytest.mark.parametrize("key", ["group_column", "time_column"])
def test_a_group_is_in_one_fold_and_a_fold_is_a_stretch_of_time(tmp_path: Path, key: str) -> None:
    project = make_table_project(tmp_path / "project")
    lines = (project.root / "rows.csv").read_text().split()
    with open(project.root / "rows.csv", "w") as file:
        file.write(f"{lines[0]},key\n" + "".join(f"{line},{n // 8}\n" for n, line in enumerate(lines[1:])))
    folds = fold_by_number(project, **{key: "key"})
    keys = {number // 8: fold for number, fold in folds.items()}
    assert all(keys[number // 8] == fold for number, fold in folds.items())
    in_order = [keys[key] for key in sorted(keys)]
    assert (in_order == sorted(in_order)) == (key == "time_column")
    text = (project.root / "rows.csv").read_text().split()
    same = [text[0], *(f"{line.rpartition(',')[0]},1" for line in text[1:])]
    (project.root / "rows.csv").write_text("\n".join(same))
    shutil.rmtree(project.root / "assets")
    with pytest.raises(DataError, match=rf"train\.folds = {FOLDS}") as error:
        open_folds(project, **{key: "key"}, validation_fraction=0.0, test_fraction=0.0)
    assert f"data.{key}" in error.value.why


@pytest.mark.parametrize(
    ("settings", "key"),
    [(["task.kind=language"], "train.folds"), (["finetune.base=main"], "finetune.base")],
)
def test_folds_are_for_tables_that_begin_with_new_weights(tmp_path: Path, settings: list[str], key: str) -> None:
    (tmp_path / "aifx.toml").write_text('[task]\nkind = "tabular"\n[train]\nfolds = 3\nearly_stopping = 2\n')
    project = Project(tmp_path)
    load_config(project, ["data.validation_fraction=0"], {})  # early stopping has the rows of all folds
    with pytest.raises(ConfigError, match=r"train\.folds = 3") as error:
        load_config(project, settings, {})
    assert key in str(error.value)


@pytest.mark.slow
def test_members_are_combined_by_the_mean_of_what_they_predict() -> None:
    found = np.random.default_rng(0).normal(scale=3, size=(FOLDS, 5, 6)).astype(np.float32)
    given = jnp.asarray(found)
    np.testing.assert_allclose(Objective().combine(given), found.mean(axis=0), rtol=1e-5, atol=1e-6)
    combined = np.asarray(Classification().combine(given))
    np.testing.assert_allclose(np.exp(combined), softmax(found, axis=-1).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(expit(np.asarray(Multilabel().combine(given))), expit(found).mean(axis=0), rtol=1e-5)
    quantile = Quantile()
    by_level = np.sort(found.reshape(FOLDS, 5, -1, len(quantile.quantiles)), axis=-1).mean(axis=0)
    np.testing.assert_allclose(quantile.combine(given), by_level.reshape(5, 6), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_each_member_clips_the_gradients_of_its_own_mean_loss() -> None:
    ensemble = Ensemble(None, Objective(), FOLDS)  # type: ignore[arg-type]
    gradients = {"a": jnp.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]) / FOLDS, "frozen": None}
    np.testing.assert_allclose(ensemble.clip(gradients, 0.0)["a"], [[3, 4], [0.3, 0.4], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(ensemble.clip(gradients, 1.0)["a"], [[0.6, 0.8], [0.3, 0.4], [0, 0]], rtol=1e-6)


def programs_of(project: Project, *settings: str) -> Programs:
    config = load_config(project, [f"train.folds={FOLDS}", *settings], {})
    assets = project.root / "assets"
    assets.mkdir(exist_ok=True)
    return build(config, open_task(config, project, assets), local_layout(1))


def first_batch(programs: Programs) -> dict[str, np.ndarray]:
    assert programs.task.dataset is not None
    return programs.task.dataset.source("train", 32, seed=0).read(0, slice(None))


def member_params(params: Params, member: int) -> Params:
    taken: Params = jax.tree.map(lambda array: array[member], params)
    return taken


@pytest.mark.slow
def test_a_member_never_sees_a_row_of_its_fold(tmp_path: Path) -> None:
    programs = programs_of(make_table_project(tmp_path / "project"), "optimizer.clip_norm=0.001")
    batch = first_batch(programs)
    others = {**batch, "targets": np.where(batch[FOLD] == 1, 1 - batch["targets"], batch["targets"])}
    assert (others["targets"] != batch["targets"]).any()
    (one, _), (other, _) = (
        programs.train_step(programs.init_state(), {}, programs.place(rows)) for rows in (batch, others)
    )
    leaves = list(zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True))
    for member in range(FOLDS):
        assert all(np.array_equal(a[member], b[member]) for a, b in leaves) == (member == 1)


@pytest.mark.slow
def test_the_gradient_of_a_member_is_that_of_a_model_without_its_fold(tmp_path: Path) -> None:
    programs = programs_of(make_table_project(tmp_path / "project"), "model.dropout=0")
    batch, state = first_batch(programs), programs.init_state()
    _, found = jax.jit(programs.step.loss_and_gradients)(state, {}, programs.place(batch))
    member = programs.task.model.member  # type: ignore[attr-defined]
    config = replace(programs.config, train=programs.config.train.model_copy(update={"folds": 1}))
    single = build(config, replace(programs.task, model=member), programs.layout)
    total = (FOLDS - 1) * len(batch[FOLD])
    gradient = jax.jit(single.step.loss_and_gradients)
    for fold in range(FOLDS):
        weights = np.where(batch[FOLD] == fold, 0, batch["weights"]).astype(np.float32)
        alone = replace(state, params=member_params(state.params, fold), opt_state=())
        _, expected = gradient(alone, {}, single.place({**batch, "weights": weights}))
        share = weights.sum() / total
        for whole, own in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(whole[fold], own * share, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run "main" has FOLDS members. Not to be changed."""
    project = make_table_project(tmp_path_factory.mktemp("folds") / "project")
    train(project, load_config(project, [f"train.folds={FOLDS}"], {}), "main")
    return project.root


def by_member(trained: RestoredRun, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The outputs of each member by itself, `[members, rows, outputs]`."""
    model, ctx = trained.task.model, ForwardContext(local_layout(1))
    assert isinstance(model, Ensemble)
    batch = {"inputs": jnp.asarray(arrays["inputs"])}
    members = [member_params(trained.params, member) for member in range(model.folds)]
    return np.stack([np.asarray(outputs(model.member, params, batch, ctx)) for params in members])


@pytest.mark.slow
def test_a_run_of_folds_is_one_model_to_all_that_read_it(trained: Path, tmp_path: Path) -> None:
    project = Project(Path(shutil.copytree(trained, tmp_path / "project")))
    run = project.run("main")
    restored = restore_run(run, project)
    config = restored.config
    dataset: Any = open_task(config, project, run.assets).dataset
    rows, test = dataset.splits["validation"], dataset.splits["test"]
    found = by_member(restored, rows).astype(np.float64)
    assert np.abs(found[0] - found[1]).max() > 1e-3, "members differ"

    # A row is validated by the member of its fold, and by no other.
    held_out = log_softmax(found, axis=-1)[rows[FOLD], np.arange(len(rows[FOLD])), rows["targets"]]
    validated = json.loads(command(project, "eval", "--split", "validation", "--json"))
    recorded = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    last = next(line["validation"] for line in recorded if line["step"] == restored.step)
    assert validated["metrics"]["loss"] == pytest.approx(-held_out.mean(), rel=1e-5)
    assert last["loss"] == pytest.approx(-held_out.mean(), rel=1e-5)
    assert validated["metrics"]["examples"] == len(rows["targets"])

    # Other rows are predicted by the mean of all members' probabilities.
    expected = softmax(by_member(restored, test).astype(np.float64), axis=-1).mean(axis=0)
    tested = json.loads(command(project, "eval", "--json"))
    right = expected[np.arange(len(expected)), test["targets"]]
    assert tested["metrics"]["loss"] == pytest.approx(-np.log(right).mean(), rel=1e-5)
    command(project, "predict", "rows.csv", "--output", "out.jsonl")
    written = [json.loads(line) for line in (project.root / "out.jsonl").read_text().splitlines()]
    form, classes = restored.task.format, restored.task.data.classes
    assert form is not None
    encoded = {"inputs": np.concatenate([form.encode(row)["inputs"] for row in written])}
    means = softmax(by_member(restored, encoded).astype(np.float64), axis=-1).mean(axis=0)
    predicted = [[row["prediction.probabilities"][name] for name in classes] for row in written]
    np.testing.assert_allclose(predicted, means, rtol=1e-4, atol=1e-6)

    measured = json.loads(command(project, "eval", "--data", "rows.csv", "--json"))
    assert next(iter(measured["datasets"]))["metrics"]["examples"] == 160
    assert "cannot be exported" in command(project, "export", "out", code=2)
    listed = json.loads(command(project, "ckpt", "ls", "--json"))
    assert len({checkpoint["num_parameters"] for checkpoint in listed["checkpoints"]}) == 1
    refit = open_refit(run, project).config
    assert (refit.train.folds, refit.train.validate_every) == (1, 0)


CODE = f"""\
import os, signal, sys
from pathlib import Path
from aifx.kinds import load_config
from aifx.core.project import Project
from aifx.training.hook import Hook
from aifx.training.run import train

class Kill(Hook):
    def on_record(self, record):
        if record.step == {KILLED_AT}:
            os.kill(os.getpid(), signal.SIGKILL)

project = Project(Path(sys.argv[1]))
train(project, load_config(project, ["train.folds={FOLDS}"], {{}}), "main", hooks=[Kill()])
"""


@pytest.mark.slow
def test_a_killed_training_of_folds_resumes_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    project = make_table_project(tmp_path / "project")
    killed = subprocess.run([sys.executable, "-c", CODE, project.root], env=os.environ, timeout=500, check=False)
    assert killed.returncode == -signal.SIGKILL
    result = train(project, load_config(project, [f"train.folds={FOLDS}"], {}), "main")
    assert result.status == "completed"
    assert result.resumed_from in (2, 4)

    def records(root: Path) -> list[dict[str, Any]]:
        lines = Project(root).run("main").metrics.read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]

    assert records(project.root) == records(trained)
    events = Project(trained).run("main").events.read_text().splitlines()
    assert json.loads(events[-1])["state_digest"] == result.state_digest
