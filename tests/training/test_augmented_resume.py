"""A run on augmented pictures that is stopped and resumed is the uninterrupted run, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stopping import StopAt

from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.training.run import train

SETTINGS = """\
[task]
kind = "vision"
[data]
path = "photos"
image_size = [12, 12]
sampling = "balanced"
class_weights = "balanced"
[augment]
flip = "both"
rotate = 20
crop = 0.7
shift = 1
brightness = 0.2
contrast = 0.2
mixup = 0.4
[model]
channels = [4]
[train]
num_steps = 6
global_batch_size = 8
validate_every = 0
[checkpoint]
every = 2
"""


@pytest.mark.slow
def test_augmented_pictures_resume_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    for seed in range(30):
        path = tmp_path / f"photos/{'rare' if seed < 10 else 'common'}/{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (14, 15, 3)).astype(np.uint8)).save(path)
    (tmp_path / "aifx.toml").write_text(SETTINGS)
    project = Project(tmp_path)
    config = load_config(project, [], {})
    whole = train(project, config, "whole")
    observer = StopAt(3)
    first = train(project, config, "halved", hooks=[observer], stop=observer.signals)
    assert first.status == "preempted"
    second = train(project, load_config(project, ["data.workers=0"], {}), "halved")
    assert second.resumed_from == first.step
    assert second.state_digest == whole.state_digest
