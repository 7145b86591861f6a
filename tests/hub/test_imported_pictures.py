"""Imported image models compute what transformers computes, and begin a run for other classes."""

from __future__ import annotations

import json

import peer_pictures
import pytest
from picture_runs import assert_same_logits

from aifx.config import read_config


@pytest.mark.parametrize("name", peer_pictures.FIXED)
def test_logits_are_those_of_transformers(name, picture_models, empty_project):
    made = assert_same_logits(picture_models(name), empty_project)
    assert made.task == "vision"
    run = empty_project.run(made.run)
    config = read_config(run.config, empty_project)
    assert config.data.classes == ("crane", "dent", "crane (2)", "scratch, deep")
    ignored = json.loads(run.imported.read_text())["ignored"]
    assert all(key.endswith("num_batches_tracked") for key in ignored)
    assert bool(ignored) == (config.model.family == "resnet")
