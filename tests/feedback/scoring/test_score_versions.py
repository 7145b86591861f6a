"""`aifx score` of a model version whose alias moves."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import inprocess
import pytest

from aifx.feedback.scoring import scoring

SCORE = ["score", "risk@production", "new.jsonl", "sqlite:///shop.db/scores", "--key", "order", "--json"]


def run(project: Path, *args: str, code: int = 0) -> dict[str, Any]:
    done = inprocess.run([*args, "--json"] if "--json" not in args else args, project, os.environ)
    assert done.returncode == code, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout) if code == 0 else {}
    return document


@pytest.mark.slow
def test_a_request_goes_on_with_the_version_that_it_began_with(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the alias has moved. A new call scores all rows by the new version."""
    run(project, "train", "--run", "other", "--set", "train.num_steps=4")
    versions = [run(project, "registry", "push", name, "risk")["digest"] for name in ("main", "other")]
    run(project, "registry", "promote", "risk@v1", "production")
    make, calls = scoring.prediction_batch, list[int]()

    def broken(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(*args)

    monkeypatch.setattr(scoring, "COMMIT_ROWS", 16)
    with monkeypatch.context() as patched:
        patched.setattr(scoring, "prediction_batch", broken)
        run(project, *SCORE, "--request", "a.1", code=130)
    run(project, "registry", "promote", "risk@v2", "production")
    done = run(project, *SCORE, "--request", "a.1")
    assert (done["scored"], done["digest"]) == (40, versions[0])
    assert run(project, *SCORE)["digest"] == versions[1]
    connection = sqlite3.connect(project / "shop.db")
    found = dict(connection.execute("SELECT model, count(DISTINCT key) FROM scores GROUP BY model"))
    connection.close()
    assert found == dict.fromkeys(versions, 40)
