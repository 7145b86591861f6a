"""`aifx eval` over a run that was really trained: what it reports, where the report lands, how it ends."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trained_project import aifx, document

from aifx.core.errors import CheckpointError, ConfigError, UsageError
from aifx.core.project import Project, RunDirectory
from aifx.evaluation.dataset import evaluate_files
from aifx.evaluation.held_out import Report, evaluate, write_report
from aifx.evaluation.settings import changed_settings
from aifx.objectives.next_token import NextToken

pytestmark = pytest.mark.representative("an evaluation")  # they share a training that costs seconds


@pytest.mark.parametrize("use", [evaluate, partial(evaluate_files, paths=[Path("missing.txt")])])
def test_a_malformed_gate_is_refused_before_the_run_is_opened(
    project: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[..., Any]
) -> None:
    for module in ("held_out", "dataset"):
        monkeypatch.setattr(f"aifx.evaluation.{module}.restore_run", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(UsageError, match="NAME OP NUMBER"):
        use(RunDirectory(project / "runs/main"), Project(project), gates=["bits_per_byte = 2"])


def test_the_document_has_exactly_what_is_promised(project: Path) -> None:
    report = document(aifx(project, "eval", "--gate", "loss < 0.1", "--json"), code=1)
    keys = {"schema_version", "run", "step", "split", "quantize", "metrics", "gates", "better_last", "baselines"}
    keys |= {"slices", "data", "data_digest", "model", "settings", "settings_digest"}
    assert set(report) == keys
    assert report["baselines"] == {}
    assert len(report["data_digest"]) == 64
    assert (report["schema_version"], report["run"], report["step"], report["split"]) == (1, "main", 12, "test")
    assert set(report["metrics"]) == {"loss", "perplexity", "bits_per_byte", "tokens", "bytes"}
    assert [(g["expr"], g["passed"]) for g in report["gates"]] == [("bits_per_byte <= 9", True), ("loss < 0.1", False)]
    assert report["gates"][1]["value"] == report["metrics"]["loss"]
    assert document(aifx(project, "eval", "--json"))["metrics"] == report["metrics"]  # bit for bit


def test_people_get_tables_and_the_verdict(project: Path) -> None:
    done = aifx(project, "eval", "--gate", "loss < 0.1")
    assert done.returncode == 1
    assert "bits_per_byte <= 9" in done.stdout
    assert "FAILED" in done.stdout
    assert "passed" in done.stdout
    assert "Traceback" not in done.stderr


def measure(project: Path, **options: Any) -> Report:
    """In this process, which has loaded everything already."""
    found = Project(project)
    return evaluate(found.existing_run(), found, **options)


def test_reports_of_a_step_stand_together(project: Path) -> None:
    path = project / "runs/main/eval/12.json"
    test, validation = measure(project), measure(project, split="validation")
    kept = json.loads(path.read_text())
    assert (kept["schema_version"], kept["run"], kept["step"]) == (1, "main", 12)
    assert {name: entry["metrics"] for name, entry in kept["splits"].items()} == {
        "test": test.metrics,
        "validation": validation.metrics,
    }
    assert kept["splits"]["test"]["passed"] is True
    path.write_text('{"splits": [torn')
    measure(project)
    assert set(json.loads(path.read_text())["splits"]) == {"test"}
    assert {p.name for p in path.parent.iterdir()} == {"12.json", ".lock"}


@pytest.mark.slow
def test_a_quantized_model_is_measured_beside_the_other(project: Path) -> None:
    plain = measure(project)
    quantized = measure(project, overrides=["eval.quantize=int8"])
    assert quantized.metrics["bits_per_byte"] == pytest.approx(plain.metrics["bits_per_byte"], rel=0.02)
    assert quantized.metrics != plain.metrics
    kept = json.loads((project / "runs/main/eval/12.json").read_text())["splits"]
    assert {name: entry["metrics"]["loss"] for name, entry in kept.items()} == {
        "test": plain.metrics["loss"],
        "test-int8": quantized.metrics["loss"],
    }


def test_reports_that_end_at_the_same_time_all_stand(tmp_path: Path) -> None:
    names = [f"split {i}" for i in range(24)]

    def write(name: str) -> None:
        write_report(RunDirectory(tmp_path), Report("main", 12, name, "none", {"loss": 1.0}, ()))  # type: ignore[arg-type]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, names))
    assert set(json.loads((tmp_path / "eval/12.json").read_text())["splits"]) == set(names)


def test_which_checkpoint(project: Path) -> None:
    fourth, last, best = (measure(project, step=4), measure(project, step="last"), measure(project, step="best"))
    assert [r.step for r in (fourth, last, best)] == [4, 12, 12]
    assert fourth.metrics["loss"] > last.metrics["loss"]
    for step, word in (("5", "4, 8, 12"), ("first", "best"), ("-1", "best")):
        failed = aifx(project, "eval", "--step", step)
        assert failed.returncode == 2
        assert word in failed.stderr
        assert "hint:" in failed.stderr


def test_validation_in_training_is_what_eval_finds(project: Path) -> None:
    records = [json.loads(line) for line in (project / "runs/main/metrics.jsonl").read_text().splitlines()]
    (at_8,) = [r["validation"] for r in records if r["step"] == 8]
    assert measure(project, step=8, split="validation").metrics["loss"] == at_8["loss"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"gates": ["bits_per_bite <= 2"]}, "bits_per_byte"),
        ({"gates": ["bits_per_byte = 2"]}, "NAME OP NUMBER"),
        ({"overrides": ["eval.gates=['lss < 1']"]}, "loss"),
    ],
)
def test_a_gate_that_cannot_be_held_is_refused_before_anything_is_measured(
    project: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], word: str
) -> None:
    monkeypatch.setattr("aifx.evaluation.held_out.evaluate_split", lambda *_, **__: pytest.fail("it was measured"))
    with pytest.raises(UsageError, match=word):
        measure(project, **options)


@pytest.mark.parametrize(
    ("args", "word"),
    [(["--split", "tset"], "test"), (["--run", "mian"], "main"), (["--gate", "bits_per_bite <= 2"], "bits_per_byte")],
)
def test_usage(project: Path, args: list[str], word: str) -> None:
    failed = aifx(project, "eval", *args)
    assert failed.returncode == 2, failed.stdout
    assert word in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_splits_together_are_all_of_the_text(project: Path) -> None:
    metrics = {split: measure(project, split=split).metrics for split in ("train", "validation", "test")}
    assert sum(m["bytes"] for m in metrics.values()) == (project / "data/whale.txt").stat().st_size
    assert metrics["train"]["loss"] == pytest.approx(metrics["test"]["loss"], rel=0.2)


def test_settings_of_one_call(project: Path) -> None:
    whole = measure(project)
    report = measure(project, overrides=["eval.gates=[]", "data.eval_stride=8"])
    assert report.gates == ()
    assert report.metrics["bytes"] == whole.metrics["bytes"]
    assert report.metrics["loss"] != whole.metrics["loss"]  # more context
    assert changed_settings(whole.settings, report.settings) == {"data.eval_stride": (0, 8)}
    assert report.settings_digest != whole.settings_digest
    kept = json.loads((project / "runs/main/eval/12.json").read_text())["splits"]["test"]
    assert (kept["settings"], kept["settings_digest"]) == (report.settings, report.settings_digest)


def test_the_settings_of_a_report_are_those_that_change_its_figures(project: Path) -> None:
    whole = measure(project)
    others = ["eval.batch_size=4", "eval.gates=[]", "kernels.rms_norm=reference", "generate.temperature=0"]
    assert measure(project, overrides=others).settings_digest == whole.settings_digest
    changed = measure(project, overrides=["train.precision=float32", "model.norm_epsilon=0.1"])
    assert changed_settings(whole.settings, changed.settings).keys() == {"model.norm_epsilon", "train.precision"}


def test_scanned_layers_evaluate_alike(project: Path) -> None:
    scanned = measure(project, overrides=["model.scan_layers=true"])
    assert scanned.metrics["loss"] == pytest.approx(measure(project).metrics["loss"], rel=1e-5)


def test_data_that_changed_since_is_said(project: Path, logged: list[str]) -> None:
    measure(project)
    assert not [line for line in logged if "changed" in line]
    with (project / "data/whale.txt").open("a") as file:
        file.write("And I only am escaped alone to tell thee.\n")
    measure(project)
    assert [line for line in logged if "the data has changed" in line]
    logged.clear()
    measure(project, overrides=["data.eval_stride=8"])
    assert [line for line in logged if "the data has changed" in line]


def test_settings_that_only_change_how_a_split_is_read_are_no_change_of_data(project: Path, logged: list[str]) -> None:
    measure(project, overrides=["data.eval_stride=8", "eval.batch_size=4"])
    assert not [line for line in logged if "changed" in line]


@pytest.mark.parametrize("setting", ["data.test_fraction=0.9", "data.split=document", 'data.test=["data/whale.txt"]'])
def test_what_was_trained_on_cannot_be_measured_as_the_test(
    project: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setattr("aifx.evaluation.held_out.evaluate_split", lambda *_, **__: pytest.fail("it was measured"))
    with pytest.raises(UsageError, match=setting.partition("=")[0]):
        measure(project, overrides=[setting])


def test_a_metric_that_is_not_finite_fails_its_gate(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = NextToken.metrics
    monkeypatch.setattr(NextToken, "metrics", lambda self, *given: metrics(self, *given) | {"loss": math.nan})
    assert not measure(project, gates=["loss <= 100"]).passed
    kept = json.loads((project / "runs/main/eval/12.json").read_text())["splits"]["test"]
    assert kept["metrics"]["loss"] is None
    assert kept["gates"][-1] == {"expr": "loss <= 100", "value": None, "passed": False}


def test_a_run_without_a_checkpoint(project: Path) -> None:
    shutil.rmtree(project / "runs/main/checkpoints")
    with pytest.raises(CheckpointError, match="aifx train"):
        measure(project)


def test_gates_are_those_that_are_set_now(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = project / "aifx.toml"

    def gates(**options: Any) -> list[str]:
        return [g.expr for g in measure(project, **options).gates]

    toml.write_text(toml.read_text().replace("bits_per_byte <= 9", "loss <= 0.1"))
    assert document(aifx(project, "eval", "--json"), code=1)["gates"][0]["expr"] == "loss <= 0.1"
    assert gates(gates=["loss <= 5"]) == ["loss <= 0.1", "loss <= 5"]
    monkeypatch.setenv("AIFX_EVAL__GATES", '["loss <= 7"]')
    assert gates() == ["loss <= 7"]
    assert gates(overrides=['eval.gates=["loss <= 6"]']) == ["loss <= 6"]


@pytest.mark.parametrize("toml", [None, "", "[model]\nembed_dim = 64\n[train]\nglobal_batch_size = 3\n"])
def test_without_a_section_of_its_own_the_run_is_measured_as_it_was_set(project: Path, toml: str | None) -> None:
    whole = measure(project)
    if toml is None:
        (project / "aifx.toml").unlink()
    else:
        (project / "aifx.toml").write_text(toml)
    report = measure(project)
    assert [g.expr for g in report.gates] == ["bits_per_byte <= 9"]
    assert report.metrics == whole.metrics


def test_all_of_eval_is_as_it_is_set_now(project: Path, logged: list[str]) -> None:
    (project / "aifx.toml").write_text('[eval]\nsplit = "validation"\nbatch_size = 4\n[data]\nseq_len = 8\n')
    report = measure(project)
    assert report.split == "validation"
    assert report.metrics["loss"] == pytest.approx(measure(project, split="validation").metrics["loss"], rel=1e-6)
    assert not [line for line in logged if "changed" in line]


@pytest.mark.parametrize(
    ("section", "word"), [('[eval]\ngates = ["loss"]', "gate"), ("[eval]\ngats = []", "gates"), ("[evl]", "[evl]")]
)
def test_a_section_that_is_wrong_now_is_refused(project: Path, section: str, word: str) -> None:
    (project / "aifx.toml").write_text(section)
    with pytest.raises(ConfigError) as refused:
        measure(project)
    assert word in str(refused.value)
