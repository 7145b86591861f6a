"""The main job: init, train, resume, eval with its gate, generate, and the reports that scripts read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from process_status import has_received
from real_command import HELD, TINY, Command, settings

END_S = 300
SMALL_NETWORK = ["model.channels=[8]", "train.global_batch_size=16"]
Started = Callable[[subprocess.Popen[str]], subprocess.Popen[str]]


def train(steps: int, *more: str) -> list[str]:
    return ["train", *settings([*TINY, f"train.num_steps={steps}"]), *more]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + END_S
    while not condition():
        assert process.poll() is None or condition(), process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.representative("from raw text to an answer")
def test_language_model(trained: Command) -> None:
    project = trained
    report = json.loads((project.cwd / "report.json").read_text())
    assert (report["schema_version"], report["status"], report["step"]) == (1, "completed", 20)
    last = json.loads((project.cwd / "runs/main/metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 20
    assert last["loss"] == report["loss"]

    assert project("ckpt", "verify", "--json").json()["state_digest"] == report["state_digest"]

    again = project(*train(20), "--json").json()
    assert (again["status"], again["step"], again["state_digest"]) == ("completed", 20, report["state_digest"])

    evaluated = project("eval", "--gate", "bits_per_byte <= 8", "--gate", "loss < 0.1", "--json")
    assert evaluated.returncode == 1
    document = evaluated.json()
    assert document["split"] == "test"
    verdicts = {gate["expr"]: gate["passed"] for gate in document["gates"]}
    assert verdicts["bits_per_byte <= 8"] is True
    assert verdicts["loss < 0.1"] is False
    assert document["metrics"]["bytes"] == pytest_bytes_of_last_tenth(project.cwd / "data/moby_dick.txt")

    written = project("generate", "--prompt", "Call me", "--max-tokens", "8", "--seed", "1")
    assert written.returncode == 0, written.stderr
    assert written.stdout == project("generate", "--prompt", "Call me", "--max-tokens", "8", "--seed", "1").stdout
    assert project("generate", "--prompt", "Call me", "--max-tokens", "8", "--seed", "1", "--json").json()["text"]

    listed = project("runs", "ls", "--json").json()["runs"]
    assert [run["run"] for run in listed] == ["main"]
    assert listed[0]["status"] == "completed"


def pytest_bytes_of_last_tenth(book: Path) -> int:
    """Bytes after the first nine tenths, counted from the first whole character."""
    raw = book.read_bytes()
    start = round(len(raw) * 0.9)
    while raw[start] & 0xC0 == 0x80:
        start += 1
    return len(raw) - start


@pytest.mark.representative("from pictures to a measured model")
def test_vision(aifx: Command) -> None:
    assert aifx("init", "belt", "--template", "vision-inspection", "--yes").returncode == 0
    belt = Command(aifx.cwd / "belt", aifx.cache)
    trained = belt("train", *settings([*SMALL_NETWORK, "train.num_steps=4", "train.validate_every=2"]), "--json")
    assert trained.returncode == 0, trained.stderr
    evaluated = belt("eval", "--set", "eval.gates=[]", "--gate", "accuracy >= 0.01", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = evaluated.json()["metrics"]
    assert sum(map(sum, metrics["confusion"])) == 1000
    assert 0 <= metrics["accuracy"] <= 1
    wrong = belt("eval", "--gate", "acuracy >= 0.5")
    wrong.assert_clear_error("accuracy")
    belt("generate").assert_clear_error("resnet")


@pytest.mark.representative("an interrupted training")
def test_interrupt_and_resume(project: Command, started: Started) -> None:
    """A process that is started as users start it. What each signal does is in tests/training/test_signals.py."""
    as_tests_do = {name: os.environ[name] for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    more = ["checkpoint.every=100", "train.validate_every=0", "checkpoint.stop_timeout_s=600"]
    arguments = [*train(150, "--json"), *settings(more)]
    held = project.cwd / "held"
    held.write_text("6")
    process = started(project.start(*arguments, "--run", "stopped", env=as_tests_do, before=HELD))
    wait_until((project.cwd / "holding").exists, process)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: has_received(process.pid, signal.SIGTERM), process)
    held.unlink()
    out, err = process.communicate(timeout=END_S)
    assert process.returncode == 75, err
    stopped = json.loads(out)
    assert (stopped["schema_version"], stopped["status"]) == (1, "preempted")
    resumed = project(*arguments, "--run", "stopped").json()
    whole = project(*arguments, "--run", "whole").json()
    assert resumed["state_digest"] == whole["state_digest"]


@pytest.mark.slow
def test_another_configuration_is_refused_and_forked(trained_copy: Command) -> None:
    project = trained_copy
    other = project(*train(24), *settings(["optimizer.learning_rate=0.5"]))
    other.assert_clear_error("optimizer.learning_rate", "--fork")
    forked = project(*train(24), *settings(["optimizer.learning_rate=0.5"]), "--fork", "hot", "--json")
    assert forked.returncode == 0, forked.stderr
    assert forked.json()["step"] == 24
    assert {run["run"] for run in project("runs", "ls", "--json").json()["runs"]} == {"main", "hot"}


@pytest.mark.slow
def test_closed_pipe(trained: Command) -> None:
    for arguments in (
        ["--help"],
        ["runs", "ls"],
        ["config", "show"],
        ["config", "schema"],
        ["generate", "--max-tokens", "50"],
    ):
        process = trained.start(*arguments)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
        process.wait(timeout=END_S)
        process.stderr.close()
        assert "Traceback" not in said
        assert "BrokenPipe" not in said
