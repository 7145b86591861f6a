"""A client of OpenAI's API that measures when each part of a streamed answer comes.

All requests share one event loop, so that no thread of the client waits for another. It counts how late it is itself:
what it reports of a server is wrong if it cannot keep up.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic_core import from_json

from aifx.benchmarking.serve.load import Level, Planned, PromptWriter

BEAT_S = 0.02
CONNECT_S = 30.0

Prompt = list[int] | str


@dataclass(frozen=True)
class Api:
    """A server, and which fields of a request it takes.

    Attributes:
        url: without a path.
        takes_ids: prompts as token ids, so that their length is exact.
        ignores_end: `ignore_eos`, so that answers have the length that was asked for.
        counts_usage: `stream_options.include_usage`.
    """

    url: str
    model: str | None
    chat: bool = False
    takes_ids: bool = True
    ignores_end: bool = True
    counts_usage: bool = True

    @property
    def route(self) -> str:
        return f"{self.url}/v1/chat/completions" if self.chat else f"{self.url}/v1/completions"

    def body(self, prompt: Prompt, output_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {"max_tokens": output_tokens, "temperature": 0, "stream": True}
        body |= {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        body |= {"model": self.model} if self.model is not None else {}
        body |= {"ignore_eos": True} if self.ignores_end else {}
        return body | ({"stream_options": {"include_usage": True}} if self.counts_usage else {})


@dataclass
class Answered:
    """A request that was sent. Times are those of `time.perf_counter`.

    Attributes:
        due_s: when it was to be sent.
        status: of HTTP; None until the answer begins.
        chunk_times_s: when a part with text came, one time per part.
        usage: as the server counted it.
        error: what went wrong, by its kind; None for a complete answer.
        detail: of the error.
    """

    planned: Planned
    due_s: float
    sent_s: float
    end_s: float = 0.0
    status: int | None = None
    chunk_times_s: list[float] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None
    error: str | None = None
    detail: str = ""

    @property
    def output_tokens(self) -> int:
        """As the server counted them; otherwise the number of parts."""
        counted = (self.usage or {}).get("completion_tokens")
        return counted if isinstance(counted, int) else len(self.chunk_times_s)


@dataclass
class Load:
    """The outcome of a load, complete or ended early.

    Attributes:
        begin_s: when the first request was sent.
        lags_s: how much later than asked the event loop came back, every BEAT_S.
        cpu_s: processor time of this process.
        sent: requests, of which some may have no answer yet.
    """

    answered: list[Answered] = field(default_factory=list)
    begin_s: float = 0.0
    end_s: float = 0.0
    lags_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    sent: int = 0


class Client:
    """Sends requests to one server."""

    def __init__(self, api: Api, *, timeout_s: float, key: str | None = None) -> None:
        self.api, self._timeout_s = api, timeout_s
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        )

    async def run(
        self,
        level: Level,
        requests: Sequence[Planned],
        prompts: PromptWriter,
        load: Load,
        *,
        on_answer: Callable[[], None] = lambda: None,
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Send all requests of a load and wait for their answers, which are noted in `load`.

        Args:
            on_beat: called every BEAT_S. If it raises, that ends the load.
        """
        bodies = [(one, self.api.body(prompts.write(one), one.output_tokens)) for one in requests]

        async def ask(planned: Planned, body: dict[str, Any], due_s: float) -> None:
            load.sent += 1
            load.answered.append(await self.ask(planned, body, due_s))
            load.end_s = time.perf_counter()
            on_answer()

        async def loop(rest: Iterator[tuple[Planned, dict[str, Any]]]) -> None:
            for planned, body in rest:
                await ask(planned, body, time.perf_counter())

        load.begin_s = load.end_s = began = time.perf_counter()
        cpu_s = time.process_time()
        try:
            async with asyncio.TaskGroup() as group:
                beats = group.create_task(_beat(load, on_beat))
                async with asyncio.TaskGroup() as asking:
                    if level.mode == "concurrency":
                        rest = iter(bodies)
                        for _ in range(int(level.value)):
                            asking.create_task(loop(rest))
                    else:
                        for planned, body in bodies:
                            await asyncio.sleep(max(began + planned.at_s - time.perf_counter(), 0.0))
                            asking.create_task(ask(planned, body, began + planned.at_s))
                beats.cancel()
        except BaseExceptionGroup as group:
            raise next(_leaves(group)) from None
        finally:
            load.cpu_s += time.process_time() - cpu_s

    async def ask(self, planned: Planned, body: dict[str, Any], due_s: float | None = None) -> Answered:
        """Send one request and read its answer to the end; what goes wrong is noted, not raised."""
        now = time.perf_counter()
        answered = Answered(planned, now if due_s is None else due_s, now)
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    await self._read(body, answered)
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    if answered.status is not None:
                        raise
                    await self._read(body, answered)  # the server had closed a connection that was not in use
        except (TimeoutError, httpx.TimeoutException):
            answered.error, answered.detail = "timeout", f"no complete answer within {self._timeout_s:g} s"
        except httpx.ConnectError as error:
            answered.error, answered.detail = "connection refused", str(error)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            answered.error, answered.detail = "connection lost", str(error) or type(error).__name__
        answered.end_s = time.perf_counter()
        return answered

    async def _read(self, body: dict[str, Any], answered: Answered) -> None:
        async with self.http.stream("POST", self.api.route, json=body) as response:
            answered.status = response.status_code
            if response.status_code != 200:
                answered.error = f"HTTP {response.status_code}"
                answered.detail = error_message(await response.aread())
                return
            rest = b""
            is_done = False
            async for part in response.aiter_raw():
                now = time.perf_counter()
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        is_done = _take(line[5:].strip(), now, answered) or is_done
        if answered.error is None and not is_done and answered.finish_reason is None:
            answered.error, answered.detail = "incomplete answer", "the stream ended without [DONE]"


