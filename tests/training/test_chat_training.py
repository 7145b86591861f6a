"""Supervised fine-tuning from conversations: what is trained, packing, and resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from forward import outputs_of
from stopping import StopAt

from aifx.core.project import Project
from aifx.evaluation.held_out import evaluate, evaluate_split
from aifx.kinds import load_config
from aifx.parallel.layout import local_layout
from aifx.programs.build import Programs, build
from aifx.tasks.registry import open_task
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
num_heads = 2
[train]
num_steps = 6
global_batch_size = 4
validate_every = 3
[checkpoint]
every = 2
[eval]
gates = ["perplexity <= 300"]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    (tmp_path / "aifx.toml").write_text(SETTINGS)
    with open(tmp_path / "data/chats.jsonl", "w") as file:
        for n in range(40):
            turns = [("user", f"{n}?"), ("assistant", f"{n} it is"), ("user", "And?"), ("assistant", "x" * (n % 9))]
            messages = [{"role": role, "content": content} for role, content in turns[: 2 + 2 * (n % 2)]]
            file.write(json.dumps({"messages": messages}) + "\n")
    return Project(tmp_path)


@pytest.fixture
def programs(project: Project) -> Callable[..., tuple[Programs, Any, Any]]:
    def programs(*settings: str) -> tuple[Programs, Any, Any]:
        config = load_config(project, settings, {})
        made = build(config, open_task(config, project, project.root / "assets"), local_layout(1))
        state, frozen = made.init()
        return made, state.params, frozen

    return programs


@pytest.mark.representative("chats")
@pytest.mark.parametrize("loss_on", ["assistant", "completion"])
def test_the_loss_is_that_of_the_tokens_it_names(programs: Callable[..., Any], loss_on: str) -> None:
    made, params, frozen = programs(f"objective.loss_on={loss_on}")
    found = evaluate_split(made, params, frozen, "validation")
    source = made.task.dataset.source("validation", 4, seed=None)
    forward, renderer = jax.jit(outputs_of(made.model)), made.task.format.renderer
    nats, count = 0.0, 0
    for step in range(source.num_batches):
        batch = source.read(step, slice(None))
        fields = {name: batch[name] for name in ("inputs", "segment_ids", "positions")}
        logits = np.asarray(forward(params, **fields), np.float64)
        logits = logits.reshape(*batch["targets"].shape, -1)
        likely = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        each = -np.take_along_axis(likely, batch["targets"][..., None], -1)[..., 0]
        least = {"assistant": 1, "completion": 2}[loss_on]
        chosen = (batch["weights"] > 0) & (batch["writers"] >= least)
        nats, count = nats + each[chosen].sum(), count + int(chosen.sum())
    assert renderer.template.marks_answers
    assert found["tokens"] == count > 0
    assert found["loss"] == pytest.approx(nats / count, abs=1e-5)


@pytest.mark.slow
def test_packing_does_not_change_the_loss(programs: Callable[..., Any]) -> None:
    found = [evaluate_split(*programs(f"data.packing={packing}"), "train") for packing in ("examples", "none")]
    assert found[0]["tokens"] == found[1]["tokens"]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-5)


@pytest.mark.slow
def test_all_tokens_are_next_token_prediction(programs: Callable[..., Any]) -> None:
    losses = [
        evaluate_split(*programs(*settings), "validation")["loss"]
        for settings in (["objective.loss_on=all"], ["objective.kind=next-token"])
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_chats_resume_bit_for_bit(project: Project) -> None:
    config = load_config(project, [], {})
    whole = train(project, config, "whole")
    observer = StopAt(3)
    first = train(project, config, "halved", hooks=[observer], stop=observer.signals)
    assert first.status == "preempted"
    second = train(project, config, "halved")
    assert second.resumed_from == first.step
    assert second.state_digest == whole.state_digest
    report = evaluate(project.run("halved"), project)
    assert report.passed
    assert set(report.metrics) == {"loss", "perplexity", "tokens"}
