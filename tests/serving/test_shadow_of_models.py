"""A served run with a second one beside it: the first keeps its bits, is swapped, and starts only if both can serve."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import aifx
from aifx.core.errors import AifxError, UsageError
from aifx.core.project import Project

SETTINGS = {"serve.port": 0, "serve.shadow_share": 1.0}
REQUESTS: tuple[dict[str, Any], ...] = (
    {"prompt": "7 whales", "max_tokens": 12, "temperature": 0, "logprobs": 2},
    {"prompt": "8 whales", "max_tokens": 12, "seed": 5, "logprobs": 2, "n": 2},
    {"prompt": ["9", "10 whales"], "max_tokens": 6, "seed": 6, "logprobs": 0},
)


def answers(url: str, requests: tuple[dict[str, Any], ...] = REQUESTS) -> list[Any]:
    """The choices of each request, with log-probabilities, and those of a stream."""
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
        found = [http.post("/v1/completions", json=one).json()["choices"] for one in requests]
        streamed = http.post("/v1/completions", json={**requests[0], "stream": True}).text
    events = [json.loads(event[6:])["choices"] for event in streamed.split("\n\n") if event.startswith("data: {")]
    return [*found, events]


def texts(choices: Any) -> list[str]:
    return [choice["text"] for choice in choices]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.representative("a second model beside a served one")
def test_a_second_run_answers_too_and_the_first_keeps_its_bits(project: Project, arrive: Callable[..., None]) -> None:
    run, file = project.run("main").path, project.run("main").path / "shadow.jsonl"
    with aifx.serve(run, step=1, settings={"serve.port": 0}) as server:
        alone = answers(server.url)
    arrive(3)
    with aifx.serve(run, step=3, settings={"serve.port": 0}) as server:
        other = answers(server.url)
    with aifx.serve(run, step=1, settings=SETTINGS, shadow=run, shadow_step=3) as server:
        assert (server.listening.shadow, server.listening.shadow_step) == ("main", 3)
        assert answers(server.url) == alone
        # The end of the server waits for all of it.
    found = records(file)
    assert len(found) == len(REQUESTS) + 1
    by_prompt = {json.dumps([one["request"]["prompt"], one["request"].get("stream", False)]): one for one in found}
    for request, first, second in zip(REQUESTS, alone, other, strict=False):
        one = by_prompt[json.dumps([request["prompt"], False])]
        assert texts(one["served"]["answer"]["choices"]) == texts(first)
        assert texts(one["shadow"]["answer"]["choices"]) == texts(second)
        assert (one["served"]["step"], one["shadow"]["step"]) == (1, 3)
    stream = by_prompt[json.dumps([REQUESTS[0]["prompt"], True])]
    assert texts(stream["shadow"]["answer"]["choices"]) == texts(other[0])
    assert found[0]["served"]["digest"] != found[0]["shadow"]["digest"]
    assert aifx.compare_shadow(file).requests == len(found)


@pytest.mark.slow
def test_the_second_model_stays_while_the_first_is_swapped(project: Project, arrive: Callable[..., None]) -> None:
    run, file = project.run("main").path, project.run("main").path / "shadow.jsonl"
    with aifx.serve(run, settings=SETTINGS, watch=True, shadow=run, shadow_step=1) as server:
        answers(server.url, REQUESTS[:1])
        wait_for(lambda: len(records(file)) == 2)
        arrive(2)
        wait_for(lambda: httpx.get(f"{server.url}/status", trust_env=False).json()["swaps"])
        answers(server.url, REQUESTS[:1])
    before, after = records(file)[0], records(file)[-1]
    assert (before["served"]["step"], after["served"]["step"]) == (1, 2)
    assert before["served"]["digest"] == before["shadow"]["digest"] == after["shadow"]["digest"]
    assert after["served"]["digest"] != before["served"]["digest"]
    assert before["served"]["answer"] == before["shadow"]["answer"]  # the same model, seed and programs
    report = aifx.compare_shadow(file)
    assert (report.requests, report.others) == (2, 2)


@pytest.mark.slow
def test_a_second_model_that_cannot_serve_is_refused(
    project: Project, arrive: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = project.run("main").path
    arrive(3, damaged=True)
    with pytest.raises(AifxError, match=r"--shadow main: .*damaged"):
        aifx.serve(run, step=1, settings=SETTINGS, shadow=run, shadow_step=3)
    with pytest.raises(UsageError, match=r"no run at .*other"):
        aifx.serve(run, step=1, settings=SETTINGS, shadow=run.with_name("other"))
    with pytest.raises(UsageError, match="cannot be written"):
        aifx.serve(
            run,
            step=1,
            settings={**SETTINGS, "serve.shadow_file": str(run / "config.toml/x")},
            shadow=run,
            shadow_step=1,
        )
    monkeypatch.setattr("aifx.serving.http.services.free_memory", lambda platform: 1000)
    with pytest.raises(UsageError, match="--shadow main: a second model does not fit"):
        aifx.serve(run, step=1, settings=SETTINGS, shadow=run, shadow_step=1)
