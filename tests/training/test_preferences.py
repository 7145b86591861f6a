"""Direct preference optimization: five steps beside the paper's formulas, its reference, and resuming."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import inprocess
import jax
import jax.numpy as jnp
import numpy as np
import plain_training as plain
import pytest
from stopping import StopAt

from aifx.config import load_config
from aifx.core.errors import ConfigError, DataError
from aifx.core.project import Project
from aifx.evaluation.held_out import evaluate
from aifx.loading.restore import restore_run
from aifx.parallel.layout import local_layout
from aifx.programs.build import build
from aifx.tasks.base import training_source
from aifx.tasks.registry import open_task
from aifx.training.finetuning import with_base_weights
from aifx.training.references import with_references
from aifx.training.run import train

SETTINGS = """\
[task]
kind = "chat"
[data]
tokenizer = "byte"
seq_len = 96
validation_fraction = 0.2
[model]
num_layers = 1
embed_dim = 16
num_heads = 4
num_kv_heads = 2
mlp_dim = 24
[train]
num_steps = 6
global_batch_size = 4
validate_every = 3
[optimizer]
learning_rate = 0.01
[schedule]
kind = "constant"
[checkpoint]
every = 3
"""
DPO = (
    "task.kind=preference", 'data.train=["pairs/*.jsonl"]', "data.tokenizer=runs/base/assets/tokenizer.json",
    "finetune.base_run=base", "objective.beta=0.5", "train.seed=3",
)  # fmt: skip
LORA = ("finetune.adapter=lora", "lora.rank=2", "lora.dropout=0.1")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the runs "base", and "adapted", which learns preferences with adapters. Not to be changed."""
    root = tmp_path_factory.mktemp("preferences") / "project"
    for folder, keys in (("data", ("completion",)), ("pairs", ("chosen", "rejected"))):
        (root / folder).mkdir(parents=True)
        with open(root / folder / "rows.jsonl", "w") as file:
            for n in range(40):
                answers = {"chosen": f"{n} is it", "rejected": "x" * (n % 7), "completion": f"{n}"}
                file.write(json.dumps({"prompt": f"{n}?", **{key: answers[key] for key in keys}}) + "\n")
    (root / "aifx.toml").write_text(SETTINGS)
    project = Project(root)
    train(project, load_config(project, [], {}), "base")
    prefer(project, *LORA, run="adapted")
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Project:
    return Project(Path(shutil.copytree(made, tmp_path / "project")))


def prefer(project: Project, *settings: str, run: str, **options: Any) -> Any:
    return train(project, load_config(project, [*DPO, *settings], {}), run, **options)


def open_programs(project: Project, *settings: str) -> Any:
    config = load_config(project, [*DPO, *settings], {})
    return build(config, open_task(config, project, project.run("adapted").assets), local_layout(1))


def last(project: Project, run: str) -> Any:
    return json.loads(project.run(run).events.read_text().splitlines()[-1])


def separate_answers(batch: Any) -> dict[str, Any]:
    """The answers of a batch, one in a row."""
    columns = {name: np.zeros((2 * len(batch["inputs"]), 96), np.int32) for name in ("inputs", "targets", "writers")}
    for row in range(len(batch["inputs"])):
        for segment in (1, 2):
            here = batch["segment_ids"][row] == segment
            for name, values in columns.items():
                values[2 * row + segment - 1, : here.sum()] = batch[name][row][here]
    return columns


@jax.jit
def score_answers(weights: Any, answers: Any) -> tuple[Any, Any]:
    """Log-probabilities of the answers `[rows, 2]`, each read by itself, and their lengths."""
    likely = plain.log_probabilities(weights, answers["inputs"], 1, 4)
    each = jnp.take_along_axis(likely, answers["targets"][..., None], -1)[..., 0]
    scored = answers["writers"] == 2
    return (each * scored).sum(-1).reshape(-1, 2), scored.sum(-1).reshape(-1, 2)