def _take(data: bytes, now: float, answered: Answered) -> bool:
    """Note an event of a stream. Returns whether it is the last one."""
    if data == b"[DONE]":
        return True
    try:
        event = from_json(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        answered.error, answered.detail = "invalid answer", f"an event is no JSON object: {data[:80]!r}"
        return False
    if failure := event.get("error"):
        answered.error, answered.detail = "error in the stream", error_message(data) or str(failure)
        return False
    if isinstance(usage := event.get("usage"), dict):
        answered.usage = usage
    for choice in event.get("choices") or ():
        answered.finish_reason = choice.get("finish_reason") or answered.finish_reason
        if _has_text(choice):
            answered.chunk_times_s.append(now)
    return False


def _has_text(choice: dict[str, Any]) -> bool:
    """Whether a part has something of the answer; a chat's first part has its role alone, the last one its reason."""
    if "delta" not in choice:
        return bool(choice.get("text")) or choice.get("finish_reason") is None
    delta = choice["delta"] or {}
    return any(delta.get(name) for name in ("content", "reasoning_content", "tool_calls"))


def error_message(data: bytes) -> str:
    """The message of OpenAI's error object, or what the server wrote instead."""
    with suppress(ValueError, TypeError, KeyError):
        return str(from_json(data)["error"]["message"])[:300]
    return data.decode("utf-8", "replace").strip()[:300]


async def _beat(load: Load, on_beat: Callable[[], None]) -> None:
    for _ in itertools.count():
        due_s = time.perf_counter() + BEAT_S
        await asyncio.sleep(BEAT_S)
        load.lags_s.append(max(time.perf_counter() - due_s, 0.0))
        on_beat()


def _leaves(group: BaseExceptionGroup) -> Iterator[BaseException]:
    """The exceptions that a group and its groups hold."""
    for error in group.exceptions:
        yield from _leaves(error) if isinstance(error, BaseExceptionGroup) else (error,)
