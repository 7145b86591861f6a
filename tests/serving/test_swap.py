"""New checkpoints take over, or are refused; what was answered can be replayed bit for bit."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import inprocess
import jax
import pytest
from published_schemas import check_answer

from aifx.checkpoint.manifest import list_checkpoints
from aifx.core.errors import DataError, UsageError
from aifx.core.project import Project
from aifx.core.web.traffic import AccessLog
from aifx.loading.restore import restore_run
from aifx.loading.steps import choose_step
from aifx.serving import swap
from aifx.serving.engine import Engine
from aifx.serving.http.services import open_service
from aifx.serving.record import RecordCounts, ReplayReport, packed, replay, replay_settings, unpacked
from aifx.serving.records import RecordWriter, encoded, read_records
from aifx.serving.requests import Delta, GenerationRequest, QueueFull, SamplingSettings
from aifx.serving.start import start_engine
from aifx.serving.swap import StepsOfRun, Watcher, watch


@pytest.fixture
def served(project: Project) -> Iterator[Callable[..., tuple[Engine, Watcher]]]:
    started: list[tuple[Engine, Watcher]] = []

    def serve(*overrides: str, canary: Path | None = None) -> tuple[Engine, Watcher]:
        run = restore_run(project.run("main"), project, overrides=overrides)
        engine = start_engine(run, run.config.serve)
        source = StepsOfRun(run, None, overrides)
        watcher = watch(engine, run.config.serve, source, canary=canary, project=project)
        started.append((engine, watcher))
        return started[-1]

    yield serve
    for engine, watcher in started:
        watcher.stop()
        engine.stop()


def ask(engine: Engine, seed: int = 0, tokens: int = 40) -> queue.Queue[Delta]:
    deltas: queue.Queue[Delta] = queue.Queue()
    prompt = engine.tokenizer.encode_prompt("12 whales, said ")
    engine.submit(GenerationRequest(prompt, tokens, SamplingSettings(seed=seed), ignore_end=True), deltas.put)
    return deltas


def whole(deltas: queue.Queue[Delta]) -> list[int]:
    tokens: list[int] = []
    while True:
        delta = deltas.get(timeout=60)
        tokens += delta.token_ids
        if delta.finish_reason is not None:
            assert delta.finish_reason == "length", delta
            return tokens


def wait_until(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 120  # a gate is a process, which may be slow to start
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.representative("a swap of weights")
def test_a_new_checkpoint_takes_over_between_two_steps(
    served: Callable[..., tuple[Engine, Watcher]], arrive: Callable[..., None]
) -> None:
    engine, watcher = served()
    old, expected = engine.fingerprint, whole(ask(engine))
    running = [ask(engine) for _ in range(6)]
    arrive(2)
    while engine.fingerprint == old:
        running = [*running[1:], ask(engine)]
        assert whole(running[0]) == expected  # on the weights with which it began
        if watcher.counts.refused:
            pytest.fail("the checkpoint was refused")
    after = whole(ask(engine))
    assert after != expected
    assert (watcher.current, watcher.counts.taken) == (2, 1)
    arrive(3)
    wait_until(lambda: watcher.current == 3)
    assert engine.stats().compilations == 0


@pytest.mark.slow
def test_weights_are_held_once(project: Project, tmp_path: Path) -> None:
    """Those that the engine has joined or replaced are free, also for a watcher."""
    run = restore_run(project.run("main"), project)
    arrays = [weakref.ref(array) for array in jax.tree.leaves(run.params)]
    log = AccessLog(tmp_path / "access.jsonl")
    service = open_service(run, name="main", settings=run.config.serve, log=log)
    engine = service.state.engine
    try:
        del run
        gc.collect()
        left = {id(array()) for array in arrays if array() is not None}
        assert left <= {id(array) for array in jax.tree.leaves(engine.weights.params)}
    finally:
        engine.stop()
        log.close()


@pytest.mark.slow
def test_a_full_queue_does_not_keep_a_checkpoint_out(
    served: Callable[..., tuple[Engine, Watcher]], arrive: Callable[..., None]
) -> None:
    engine, watcher = served("serve.queue=0")
    until, running = time.monotonic() + 120, [ask(engine, tokens=80) for _ in range(4)]
    arrive(2)
    while not watcher.counts.taken:  # all slots are taken, and none may wait
        assert not watcher.counts.refused
        assert time.monotonic() < until
        with contextlib.suppress(QueueFull):
            running.append(ask(engine, tokens=80))
    for answer in running:
        whole(answer)


@pytest.mark.slow
def test_a_server_that_stops_refuses_no_checkpoint(
    served: Callable[..., tuple[Engine, Watcher]], arrive: Callable[..., None], logged: list[str]
) -> None:
    engine, watcher = served()
    engine.drain()
    arrive(2)
    assert not watcher.look()
    assert (watcher.counts.taken, watcher.counts.refused) == (0, 0)
    assert not any("refused" in line or "could not be tried" in line for line in logged)


@pytest.mark.representative("a swap of weights")
def test_a_damaged_checkpoint_is_refused_until_it_is_whole(
    served: Callable[..., tuple[Engine, Watcher]],
    arrive: Callable[..., None],
    trained: Project,
    project: Project,
    logged: list[str],
) -> None:
    engine, watcher = served()
    expected = whole(ask(engine))
    arrive(2, damaged=True)
    wait_until(lambda: watcher.counts.refused)
    assert whole(ask(engine)) == expected
    assert any("step 2 of run main is refused" in line for line in logged)
    shutil.copytree(  # as a copy from another machine that was not complete
        trained.root / "runs/main/checkpoints/2", project.root / "runs/main/checkpoints/2", dirs_exist_ok=True
    )
    wait_until(lambda: watcher.current == 2)


@pytest.mark.slow
def test_a_folder_that_cannot_be_read_does_not_end_the_watch(
    served: Callable[..., tuple[Engine, Watcher]],
    arrive: Callable[..., None],
    logged: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, watcher = served()
    looks = iter([OSError("stale file handle")] * 3)

    def choose(*given: Any, **options: Any) -> int:
        for error in looks:
            raise error
        return choose_step(*given, **options)

    monkeypatch.setattr(swap, "choose_step", choose)
    arrive(2)
    wait_until(lambda: watcher.current == 2)
    assert sum("stale file handle" in line for line in logged) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "settings", "why"),
    [
        ({"prompt": "1", "contains": "no text that it writes"}, (), "its text"),
        ({"prompt": "1"}, ("eval.gates=['bits_per_byte <= 0.1']",), "the gates"),
    ],
)
def test_a_checkpoint_that_fails_the_canary_is_refused(
    served: Callable[..., tuple[Engine, Watcher]],
    arrive: Callable[..., None],
    project: Project,
    logged: list[str],
    line: dict[str, str],
    settings: tuple[str, ...],
    why: str,
) -> None:
    if settings:
        config = project.root / "aifx.toml"
        config.write_text(config.read_text().replace("[eval]", '[eval]\ngates = ["bits_per_byte <= 0.1"]'))
    canary = project.root / "canary.jsonl"
    canary.write_text(json.dumps(line) + "\n")
    _, watcher = served(canary=canary)
    arrive(2)
    wait_until(lambda: watcher.counts.refused)
    assert watcher.current == 1
    assert any("step 2 of run main is refused" in text and why in text for text in logged)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_the_best_is_reported_once(
    project: Project, arrive: Callable[..., None], logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_best(path: Path) -> list[Any]:  # no step of this run was validated to be the best
        return [replace(info, is_best=info.step == 1) for info in list_checkpoints(path)]

    monkeypatch.setattr("aifx.loading.steps.list_checkpoints", with_best)
    run = restore_run(project.run("main"), project, step=1)
    watcher: Watcher[Any] = Watcher(
        SimpleNamespace(weights=None, fingerprint="fp", swap=None),  # type: ignore[arg-type]
        StepsOfRun(run, "best", ()), pytest.fail, pytest.fail, every_s=60,
    )  # fmt: skip
    for step in (2, 3):
        arrive(step)
        (project.root / f"runs/main/checkpoints/{step}/manifest.json").write_text("{")
        for _ in range(3):
            assert not watcher.look()
        assert sum(f"the checkpoint of step {step} is damaged" in line for line in logged) == 1


@pytest.mark.slow
def test_what_cannot_be_watched_is_refused_at_the_start(
    project: Project, served: Callable[..., tuple[Engine, Watcher]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    canary = tmp_path / "canary.jsonl"
    canary.write_text('{"prompt": "1"}\n{"promt": "2"}\n')
    with pytest.raises(DataError, match=r"canary\.jsonl:2"):
        served(canary=canary)
    with pytest.raises(UsageError, match="at least 5"):
        served("serve.max_model_len=4")
    with pytest.raises(UsageError, match="are free"):
        served('serve.memory="900TiB"')
    with pytest.raises(UsageError, match="too little") as caught:
        served('serve.memory="1KiB"')
    assert caught.value.hint == "aifx serve --memory 1MiB"
    monkeypatch.setattr(swap, "free_memory", lambda platform: 1000)
    with pytest.raises(UsageError, match="does not fit"):
        served()


def replay_folder(path: Path, engine: Engine) -> ReplayReport:
    return replay(path, RecordCounts.of(path), engine, lambda source: pytest.fail("no grammar was recorded"))


@pytest.mark.slow
def test_a_record_is_replayed_bit_for_bit(project: Project) -> None:
    run = restore_run(project.run("main"), project)
    serve = run.config.serve.model_copy(update={"log_requests": True})
    engine = start_engine(run, serve)
    answers = [ask(engine, seed) for seed in range(6)]
    for answer in answers:
        whole(answer)
    engine.stop()
    path = project.run("main").records
    records = list(read_records(path))
    assert {record.model for record in records} == {run.manifest.state_digest}
    assert len(records) == 6
    engine = start_engine(run, replay_settings(run.config.serve.model_copy(update={"queue": 0})))

    def rewrite(change: Callable[[dict[str, Any], dict[str, Any]], object], fingerprint: str = "") -> None:
        """Write the records anew, as a server would that answered otherwise."""
        shutil.rmtree(path)
        writer = RecordWriter(path)
        for number, one in enumerate(records):
            request, answer = json.loads(json.dumps([one.request, one.answer]))
            if number == 3:
                change(request, answer)
            content = encoded(request), encoded(answer)
            writer.append(one.id, one.time, one.model, fingerprint or one.fingerprint, *content)
        writer.close()

    def other_logprob(request: dict[str, Any], answer: dict[str, Any]) -> None:
        logprobs = unpacked(answer["logprobs"])
        logprobs[7] *= 1 + 2**-22
        answer["logprobs"] = packed("f", logprobs)

    try:
        found = replay_folder(path, engine)
        assert (found.passed, found.replayed, found.tokens, found.skipped) == (True, 6, 240, 0)
        rewrite(other_logprob)
        ended = inprocess.run(["serve", "replay", str(path), "--run", "main", "--json"], project.root, dict(os.environ))
        assert ended.returncode == 1, ended.stderr
        check_answer(["serve", "replay", "--json"], ended.stdout)
        changed = json.loads(ended.stdout)["difference"]
        assert (changed["record"][-15:], changed["place"]) == ("/000000.chain:4", 7)
        for change in (
            lambda request, answer: request.clear(),
            lambda request, answer: answer.clear(),
            lambda request, answer: request.update(prompt_ids=packed("i", [10**6])),
        ):
            rewrite(change)
            with pytest.raises(DataError, match=r"000000\.chain:4: its request cannot be read"):
                replay_folder(path, engine)
        rewrite(lambda request, answer: None, "fp_other")
        with pytest.raises(UsageError, match="no answer of fp_"):
            replay_folder(path, engine)
    finally:
        engine.stop()
