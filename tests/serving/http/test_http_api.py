"""OpenAI's API as its own client uses it."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import openai
import pytest
from toy_server import Served

USER = {"role": "user", "content": "Hé, wer da? 🐋"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_a_completion_whole_and_streamed(served: Served) -> None:
    whole = served.client.completions.create(model="toy", prompt="Wal 🐋 ", max_tokens=22, user="me")
    assert whole.choices[0].text == "Wal 🐋 Wal 🐋 Wal "
    assert whole.choices[0].finish_reason == "length"
    assert whole.system_fingerprint == "toy-weights"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (9, 22, 31)
    assert whole.usage.prompt_tokens_details.cached_tokens == 1
    options = {"include_usage": True}
    stream = served.client.completions.create(
        model="toy", prompt="Wal 🐋 ", max_tokens=22, stream=True, stream_options=options
    )
    chunks = list(stream)
    texts = [chunk.choices[0].text for chunk in chunks[:-1]]
    assert "".join(texts) == whole.choices[0].text
    assert "🐋" in texts, "a character came in pieces"
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:-1]] == [None, "length"]


def test_prompts_of_every_kind(served: Served) -> None:
    tokens = served.engine.tokenizer.encode("ab")
    texts = {"ab": ["aba"], ("ab", "c"): ["aba", "ccc"]}
    for prompt, expected in texts.items():
        sent = list(prompt) if isinstance(prompt, tuple) else prompt
        done = served.client.completions.create(model="toy", prompt=sent, max_tokens=3)
        assert [choice.text for choice in done.choices] == expected
    for ids, expected in ((tokens, ["aba"]), ([tokens, tokens[:1]], ["aba", "aaa"])):
        done = served.client.completions.create(model="toy", prompt=ids, max_tokens=3)
        assert [choice.text for choice in done.choices] == expected
    done = served.client.completions.create(model="toy", prompt=["ab", "c"], max_tokens=2, n=2, seed=7)
    assert [(choice.index, choice.text) for choice in done.choices] == [(0, "ab"), (1, "ab"), (2, "cc"), (3, "cc")]
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 8)
    assert [request.sampling.seed for request in served.engine.requests[-4:]] == [7, 8, 7, 8]


def test_scores_of_a_prompt_as_lm_eval_asks_for_them(served: Served) -> None:
    ids = served.engine.tokenizer.encode("a\xff")  # the second character is two tokens
    done = served.client.completions.create(model="toy", prompt=[ids], max_tokens=1, echo=True, logprobs=1)
    found = done.choices[0].logprobs
    assert found is not None
    assert found.tokens == ["a", "bytes:\\xc3", "bytes:\\xbf", "a"]
    assert found.token_logprobs == [None, -0.5, -0.5, -0.5]
    assert found.top_logprobs is not None
    assert found.top_logprobs[0] is None
    assert found.top_logprobs[3] == {"!": -1.003, "a": -0.5}
    assert done.choices[0].text == "a\xffa"
    scored = served.client.completions.create(model="toy", prompt="ab", max_tokens=0, echo=True, logprobs=0)
    assert scored.choices[0].text == "ab"
    assert scored.choices[0].logprobs is not None
    assert scored.choices[0].logprobs.token_logprobs == [None, -0.5]


def test_all_settings_reach_the_engine(served: Served) -> None:
    sent = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "ignore_eos": True, "stop_token_ids": [9]}
    served.client.completions.create(
        model="legal", prompt="x", max_tokens=2, temperature=0.5, top_p=0.9, presence_penalty=1.5,
        frequency_penalty=-1, logit_bias={"70": -100}, seed=-1, stop=["\n", "END"], logprobs=3, extra_body=sent,
    )  # fmt: skip
    request = served.engine.requests[-1]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1.5, -1, 1.2)
    assert (sampling.logit_bias, sampling.seed) == ({70: -100}, 2**32 - 1)
    assert (request.stop, request.stop_token_ids, request.ignore_end) == (("\n", "END"), {9}, True)
    assert (request.logprobs, request.adapter, request.max_tokens) == (3, "legal", 2)
    served.client.completions.create(model="toy", prompt="x")
    first, second = served.engine.requests[-1], served.client.completions.create(model="toy", prompt="x")
    assert (first.max_tokens, first.sampling.temperature, first.sampling.top_k) == (16, 1.0, 0)
    assert second.choices[0].text == "x" * 16
    assert first.sampling.seed != served.engine.requests[-1].sampling.seed


def test_a_chat_whole_and_streamed(served: Served) -> None:
    parts = [{"type": "text", "text": "Hé, wer"}, {"type": "text", "text": "da? 🐋"}]
    whole = served.client.chat.completions.create(model="toy", messages=[{"role": "user", "content": parts}])
    assert whole.choices[0].message.content == "user\nHé, wer\nda? 🐋"
    assert (whole.choices[0].finish_reason, whole.choices[0].message.tool_calls) == ("stop", None)
    request = served.engine.requests[-1]
    assert request.max_tokens == 4096 - len(request.prompt_ids)
    prompt = "<|im_start|>user\nHé, wer\nda? 🐋<|im_end|>\n<|im_start|>assistant\n"
    assert served.engine.tokenizer.decode(request.prompt_ids) == prompt
    stream = served.client.chat.completions.create(
        model="toy", messages=[USER], stream=True, n=2, stream_options={"include_usage": True}, max_completion_tokens=9
    )
    chunks = list(stream)
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", "assistant"]
    for index in range(2):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in mine) == "user\nHé"
        assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["length"]
    assert chunks[-1].usage.completion_tokens == 18


def test_a_special_token_in_a_message_is_text(served: Served) -> None:
    spelled = [{"role": "user", "content": "<|im_end|>"}]
    served.client.chat.completions.create(model="toy", messages=spelled, max_tokens=1)
    request = served.engine.requests[-1]
    assert list(request.prompt_ids).count(served.engine.tokenizer.eos_id) == 1


def test_scores_of_a_chat(served: Served) -> None:
    done = served.client.chat.completions.create(
        model="toy", messages=[USER], max_tokens=8, logprobs=True, top_logprobs=2
    )
    scores = done.choices[0].logprobs.content
    assert len(scores) == 8
    assert (scores[1].token, scores[1].bytes, scores[1].logprob) == ("u", [117], -0.5)
    assert [top.token for top in scores[1].top_logprobs] == ["!", '"']
    stream = served.client.chat.completions.create(
        model="toy", messages=[USER], max_tokens=8, logprobs=True, stream=True
    )
    pieces = [c.choices[0].logprobs.content for c in stream if c.choices[0].logprobs]
    assert sum(map(len, pieces)) == 8


def test_a_tool_call_that_is_required(served: Served) -> None:
    kwargs: dict[str, Any] = {"model": "toy", "messages": [USER], "tools": [WEATHER], "max_tokens": 400, "seed": 3}
    named = {"type": "function", "function": {"name": "get_weather"}}
    done = served.client.chat.completions.create(**kwargs, tool_choice=named)
    (call,) = done.choices[0].message.tool_calls
    assert (call.function.name, done.choices[0].finish_reason) == ("get_weather", "tool_calls")
    assert isinstance(json.loads(call.function.arguments)["city"], str)
    assert done.choices[0].message.content is None
    prompt = served.engine.tokenizer.decode(served.engine.requests[-1].prompt_ids)
    assert "The weather of a city." in prompt
    chunks = list(served.client.chat.completions.create(**kwargs, tool_choice=named, stream=True))
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or ()]
    assert (pieces[0].function.name, pieces[0].function.arguments) == ("get_weather", "")
    assert pieces[0].id.startswith("call_")
    arguments = "".join(piece.function.arguments for piece in pieces)
    assert len(pieces) > 5
    assert arguments == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_tool_call_that_the_model_chose(serve: Any) -> None:
    from toy_server import TOOLS_TEMPLATE

    served = serve(TOOLS_TEMPLATE)
    text = 'Let me see. <tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
    served.engine.answer = lambda ids: served.engine.tokenizer.encode(text)
    done = served.client.chat.completions.create(model="toy", messages=[USER], tools=[WEATHER])
    message = done.choices[0].message
    assert (message.content, message.tool_calls[0].function.arguments) == ("Let me see.", '{"city": "Köln"}')
    # The answer goes back as the client has it, with the tool's.
    back = [USER, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}]
    served.engine.answer = lambda ids: served.engine.tokenizer.encode("Rain.")
    said = served.client.chat.completions.create(model="toy", messages=back, tools=[WEATHER])
    assert (said.choices[0].message.content, said.choices[0].finish_reason) == ("Rain.", "stop")
    prompt = served.engine.tokenizer.decode(served.engine.requests[-1].prompt_ids)
    assert '{"name": "get_weather", "arguments": {"city": "K\\u00f6ln"}}' in prompt or '"city": "Köln"' in prompt
    ignored = served.client.chat.completions.create(model="toy", messages=[USER], tools=[WEATHER], tool_choice="none")
    assert ignored.choices[0].message.content == "Rain."


def test_an_answer_that_follows_a_schema(served: Served) -> None:
    schema = {"type": "object", "properties": {"x": {"enum": ["a", "b"]}}, "required": ["x"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    done = served.client.chat.completions.create(
        model="toy", messages=[USER], response_format=form, max_tokens=220, n=3
    )
    assert all(json.loads(choice.message.content)["x"] in "ab" for choice in done.choices)
    plain = served.client.chat.completions.create(
        model="toy", messages=[USER], response_format={"type": "json_object"}, max_tokens=2200
    )
    assert plain.choices[0].finish_reason == "length" or isinstance(json.loads(plain.choices[0].message.content), dict)


def test_embeddings(served: Served) -> None:
    done = served.client.embeddings.create(model="toy", input=["ab", "c"])  # the client asks for base64
    assert [item.embedding[0] for item in done.data] == [2.0, 1.0]
    assert done.usage.prompt_tokens == 3
    plain = served.http.post("/v1/embeddings", json={"input": [70, 71]}).json()
    assert plain["data"][0]["embedding"] == [2.0, 141.0, 0.5]
    coded = served.http.post("/v1/embeddings", json={"input": [[70]], "encoding_format": "base64"}).json()
    assert struct.unpack("<3f", base64.b64decode(coded["data"][0]["embedding"])) == (1.0, 70.0, 0.5)
    adapted = served.http.post("/v1/embeddings", json={"input": ["a", "bc"], "model": "legal"}).json()
    assert [item["embedding"][2] for item in adapted["data"]] == [2.5, 2.5]
    assert adapted["usage"]["energy"] == {"joules": 1.0, "basis": "declared"}
    many = served.http.post("/v1/embeddings", json={"input": ["a"] * 300})
    assert (many.status_code, many.json()["error"]["param"]) == (400, "input")


def test_models_and_tokens(served: Served) -> None:
    models = served.client.models.list().data
    assert [(model.id, model.parent) for model in models] == [("toy", None), ("legal", "toy")]
    assert served.client.models.retrieve("legal").id == "legal"
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("nope")
    told = served.http.post("/tokenize", json={"prompt": "hé", "return_token_strs": True}).json()
    assert (told["count"], told["max_model_len"], told["token_strs"][0]) == (3, 4096, "h")
    back = served.http.post("/detokenize", json={"tokens": told["tokens"]}).json()
    assert back == {"prompt": "hé"}
    chat = served.http.post("/tokenize", json={"messages": [USER]}).json()
    assert served.http.post("/detokenize", json=chat | {"model": "toy"}).status_code == 400
    prompt = served.http.post("/detokenize", json={"tokens": chat["tokens"]}).json()["prompt"]
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


CHAT = {"messages": [USER]}
BAD = {
    "an unknown field": ("completions", {"prompt": "a", "temprature": 1}, "temprature", "did you mean 'temperature'?"),
    "an unknown field of a message": ("chat", {"messages": [{**USER, "colour": 1}]}, "messages[0].colour", "--lenient"),
    "reasoning_effort": ("chat", {**CHAT, "reasoning_effort": "low"}, "reasoning_effort", "unknown field"),
    "a number as text": ("completions", {"prompt": "a", "top_p": "0.5"}, "top_p", "valid number"),
    "too hot": ("completions", {"prompt": "a", "temperature": 2.1}, "temperature", "less than or equal to 2"),
    "no prompt": ("completions", {}, "prompt", "required"),
    "an empty list": ("completions", {"prompt": []}, "prompt", "at least 1"),
    "a mixed list": ("completions", {"prompt": [1, "a"]}, "prompt[1]", "valid integer"),
    "a truth among ids": ("completions", {"prompt": [[1, True]]}, "prompt[0][1]", "valid integer"),
    "a token beyond the vocabulary": ("completions", {"prompt": [259]}, "prompt", "vocabulary of 259"),
    "a long prompt": ("completions", {"prompt": "a" * 5000}, "prompt", "4096 at the most"),
    "a long answer": ("completions", {"prompt": "a", "max_tokens": 4096}, "max_tokens", "room for 4096"),
    "nothing to write": ("completions", {"prompt": "a", "max_tokens": 0}, "max_tokens", "echo"),
    "best_of": ("completions", {"prompt": "a", "best_of": 3}, "best_of", "it must be n"),
    "many": ("completions", {"prompt": "a", "n": 17}, "n", "serve.max_n is 16"),
    "many prompts": ("completions", {"prompt": ["a"] * 300}, "prompt", "300 prompts; this server takes 272 at once"),
    "many answers": ("completions", {"prompt": ["a"] * 30, "n": 10}, "prompt", "30 prompts with n = 10"),
    "a bias of no token": ("completions", {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "token ids"),
    "a large bias": ("completions", {"prompt": "a", "logit_bias": {"7": 101}}, "logit_bias.7", "less than"),
    "an empty stop": ("completions", {"prompt": "a", "stop": ""}, "stop", "at least 1"),
    "the engine refuses": ("completions", {"prompt": "a", "top_k": 13}, "top_k", "13 is not supported"),
    "no messages": ("chat", {"messages": []}, "messages", "at least 1"),
    "a role": ("chat", {"messages": [{"role": "bot", "content": "a"}]}, "messages[0]", "bot"),
    "a picture": (
        "chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0].type", "text",
    ),
    "no content": ("chat", {"messages": [{"role": "assistant"}]}, "messages[0].content", "has content"),
    "two limits": ("chat", {**CHAT, "max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "differ"),
    "top without logprobs": ("chat", {**CHAT, "top_logprobs": 1}, "top_logprobs", "requires logprobs"),
    "a choice without tools": ("chat", {**CHAT, "tool_choice": "required"}, "tool_choice", "requires tools"),
    "a tool that is not there": (
        "chat",
        {**CHAT, "tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice",
        "no tool is named 'x'",
    ),
    "a bad schema": (
        "chat",
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strin"}}}},
        "response_format",
        "Invalid type",
    ),
    "a schema without end": (
        "chat",
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}}},
        "response_format",
        "NoExtensionBias",
    ),
    "a stop that cuts JSON": ("chat", {**CHAT, "response_format": {"type": "json_object"}, "stop": "}"}, "stop", "cut"),
    "arguments that are nested too deeply": (
        "chat",
        {"messages": [{"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[" * 100_000}}]}]},
        "messages[0].tool_calls[0].function.arguments",
        "not JSON",
    ),
    "arguments that are no JSON": (
        "chat",
        {"messages": [{"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
        "not JSON",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_answered_400_and_names_the_field(served: Served, case: str) -> None:
    route, body, param, why = BAD[case]
    path = "/v1/completions" if route == "completions" else "/v1/chat/completions"
    answer = served.http.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert why in error["message"]


def test_what_is_no_json_and_no_route(served: Served) -> None:
    post = served.http.post
    for body in (b"", b"{", b"[" * 100_000, b'{"prompt": "\\ud800"}', b'{"prompt": NaN}', b"\xff", b"null"):
        answer = post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, None), body
    assert post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert "/v1/nope" in served.http.get("/v1/nope").json()["error"]["message"]
    refused = served.http.get("/v1/completions")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    with pytest.raises(openai.NotFoundError, match=r"gpt-9.*toy, legal") as caught:
        served.client.completions.create(model="gpt-9", prompt="a")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_unknown_fields_are_left_out_if_the_server_is_lenient(serve: Any) -> None:
    served = serve(lenient=True)
    message = {**USER, "colour": "blue", "content": [{"type": "text", "text": "a", "cache": {"x": 1}}]}
    body = {"messages": [message], "reasoning_effort": "low", "max_tokens": 5}
    done = served.http.post("/v1/chat/completions", json=body)
    assert done.status_code == 200, done.text
    assert done.json()["choices"][0]["message"]["content"] == "user"
    wrong = served.http.post("/v1/chat/completions", json={**body, "temperature": 9}).json()
    assert wrong["error"]["param"] == "temperature"


def test_a_template_without_tools_refuses_them(serve: Any) -> None:
    served = serve()  # ChatML alone
    answer = served.http.post("/v1/chat/completions", json={**CHAT, "tools": [WEATHER]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")


def metrics_of(served: Served) -> dict[str, float]:
    lines = [line for line in served.http.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_by_the_names_of_vllm(served: Served) -> None:
    served.client.completions.create(model="toy", prompt="abc", max_tokens=4)
    label = 'engine="0",model_name="toy"'
    values = metrics_of(served)
    while values[f"vllm:num_requests_running{{{label}}}"]:  # a client has its answer a moment before
        values = metrics_of(served)
    assert values[f"vllm:prefix_cache_queries_total{{{label}}}"] == 50
    assert values[f"aifx:compilations_total{{{label}}}"] == 0
    assert values[f"vllm:generation_tokens_total{{{label}}}"] >= 4
    assert values['vllm:request_success_total{engine="0",finished_reason="length",model_name="toy"}'] >= 1
    histograms = (
        "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prompt_tokens",
    )  # fmt: skip
    for name in histograms:
        assert values[f"vllm:{name}_count{{{label}}}"] >= 1, name
        assert math.isfinite(values[f"vllm:{name}_sum{{{label}}}"])
    assert (
        "openmetrics"
        in served.http.get("/metrics", headers={"Accept": "application/openmetrics-text"}).headers["content-type"]
    )
