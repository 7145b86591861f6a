"""A second model predicts the served rows, too, and what is recorded lets it be promoted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import aifx
from aifx.core.project import Project
from aifx.serving.http.services import add_shadow

POLICY = "[roles]\nadmin = []\n[aliases.production]\nbetter = {}\n"


def ask(url: str, count: int = 40) -> list[Any]:
    """The predictions for rows that have their outcome; each request has one or two."""
    rng, found = np.random.default_rng(3), []
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
        for place in range(count):
            values = rng.normal(size=(1 + place % 2, 2)).round(3).tolist()
            rows = [{"length": a, "weight": b, "kind": "long" if a > b else "short"} for a, b in values]
            answer = http.post("/v1/predict", json={"rows": rows}, headers={"X-Request-Id": f"q{place}"})
            assert answer.status_code == 200, answer.text
            found.append(answer.json()["predictions"])
    return found


@pytest.mark.slow
@pytest.mark.representative("a promotion by recorded answers")
def test_a_second_model_is_promoted_by_its_recorded_answers(
    table: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    shutil.copytree(table.root, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    for step in (1, 3):
        aifx.registry_push("main", "kinds", step=step)
    aifx.registry_promote("kinds@v1", "production")
    (root / "policy.toml").write_text(POLICY)
    aifx.registry_init("policy.toml")
    file = root / "both.jsonl"
    settings = {"serve.port": 0, "serve.shadow_share": 1.0, "serve.shadow_file": str(file)}
    with aifx.serve("kinds@production", settings={"serve.port": 0}) as server:
        alone = ask(server.url)
    with aifx.serve("kinds@production", settings=settings, shadow="kinds@v2", watch=True) as server:
        assert ask(server.url) == alone
    with aifx.serve("kinds@v2", settings={"serve.port": 0}) as server:
        other = ask(server.url)
    records = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda one: int(one["id"][1:]))
    assert [one["served"]["answer"]["predictions"] for one in records] == alone
    assert [one["shadow"]["answer"]["predictions"] for one in records] == other
    assert aifx.registry_promote("kinds@v2", "production").action == "refuse"
    found = aifx.compare_shadow(file, target="kind", metric="min loss")
    assert found.comparison is not None
    assert found.comparison.verdict == "better"
    (root / "report.json").write_text(json.dumps(found.document()))
    aifx.registry_attest("kinds@v2", "report.json", "comparison")
    assert aifx.registry_promote("kinds@v2", "production").action == "promote"


def test_both_models_share_a_clock(table: Project, serve: Callable[..., Any]) -> None:
    """So that no second is charged twice."""
    service = serve(table).service
    shadow = add_shadow(service, table.run("main"), table, 1, ())
    shadow.close()
    engine: Any = shadow._state.engine
    assert engine.clock is service.clock


@pytest.mark.slow
def test_rows_that_the_second_model_does_not_have_fail_there_alone(table: Project, tmp_path: Path) -> None:
    """It was trained on another column."""
    root = tmp_path / "project"
    shutil.copytree(table.root, root)
    text = (root / "data/rows.csv").read_text().replace("length,weight,kind", "length,width,kind")
    (root / "data/rows.csv").write_text(text)
    aifx.train(project=root, run="narrow")
    file = root / "both.jsonl"
    settings = {"serve.port": 0, "serve.shadow_share": 1.0, "serve.shadow_file": str(file)}
    with aifx.serve(root / "runs/main", settings=settings, shadow=root / "runs/narrow") as server:
        ask(server.url, 2)
    first = json.loads(file.read_text().splitlines()[0])
    assert first["shadow"]["answer"] is None
    assert "width" in first["shadow"]["error"]