@pytest.mark.parametrize("normalize", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_five_steps_are_those_of_the_paper(made: Path, normalize: str) -> None:
    project = Project(made)
    run = project.run("adapted")
    settings = (f"objective.length_normalize={normalize}", "optimizer.weight_decay=0")
    programs = with_references(open_programs(project, *settings), run)
    state, frozen = programs.init()
    state = with_base_weights(state, programs, run)
    matrices = set(plain.MATRICES)

    def flat(tree: Any) -> dict[str, Any]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        named = {"/".join(part.key for part in path): np.array(leaf) for path, leaf in leaves}
        return {
            name: w.reshape(16 if not name.endswith(("output", "down")) else w.size // 16, -1)
            if "/".join(name.split("/")[-2:]) in matrices
            else w
            for name, w in named.items()
        }

    weights = flat(state.params)
    source, update = training_source(programs.task, programs.config), plain.PlainAdamW(0.01, 0.0)
    batches = [source.read(step, slice(0, 4)) for step in range(5)]
    references = [score_answers(weights, separate_answers(batch))[0] for batch in batches]
    for batch, reference in zip(batches, references, strict=True):
        np.testing.assert_allclose(batch["reference"], reference, atol=1e-4)

    @jax.jit
    @jax.value_and_grad
    def loss(weights: Any, answers: Any, reference: Any) -> Any:
        found, counts = score_answers(weights, answers)
        ratios = (found - reference) / (counts if normalize == "true" else 1)
        return -jnp.log(jax.nn.sigmoid(0.5 * (ratios[:, 0] - ratios[:, 1]))).mean()

    for batch, reference in zip(batches, references, strict=True):
        state, numbers = programs.train_step(state, frozen, programs.place(batch))
        expected, gradients = loss(weights, separate_answers(batch), reference)
        np.testing.assert_allclose(numbers[0], expected, atol=1e-4)
        weights = update(weights, gradients)
    assert numbers[0] < 0.68  # it began with ln 2
    for name, array in flat(state.params).items():
        np.testing.assert_allclose(array, weights[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("settings", [LORA, pytest.param((), marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_bit_for_bit(project: Project, settings: tuple[str, ...]) -> None:
    digest = last(project, "adapted")["state_digest"] if settings else prefer(project, run="whole").state_digest
    stop = StopAt(2)
    prefer(project, *settings, run="stopped", observers=[stop], stop=stop.signals)
    resumed = prefer(project, *settings, run="stopped")
    assert (resumed.resumed_from, resumed.state_digest) == (3, digest)


def test_evaluation_reports_margins_of_held_out_pairs(made: Path) -> None:
    report = evaluate(Project(made).run("adapted"), Project(made), split="validation")
    assert report.metrics["loss"] == last(Project(made), "adapted")["validation_loss"]
    assert report.metrics["margin"] == pytest.approx(report.metrics["chosen"] - report.metrics["rejected"])
    assert 0 <= report.metrics["accuracy"] <= 1
    assert report.metrics["pairs"] >= 2
    assert report.metrics["margin"] > 0


def test_the_reference_is_computed_once_for_its_data_and_weights(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_: Any) -> None:
        raise AssertionError("it is in the cache")

    monkeypatch.setattr("aifx.training.references._computed", computed)
    run = project.run("adapted")
    kept = run.reference.read_bytes()
    run.reference.unlink()
    with_references(open_programs(project, "objective.beta=0.1"), run)
    assert run.reference.read_bytes() == kept
    with pytest.raises(AssertionError, match="in the cache"):
        with_references(open_programs(project, "finetune.base_quantize=int8", *LORA), run)
    provenance = json.loads(run.provenance.read_text())
    other = {**provenance, "finetuned_from": {**provenance["finetuned_from"], "digest": "0" * 64}}
    run.provenance.write_text(json.dumps(other))
    with pytest.raises(AssertionError, match="in the cache"):
        with_references(open_programs(project), run)
    run.provenance.write_text(json.dumps(provenance))
    with open(project.root / "pairs/rows.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "?", "chosen": "!", "rejected": "."}) + "\n")
    with pytest.raises(AssertionError, match="in the cache"):
        with_references(open_programs(project), run)


def test_both_answers_to_a_prompt_are_in_one_split(made: Path) -> None:
    config = load_config(Project(made), DPO, {})
    dataset: Any = open_task(config, Project(made), made / "runs/adapted/assets").dataset
    splits = dataset.splits["train"][0].tokens.splits.reshape(-1, 2)
    assert (splits[:, 0] == splits[:, 1]).all()
    assert len(set(splits[:, 0].tolist())) == 3


def test_what_cannot_be_used_is_refused(project: Project) -> None:
    with pytest.raises(ConfigError, match=r"needs finetune\.base_run"):
        train(project, load_config(project, DPO[:2], {}), "refused")
    with pytest.raises(DataError, match="both answers have"):
        prefer(project, "data.seq_len=40", run="refused")
    with pytest.raises(DataError, match="the row has one answer"):
        prefer(project, 'data.train=["data/*.jsonl"]', run="refused")
    refused = inprocess.run(["eval", "--run", "adapted", "--data", "pairs/rows.jsonl"], project.root, os.environ)
    assert refused.returncode == 2
    assert "pairs of another file cannot be measured" in refused.stderr
    assert restore_run(project.run("adapted"), project).step
