"""`/v1/embeddings`, `/tokenize` and `/detokenize`."""

from __future__ import annotations

import base64
from functools import partial

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from aifx.serving.http.answers import json_response
from aifx.serving.http.completions import usage_answer
from aifx.serving.http.documents import Detokenized, Embedding, Embeddings, TokenizerInfo, Tokens
from aifx.serving.http.errors import ApiError
from aifx.serving.http.protocol import DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from aifx.serving.http.results import results
from aifx.serving.http.state import record_of
from aifx.serving.http.text import TextState, total_usage
from aifx.serving.requests import Embedded


async def embeddings(request: Request) -> Response:
    """The last hidden state of each text, pooled over its tokens."""
    state: TextState = request.app.state.server
    body = await state.read(request, EmbeddingRequest)
    adapter = state.adapter_of(body.model)
    prompts = await state.prompts(body.input, "input")
    for ids in prompts:
        state.check_prompt(ids, "input")
    embed = partial(state.engine.embed, adapter=adapter)
    found: list[Embedded] = await results(state, request, [partial(embed, ids) for ids in prompts], "input")
    data = [
        Embedding(object="embedding", index=index, embedding=_written(one.vector, body.encoding_format))
        for index, one in enumerate(found)
    ]
    for one in found:
        record_of(request).add(one.usage)
    usage = usage_answer(total_usage([one.usage for one in found], 1))
    return json_response(Embeddings(object="list", data=data, model=body.model or state.name, usage=usage))


def _written(vector: np.ndarray, encoding: str | None) -> list[float] | str:
    numbers = np.asarray(vector, "<f4")
    return base64.b64encode(numbers.tobytes()).decode() if encoding == "base64" else numbers.tolist()


async def tokenize(request: Request) -> Response:
    """The token ids of a text or of a conversation."""
    state: TextState = request.app.state.server
    body = await state.read(request, TokenizeRequest)
    state.adapter_of(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "prompt: give either prompt or messages", param="prompt")
    if body.messages is not None:
        ids = await state.chat_prompt(body.messages, body.tools)
    else:
        (ids,) = await state.encode([body.prompt or ""], "prompt")
        ids = state.tokenizer.as_prompt(ids) if body.add_special_tokens else ids
    names = [state.tokenizer.token(token) for token in ids] if body.return_token_strs else None
    most = state.engine.max_model_len
    return json_response(Tokens(count=len(ids), max_model_len=most, tokens=ids, token_strs=names))


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    state: TextState = request.app.state.server
    body = await state.read(request, DetokenizeRequest)
    state.adapter_of(body.model)
    if body.tokens and max(body.tokens) >= state.tokenizer.vocab_size:
        why = f"token {max(body.tokens)} of a vocabulary of {state.tokenizer.vocab_size}"
        raise ApiError(400, f"tokens: {why}", param="tokens")
    return json_response(Detokenized(prompt=state.tokenizer.decode(body.tokens)))


async def tokenizer_info(request: Request) -> Response:
    """The names of special tokens, and the chat template."""
    state: TextState = request.app.state.server
    tokenizer = state.tokenizer
    known: dict[str, str] = {}
    if tokenizer.begin_ids:
        known["bos_token"] = tokenizer.token(tokenizer.begin_ids[0])
    if state.renderer is not None:
        known["chat_template"] = state.renderer.template.source
    return json_response(TokenizerInfo(tokenizer_class="aifx", eos_token=tokenizer.token(tokenizer.eos_id), **known))
