"""Next-token prediction over a real text: what it sums, and what it makes of the sums."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.data.text import TextData, TextFormat
from aifx.evaluation.held_out import evaluate_split
from aifx.kinds import load_config
from aifx.models.decoder.model import Decoder
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import local_layout
from aifx.programs.build import Programs, build
from aifx.specs import Params, init_params
from aifx.tasks import open_task
from aifx.tasks.base import data_digest, evaluation_source, training_source

WORDS = ["the", "whale", "Ahab", "sea", "Ægir", "harpoon", "sun—rise", "Queequeg's", "1851", "boat"]


def open_project(root: Path, *overrides: str) -> Programs:
    (root / "data").mkdir(exist_ok=True)
    rng = random.Random(0)
    text = " ".join(rng.choice(WORDS) for _ in range(6000)) + "\n"
    (root / "data/sea.txt").write_text(text, encoding="utf-8")
    (root / "aifx.toml").write_text("[task]\nkind = 'language'\n")
    tiny = ["data.vocab_size=300", "data.seq_len=32", "model.num_layers=1", "model.embed_dim=16", "model.num_heads=2"]
    project = Project(root)
    config = load_config(project, [*tiny, "train.global_batch_size=4", *overrides], {})
    return build(config, open_task(config, project, root / "assets"), local_layout())


def params_of(programs: Programs, seed: int = 0) -> Params:
    return init_params(programs.specs, jax.random.key(seed))


def text_of(programs: Programs) -> TextData:
    assert isinstance(programs.task.dataset, TextData)
    return programs.task.dataset


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], ["data.eval_stride=8"], ["data.packing='documents'"], ["eval.batch_size=7"]])
def test_every_byte_of_the_test_split_is_scored_once(tmp_path: Path, settings: list[str]) -> None:
    programs = open_project(tmp_path, *settings)
    data = text_of(programs)
    metrics = evaluate_split(programs, params_of(programs), {}, "test")
    raw = (tmp_path / "data/sea.txt").read_bytes()
    assert metrics["bytes"] == data.store.splits["test"].num_bytes
    assert metrics["bytes"] == pytest.approx(len(raw) * 0.1, abs=64)
    assert raw.endswith(data.tokenizer.decode(data.tokenizer.encode(raw[-metrics["bytes"] :].decode())).encode())
    assert metrics["tokens"] == data.store.splits["test"].num_targets
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    nats = metrics["loss"] * metrics["tokens"]
    assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / metrics["bytes"])


def test_the_loss_is_what_numpy_makes_of_all_logits_at_once(tmp_path: Path) -> None:
    programs = open_project(tmp_path)
    params = params_of(programs, 1)
    source = evaluation_source(programs.task, programs.config, "test")
    assert source.num_batches is not None
    batches = [source.read(i, slice(0, source.batch_size)) for i in range(source.num_batches)]
    inputs, targets, weights = (np.concatenate([b[k] for b in batches]) for k in ("inputs", "targets", "weights"))
    ctx = ForwardContext(programs.layout)
    hidden = jax.jit(lambda params: programs.model.hidden(params, {"inputs": inputs}, ctx))(params)
    logits = np.asarray(programs.model.head(params, ctx)(hidden), np.float64).reshape(*targets.shape, -1)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    metrics = evaluate_split(programs, params, {}, "test")
    assert metrics["loss"] == pytest.approx((nll * weights).sum() / weights.sum(), rel=1e-6)
    assert metrics["tokens"] == weights.sum() > 0
    assert evaluate_split(programs, params, {}, "test") == metrics


def test_a_part_of_a_split(tmp_path: Path) -> None:
    programs = open_project(tmp_path)
    params = params_of(programs)
    part, whole = (evaluate_split(programs, params, {}, "test", num_batches=n) for n in (2, None))
    assert part["tokens"] == 2 * 4 * 32
    assert whole["tokens"] > part["tokens"]
    assert evaluate_split(programs, params, {}, "test", num_batches=10_000) == whole


def test_training_sums_the_loss_alone(tmp_path: Path) -> None:
    programs = open_project(tmp_path)
    objective, ctx = programs.objective, ForwardContext(programs.layout, training=True)
    batch = training_source(programs.task, programs.config).read(0, slice(0, 4))
    sums = jax.jit(lambda params: objective.sums(programs.model, params, batch, ctx))(params_of(programs))
    assert set(sums) == {"loss"}
    totals = {"loss": tuple(np.asarray(x, np.float64) for x in sums["loss"])}
    assert objective.metrics(totals, programs.task.data)["loss"] > 0
    assert objective.unit == "tokens"
    assert text_of(programs).counts(batch)["tokens"] == 4 * 32


def test_the_digest_follows_what_decides_the_batches(tmp_path: Path) -> None:
    def digest(*overrides: str) -> str:
        programs = open_project(tmp_path, *overrides)
        return data_digest(programs.task, programs.config)

    first = digest()
    assert digest() == first
    assert digest("train.seed=1") != first
    assert digest("train.global_batch_size=8") != first


def test_a_diverged_loss_has_a_perplexity(tmp_path: Path) -> None:
    task = open_project(tmp_path).task

    def perplexity(nats: float) -> float:
        return float(task.objective.metrics({"loss": (np.float64(nats), np.float64(1.0))}, task.data)["perplexity"])

    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_an_embedding_smaller_than_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        open_project(tmp_path, "model.vocab_size=299")
    model = open_project(tmp_path, "model.vocab_size=512").model
    assert isinstance(model, Decoder)
    assert model.vocab_size == 512


@pytest.mark.slow
def test_a_prediction_is_what_a_file_of_the_text_scores(tmp_path: Path) -> None:
    programs = open_project(tmp_path, "data.eval_stride=8", "eval.batch_size=1")
    form, params = programs.task.format, params_of(programs)
    assert isinstance(form, TextFormat)
    text = "the whale Ægir harpoon " * 9
    (tmp_path / "one.txt").write_text(text)
    task = replace(programs.task, dataset=form.open_file(tmp_path / "one.txt"))
    alone = build(programs.config, task, programs.layout)
    batch = form.encode({"text": text})
    ctx = ForwardContext(programs.layout)
    outputs = programs.objective.predictions(programs.model, params, batch, ctx)  # type: ignore[arg-type]
    record = programs.objective.decode({name: np.asarray(x) for name, x in outputs.items()}, programs.task.data)
    assert record == pytest.approx(evaluate_split(alone, params, {}, "test"), rel=1e-5)
