"""A second model answers, too: both answers are recorded, and nothing that it does reaches a client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_engine import ToyEngine
from toy_server import TOOLS_TEMPLATE, Served

from aifx.core.errors import UsageError
from aifx.core.json_files import JsonLines
from aifx.core.web.traffic import AccessLog
from aifx.data.chat.assets import make_renderer
from aifx.data.chat.template import CHATML, ChatTemplate
from aifx.serving.http import shadow as module
from aifx.serving.http.services import TEXT_OPERATIONS
from aifx.serving.http.shadow import Shadow, check_routes, streamed_answer, whole_answer
from aifx.serving.http.text import TextState
from aifx.serving.swap import ModelIdentity

PROMPT = {"prompt": "Call me", "max_tokens": 8}
CHAT = {"messages": [{"role": "user", "content": "Call me"}], "max_tokens": 8}

Shadowed = Callable[..., tuple[Served, Shadow, ToyEngine]]


@pytest.fixture
def shadowed(serve: Callable[..., Served], tmp_path: Path) -> Iterator[Shadowed]:
    """A server with a second toy, whose answers are backwards."""
    started: list[Shadow] = []

    def start(share: float = 1.0, template: str = CHATML, **settings: Any) -> tuple[Served, Shadow, ToyEngine]:
        served = serve(template, **settings)
        engine = ToyEngine()
        engine.answer = lambda prompt: prompt[::-1]
        engine.fingerprint = "fp_second"
        renderer = make_renderer(engine.tokenizer, ChatTemplate(template, "a template"), tmp_path, None)
        state = TextState(
            engine=engine, tokenizer=engine.tokenizer, renderer=renderer, name="other", settings=served.state.settings,
            log=AccessLog(tmp_path / "other.jsonl"), operations=TEXT_OPERATIONS,
        )  # fmt: skip
        models = served.state.swaps.models
        models[served.state.engine.fingerprint] = ModelIdentity("toy", 1, "d1")
        found = Shadow(state, ModelIdentity("other", 2, "d2"), models, JsonLines(tmp_path / "shadow.jsonl"), share)
        served.state.shadow = found
        served.state.drains.append(found.drain)
        served.state.metrics.count_shadow(found.counts)
        started.append(found)
        return served, found, engine

    yield start
    for one in started:
        if not one._loop.is_closed():
            one.close()


def records(tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "shadow.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def plain(answer: Any) -> Any:
    """An answer without its id and time."""
    return {key: value for key, value in answer.json().items() if key not in ("id", "created")}


def test_both_answers_are_recorded_and_the_first_is_delivered(shadowed: Shadowed, tmp_path: Path) -> None:
    served, shadow, engine = shadowed()
    shadow._share = 0.0
    alone = plain(served.http.post("/v1/completions", json=PROMPT))
    shadow._share = 1.0
    both = served.http.post("/v1/completions", json=PROMPT, headers={"X-Request-Id": "one"})
    assert plain(both) == alone
    served.http.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "two"})
    with served.client.chat.completions.create(model="toy", stream=True, seed=7, **CHAT) as events:
        text = "".join(event.choices[0].delta.content or "" for event in events)
    wait_until(lambda: shadow.counts.answered == 3)
    found = records(tmp_path)
    first, chat = (next(one for one in found if one["id"] == id) for id in ("one", "two"))
    (stream,) = (one for one in found if one["request"].get("stream"))
    assert first["served"]["answer"]["choices"][0]["text"] == both.json()["choices"][0]["text"]
    assert first["served"]["answer"]["choices"] != first["shadow"]["answer"]["choices"]
    assert (first["served"]["digest"], first["shadow"]["digest"]) == ("d1", "d2")
    assert chat["served"]["completion_tokens"] == chat["shadow"]["completion_tokens"] == 8
    assert stream["served"]["answer"]["choices"][0]["text"] == text
    # A request without a seed gets one at random, and both models draw by it.
    assert [one.sampling.seed for one in engine.requests] == [one["request"]["seed"] for one in records(tmp_path)]
    assert {one.sampling.seed for one in engine.requests} <= {one.sampling.seed for one in served.engine.requests}
    # Embeddings and requests that fail have no second answer.
    served.http.post("/v1/embeddings", json={"input": "Call me"})
    assert served.http.post("/v1/completions", json={**PROMPT, "top_k": 13}).status_code == 400
    shadow.drain()
    shadow.close()
    assert len(records(tmp_path)) == 3


def test_a_streamed_answer_is_recorded_as_the_whole_one(shadowed: Shadowed, tmp_path: Path) -> None:
    """With calls of tools, several choices, and a prompt that is echoed."""
    served, shadow, engine = shadowed(template=TOOLS_TEMPLATE)
    call = 'Let me see. <tool_call>\n{"name": "look", "arguments": {"at": "Köln"}}\n</tool_call>'
    tokens = [*engine.tokenizer.encode(call), engine.tokenizer.eos_id]
    served.engine.answer = engine.answer = lambda _: tokens
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    chat = {"messages": [{"role": "user", "content": "Where?"}], "tools": [tool], "n": 2}
    text = {"prompt": ["a", "b"], "max_tokens": 60, "echo": True}
    for path, body in (("/v1/chat/completions", chat), ("/v1/completions", text)):
        for stream in (False, True):
            answer = served.http.post(path, json={**body, "seed": 1, "stream": stream})
            assert answer.status_code == 200, answer.text
    wait_until(lambda: shadow.counts.answered == 4)
    for path, count in (("/v1/chat/completions", 2), ("/v1/completions", 2)):
        answers = [
            one[side]["answer"] for one in records(tmp_path) if one["path"] == path for side in ("served", "shadow")
        ]
        assert [len(answer["choices"]) for answer in answers] == [count] * 4
        assert answers == answers[:1] * 4
    (choice, _), *_ = (one["shadow"]["answer"]["choices"] for one in records(tmp_path) if "tools" in one["request"])
    assert choice["tool_calls"] == [{"name": "look", "arguments": '{"at": "Köln"}'}]


def test_a_slow_model_is_left_behind(
    shadowed: Shadowed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    served, shadow, engine = shadowed(drain_s=0.1)
    engine.pause, shadow._share = True, 0.0
    alone = plain(served.http.post("/v1/completions", json=PROMPT))
    shadow._share = 1.0
    for _ in range(5):
        assert plain(served.http.post("/v1/completions", json=PROMPT)) == alone
    wait_until(lambda: shadow.counts.dropped == 3)
    metrics = served.http.get("/metrics").text
    assert 'aifx:shadow_dropped_total{engine="0",model_name="toy"} 3.0' in metrics
    assert sum("is behind" in line for line in logged) == 1
    started = time.monotonic()
    shadow.drain()
    assert not shadow.chooses()
    shadow.close()
    assert time.monotonic() - started < 10
    assert shadow.counts.dropped == 5
    assert not records(tmp_path)
    assert any("0 answered, 0 failed, 5 dropped" in line for line in logged)


def test_the_end_of_a_server_waits_for_the_second_model(shadowed: Shadowed, tmp_path: Path) -> None:
    served, shadow, engine = shadowed()
    engine.pause = True
    served.http.post("/v1/completions", json=PROMPT)
    wait_until(lambda: shadow._waiting)  # a client has its answer before the second model gets a copy
    shadow.drain()
    threading.Timer(0.2, setattr, (engine, "pause", False)).start()
    shadow.close()
    assert (shadow.counts.answered, len(records(tmp_path))) == (1, 1)


def test_an_answer_that_is_cut_has_no_second_one(shadowed: Shadowed) -> None:
    served, shadow, engine = shadowed()
    served.engine.step_s = 0.01
    with served.http.stream("POST", "/v1/completions", json={**PROMPT, "max_tokens": 100, "stream": True}) as stream:
        events = stream.iter_lines()
        next(events)
        served.engine.failing = True
        rest = "".join(events)
    assert "a toy broke" in rest
    served.engine.failing = False
    with served.http.stream("POST", "/v1/completions", json={**PROMPT, "max_tokens": 100, "stream": True}) as stream:
        next(stream.iter_lines())  # then the client goes away
    served.engine.wait_idle()
    served.http.post("/v1/completions", json={**PROMPT, "model": "legal"})  # an adapter
    served.http.post("/v1/completions", json=PROMPT)
    wait_until(lambda: shadow.counts.answered)
    shadow.drain()
    shadow.close()
    assert len(engine.requests) == 1


def test_a_model_of_another_kind_is_refused(shadowed: Shadowed) -> None:
    served, shadow, _ = shadowed()
    check_routes(served.state, shadow._state, "other")
    served.state.operations = [replace(TEXT_OPERATIONS[0], path="/v1/predict")]
    with pytest.raises(UsageError, match="--shadow other cannot answer the requests of toy"):
        check_routes(served.state, shadow._state, "other")


def test_a_model_that_fails_is_counted_and_its_reason_kept(
    shadowed: Shadowed, tmp_path: Path, logged: list[str]
) -> None:
    served, shadow, engine = shadowed()
    engine.failing, shadow._share = True, 0.0
    alone = plain(served.http.post("/v1/completions", json=PROMPT))
    shadow._share = 1.0
    for _ in range(2):
        assert plain(served.http.post("/v1/completions", json=PROMPT)) == alone
    wait_until(lambda: shadow.counts.failed == 2)
    answer = served.http.get("/ready").json()
    ready, first = answer["shadow"], answer["served"]
    assert first == {"model": "toy", "step": 1, "digest": "d1"}
    assert (ready["model"], ready["digest"], ready["failed"]) == ("other", "d2", 2)
    assert "a toy broke" in ready["problem"]
    assert sum("did not answer request" in line for line in logged) == 1
    one = records(tmp_path)[0]["shadow"]
    assert (one["answer"], one["fingerprint"]) == (None, "fp_second")
    assert "a toy broke" in one["error"]
    engine.failing = False
    served.http.post("/v1/completions", json=PROMPT)
    wait_until(lambda: shadow.counts.answered == 1)
    assert served.http.get("/ready").json()["shadow"]["problem"] is None


def test_ids_of_another_tokenizer_are_not_read(shadowed: Shadowed, tmp_path: Path) -> None:
    served, shadow, engine = shadowed()
    shadow._reads_tokens = False
    for change in ({"prompt": [1, 2]}, {"prompt": [[1], [2]]}, {"stop_token_ids": [3]}, {"logit_bias": {"3": 1}}):
        assert served.http.post("/v1/completions", json={**PROMPT, **change}).status_code == 200
    wait_until(lambda: shadow.counts.failed == 4)
    assert not engine.requests
    assert all("another tokenizer" in one["shadow"]["error"] for one in records(tmp_path))
    served.http.post("/v1/completions", json={**PROMPT, "prompt": ["Call", "me"]})
    wait_until(lambda: shadow.counts.answered == 1)


def test_a_file_that_cannot_be_written_stops_no_answer(shadowed: Shadowed) -> None:
    served, shadow, _ = shadowed()
    shadow._file.close()
    assert served.http.post("/v1/completions", json=PROMPT).status_code == 200
    wait_until(lambda: shadow.counts.failed == 1)
    assert served.http.post("/v1/completions", json=PROMPT).status_code == 200


def test_a_share_of_the_requests_is_chosen(shadowed: Shadowed) -> None:
    _, shadow, _ = shadowed(share=0.25)
    shadow._random.seed(0)
    chosen = sum(shadow.chooses() for _ in range(4000))
    assert 900 < chosen < 1100


def test_a_stream_is_joined_as_the_whole_answer() -> None:
    calls = [
        {"index": 0, "function": {"name": "look", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"at": 1}'}},
    ]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "Call "}, {"content": "me"}]
    deltas += [{"tool_calls": [call]} for call in calls]
    parts: list[Any] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    parts.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    events = b"".join(
        b"data: " + json.dumps({"system_fingerprint": "fp", "choices": [part]}).encode() + b"\n\n" for part in parts
    )
    message: Any = {"content": "Call me", "tool_calls": [{"function": {"name": "look", "arguments": '{"at": 1}'}}]}
    whole = {"system_fingerprint": "fp", "choices": [{"message": message, "finish_reason": "stop"}]}
    assert streamed_answer(events + b"data: [DONE]\n\n") == whole_answer(whole)
