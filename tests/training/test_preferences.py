"""Direct preference optimization: five steps beside the paper's formulas, its reference, and resuming."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import inprocess
import jax
import jax.numpy as jnp
import numpy as np
import plain_training as plain
import pytest
from stopping import StopAt

import aifx as public
from aifx.core.errors import CheckpointError, ConfigError, DataError
from aifx.core.project import Project
from aifx.data.chat.format import References
from aifx.evaluation.dataset import evaluate_files
from aifx.evaluation.held_out import evaluate
from aifx.kinds import load_config
from aifx.loading.references import with_references
from aifx.objectives.dpo import DirectPreference
from aifx.parallel.layout import local_layout
from aifx.programs.build import build
from aifx.tasks.base import training_source
from aifx.tasks.registry import open_task
from aifx.training.restore import with_base_weights
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
    "finetune.base=base", "objective.beta=0.5", "train.seed=3",
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


@pytest.mark.representative("pairs of answers")
@pytest.mark.parametrize("normalize", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_five_steps_are_those_of_the_paper(made: Path, normalize: str) -> None:
    project = Project(made)
    run = project.run("adapted")
    settings = (f"objective.length_normalize={normalize}", "optimizer.weight_decay=0")
    programs = with_references(open_programs(project, *settings), {}, run)
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


@pytest.mark.slow
@pytest.mark.parametrize("settings", [LORA, pytest.param((), marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_bit_for_bit(project: Project, settings: tuple[str, ...]) -> None:
    digest = last(project, "adapted")["state_digest"] if settings else prefer(project, run="whole").state_digest
    stop = StopAt(2)
    prefer(project, *settings, run="stopped", hooks=[stop], stop=stop.signals)
    resumed = prefer(project, *settings, run="stopped")
    assert (resumed.resumed_from, resumed.state_digest) == (3, digest)


@pytest.mark.slow
def test_evaluation_reports_margins_of_held_out_pairs(made: Path) -> None:
    report = evaluate(Project(made).run("adapted"), Project(made), split="validation")
    assert report.metrics["loss"] == last(Project(made), "adapted")["validation_loss"]
    assert report.metrics["margin"] == pytest.approx(report.metrics["chosen"] - report.metrics["rejected"])
    assert 0 <= report.metrics["accuracy"] <= 1
    assert report.metrics["pairs"] >= 2
    assert report.metrics["margin"] > 0


def split_rows(project: Project, split: str) -> list[str]:
    """The lines of the pairs in a split."""
    source: Any = open_programs(project).task.dataset.source(split, 1, seed=None)
    lines = (project.root / "pairs/rows.jsonl").read_text().splitlines(keepends=True)
    return [lines[source.pair(place)] for place in range(source.num_batches)]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [LORA, pytest.param((), marks=pytest.mark.slow)])
def test_a_file_of_pairs_is_measured_as_the_split_with_the_same_pairs(
    project: Project, settings: tuple[str, ...]
) -> None:
    run = project.run("adapted") if settings else prefer(project, run="whole").run
    expected = evaluate(run, project, split="validation").metrics
    file = project.root / "more.jsonl"
    file.write_text("".join(split_rows(project, "validation")))
    (found,) = evaluate_files(run, project, [file]).datasets
    for name in ("loss", "margin", "chosen", "rejected", "pairs"):
        assert found.metrics[name] == pytest.approx(expected[name], rel=1e-5)
    shutil.rmtree(project.root / "runs/base/checkpoints")
    if not settings:  # its reference is in the cache
        assert evaluate_files(run, project, [file]).datasets[0].metrics == found.metrics
    file.write_text("".join(split_rows(project, "train")))
    with pytest.raises(CheckpointError, match=r"step 6.*run base"):
        evaluate_files(run, project, [file])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), LORA])
def test_a_version_is_measured_as_its_run(
    project: Project, settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = project.run("adapted") if settings else prefer(project, run="whole").run
    shutil.copy(run.config, project.config_path)
    monkeypatch.chdir(project.root)

    def measured(model: str, cache: str) -> Any:
        monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / cache))  # which has no references
        whole = public.evaluate(model).metrics
        return whole, public.evaluate(model, data=["pairs/rows.jsonl"]).datasets[0].metrics

    expected = measured(f"runs/{run.name}", "a")
    public.registry_push(run.name, "judge")
    assert measured("judge@v1", "b") == expected
    base = project.run("base").path
    if settings:  # the version has the weights that its adapters change
        shutil.rmtree(base)
        assert measured("judge@v1", "c") == expected
        return
    public.registry_push("base", "first", step=6)
    public.registry_push("base", "first", step=3)
    shutil.rmtree(base)
    assert measured("judge@v1", "c") == expected  # by a version with the weights
    shutil.rmtree(project.root / "registry/models/first")
    with pytest.raises(CheckpointError, match="the weights that model judge@v1 was tuned from are not found"):
        measured("judge@v1", "d")


@pytest.mark.slow
def test_the_reference_is_computed_once_for_its_data_and_weights(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_: Any) -> None:
        raise AssertionError("it is computed")

    def references(*settings: str) -> Any:
        return with_references(open_programs(project, *settings), {}, run).task.dataset.references

    monkeypatch.setattr("aifx.loading.references._compute", computed)
    run = project.run("adapted")
    kept = references()
    assert kept.as_file() == run.reference.read_bytes()
    run.reference.unlink()
    np.testing.assert_array_equal(references("objective.beta=0.1").values, kept.values)  # of the cache
    with pytest.raises(AssertionError, match="it is computed"):
        references("finetune.base_quantize=int8", *LORA)
    provenance = json.loads(run.provenance.read_text())
    other = {**provenance, "finetuned_from": {**provenance["finetuned_from"], "digest": "0" * 64}}
    run.provenance.write_text(json.dumps(other))
    with pytest.raises(AssertionError, match="it is computed"):
        references()
    run.provenance.unlink()
    with pytest.raises(CheckpointError, match="base run"):
        references()
    run.provenance.write_text(json.dumps(provenance))
    with open(project.root / "pairs/rows.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "?", "chosen": "!", "rejected": "."}) + "\n")
    with pytest.raises(AssertionError, match="it is computed"):
        references()


def aifx(project: Project, *arguments: str) -> tuple[int, str]:
    done = inprocess.run(list(arguments), project.root, os.environ)
    return done.returncode, done.stderr + done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_reference_is_an_error(project: Project, damage: str) -> None:
    run = project.run("adapted")
    content = run.reference.read_bytes()
    other = replace(References.read(run.reference), values=np.zeros((40, 2), np.float32)).as_file()
    run.reference.write_bytes({"missing": b"", "cut": content[:-40], "changed": other}[damage])
    if damage == "missing":
        run.reference.unlink()
    for command in ("eval", "train"):
        code, text = aifx(project, command, "--run", "adapted")
        assert code == 2
        assert str(run.reference) in text
        assert "step 6" in text
        assert "hint: restore" in text
    if damage == "changed":
        return
    fork = train(project, load_config(project, [*DPO, *LORA, "train.num_steps=7"], {}), "fork", fork_from="adapted")
    assert fork.status == "completed"
    assert project.run("fork").reference.read_bytes() == content
    assert evaluate(project.run("fork"), project).metrics["pairs"]


@pytest.mark.slow
def test_a_base_that_gives_nan_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DirectPreference.reference

    def reference(*arguments: Any) -> Any:
        return {"reference": whole(*arguments)["reference"].at[1, 0].set(jnp.nan)}

    monkeypatch.setattr(DirectPreference, "reference", reference)
    monkeypatch.setenv("AIFX_CACHE_DIR", str(project.root / "cache"))
    with pytest.raises(CheckpointError, match=r"40 pairs.*log-probability") as refused:
        prefer(project, *LORA, run="refused")
    assert "rows.jsonl" in refused.value.why
    assert "run base, step 6" in refused.value.why
    assert not list((project.root / "cache").glob("references/*"))


@pytest.mark.slow
def test_both_answers_to_a_prompt_are_in_one_split(made: Path) -> None:
    config = load_config(Project(made), DPO, {})
    dataset: Any = open_task(config, Project(made), made / "runs/adapted/assets").dataset
    splits = dataset.splits["train"][0].tokens.splits.reshape(-1, 2)
    assert (splits[:, 0] == splits[:, 1]).all()
    assert len(set(splits[:, 0].tolist())) == 3


@pytest.mark.slow
def test_both_answers_are_shown(made: Path) -> None:
    project = Project(made)
    settings = [part for setting in DPO for part in ("--set", setting)]
    for options in (["--run", "adapted"], settings):
        code, text = aifx(project, "data", "show", "--rows", "1", *options, "--json")
        assert code == 0
        (row,) = json.loads(text)["rows"]
        line = int(row["place"].removeprefix("pairs/rows.jsonl:")) - 1
        trained = {e["name"]: "".join(p["text"] for p in e["parts"] if p["trained"]) for e in row["examples"]}
        assert trained == {"chosen": f"{line} is it<|im_end|>", "rejected": "x" * (line % 7) + "<|im_end|>"}
    assert "\nrejected:\n" in aifx(project, "data", "show", "--rows", "1", *settings)[1]


@pytest.mark.slow
def test_what_cannot_be_used_is_refused(project: Project) -> None:
    with pytest.raises(ConfigError, match=r"needs finetune\.base"):
        train(project, load_config(project, DPO[:2], {}), "refused")
    with pytest.raises(DataError, match="the pair of answers has"):
        prefer(project, "data.seq_len=40", run="refused")
    with pytest.raises(DataError, match="one answer"):
        prefer(project, 'data.train=["data/*.jsonl"]', run="refused")
    code, text = aifx(project, "predict", "pairs/rows.jsonl", "--run", "adapted")
    assert code == 2
    assert "no predictions" in text
    assert "aifx eval --data FILE" in text
    (project.root / "one.jsonl").write_text(json.dumps({"prompt": "?", "completion": "!"}) + "\n")
    code, text = aifx(project, "eval", "--data", "one.jsonl", "--run", "adapted")
    assert code == 2
    assert "one.jsonl:1: " in text
    assert "one answer" in text
