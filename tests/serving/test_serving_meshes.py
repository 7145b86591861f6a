"""A served model that devices divide: what one device writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aifx.core.project import Project


@pytest.mark.representative("a served model on a mesh")
def test_sharded_models_give_the_answers_of_one_device(trained: Project) -> None:
    program = Path(__file__).with_name("scores_of_meshes.py")
    done = subprocess.run([sys.executable, str(program), str(trained.root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    one, *others = found["served"]
    for sharded in others:
        assert sharded["compilations"] == 0
        assert sharded["is_reproducible"]
        for expected, answer in zip(one["answers"], sharded["answers"], strict=True):
            assert [token for token, _ in answer] == [token for token, _ in expected]
            scores = [[logprob for _, logprob in pairs[1:]] for pairs in (answer, expected)]
            np.testing.assert_allclose(*scores, atol=1e-5)
    assert "serve.slots=4" in found["odd"]
