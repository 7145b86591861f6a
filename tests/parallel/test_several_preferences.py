"""Two processes learn preferences as one process does, also when each has a cache of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_several_processes import DEVICES, Trainer

from aifx.core.project import Project
from aifx.data.chat.format import References

TOML = """\
[task]
kind = "chat"
[data]
tokenizer = "byte"
seq_len = 64
validation_fraction = 0.25
[model]
num_layers = 1
embed_dim = 16
num_heads = 2
mlp_dim = 24
[train]
num_steps = 2
global_batch_size = 4
validate_every = 2
"""
PAIRS = (
    "task.kind=preference", 'data.train=["pairs/*.jsonl"]', "data.tokenizer=runs/base/assets/tokenizer.json",
    "finetune.base=base", "finetune.adapter=lora", "lora.rank=2", "mesh.fsdp=2", "eval.batch_size=3",
)  # fmt: skip

OPTIONS = [part for setting in PAIRS for part in ("--set", setting)]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    """A project with conversations, pairs, and the run "base"."""
    trainer = Trainer(tmp_path_factory.mktemp("preferences") / "project")
    (trainer.root / "aifx.toml").write_text(TOML)
    for folder, keys in (("data", ("completion",)), ("pairs", ("chosen", "rejected"))):
        (trainer.root / folder).mkdir()
        rows = [{"prompt": f"{n}?"} | {key: f"{key[0]}{n}" for key in keys} for n in range(25)]
        (trainer.root / folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer.train("base", 1, XLA_FLAGS=DEVICES.format(1))
    yield trainer
    trainer.end()


@pytest.fixture(scope="module")
def trained(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """Documents of the runs "by-1" and "by-2" of one and two processes, with two devices in all."""
    found = {}
    for size in (1, 2):
        caches = own_caches(tmp_path_factory.mktemp(f"caches-{size}"))
        found[size] = trainer.train(f"by-{size}", size, *OPTIONS, own_env=caches, **devices(size))
    return found


def own_caches(folder: Path) -> dict[int, dict[str, str]]:
    return {index: {"AIFX_CACHE_DIR": str(folder / f"{index}")} for index in range(2)}


def devices(size: int) -> dict[str, str]:
    """For each of `size` processes, so that all have two together."""
    return {"XLA_FLAGS": DEVICES.format(2 // size)}


def reference(trainer: Trainer, run: str) -> np.ndarray:
    return References.read(Project(trainer.root).run(run).reference).values


@pytest.mark.slow
def test_two_processes_compute_the_reference_of_one(trainer: Trainer, trained: dict[int, Any]) -> None:
    np.testing.assert_array_equal(reference(trainer, "by-2"), reference(trainer, "by-1"))
    assert np.unique(reference(trainer, "by-1")).size > 40
    assert trained[2]["state_digest"] == trained[1]["state_digest"]


@pytest.mark.slow
def test_a_reference_in_the_cache_of_process_0_is_enough(
    trainer: Trainer, trained: dict[int, Any], tmp_path: Path
) -> None:
    caches = own_caches(tmp_path)
    trainer.train("first", 2, *OPTIONS, "--set", "train.num_steps=1", own_env=caches, **devices(2))
    assert [path.exists() for path in (tmp_path / "0/references", tmp_path / "1/references")] == [True, False]
    again = trainer.train("again", 2, *OPTIONS, own_env=caches, **devices(2))
    assert again["state_digest"] == trained[2]["state_digest"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--data", "pairs/rows.jsonl"]])
def test_two_processes_measure_pairs_as_one(trainer: Trainer, trained: dict[int, Any], options: list[str]) -> None:
    found = [trainer.train("by-1", size, *options, command="eval", **devices(size)) for size in (1, 2)]
    assert found[0] == found[1]
