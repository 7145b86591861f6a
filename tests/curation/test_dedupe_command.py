"""`aifx data dedupe` and `split`: output, exit codes, and the audit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from inprocess import run
from made_rows import edited, rows_of, some_texts

from aifx.core.processes import PROGRAM
from aifx.curation import near as near_module
from aifx.data.names import SPLIT
from aifx.data.versions.catalog import open_catalog


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = some_texts(80, 11, vocabulary=3000)
    texts += [edited(text, 1, 1) for text in texts[:20]] + texts[:10]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert aifx(tmp_path, "add", "corpus", "texts.jsonl", "--license", "MIT").returncode == 0
    return tmp_path


def aifx(folder: Path, *args: str) -> CompletedProcess[str]:
    return run(["data", *args, "--root", "datasets"], folder, dict(os.environ))


def test_dedupe_and_split(folder: Path) -> None:
    done = aifx(folder, "dedupe", "corpus", "--near", "0.8")
    assert done.returncode == 0, done.stderr
    assert "exact" in done.stdout
    assert "near" in done.stdout
    split = aifx(folder, "split", "corpus", "--validation", "0.2", "--json")
    found = json.loads(split.stdout)
    assert found["facts"].keys() == {"train", "validation", "test"}  # the clusters are those of dedupe
    version = open_catalog(str(folder / "datasets")).open("corpus")
    assert found["reference"] == version.reference
    assert {row[SPLIT] for row in rows_of(version.shards)} == {"train", "validation", "test"}
    again = aifx(folder, "split", "corpus@" + found["parents"][0].partition("@")[2], "--validation", "0.2")
    assert "which was there already" in again.stdout


@pytest.mark.slow
def test_a_step_does_not_import_pandas(folder: Path) -> None:
    """Which pyarrow does by itself if it is installed."""
    program = "import sys, atexit; atexit.register(lambda: print('pandas' in sys.modules)); " + PROGRAM
    command = [sys.executable, "-P", "-c", program, "data", "dedupe", "corpus", "--root", "datasets"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_mark_keeps_all_rows(folder: Path) -> None:
    found = json.loads(aifx(folder, "dedupe", "corpus", "--mark", "--json").stdout)
    assert (found["rows"], found["dropped"], found["facts"]["exact"]) == (110, 0, 10)


def test_audit_passes_and_makes_no_version(folder: Path) -> None:
    done = aifx(folder, "dedupe", "corpus", "--audit", "--near", "0.7", "--pairs", "60", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["near"], found["wrong_merges"], found["recall"]) == (0.7, 0, 1.0)
    assert sum(bucket["pairs"] for bucket in found["buckets"]) == found["pairs"] > 40
    assert sum(bucket["pairs"] for bucket in found["buckets"] if bucket["least"] >= 0.7) > 5
    assert len(open_catalog(str(folder / "datasets")).versions("corpus")) == 1


def test_audit_of_a_detector_that_misses_pairs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_module.Bands, "at", lambda near: near_module.Bands(48, 2, near))
    done = aifx(folder, "dedupe", "corpus", "--audit", "--near", "0.6", "--pairs", "60")
    assert done.returncode == 1
    assert "failed: recall" in done.stdout


def test_audit_of_a_detector_that_joins_too_much(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_module, "similarity", lambda *args: 1.0)
    done = aifx(folder, "dedupe", "corpus", "--audit", "--near", "0.7", "--pairs", "60", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["wrong_merges"] > 0
    assert found["recall"] == 1.0


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("dedupe", "corpus", "--near", "1.5"), "--near 1.5 is not between 0.2 and 1"),
        (("dedupe", "corpus", "--pairs", "5"), "--pairs can only be used with --audit"),
        (("dedupe", "corpus", "--audit", "--mark"), "--audit and --mark cannot be used together"),
        (("dedupe", "corpus", "--audit", "--on", "slurm"), "--on slurm cannot be used with --audit"),
        (("dedupe", "corpus", "--audit", "--on", "ray"), "--on ray cannot be used with --audit"),
        (("dedupe", "nothing"), "no data set 'nothing'"),
        (("dedupe", "corpus", "--memory", "1MB"), "--memory 1MB is too little"),
        (("split", "corpus", "--validation", "0.5", "--test", "0.5"), "the shares are too large"),
    ],
)
def test_usage(folder: Path, args: tuple[str, ...], what: str) -> None:
    done = aifx(folder, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert what in done.stderr


def test_sketches_are_rebuilt(folder: Path) -> None:
    assert aifx(folder, "dedupe", "corpus", "--near", "0.8", "--mark").returncode == 0
    algorithm = folder / "datasets" / "corpus" / "sketches" / "algorithm.json"
    algorithm.write_text("{}")
    refused = aifx(folder, "dedupe", "corpus", "--near", "0.7")
    assert refused.returncode == 2
    hint = refused.stderr.splitlines()[-1].removeprefix("hint: aifx data ").split()
    assert hint == ["dedupe", open_catalog(str(folder / "datasets")).manifest("corpus").reference, *hint[2:]]
    assert hint[2:] == ["--near", "0.7", "--rebuild-sketches"]
    done = aifx(folder, *hint)
    assert done.returncode == 0, done.stderr
    assert json.loads(algorithm.read_text())["method"] == "R-MinHash"


def test_tables_and_texts_without_words(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n" + "1,x\n" * 3 + "2,y\n")
    assert aifx(tmp_path, "add", "rows", "rows.csv", "--license", "MIT").returncode == 0
    assert json.loads(aifx(tmp_path, "dedupe", "rows", "--json").stdout)["dropped_by"] == {"exact": 2}
    refused = aifx(tmp_path, "dedupe", "rows", "--near", "0.8")
    assert "--near is for text" in refused.stderr
    (tmp_path / "short.txt").write_text("too short")
    assert aifx(tmp_path, "add", "short", "short.txt", "--license", "MIT").returncode == 0
    refused = aifx(tmp_path, "dedupe", "short", "--audit")
    assert "short@" in refused.stderr
    assert "none has 20 words" in refused.stderr


@pytest.mark.slow
def test_ten_thousand_planted_pairs(tmp_path: Path) -> None:
    """Recall 0.999 at a Jaccard similarity of 0.9 and above, 0.98 at 0.8 to 0.9, and no wrong merge."""
    texts = [text for text in some_texts(15_000, 12, vocabulary=20_000, longest=400) if text.count(" ") > 60]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert aifx(tmp_path, "add", "corpus", "texts.jsonl", "--license", "MIT").returncode == 0
    done = aifx(tmp_path, "dedupe", "corpus", "--audit", "--pairs", "10000", "--json")
    found = json.loads(done.stdout)
    assert (found["pairs"], found["wrong_merges"]) == (10_000, 0)
    buckets = {bucket["least"]: bucket for bucket in found["buckets"]}
    assert buckets[0.9]["pairs"] > 1000
    assert buckets[0.9]["joined"] / buckets[0.9]["pairs"] >= 0.999
    assert buckets[0.8]["joined"] / buckets[0.8]["pairs"] >= 0.98
    assert np.sum([bucket["joined"] for least, bucket in buckets.items() if least < 0.8]) == 0
