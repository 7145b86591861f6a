"""aifx line check: every finding at once, with its row, and nothing of the line is run or imported."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from inprocess import run

GOOD = """
[line]
every = "1h"

[[station]]
name = "data"
run = "aifx data add corpus texts --license CC0-1.0"

[[station]]
name = "train"
run = "aifx train --run lm-{key} --set data.dataset={stations.data.reference}"
when = "changed:corpus or changed:lm@production"
cooldown = "6h"
budget_per_day = 2

[[station]]
name = "judge"
run = "aifx eval --run {stations.train.run} --json"

[[station]]
name = "push"
run = ["aifx registry push {stations.train.run} lm", "aifx registry promote lm@{stations.judge.step} production"]

[[station]]
name = "tell"
run = "rm -rf {stations.push.entry}"
shell = true
"""

BAD = [
    ("aifx data add", "aifx data ad", 5, ["aifx data", "'ad'", "'add'"]),
    ("aifx data add corpus texts", "aifx data add corpus", 5, ["aifx data add", "SRC"]),
    ("aifx data add", "python add.py", 5, ["'python'", "shell = true"]),
    ("--run lm-{key}", "--rum lm-{key}", 9, ["aifx train", "'--rum'", "'--run'"]),
    ("aifx train --run", "aifx launch slurm -N 2 train --rum", 9, ["aifx train", "'--rum'"]),
    ("cooldown", "retries = 2 #", 9, ["cooldown", "trains"]),
    ("budget_per_day", "retries = 2 #", 9, ["budget_per_day", "trains"]),
    ("{stations.train.run}", "{stations.train.rnu}", 16, ["stations.train.rnu", "aifx train"]),
    ("changed:corpus", "changed:corpse", 9, ["data.corpse", "aifx data add corpse"]),
    ("lm@production", "ml@production", 9, ["models.ml.production", "'ml'"]),
    ("{stations.data.reference}", "{data.corpse}", 9, ["data.corpse", "'corpse'"]),
    ("shell = true", 'shell = true\nenvironment = ["NO_SUCH_VARIABLE"]', 24, ["NO_SUCH_VARIABLE"]),
    ("{stations.data.reference}", "{stations.judge.run}", 9, ["train", "judge"]),
    ('"push"', '"train"', 20, ["'train'", "9"]),
    ("1h", "1 h", 3, ["every", "1 h"]),
    ("shell = true", 'shell = true\non = "slurm"', 28, ["'tell'", "slurm", "shell = true"]),
    ('CC0-1.0"', 'CC0-1.0"\non = "k8s"', 8, ["'data'", "k8s", "train or eval"]),
    ('production"]', 'production"]\non = "slurm"', 23, ["'push'", "slurm", "2"]),
]


def check(folder: Path, text: str, *options: str) -> tuple[int, str]:
    (folder / "aifx.toml").write_text('[task]\nkind = "own:Task"\n[datasets]\nreaders = ["own:read"]\n')
    (folder / "own.py").write_text("raise SystemExit('imported')\n")
    (folder / "line.toml").write_text(text)
    found = run(["line", "check", *options], folder, dict(os.environ))
    assert not found.stderr, found.stderr
    return found.returncode, found.stdout


def test_a_line_without_findings_passes_and_nothing_is_written(tmp_path: Path) -> None:
    code, text = check(tmp_path, GOOD)
    assert (code, "5 stations" in text) == (0, True), text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aifx.toml", "line.toml", "own.py"]


@pytest.mark.parametrize(("good", "bad", "row", "facts"), BAD)
def test_each_mistake_is_found_with_its_row(tmp_path: Path, good: str, bad: str, row: int, facts: list[str]) -> None:
    assert good in GOOD
    code, text = check(tmp_path, GOOD.replace(good, bad, 1))
    assert code == 1
    assert f"line.toml:{row}: " in text
    assert not [fact for fact in facts if fact not in text], text


def test_all_findings_come_at_once(tmp_path: Path) -> None:
    text = GOOD
    for good, bad in (("data add", "data ad"), ("--run lm", "--rum lm"), ("cooldown", "cooldwn")):
        text = text.replace(good, bad, 1)
    text += '[[notify]]\nurl_from = "NO_SUCH_URL"\non = ["driftt"]\n[[notify]]\nurl_from = "NO_SUCH_HOOK"\n'
    code, found = check(tmp_path, text, "--json")
    findings = json.loads(found)["findings"]
    rows = [one["row"] for one in findings]
    assert (code, rows) == (1, sorted(rows))
    assert len([one for one in findings if "NO_SUCH_HOOK" in one["what"]]) == 2
    for fact in ("'ad'", "cooldwn", "notify 1: on"):
        assert any(fact in one["what"] for one in findings), fact


def test_a_store_that_cannot_be_reached_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aside").write_text("no folder")
    monkeypatch.setenv("AIFX_DATASETS__ROOT", "nosuchprotocol://bucket/data")
    code, text = check(tmp_path, GOOD.replace("changed:corpus", "changed:other"))
    assert (code, "nosuchprotocol" in text) == (1, True), text


@pytest.mark.parametrize("text", ["[line", None])
def test_a_file_that_is_no_line_is_an_error(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "aifx.toml").write_text("")
    if text is not None:
        (tmp_path / "line.toml").write_text(text)
    found = run(["line", "check"], tmp_path, dict(os.environ))
    assert (found.returncode, "line.toml" in found.stderr) == (2, True)
