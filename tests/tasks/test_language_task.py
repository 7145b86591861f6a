"""The language task over a real text: what it sums, and what it makes of the sums."""

from __future__ import annotations

import math
import random
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from aifx.config import load_config
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.evaluation.held_out import evaluate_split, sum_split
from aifx.specs import init_params
from aifx.tasks import create_task
from aifx.tasks.language import LanguageTask, stream_text

WORDS = ["the", "whale", "Ahab", "sea", "Ægir", "harpoon", "sun—rise", "Queequeg's", "1851", "boat"]


def open_task(root: Path, *overrides: str) -> LanguageTask:
    (root / "data").mkdir(exist_ok=True)
    rng = random.Random(0)
    text = " ".join(rng.choice(WORDS) for _ in range(6000)) + "\n"
    (root / "data/sea.txt").write_text(text, encoding="utf-8")
    (root / "aifx.toml").write_text("[task]\nkind = 'language'\n")
    tiny = ["data.vocab_size=300", "data.seq_len=32", "model.num_layers=1", "model.embed_dim=16", "model.num_heads=2"]
    project = Project(root)
    config = load_config(project, [*tiny, "train.global_batch_size=4", *overrides], {})
    task = create_task(config, project, root / "assets")
    assert isinstance(task, LanguageTask)
    return task


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("settings", [[], ["data.eval_stride=8"], ["data.packing='documents'"], ["eval.batch_size=7"]])
def test_every_byte_of_the_test_split_is_scored_once(tmp_path: Path, settings: list[str]) -> None:
    task = open_task(tmp_path, *settings)
    params = init_params(task.model.specs(), jax.random.key(0))
    metrics = evaluate_split(task, params, "test")
    raw = (tmp_path / "data/sea.txt").read_bytes()
    assert metrics["bytes"] == task.data.num_bytes("test")
    assert metrics["bytes"] == pytest.approx(len(raw) * 0.1, abs=64)
    assert raw.endswith(task.tokenizer.decode(task.tokenizer.encode(raw[-metrics["bytes"] :].decode())).encode())
    assert metrics["tokens"] == task.data.num_tokens("test")
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    nats = metrics["loss"] * metrics["tokens"]
    assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / metrics["bytes"])


def test_the_loss_is_what_numpy_makes_of_all_logits_at_once(tmp_path: Path) -> None:
    task = open_task(tmp_path)
    params = init_params(task.model.specs(), jax.random.key(1))
    source = task.source("test")
    assert source.num_batches is not None
    batches = [source.read(i, slice(0, source.batch_size)) for i in range(source.num_batches)]
    inputs, targets, weights = (np.concatenate([b[k] for b in batches]) for k in ("inputs", "targets", "weights"))
    logits = np.asarray(jax.jit(task.model)(params, inputs), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    totals = sum_split(task, params, "test")
    assert totals["loss"][0] == pytest.approx((nll * weights).sum(), rel=1e-6)
    assert totals["loss"][1] == weights.sum() > 0
    assert evaluate_split(task, params, "test") == evaluate_split(task, params, "test")


def test_a_part_of_a_split(tmp_path: Path) -> None:
    task = open_task(tmp_path)
    params = init_params(task.model.specs(), jax.random.key(0))
    part, whole = (evaluate_split(task, params, "test", num_batches=n) for n in (2, None))
    assert part["tokens"] == 2 * 4 * 32
    assert whole["tokens"] > part["tokens"]
    assert evaluate_split(task, params, "test", num_batches=10_000) == whole


def test_training_sums_the_loss_alone(tmp_path: Path) -> None:
    task = open_task(tmp_path)
    params = init_params(task.model.specs(), jax.random.key(0))
    batch = task.source("train").read(0, slice(0, 4))
    sums = jax.jit(partial(task.objective, training=True))(params, batch, jax.random.key(0))
    assert set(sums) == {"loss"}
    assert task.metrics({"loss": tuple(np.asarray(x, np.float64) for x in sums["loss"])})["loss"] > 0
    assert task.units(batch) == 4 * 32
    assert task.batch_shape() == (4, 32)


def test_the_digest_follows_what_decides_the_batches(tmp_path: Path) -> None:
    first = open_task(tmp_path).data_digest()
    assert open_task(tmp_path).data_digest() == first
    assert open_task(tmp_path, "train.seed=1").data_digest() != first
    assert open_task(tmp_path, "train.global_batch_size=8").data_digest() != first


def test_a_diverged_loss_has_a_perplexity(tmp_path: Path) -> None:
    task = open_task(tmp_path)
    assert task.metrics({"loss": (np.float64(1e6), np.float64(1.0))})["perplexity"] == math.inf
    assert math.isnan(task.metrics({"loss": (np.float64("nan"), np.float64(1.0))})["perplexity"])


@pytest.mark.parametrize(
    "text", ["sea and sea", "Ægir—Ægir 🐋🐋 whale", "日本語の鯨", "🐋", "\N{REPLACEMENT CHARACTER}x"]
)
def test_text_streams_in_whole_characters(tmp_path: Path, text: str) -> None:
    tokenizer = open_task(tmp_path).tokenizer
    for cut in range(len(text) + 1):
        prompt, rest = tokenizer.encode(text[:cut]), tokenizer.encode(text[cut:])
        pieces = list(stream_text(tokenizer, prompt, rest))
        assert "".join(pieces) == text[cut:]
        assert all(pieces)
    assert "".join(stream_text(tokenizer, [], [*rest, tokenizer.eos_id, *tokenizer.encode("more")])) == text[cut:]


def test_bytes_that_are_no_text_do_not_hold_the_stream_back(tmp_path: Path) -> None:
    tokenizer = open_task(tmp_path).tokenizer
    broken = tokenizer.encode("🐋")[:-1]
    assert "".join(stream_text(tokenizer, [], [*broken, *tokenizer.encode(" sea")])).endswith(" sea")
    assert "".join(stream_text(tokenizer, [], broken))


def test_an_embedding_smaller_than_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        open_task(tmp_path, "model.vocab_size=299")
    assert open_task(tmp_path, "model.vocab_size=512").model.vocab_size == 512
