"""A second model that answers a share of the requests, too: both answers are recorded, and the first is delivered.

It gets the body of a request after the first answer has left, and reads it by its own tokenizer, chat template or
columns. Its routes run in an event loop of their own, behind a queue that drops what it cannot hold.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from aifx.core.errors import AifxError, UsageError
from aifx.core.json_files import JsonLines
from aifx.core.os_errors import in_brief
from aifx.core.web.policy import ClientGone, WebError
from aifx.serving.http.documents import Operation
from aifx.serving.http.protocol import ApiError
from aifx.serving.http.state import BODY, SEED, ServerState, record_of
from aifx.serving.http.tracing import AnswerRecord
from aifx.serving.record import SHADOW_VERSION
from aifx.serving.swap import ModelIdentity

logger = logging.getLogger(__name__)

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/predict", "/v1/classify")
"""Routes whose answers two models can be compared by."""

MOST_WAITING = 256
MOST_BYTES = 64 << 20
"""Most requests, and bytes of them with their answers, that wait for the second model."""


@dataclass
class ShadowCounts:
    """The requests that the second model was to answer.

    Attributes:
        failed: that it did not answer, or whose record was not written.
        dropped: that found no room in the queue, or that the end of the server left.
        problem: why the last one failed; empty if it did not.
    """

    answered: int = 0
    failed: int = 0
    dropped: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Exchange:
    """A request that was answered by the first model."""

    record: AnswerRecord
    time: float
    seconds: float
    body: bytes
    content_type: str
    seed: int | None
    answer: bytes

    @property
    def size(self) -> int:
        return len(self.body) + len(self.answer)


class Shadow:
    """Asks the second model, and writes both answers, in a thread of its own."""

    def __init__(
        self,
        state: ServerState,
        model: ModelIdentity,
        served: Mapping[str, ModelIdentity],
        file: JsonLines,
        share: float,
        *,
        reads_tokens: bool = True,
    ) -> None:
        """Start the thread, which `close` ends.

        Args:
            state: of the second model, whose routes answer.
            model: the second one.
            served: the first ones, by the fingerprint of their answers.
            file: of records. `close` closes it.
            share: of the requests.
            reads_tokens: whether both models have the same tokenizer, so that ids of tokens mean the same.
        """
        self.model, self.counts = model, ShadowCounts()
        self._state, self._served, self._share = state, served, share
        self._reads_tokens = reads_tokens
        self._operations = {operation.path: operation for operation in state.operations}
        self._file = file
        self._random = random.Random()
        self._bytes = self._waiting = 0
        self._lock = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_full = False
        self._until: float | None = None
        self._limit_s = state.settings.drain_s
        self._at_once = asyncio.Semaphore(max(state.settings.slots))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="aifx-shadow", daemon=True)
        self._thread.start()

    def chooses(self) -> bool:
        """Whether the next request is one of the share."""
        return self._until is None and self._random.random() < self._share

    def offer(self, exchange: Exchange) -> None:
        """Hand over a request that is answered. From the server's event loop; it never waits and never fails."""
        with self._lock:
            was_full = self._is_full
            self._is_full = self._waiting >= MOST_WAITING or self._bytes + exchange.size > MOST_BYTES
            if not self._is_full:
                self._waiting += 1
                self._bytes += exchange.size
        if self._is_full:
            self.counts.dropped += 1
            if not was_full:
                logger.warning(f"--shadow {self.model.model} is behind: requests are dropped, and counted")
            return
        self._loop.call_soon_threadsafe(self._begin, exchange)

    def drain(self) -> None:
        """Choose no more requests. `close` waits as long for those that are there as a server for its own."""
        self._until = time.monotonic() + self._limit_s

    def close(self) -> None:
        """End the thread and the second model once it has answered, or `serve.drain_s` after `drain`."""
        until = self._until or time.monotonic()
        while self._waiting and time.monotonic() < until:
            time.sleep(0.01)
        self._until = until
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()
        self._state.engine.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._state.close()
        self._file.close()
        counts = self.counts
        logger.info(
            f"--shadow {self.model.model}: {counts.answered} answered, {counts.failed} failed, {counts.dropped} dropped"
        )

    # What follows runs in the thread's event loop.

    def _begin(self, exchange: Exchange) -> None:
        task = self._loop.create_task(self._record(exchange))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._done(task, exchange))

    def _done(self, task: asyncio.Task[None], exchange: Exchange) -> None:
        self._tasks.discard(task)
        with self._lock:
            self._waiting -= 1
            self._bytes -= exchange.size

    async def _cancel(self) -> None:
        """End the requests that are left."""
        left = list(self._tasks)
        self.counts.dropped += len(left)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _record(self, exchange: Exchange) -> None:
        async with self._at_once:
            try:
                request = _request_of(exchange)
                second = await self._ask(exchange, request)
                is_stream = bool(request.get("stream"))
                answer = streamed_answer(exchange.answer) if is_stream else whole_answer(json.loads(exchange.answer))
                fingerprint = answer.pop("fingerprint")
                first = _side(self._served[fingerprint], fingerprint, answer, exchange.record, exchange.seconds)
                self._file.append(
                    {
                        "schema_version": SHADOW_VERSION,
                        "time": exchange.time,
                        "id": exchange.record.id,
                        "path": exchange.record.path,
                        "request": request,
                        "served": first,
                        "shadow": second,
                    }
                )
                why = second["error"]
            except Exception as error:  # whatever is wrong with the second model, the first has answered
                why = in_brief(error) if isinstance(error, AifxError) else f"{type(error).__name__}: {error}"
        if why is None:
            self.counts.answered += 1
        else:
            self.counts.failed += 1
            if not self.counts.problem:  # each failure of a broken model would be a line
                logger.warning(f"--shadow {self.model.model} did not answer request {exchange.record.id}: {why}")
        self.counts.problem = why or ""

    async def _ask(self, exchange: Exchange, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of the second model, or why there is none."""
        operation, record = self._operations[exchange.record.path], self._state.record("", "", "POST", "")
        started, error = time.perf_counter(), None
        answer = dict[str, Any]()
        try:
            if not self._reads_tokens and (field := _field_of_tokens(request)):
                raise ApiError(400, f"{field}: its ids are those of another tokenizer", param=field)
            answer = whole_answer(json.loads(await self._body(operation, exchange, request, record)))
        except (WebError, ClientGone) as failure:
            error = str(failure)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        fingerprint = answer.pop("fingerprint", self._state.engine.fingerprint)
        side = _side(self.model, fingerprint, answer, record, time.perf_counter() - started)
        return {**side, "error": error}

    async def _body(
        self, operation: Operation, exchange: Exchange, request: Mapping[str, Any], record: AnswerRecord
    ) -> bytes:
        """The body of the answer of a route. Raises WebError."""
        is_json = exchange.content_type.startswith("application/json")
        left_out = ("model", "stream", "stream_options")
        asked = {key: value for key, value in request.items() if key not in left_out}
        body = json.dumps(asked).encode() if is_json else exchange.body
        messages: list[Message] = [{"type": "http.request", "body": body}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await asyncio.Event().wait()  # the client never goes away
            return {"type": "http.disconnect"}

        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": operation.path,
            "query_string": b"",
            "headers": [(b"content-type", exchange.content_type.encode("latin-1"))],
            "app": SimpleNamespace(state=SimpleNamespace(server=self._state)),
            "aifx.record": record,
        }
        return bytes((await operation.endpoint(Request(scope, receive))).body)


def _request_of(exchange: Exchange) -> dict[str, Any]:
    """The body as JSON, with the seed by which tokens were drawn; a file as its base64."""
    if not exchange.content_type.startswith("application/json"):
        return {"image": base64.b64encode(exchange.body).decode()}
    found: dict[str, Any] = json.loads(exchange.body)
    return found if exchange.seed is None else {**found, "seed": exchange.seed}


def _field_of_tokens(request: Mapping[str, Any]) -> str | None:
    """The field of a request that has ids of tokens, if there is one."""
    prompt = request.get("prompt")
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    if isinstance(first, int | list):
        return "prompt"
    return next((field for field in ("stop_token_ids", "logit_bias") if request.get(field)), None)


def _side(
    model: ModelIdentity, fingerprint: str, answer: Mapping[str, Any], record: AnswerRecord, seconds: float
) -> dict[str, Any]:
    """The part of a record about one model."""
    return {
        **asdict(model),
        "fingerprint": fingerprint,
        "answer": answer or None,
        "seconds": round(seconds, 6),
        "first_token_s": record.first_token_s and round(record.first_token_s, 6),
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
    }


def whole_answer(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint with the choices or predictions of an answer, without what differs in each: ids and times."""
    found: dict[str, Any] = {"fingerprint": document.get("system_fingerprint", "")}
    if "choices" in document:
        found["choices"] = [_choice(choice, choice.get("message") or choice) for choice in document["choices"]]
    elif "predictions" in document:
        found["predictions"] = document["predictions"]
    else:
        others = ("object", "model", "system_fingerprint", "usage")
        found["predictions"] = [{key: value for key, value in document.items() if key not in others}]
    return found


def _choice(choice: Mapping[str, Any], message: Mapping[str, Any]) -> dict[str, Any]:
    text = message.get("text") if "text" in message else message.get("content")
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return {
        "text": text or "",
        "finish_reason": choice.get("finish_reason"),
        **({"tool_calls": calls} if calls else {}),
    }


def streamed_answer(events: bytes) -> dict[str, Any]:
    """The same of an answer that was streamed: its pieces joined by choice."""
    found: dict[str, Any] = {"fingerprint": ""}
    choices: dict[int, dict[str, Any]] = {}
    for line in events.split(b"\n\n"):
        data = line.removeprefix(b"data: ")
        if not data or data == b"[DONE]":
            continue
        event = json.loads(data)
        found["fingerprint"] = event.get("system_fingerprint", "")
        for part in event["choices"]:
            choice = choices.setdefault(part["index"], {"text": "", "finish_reason": None})
            delta = part.get("delta") or part
            choice["text"] += delta.get("text") or delta.get("content") or ""
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
            for call in delta.get("tool_calls") or ():
                calls = choice.setdefault("tool_calls", [])
                calls += [{"name": "", "arguments": ""} for _ in range(len(calls), call["index"] + 1)]
                for key, text in call["function"].items():
                    calls[call["index"]][key] += text or ""
    found["choices"] = [choices[index] for index in sorted(choices)]
    return found


class CopiedResponse:
    """An answer that the client gets unchanged. If it is whole, the shadow gets a copy afterwards."""

    def __init__(self, response: Response, request: Request, shadow: Shadow, started: float) -> None:
        self._response, self._request, self._shadow = response, request, shadow
        self._time, self._started = time.time() - (time.perf_counter() - started), started

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces: list[bytes] = []

        async def copied(message: Message) -> None:
            if message["type"] == "http.response.body":
                pieces.append(message.get("body", b""))
            await send(message)

        await self._response(scope, receive, copied)
        answer, request = b"".join(pieces), self._request
        record = record_of(request)
        if record.stream and not answer.endswith(b"data: [DONE]\n\n"):
            return  # it ended with an error
        content_type = request.headers.get("content-type", "").strip().lower()
        seconds, body = time.perf_counter() - self._started, request.scope[BODY]
        self._shadow.offer(Exchange(record, self._time, seconds, body, content_type, request.scope.get(SEED), answer))


def shadowed(operation: Operation) -> Any:
    """The endpoint of a route, whose answers a shadow may get."""
    if operation.path not in PATHS:
        return operation.endpoint

    async def endpoint(request: Request) -> Any:
        state: ServerState = request.app.state.server
        if (shadow := shadow_of(state)) is None or not shadow.chooses():
            return await operation.endpoint(request)
        started, request.scope[BODY] = time.perf_counter(), b""
        response = await operation.endpoint(request)
        # An adapter of the first model is another model, of which the second has no counterpart.
        is_own = record_of(request).model == state.name
        return CopiedResponse(response, request, shadow, started) if is_own else response

    return endpoint


def shadow_of(state: ServerState) -> Shadow | None:
    """The second model beside the one that is served."""
    return state.shadow if isinstance(state.shadow, Shadow) else None


def check_routes(first: ServerState, second: ServerState, name: str) -> None:
    """Raise UsageError if the second model answers none of the routes of the first."""
    paths = [{operation.path for operation in state.operations} & set(PATHS) for state in (first, second)]
    if paths[0] != paths[1]:
        own, other = (", ".join(sorted(found)) for found in paths)
        what = f"--shadow {name} cannot answer the requests of {first.name}"
        raise UsageError(what, f"it answers {other}, and {first.name} {own}", "name a model of the same kind of task")
