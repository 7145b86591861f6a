"""A decoder in training: dropout and averaged weights across a stop and a kill, and text at each validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from test_ema import KillAt, Killed
from test_forks import TEXT
from test_training import stopped

from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.tasks.base import training_source

TOML = """\
[data]
vocab_size = 300
seq_len = 32
packing = "documents"
[model]
num_layers = 1
embed_dim = 16
num_heads = 2
num_kv_heads = 1
qk_norm = true
dropout = 0.2
[train]
num_steps = 6
global_batch_size = 4
gradient_accumulation = 2
validate_every = 2
[optimizer]
ema_decay = 0.9
[checkpoint]
every = 2
[log]
sample_tokens = 6
"""
SAMPLE = "log.sample=It was"


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, tiny_type: Any) -> Any:
    """A project whose run "main" has all of this. Not to be changed."""
    root = tmp_path_factory.mktemp("language")
    (root / "data").mkdir()
    (root / "data/whale.txt").write_text(TEXT)
    (root / "aifx.toml").write_text(TOML)
    tiny = tiny_type(Project(root))
    tiny.train(SAMPLE)
    return tiny


def digest(tiny: Any, run: str = "main") -> Any:
    return tiny.events(run)[-1]["state_digest"]


@pytest.mark.representative("a resumed language model")
def test_it_goes_on_bit_for_bit_after_a_stop_and_a_kill(writer: Any) -> None:
    stopped(writer, 3, SAMPLE, run="stopped")
    with pytest.raises(Killed):
        writer.train(SAMPLE, run="killed", hooks=[KillAt(5)])
    for run in ("stopped", "killed"):
        assert writer.train(SAMPLE, run=run).resumed_from in (3, 4, 5)
        assert digest(writer, run) == digest(writer)
        assert writer.records(run) == writer.records()


@pytest.mark.slow
def test_micro_batches_and_scanned_layers_drop_the_same(writer: Any) -> None:
    def loss(*settings: str) -> float:
        programs = writer.programs(*settings)
        state, frozen = programs.init()
        batch = training_source(programs.task, programs.config).read(0, slice(0, 4))
        return float(jax.jit(programs.step.loss)(state, frozen, batch))

    first = loss()
    assert first == writer.records()[0]["loss"]
    for settings in ("train.gradient_accumulation=1", "model.scan_layers=true"):
        assert loss(settings) == pytest.approx(first, rel=1e-5)
    assert loss("model.dropout=0") != pytest.approx(first, rel=1e-5)


@pytest.mark.slow
def test_it_writes_at_each_validation(writer: Any) -> None:
    samples = [event for event in writer.events() if event["event"] == "sample"]
    assert [(sample["step"], sample["prompt"]) for sample in samples] == [(2, "It was"), (4, "It was"), (6, "It was")]
    assert all(len(sample["text"]) > 0 for sample in samples)
    log = writer.run().log.read_text()
    assert log.count("sample: step=") == 3
    code, out, err = writer.command(
        "generate", "--step", "6", "--prompt", "It was", "--max-tokens", "6", "--seed", "0", "--json"
    )
    assert code == 0, out + err
    assert json.loads(out)["text"] == samples[-1]["text"], "generation uses the same averaged weights"


@pytest.mark.slow
def test_writing_changes_no_number(writer: Any) -> None:
    writer.train(run="silent")
    assert digest(writer, "silent") == digest(writer)
    assert not any(event["event"] == "sample" for event in writer.events("silent"))


def test_a_model_that_does_not_write_is_asked_for_no_sample(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log\.sample") as error:
        tiny.train(SAMPLE)
    assert "does not define decode" in error.value.why
    assert not tiny.run().metrics.exists()
