"""The answers to one HTTP request, from the engine's thread to the event loop, and as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aifx.core.web.policy import ClientGone
from aifx.serving.http.documents import Answer
from aifx.serving.http.metrics import TextMetrics
from aifx.serving.http.protocol import ApiError, from_delta, from_engine
from aifx.serving.http.tracing import AnswerRecord
from aifx.serving.requests import (
    Delta,
    Draining,
    GenerationRequest,
    QueueFull,
    RequestError,
    ServingEngine,
    Ticket,
    Usage,
)

MAX_PENDING_DELTAS = 8192
"""Most deltas that wait for a reader who has stalled; then its answers are cancelled."""


class Mailbox:
    """Calls from other threads to the event loop, which is woken once for all that wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._lock = threading.Lock()
        self._is_woken = False

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Have the event loop call a function. From any thread."""
        with self._lock:
            self._calls.append((function, args))
            if self._is_woken:
                return
            self._is_woken = True
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens
            self.loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, deque()
            self._is_woken = False
        for function, args in calls:
            function(*args)


class Answers:
    """The answers to one HTTP request. Leaving the context cancels those that are not complete.

    Attributes:
        fingerprint: of the weights and program that write them.
        usages: what each cost, once it is complete.
    """

    def __init__(
        self, mailbox: Mailbox, metrics: TextMetrics, record: AnswerRecord, receive: Receive, limit_s: float
    ) -> None:
        """`limit_s`: how long they may take."""
        self._mailbox, self._metrics, self._record, self._receive = mailbox, metrics, record, receive
        self._tickets: list[Ticket] = []
        self._pending: list[tuple[int, Delta]] = []
        self._event = asyncio.Event()
        self._failure: Exception | None = None
        self._open: set[int] = set()
        self._times: list[_Times] = []
        self.usages: dict[int, Usage] = {}
        self.fingerprint = ""
        self._watch: asyncio.Task[None] | None = None
        self._timer = mailbox.loop.call_later(limit_s, self._expire)

    async def __aenter__(self) -> Answers:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._timer.cancel()
        self.cancel()

    def submit(self, engine: ServingEngine, requests: Sequence[GenerationRequest], prompt_field: str) -> None:
        """Give requests to the engine: all to the same weights, or none. Raises ApiError."""
        for index, request in enumerate(requests):
            self._open.add(index)
            self._times.append(_Times())

            def deliver(delta: Delta, index: int = index) -> None:
                self._mailbox.call(self._take, index, delta)

            try:
                first = self._tickets[0] if self._tickets else None
                self._tickets.append(engine.submit(request, deliver, beside=first))
            except (RequestError, QueueFull, Draining) as error:
                self._timer.cancel()
                self._open.discard(index)
                self.cancel()
                raise from_engine(error, prompt_field) from None
        self.fingerprint = self._tickets[0].fingerprint
        self._watch = self._mailbox.loop.create_task(self._watch_client())

    def cancel(self) -> None:
        """Cancel the answers that are not complete."""
        for index, ticket in enumerate(self._tickets):
            if index in self._open:
                ticket.cancel()
                self._metrics.finished("abort", self._times[index].start)
        self._open.clear()

    async def batches(self) -> AsyncIterator[list[tuple[int, Delta]]]:
        """The deltas by request, as many at once as there are. Raises ApiError, or ClientGone."""
        while True:
            while not self._pending and self._failure is None:
                if not self._open:
                    return
                self._event.clear()
                await self._event.wait()
            if self._failure is not None:
                raise self._failure
            pending, self._pending = self._pending, []
            yield pending

    def _take(self, index: int, delta: Delta) -> None:
        """Queue a delta for `batches`. Called in the event loop, by the mailbox."""
        if index not in self._open:  # it was cancelled meanwhile
            return
        times = self._times[index]
        if delta.token_ids:
            times.mark(self._metrics, self._record, len(delta.token_ids))
        reason = delta.finish_reason
        if reason is not None:
            self._open.discard(index)
            self._metrics.finished("abort" if reason == "cancelled" else reason, times.start)
            times.finish(self._metrics, delta.usage)
            if delta.usage is not None:
                self.usages[index] = delta.usage
                self._record.add(delta.usage)
            self._record.finish_reasons.append(reason)
        if reason == "error":
            self._fail(from_delta(delta))
        elif reason == "cancelled":
            self._fail(ApiError(503, "the server stopped before the answer was complete", code="stopping"))
        elif len(self._pending) >= MAX_PENDING_DELTAS:
            self._fail(ClientGone("the reader stalled"))
        else:
            self._pending.append((index, delta))
            self._event.set()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self.cancel()
        self._event.set()

    def _expire(self) -> None:
        message = "the request took longer than serve.request_s"
        self._fail(ApiError(504, message, code="timeout"))

    async def _watch_client(self) -> None:
        """Cancel the answers when the client disconnects."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._fail(ClientGone("the client went away"))


class _Times:
    """The times at which an answer's tokens came."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self._first = self._last = 0.0
        self._tokens = 0

    def mark(self, metrics: TextMetrics, record: AnswerRecord, tokens: int) -> None:
        now = time.perf_counter()
        if not self._first:
            self._first = now
            metrics.first_token.observe(now - self.start)
            record.first_token_s = record.first_token_s or now - self.start
        else:
            metrics.inter_token.observe((now - self._last) / tokens)
        self._last = now
        self._tokens += tokens

    def finish(self, metrics: TextMetrics, usage: Usage | None) -> None:
        if self._tokens > 1:
            metrics.time_per_token.observe((self._last - self._first) / (self._tokens - 1))
        if usage is not None:
            metrics.prompt_tokens.observe(usage.prompt_tokens)
            metrics.generation_tokens.observe(usage.completion_tokens)
            if usage.queue_s is not None:
                metrics.queue_time.observe(usage.queue_s)


class EventStream(Response):
    """Server-sent events. An error after the first one is an event, too, and ends the stream without `[DONE]`."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], answers: Answers) -> None:
        """`events`: as `event` makes them. `answers` are closed at the end."""
        self._events, self._answers = events, answers
        self.status_code, self.background = 200, None
        # Proxies must pass each event on at once.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._answers:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            last = event(b"[DONE]")
            try:
                async for data in self._events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except ApiError as error:
                last = event(error.body())
            await send({"type": "http.response.body", "body": last, "more_body": False})


def json_response(answer: Answer) -> Response:
    return Response(answer.encoded(), media_type="application/json")


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
