"""A policy with every rule: real evidence of a table's model meets them one after the other, and nothing else does."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import inprocess
import model_runs
import numpy as np
import pytest
from registry_program import answer

from aifx.registry.policy import AliasRules

POLICY = """
[roles]
admin = ["ann"]
reviewer = ["bob"]
[aliases.production]
eval = {{ data = "{data}", split = "test", gates = ["accuracy >= 0"] }}
better = {{ data = "{data}", split = "test", metric = "max accuracy", margin = 1.0 }}
contamination = {{ data = "{data}" }}
licences = {{ allow = ["{licence}"] }}
slices = {{ columns = ["colour"], gates = ["slices.colour.worst.accuracy >= 0"] }}
signature = {{ role = "reviewer" }}
bench = {{ gates = ["serve.ttft.median_s < 1"], days = 1 }}
drill = {{ days = 1 }}
file = {{ names = ["CARD.md"] }}
approval = {{ role = "reviewer", author = "key" }}
[keys]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose fraud@production is v1, from an earlier version of the data set that v2 was trained on."""
    toml = model_runs.TABLE.replace('path = "data/table.csv"', 'dataset = "people"')
    project = model_runs.make_project(tmp_path / "project", toml)
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AIFX_ACTOR", "ann")
    for person in ("ann", "bob"):
        answer(project.root, "keygen", f"{person}.pem")
    for seed, (name, width) in enumerate({"old": 8, "new": 16}.items()):
        numbers = enumerate(np.random.default_rng(seed).normal(size=400))
        lines = (f"{a:.6f},{'xyz'[n % 3]},{'yes' if a > 0 else 'no'}" for n, a in numbers)
        Path(f"data/{name}.csv").write_text("\n".join(["amount,colour,target", *lines]) + "\n")
        aifx("data", "add", "people", f"data/{name}.csv", "--license", "MIT")
        aifx("data", "split", "people", "--validation", "0.3", "--test", "0.3")
        aifx("train", "--run", name, "--set", f"model.embed_dim={width}", "--set", "train.num_steps=1")
        answer(project.root, "push", name, "fraud", "--key", "ann.pem")
    answer(project.root, "promote", "fraud@v1", "production")
    return project.root


def aifx(*args: str, code: int = 0) -> dict[str, Any]:
    """The document of a command. It is also in doc.json."""
    done = inprocess.run([*args, "--json"], Path.cwd(), dict(os.environ))
    assert done.returncode == code, done.stderr
    Path("doc.json").write_text(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refusing(folder: Path) -> set[str]:
    """The rules that refuse fraud@v2 as production."""
    found = answer(folder, "promote", "fraud@v2", "production", "--dry-run", code=1)["findings"]
    assert {one["rule"] for one in found} == {*AliasRules.model_fields}
    assert all(one["hint"] for one in found if not one["passed"])
    return {one["rule"] for one in found if not one["passed"]}


@pytest.mark.slow
def test_each_rule_waits_for_its_evidence(folder: Path) -> None:
    old, new = (answer(folder, "show", f"fraud@v{n}")["entries"][0]["facts"]["data"][0] for n in (1, 2))
    assert old != new

    def decree(licence: str, *key: str) -> None:
        keys = (f'{name} = """{Path(f"{name}.pem.pub").read_text()}"""\n' for name in ("ann", "bob"))
        Path("policy.toml").write_text(POLICY.format(data=new, licence=licence) + "".join(keys))
        answer(folder, "init", "--policy", "policy.toml", *key)

    def attest(kind: str, *command: str) -> None:
        if command:
            aifx(*command)
        answer(folder, "attest", "fraud@v2", "doc.json", f"--{kind}")

    def write(**document: Any) -> None:
        Path("doc.json").write_text(json.dumps(document))

    def measure() -> None:
        attest("eval", "eval", "--model", "fraud@v2", "--split", "test")

    def compare() -> None:
        how = ("eval", "--against", "fraud@v1", "--metric", "max accuracy", "--margin", "1", "--set", "eval.group=_row")
        attest("comparison", *how, "--model", "fraud@v2", "--split", "test")
        assert aifx(*how, "--run", "new", "--split", "test")["look"] == 2  # the ledger has the first
        assert answer(folder, "attest", "fraud@v2", "--comparison")["action"] == "attest"  # the last of the run
        assert aifx(*how, "--model", "fraud@v2", "--split", "validation")["look"] == 1

    def search() -> None:
        for reference in (new, old):
            assert "contamination" in refusing(folder)  # the incumbent's data counts, too
            attest("contamination", "data", "decontaminate", reference, "--against", new)

    def slices() -> None:
        attest("eval", "eval", "--model", "fraud@v2", "--split", "validation", "--set", 'eval.slices=["colour"]')

    def sign() -> None:
        answer(folder, "attest", "fraud@v2", "--sign", "--key", "bob.pem")

    def bench() -> None:
        digest = answer(folder, "show", "fraud@v2")["version"]["digest"]
        write(model=digest, time=time.time(), results=[{"name": "serve.ttft", "median_s": 0.5}])
        attest("bench")

    def drill() -> None:
        digest = answer(folder, "show", "fraud@v2")["entries"][0]["facts"]["config_digest"]
        write(config_digest=digest, passed=True, ended=datetime.now(UTC).isoformat())
        attest("drill")

    def describe() -> None:
        Path("CARD.md").write_text("It divides people by their amounts.")
        answer(folder, "attest", "fraud@v2", "CARD.md")

    def approve() -> None:
        answer(folder, "approve", "fraud@v2", "production", "--key", "bob.pem", AIFX_ACTOR="bob")

    decree("CC0-1.0")
    evidence = {
        "eval": measure,
        "better": compare,
        "contamination": search,
        "licences": lambda: decree("MIT", "--key", "ann.pem"),
        "slices": slices,
        "signature": sign,
        "bench": bench,
        "drill": drill,
        "file": describe,
        "approval": approve,
    }
    missing = set(evidence)
    for rule, give in evidence.items():
        assert refusing(folder) == missing
        give()
        missing.remove(rule)
    answer(folder, "promote", "fraud@v2", "production")
    assert answer(folder, "show", "fraud@production")["version"]["reference"] == "fraud@v2"
