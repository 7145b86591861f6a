"""The project probe in real projects, good ones and bad ones; in a process of its own in the last test."""

import json

import jax
import numpy as np
import pytest

from aifx.core.facts import Absent, from_document, to_document
from aifx.core.project import Project
from aifx.health.host import Host
from aifx.health.probes import project as probe
from aifx.health.project_probe import look_at
from aifx.kinds import load_config
from aifx.parallel.layout import local_layout
from aifx.programs.build import build
from aifx.tasks import describe_task
from aifx.training.state import to_tree

CONFIG = """
[model]
num_layers = 2
embed_dim = 32
{model}
[data]
vocab_size = 300
train = ["text/*.txt"]
seq_len = 16
[optimizer]
kind = "{optimizer}"
"""
VISION = """
[task]
kind = "vision"
[data]
path = "images.npz"
"""


@pytest.fixture
def written(tmp_path):
    def write(config=CONFIG, model="", optimizer="adamw", text=b"the cat sat on the mat\n" * 50):
        (tmp_path / "aifx.toml").write_text(config.replace("{model}", model).replace("{optimizer}", optimizer))
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / "a.txt").write_bytes(text)
        return tmp_path

    return write


def looked_at(folder):
    return from_document(json.loads(json.dumps(to_document(look_at(Project(folder))))))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_plan_counts_what_training_keeps(written, optimizer):
    folder = written(optimizer=optimizer)
    facts = looked_at(folder)
    assert facts["config"]["is_valid"] is True
    assert facts["data"] == {"is_readable": True, "why": "", "files": 1}
    config = load_config(Project(folder))
    state, _ = build(config, describe_task(config, Project(folder)), local_layout(1)).abstract
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(to_tree(state, stacked=False))]
    assert facts["plan"]["checkpoint_bytes"] == sum(sizes)
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
    assert facts["plan"]["training_bytes"] == sum(sizes) + weights
    assert facts["disk"]["checkpoint_bytes"] == sum(sizes)
    assert facts["disk"]["needed_bytes"] == 4 * sum(sizes)
    assert facts["disk"]["free_bytes"] > 0


def test_a_mistake_of_the_configuration_is_reported_with_its_line(written):
    facts = looked_at(written(model="num_hedas = 3"))
    assert facts["config"]["is_valid"] is False
    assert "aifx.toml:5" in facts["config"]["why"]
    assert isinstance(facts["plan"], Absent)


@pytest.mark.parametrize(
    ("text", "word"), [(b"\xff\xfe no text \x80" * 10, "UTF-8"), (None, "text/*.txt")], ids=["not text", "no file"]
)
def test_data_that_cannot_be_read_is_named(written, text, word):
    folder = written(text=text or b"x")
    if text is None:
        (folder / "text" / "a.txt").unlink()
    facts = looked_at(folder)
    assert facts["data"]["is_readable"] is False
    assert word in facts["data"]["why"]


def test_an_archive_of_images_is_opened(written):
    folder = written(config=VISION)
    assert looked_at(folder)["data"]["is_readable"] is False
    arrays = {f"{split}_{what}": np.zeros(3) for split in ("train", "test") for what in ("images", "labels")}
    np.savez(folder / "images.npz", **arrays)
    facts = looked_at(folder)
    assert facts["data"]["is_readable"] is True
    assert isinstance(facts["plan"], Absent)
    assert isinstance(facts["disk"]["needed_bytes"], Absent)


def test_outside_of_a_project_it_is_skipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(probe.collect(Host()), Absent)


@pytest.mark.slow
def test_a_large_plan_is_counted_without_being_made(written, monkeypatch):
    monkeypatch.chdir(written(model="mlp_dim = 6553600"))
    facts = probe.collect(Host())
    assert facts["plan"]["parameters"] > 10**9
    assert facts["plan"]["training_bytes"] == pytest.approx(16 * facts["plan"]["parameters"], rel=0.01)
    assert facts["host_memory_bytes"] > 2**28
