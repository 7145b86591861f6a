"""`/v1/embeddings`, `/tokenize` and `/detokenize`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from aifx.serving.http.answers import json_response
from aifx.serving.http.documents import Detokenized, Embedding, Embeddings, TokenizerInfo, Tokens, UsageAnswer
from aifx.serving.http.errors import ApiError, ClientGone, from_engine
from aifx.serving.http.protocol import DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from aifx.serving.http.state import ServerState, record_of
from aifx.serving.requests import Draining, QueueFull, RequestError, Ticket


async def embeddings(request: Request) -> Response:
    """The last hidden state of each text, pooled over its tokens."""
    state: ServerState = request.app.state.server
    body = await state.read(request, EmbeddingRequest)
    if state.adapter_of(body.model) is not None:
        raise ApiError(400, "model: embeddings are those of the base model", param="model")
    prompts = await state.prompts(body.input)
    most = state.settings.queue + max(state.settings.slots)
    if len(prompts) > most:
        raise ApiError(400, f"input: {len(prompts)} texts; this server takes {most} at once", param="input")
    for ids in prompts:
        state.check_prompt(ids, "input")
    vectors = await _embed(state, request, prompts)
    data = [
        Embedding(object="embedding", index=index, embedding=_written(vector, body.encoding_format))
        for index, vector in enumerate(vectors)
    ]
    count = sum(map(len, prompts))
    record_of(request).prompt_tokens = count
    usage = UsageAnswer(prompt_tokens=count, total_tokens=count)
    return json_response(Embeddings(object="list", data=data, model=body.model or state.name, usage=usage))


async def _embed(state: ServerState, request: Request, prompts: Sequence[list[int]]) -> list[np.ndarray]:
    """float32 [embed] of each prompt. Raises ApiError, ClientGone."""
    loop, mailbox = asyncio.get_running_loop(), state.mailbox
    futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in prompts]

    def resolve(future: asyncio.Future[Any], vector: Any) -> None:
        if not future.done():
            future.set_result(vector)

    tickets: list[Ticket] = []
    client = loop.create_task(_gone(request))
    try:
        for ids, future in zip(prompts, futures, strict=True):
            tickets.append(state.engine.embed(ids, partial(mailbox.call, resolve, future)))
        everything = asyncio.gather(*futures)
        done, _ = await asyncio.wait(
            (everything, client), timeout=state.settings.request_s, return_when=asyncio.FIRST_COMPLETED
        )
        if client in done:
            raise ClientGone("the client went away")
        if not done:
            raise ApiError(504, "the request took longer than serve.request_s", code="timeout")
        vectors = everything.result()
        if any(vector is None for vector in vectors):
            raise ApiError(503, "the server stopped before the answer was complete", code="stopping")
        return vectors
    except (RequestError, QueueFull, Draining) as error:
        raise from_engine(error, "input") from None
    finally:
        client.cancel()
        for ticket, future in zip(tickets, futures, strict=False):
            if not future.done():
                ticket.cancel()
            future.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _written(vector: np.ndarray, encoding: str | None) -> list[float] | str:
    numbers = np.asarray(vector, "<f4")
    return base64.b64encode(numbers.tobytes()).decode() if encoding == "base64" else numbers.tolist()


async def tokenize(request: Request) -> Response:
    """The token ids of a text or of a conversation."""
    state: ServerState = request.app.state.server
    body = await state.read(request, TokenizeRequest)
    state.adapter_of(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "prompt: give either prompt or messages", param="prompt")
    if body.messages is not None:
        ids = await state.chat_prompt(body.messages, body.tools)
    else:
        ids = await state.encode(body.prompt or "", with_begin=body.add_special_tokens)
    names = [state.tokenizer.token(token) for token in ids] if body.return_token_strs else None
    most = state.engine.max_model_len
    return json_response(Tokens(count=len(ids), max_model_len=most, tokens=ids, token_strs=names))


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    state: ServerState = request.app.state.server
    body = await state.read(request, DetokenizeRequest)
    state.adapter_of(body.model)
    if body.tokens and max(body.tokens) >= state.tokenizer.vocab_size:
        why = f"token {max(body.tokens)} of a vocabulary of {state.tokenizer.vocab_size}"
        raise ApiError(400, f"tokens: {why}", param="tokens")
    return json_response(Detokenized(prompt=state.tokenizer.decode(body.tokens)))


async def tokenizer_info(request: Request) -> Response:
    """The names of special tokens, and the chat template."""
    state: ServerState = request.app.state.server
    tokenizer = state.tokenizer
    known: dict[str, str] = {}
    if tokenizer.begin_ids:
        known["bos_token"] = tokenizer.token(tokenizer.begin_ids[0])
    if state.renderer is not None:
        known["chat_template"] = state.renderer.template.source
    return json_response(TokenizerInfo(tokenizer_class="aifx", eos_token=tokenizer.token(tokenizer.eos_id), **known))
