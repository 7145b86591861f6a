"""`aifx ckpt diff` and `prune`, on checkpoints made by hand."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import inprocess
import jax.numpy as jnp
import numpy as np
import pytest

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.config.best_by import LOSS, score_of
from aifx.config.sections import CheckpointSection
from aifx.core.json_files import write_json
from aifx.core.project import Project, RunDirectory
from aifx.runs.lock import hold_run

STEPS = (10, 20, 30, 40)


def state_of(value: float) -> dict[str, Any]:
    return {"params": {"w": jnp.full((300, 50), value, jnp.float32), "b": jnp.zeros(3, jnp.bfloat16)}}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Run `a`, whose best checkpoint is that of step 20."""
    (tmp_path / "aifx.toml").write_text("")
    run = Project(tmp_path).run("a")
    run.path.mkdir(parents=True)
    run.config.write_text("[task]\nkind = 'language'\n[checkpoint]\nkeep_last = 3\n")
    checkpoints = Checkpoints(run.checkpoints, CheckpointSection(asynchronous=False, keep_last=9))
    for step in STEPS:
        loss = float(abs(step - 20))
        score = score_of(LOSS, {"loss": loss})
        checkpoints.save(step, state_of(step), host={}, validation_loss=loss, score=score)
    return run


def aifx(run: RunDirectory, *arguments: str, code: int = 0) -> str:
    done = inprocess.run(["ckpt", *arguments], run.path.parents[1], os.environ)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def answer(run: RunDirectory, *arguments: str, code: int = 0) -> Any:
    return json.loads(aifx(run, *arguments, "--json", code=code))


def steps_of(run: RunDirectory) -> list[int]:
    return Checkpoints(run.checkpoints, CheckpointSection()).steps()


def flip(run: RunDirectory, step: int) -> None:
    """Change a byte of the largest file of a checkpoint."""
    path = max((p for p in (run.checkpoints / str(step)).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_diff(run: RunDirectory) -> None:
    found = answer(run, "diff", "10", "last")
    assert (found["equal"], found["checkpoints"]) == (False, [{"run": "a", "step": 10}, {"run": "a", "step": 40}])
    b, w = found["arrays"]
    assert (b["name"], b["equal"], b["difference_norm"], b["dtypes"]) == ("params/b", True, 0.0, ["bfloat16"] * 2)
    root = math.sqrt(15_000)
    assert (w["name"], w["shapes"], w["largest_change"], w["non_finite"]) == ("params/w", [[300, 50]] * 2, 30.0, [0, 0])
    assert np.allclose([*w["norms"], w["difference_norm"]], [10 * root, 40 * root, 30 * root], rtol=1e-12)
    (part,) = found["parts"]
    assert (part["name"], part["num_arrays"], part["num_different"]) == ("params", 2, 1)
    assert "params/w" in aifx(run, "diff", "10", "20")
    assert answer(run, "diff", "20", "best")["equal"]
    flip(run, 40)
    assert "bytes differ" in answer(run, "diff", "10", "40", code=2)["error"]["why"]


def test_diff_of_other_arrays_and_numbers_that_are_not_finite(run: RunDirectory) -> None:
    other = run.sibling("b")
    other.path.mkdir()
    other.config.write_text(run.config.read_text())
    state = state_of(10)
    state["params"]["w"] = state["params"]["w"].at[0, :2].set(jnp.array([jnp.nan, jnp.inf])).at[1, 0].set(13)
    state["params"] |= {"b": jnp.zeros(4, jnp.bfloat16), "extra": jnp.ones(())}
    Checkpoints(other.checkpoints, CheckpointSection(asynchronous=False)).save(10, state, host={})
    b, extra, w = answer(run, "diff", "a:10", "b:10")["arrays"]
    assert (b["shapes"], b["difference_norm"], b["equal"]) == ([[3], [4]], None, False)
    assert (extra["norms"], extra["dtypes"], extra["equal"]) == ([None, 1.0], [None, "float32"], False)
    assert (w["non_finite"], w["largest_change"], w["difference_norm"]) == ([0, 2], 3.0, 3.0)
    assert "only in B" in aifx(run, "diff", "a:10", "b:10", "--arrays")
    assert answer(run, "diff", "a:10", "c:10", code=2)["error"]["hint"] == "aifx runs ls"


def test_prune(run: RunDirectory) -> None:
    assert [kept["step"] for kept in answer(run, "prune", "--dry-run")["kept"]] == [
        20,
        30,
        40,
    ]  # as the run's config says
    plan = answer(run, "prune", "--keep-last", "1", "--dry-run")
    assert ([c["step"] for c in plan["removed"]], plan["dry_run"]) == ([10, 30], True)
    assert plan["kept"] == [{"step": 20, "reasons": ["best"]}, {"step": 40, "reasons": ["newest"]}]
    assert "--yes" in answer(run, "prune", "--keep-last", "1", code=2)["error"]["hint"]
    with hold_run(run):
        aifx(run, "prune", "--keep-last", "1", "--yes", code=2)
    assert steps_of(run) == list(STEPS)
    done = answer(run, "prune", "--keep-last", "1", "--keep-best", "0", "--keep-every", "30", "--yes")
    assert ([c["step"] for c in done["removed"]], done["dry_run"]) == ([10, 20], False)
    assert steps_of(run) == [30, 40]
    assert "nothing to delete" in aifx(run, "prune", "--keep-last", "2")
    assert answer(run, "verify", "--all")["passed"]


def test_prune_keeps_what_is_damaged_or_needed(run: RunDirectory) -> None:
    """A damaged checkpoint is not one of the newest, so that a whole one stays."""
    user = run.sibling("tuned")
    user.path.mkdir()
    user.config.write_text("")
    write_json(user.provenance, {"finetuned_from": {"run": "a", "step": 10, "digest": "0"}})
    (run.checkpoints / "40" / "manifest.json").write_text("{}")
    done = answer(run, "prune", "--run", "a", "--keep-last", "1", "--keep-best", "0", "--yes")
    assert {kept["step"]: kept["reasons"] for kept in done["kept"]} == {
        10: ["run tuned needs it"],
        30: ["newest"],
        40: ["damaged"],
    }
    assert steps_of(run) == [10, 30, 40]


def test_verify_all(run: RunDirectory) -> None:
    found = answer(run, "verify", "--all")
    assert ([c["step"] for c in found["checkpoints"]], found["passed"]) == (list(STEPS), True)
    flip(run, 20)
    found = answer(run, "verify", "--all", code=1)
    assert [bool(c["damaged_arrays"]) for c in found["checkpoints"]] == [False, True, False, False]
    assert "damaged array: params/w" in aifx(run, "verify", "--all", code=1)
    assert "--all" in answer(run, "verify", "20", "--all", code=2)["error"]["what"]
