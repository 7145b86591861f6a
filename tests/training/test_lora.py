"""Runs that train adapters beside the frozen weights of a base run."""

from __future__ import annotations

import json
import os
import re
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
from test_forks import TEXT

from aifx.checkpoint.manifest import read_manifest
from aifx.core.errors import CheckpointError, ConfigError
from aifx.core.project import Project
from aifx.evaluation.held_out import evaluate
from aifx.kinds import load_config
from aifx.loading.base_weights import frozen_arrays
from aifx.loading.restore import restore_run
from aifx.parallel.layout import local_layout
from aifx.programs.build import build, tree_bytes
from aifx.tasks.base import training_source
from aifx.tasks.registry import describe_task, open_task
from aifx.training.run import train

CONFIG = """\
[data]
vocab_size = 300
seq_len = 16
[model]
num_layers = 2
embed_dim = 16
num_heads = 4
num_kv_heads = 2
mlp_dim = 24
[train]
num_steps = 6
global_batch_size = 4
validate_every = 3
[optimizer]
learning_rate = 0.02
[schedule]
kind = "constant"
[checkpoint]
every = 3
keep_last = 9
"""
LORA = (
    "finetune.base=base", "finetune.adapter=lora", "lora.rank=3", "lora.alpha=6",
    "data.tokenizer=runs/base/assets/tokenizer.json", "train.seed=5",
)  # fmt: skip
CHATS = ("task.kind=chat", 'data.train=["data/chats.jsonl"]', "data.seq_len=64", "data.packing=none")
HARDER = ("lora.dropout=0.2", "finetune.base_quantize=int8", "optimizer.ema_decay=0.5", "train.gradient_accumulation=2")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the runs "base" and "tuned" (LORA and HARDER). Not to be changed."""
    root = tmp_path_factory.mktemp("lora") / "project"
    (root / "data").mkdir(parents=True)
    (root / "data/whale.txt").write_text(TEXT)
    chats = [{"prompt": f"How many whales, {n}?", "completion": f"{n} whales"} for n in range(30)]
    (root / "data/chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (root / "aifx.toml").write_text(CONFIG)
    project = Project(root)
    train(project, load_config(project, [], {}), "base")
    tune(project, *HARDER, run="tuned")
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Project:
    return Project(Path(shutil.copytree(made, tmp_path / "project")))


def tune(project: Project, *settings: str, run: str, **options: Any) -> Any:
    return train(project, load_config(project, [*LORA, *settings], {}), run, **options)


def last(project: Project, run: str) -> Any:
    """The last event of a run."""
    return json.loads(project.run(run).events.read_text().splitlines()[-1])


def flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(part.key for part in path): leaf for path, leaf in leaves}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [pytest.param((), marks=pytest.mark.slow), CHATS], ids=["next-token", "sft"])
def test_five_steps_are_those_of_the_paper(made: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    """Losses and adapters agree with `W + alpha / rank * A B`, differentiated as a whole, and AdamW by hand."""
    project = Project(made)
    config = load_config(project, [*LORA, *settings, "optimizer.weight_decay=0.1"], {})
    programs = build(config, open_task(config, project, tmp_path / "assets"), local_layout(1))
    base = restore_run(project.run("base"), project, step=6)
    state, frozen = programs.init_state(), frozen_arrays(programs, project.run("tuned"))
    adapters = {
        name.removesuffix("/lora_a"): (a, flat(state.params)[name.replace("lora_a", "lora_b")])
        for name, a in flat(state.params).items()
        if name.endswith("/lora_a")
    }
    assert len(adapters) == 2 * len(plain.MATRICES)
    adapters = {n: (np.array(a).reshape(-1, 3), np.array(b).reshape(3, -1)) for n, (a, b) in adapters.items()}
    weights = flat(base.params)
    weights = {n: w.reshape(adapters[n][0].shape[0], -1) if n in adapters else w for n, w in weights.items()}

    @jax.jit
    @jax.value_and_grad
    def loss(adapters: Any, batch: Any) -> Any:
        found = plain.log_probabilities(plain.with_adapters(weights, adapters, 6 / 3), batch["inputs"], 2, 4)
        nats = -jnp.take_along_axis(found, batch["targets"][..., None], -1)[..., 0]
        trained = batch["weights"] * (batch.get("writers", 1) >= 1)  # of a chat, what the assistant wrote
        return (nats * trained).sum() / trained.sum()

    update, source = plain.PlainAdamW(0.02, 0.1), training_source(programs.task, config)
    for step in range(5):
        batch = source.read(step, slice(0, 4))
        state, numbers = programs.train_step(state, frozen, programs.place(batch))
        expected, gradients = loss(adapters, batch)
        adapters = update(adapters, gradients)
        np.testing.assert_allclose(numbers[0], expected, rtol=1e-5)
    for name, (a, b) in adapters.items():
        np.testing.assert_allclose(flat(state.params)[f"{name}/lora_a"].reshape(a.shape), a, atol=1e-4)
        np.testing.assert_allclose(flat(state.params)[f"{name}/lora_b"].reshape(b.shape), b, atol=1e-4)
        assert np.abs(b).max() > 0.05


@pytest.mark.slow
def test_a_checkpoint_holds_adapters_alone(made: Path) -> None:
    run = Project(made).run("tuned")
    manifest = read_manifest(run.checkpoints / "6")
    names = [name for name in manifest.arrays if name != "step" and "count" not in name]
    assert {name.split("/")[-1] for name in names} == {"lora_a", "lora_b"}
    provenance = json.loads(run.provenance.read_text())
    assert manifest.run["base"] == provenance["finetuned_from"]
    assert manifest.run["base"].keys() == {"run", "step", "digest"}


@pytest.mark.representative("adapters")
def test_a_stopped_run_goes_on_bit_for_bit(project: Project) -> None:
    stop = StopAt(2)
    tune(project, *HARDER, run="stopped", hooks=[stop], stop=stop.signals)
    resumed = tune(project, *HARDER, "model.scan_layers=false", run="stopped")
    assert (resumed.resumed_from, resumed.state_digest) == (3, last(project, "tuned")["state_digest"])


@pytest.mark.slow
def test_scanned_layers_drop_and_adapt_as_unrolled_ones(project: Project) -> None:
    result = tune(project, *HARDER, "model.scan_layers=true", run="scanned")
    unrolled = last(project, "tuned")
    assert result.loss == pytest.approx(unrolled["loss"], rel=1e-5)
    assert result.validation_loss == pytest.approx(unrolled["validation_loss"], rel=1e-5)
    assert evaluate(project.run("scanned"), project, split="validation", overrides=["model.scan_layers=false"])


@pytest.mark.slow
@pytest.mark.parametrize("run", ["tuned", pytest.param("plain", marks=pytest.mark.slow)])
def test_evaluation_is_the_validation_and_the_merged_model_computes_the_same(project: Project, run: str) -> None:
    if run == "plain":
        tune(project, run=run)
    trained = restore_run(project.run(run), project)
    report = evaluate(project.run(run), project, split="validation")
    assert report.metrics["loss"] == last(project, run)["best_validation_loss"]
    programs, params, frozen = trained.programs("none")
    source = training_source(open_task(trained.config, project, trained.run.assets), trained.config)
    batch = programs.place(source.read(0, slice(0, 4)))
    (total, _), (merged, _) = (
        of.eval_step(*arrays, batch)["loss"]
        for of, arrays in ((programs, (params, frozen)), (programs.plain, (programs.merged(params, frozen), {})))
    )
    assert float(merged) == pytest.approx(float(total), rel=1e-5)
    written = inprocess.run(["generate", "--run", run, "--max-tokens", "4", "--prompt", "It"], project.root, os.environ)
    assert written.returncode == 0, written.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("run", "adapter"), [("tuned", "lora"), ("tuned", "none"), ("plain", "lora")])
def test_weights_of_a_run_that_trained_adapters_are_merged_ones(project: Project, run: str, adapter: str) -> None:
    if run == "plain":
        tune(project, run=run)
    still = (f"finetune.base={run}", "optimizer.learning_rate=1e-9", "train.num_steps=1", "train.validate_every=1")
    before = last(project, run)["best_validation_loss"]
    result = tune(project, *still, f"finetune.adapter={adapter}", run="on")
    assert result.validation_loss == pytest.approx(before, rel=1e-5)
    shutil.rmtree(project.run("base").path)
    if adapter == "lora":  # which needs its base, and that one's
        assert read_manifest(project.run("on").checkpoints / "1").run["base"]["run"] == run
        with pytest.raises(CheckpointError, match=f"run {run} .*step 6.*run base"):
            evaluate(project.run("on"), project)
    else:
        assert evaluate(project.run("on"), project)


@pytest.mark.slow
def test_a_base_that_is_missing_or_has_changed_is_refused(project: Project) -> None:
    commands = (
        ["train", "--run", "tuned", *(x for s in (*LORA, *HARDER) for x in ("--set", s))],
        ["eval", "--run", "tuned"],
        ["predict", "--run", "tuned", "aifx.toml"],
        ["generate", "--run", "tuned"],
        ["export", "--run", "tuned", "out"],
    )
    base = project.run("base").path
    with open(project.run("tuned").events, "a") as file:  # not at its end
        file.write(json.dumps({"event": "resume", "step": 6, "time": 0}) + "\n")
    shutil.move(base, base.with_name("away"))
    for command in commands:
        refused = inprocess.run(command, project.root, os.environ)
        assert refused.returncode == 2, command
        assert re.search("run tuned.*step 6.*run base", refused.stderr)
        assert "no run at" in refused.stderr
    verified = inprocess.run(["ckpt", "verify", "--run", "tuned", "--json"], project.root, os.environ)
    assert verified.returncode == 1
    [unusable] = json.loads(verified.stdout)["unusable"]
    assert "of run base" in unusable
    assert "no run at" in unusable
    train(project, load_config(project, ["train.seed=1"], {}), "base")
    for command in commands:
        refused = inprocess.run(command, project.root, os.environ)
        assert refused.returncode == 2, command
        assert "its weights have changed" in refused.stderr
    shutil.rmtree(base)
    shutil.move(base.with_name("away"), base)
    for command in commands[:2]:
        done = inprocess.run(command, project.root, os.environ)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_fork_keeps_the_base_of_its_origin(project: Project) -> None:
    result = tune(project, *HARDER, "train.num_steps=7", run="fork", fork_from="tuned")
    assert result.step == 7
    base, own = (read_manifest(project.run(run).checkpoints / "6").run["base"] for run in ("tuned", "fork"))
    assert own == base
    for other, reason in (("finetune.base=base:3", "another base run"), ("lora.rank=2", "another model")):
        with pytest.raises((ConfigError, CheckpointError), match=reason) as refused:
            tune(project, *HARDER, "train.num_steps=7", other, run="other", fork_from="tuned")
        assert other.split("=")[0] in refused.value.why


@pytest.mark.slow
def test_the_step_of_the_base_is_chosen(project: Project) -> None:
    tune(project, "finetune.base=base:3", "train.num_steps=1", run="third")
    assert read_manifest(project.run("third").checkpoints / "1").run["base"]["step"] == 3
    with pytest.raises(CheckpointError, match="step 4"):
        tune(project, "finetune.base=base:4", run="fourth")


@pytest.mark.slow
def test_settings_that_are_refused(project: Project) -> None:
    for settings, reason in (
        (("lora.targets=['atention']",), "lora.targets has 'atention'"),
        (("lora.targets=['q_proj']",), "did you mean 'query'"),
        (("finetune.freeze=backbone",), "freezes all weights"),
        (("finetune.adapter=none", "finetune.base_quantize=int8"), "needs finetune.adapter"),
        (("task.kind=vision", "model.family=resnet", f"data.path={project.config_path}"), "."),
    ):
        with pytest.raises(Exception, match=reason):
            tune(project, *settings, run="refused")
    given = [part for setting in (*LORA, "lora.targets=['q_proj']") for part in ("--set", setting)]
    checked = inprocess.run(["config", "check", *given], project.root, os.environ)
    assert "did you mean 'query'" in checked.stderr
    with pytest.raises(ConfigError, match=r"finetune.adapter = 'lora'.*finetune.base"):
        train(project, load_config(project, ["finetune.adapter=lora"], {}), "refused")


@pytest.mark.slow
def test_another_model_than_that_of_the_base_is_refused(project: Project) -> None:
    """As in `train`, whose programs would take long to compile."""
    for setting, difference in (
        ("model.mlp_dim=32", "layers/0/mlp/gate is [16, 32], and it is [16, 24] there"),
        ("model.num_layers=1", "it has layers/1/attention/key there"),
        ("model.num_layers=3", "layers/2/attention/key is [16, 2, 4], and that run has none"),
    ):
        programs = adapted(project, setting)
        with pytest.raises(ConfigError, match="weights of run base") as refused:
            frozen_arrays(programs, project.run("tuned"))
        assert difference in refused.value.why


def test_targets_are_groups_or_single_matrices(tmp_path: Path) -> None:
    found = adapted(new_project(tmp_path), 'lora.targets=["query", "down"]')
    assert {name.split("/")[-2] for name in flat(found.abstract[0].params)} == {"query", "down"}
    found = adapted(Project(tmp_path), 'lora.targets=["mlp"]', "finetune.base_quantize=int8")
    assert {name.split("/")[2] for name in flat(found.abstract[0].params)} == {"mlp"}
    frozen = flat(found.abstract[1])
    assert {frozen[f"layers/0/{name}/int8"].dtype.name for name in ("attention/key", "mlp/up/base")} == {"int8"}


@pytest.mark.slow
@pytest.mark.parametrize(("quantize", "num_layers"), [("none", 2), pytest.param("int8", 4, marks=pytest.mark.slow)])
def test_a_step_needs_the_base_and_little_more(tmp_path: Path, quantize: str, num_layers: int) -> None:
    """XLA's own count, without what grows with the rows: activations."""
    sizes = (
        "data.vocab_size=2048", "data.seq_len=16", f"model.num_layers={num_layers}", "model.embed_dim=256",
        "model.num_heads=4", "model.num_kv_heads=2", "model.mlp_dim=768", "lora.rank=4",
        f"finetune.base_quantize={quantize}",
    )  # fmt: skip
    temporary = {}
    for rows in (4, 8):
        programs = adapted(new_project(tmp_path), *sizes, f"train.global_batch_size={rows}")
        memory = programs.train_step.lower().compile().memory_analysis()
        temporary[rows] = memory.temp_size_in_bytes
    base, adapters = (tree_bytes(tree) for tree in (programs.abstract[1], programs.abstract[0]))
    fixed = memory.argument_size_in_bytes + 2 * temporary[4] - temporary[8]
    assert fixed >= base + adapters
    if quantize == "none":
        assert fixed <= 1.15 * base
    elif jax.__version_info__ >= (0, 11):  # before, XLA for CPUs keeps all matrices in float32 at the same time
        # These adapters are float32 beside a base of a quarter, and one matrix at a time is float32.
        assert fixed - adapters <= 1.15 * base


def new_project(folder: Path) -> Project:
    (folder / "aifx.toml").write_text(CONFIG)
    return Project(folder)


def adapted(project: Project, *settings: str) -> Any:
    config = load_config(project, [*LORA, *settings], {})
    return build(config, describe_task(config, project), local_layout(1))
