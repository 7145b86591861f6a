"""The state that all routes share: settings, the key and policy, reading of requests, and counts."""

from __future__ import annotations

import asyncio
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from starlette.requests import Request

from aifx.config.serve_section import ServeSection
from aifx.core.errors import UsageError
from aifx.core.web.app import read_body
from aifx.core.web.policy import Policy, check_key, is_loopback
from aifx.core.web.traffic import AccessLog, AccessRecord, Traffic
from aifx.serving.http.answers import Mailbox
from aifx.serving.http.documents import ModelCard, Operation, PagesUsed, ServerStatus, Work
from aifx.serving.http.metrics import Metrics
from aifx.serving.http.protocol import ApiError, BodyT, parse
from aifx.serving.http.tracing import AnswerRecord, Tracer
from aifx.serving.requests import ServedEngine
from aifx.serving.swap import SwapCounts

KEY_VARIABLE = "AIFX_SERVE__API_KEY"

BODY, SEED = "aifx.body", "aifx.seed"
"""Keys of a request's scope: its body, kept if the key is there, and the seed by which its tokens are drawn."""

OPEN = ("/", "/health", "/ready")
"""Routes that need no key: for probes, and the page, which asks for one."""


def read_key(host: str, environ: dict[str, str]) -> str:
    """The key that clients must send, from the environment alone; "" if they need none. Raises UsageError."""
    key, hint = environ.get(KEY_VARIABLE), f"export {KEY_VARIABLE}=$(openssl rand -hex 32)"
    if key is None:
        if is_loopback(host):
            return ""
        why = "other machines can reach this address, and anyone there could ask"
        raise UsageError(f"serve.host = {host} requires a key", why, hint)
    check_key(key, KEY_VARIABLE, hint)
    return key


def policy_of(settings: ServeSection, key: str) -> Policy:
    """The policy of a server: one without a key answers this machine and its own page alone."""
    return Policy(
        key=key,
        open_paths=OPEN,
        own_names_only=not key and is_loopback(settings.host),
        own_site_only=not key and "*" not in settings.cors_origins,
        sites=settings.cors_origins,
        max_client_requests=settings.max_client_requests,
        discard_s=settings.request_s,
        hints={
            403: "serve.cors_origins allows sites",
            404: "/openapi.json lists them",
            429: "serve.max_client_requests allows as many",
        },
        error=ApiError,
    )


READERS = min(os.cpu_count() or 1, 8)
"""Requests that threads read at the same time: a large picture takes hundreds of MB until it is resized, and a text
130 bytes per character until it is tokenized."""

QUIET = (*OPEN, "/metrics", "/status")
"""Routes that are asked all the time: only their failures are logged."""

LOGGED = ("prompt", "messages", "input", "rows")
"""Fields of requests, of which the access log has one with `serve.log_prompts`."""


@dataclass(frozen=True)
class Load:
    """The load of an engine at this moment.

    Attributes:
        route: that a person may try, with an `input`.
        work: what it did since it started, by name; throughput first.
    """

    route: str
    input: Literal["text", "chat", "file", "rows"]
    running: int
    waiting: int
    work: Mapping[str, int]
    compilations: int
    pages: PagesUsed | None = None


@dataclass(kw_only=True)
class ServerState(Traffic, ABC):
    """The state of a server. Its subclasses add their engine and the needs of their routes.

    Attributes:
        name: of the model in the API.
        operations: the routes beside those of every server.
        key: what clients must send; "" if anyone may ask.
        tracer: makes a span of each request; None without a collector.
        shadow: a `Shadow`, if a second model answers a share of the requests, too.
        drains: called when the server takes no more requests.
    """

    engine: ServedEngine
    name: str
    settings: ServeSection
    log: AccessLog
    operations: Sequence[Operation]
    key: str = ""
    tracer: Tracer | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    swaps: SwapCounts = field(default_factory=SwapCounts)
    shadow: object = None
    drains: list[Callable[[], None]] = field(default_factory=list)
    metrics: Metrics = field(init=False)
    _mailbox: Mailbox | None = None

    def record(self, id: str, client: str, method: str, path: str) -> AnswerRecord:
        return AnswerRecord(id, client, method, path)

    def ended(self, record: AccessRecord, headers: Mapping[bytes, bytes]) -> None:
        self.metrics.response(record.status)
        if record.path not in QUIET or record.status >= 400:
            self.log.write(record)
            if self.tracer is not None:
                assert isinstance(record, AnswerRecord)
                self.tracer.record(record, headers)

    def drain(self) -> None:
        super().drain()
        self.engine.drain()
        for drain in self.drains:
            drain()

    def stop(self) -> None:
        self.engine.stop()

    def close(self) -> None:
        """Write what the log and the tracer hold, and end what the server has started."""
        self.log.close()
        if self.tracer is not None:
            self.tracer.close()

    @property
    def models(self) -> list[str]:
        return [self.name]

    def check_model(self, model: str | None) -> None:
        """Check that a model is served. Raises ApiError (404) if it is not."""
        if model is not None and model not in self.models:
            message = f"no model {model!r}; /v1/models lists {', '.join(self.models)}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def card(self, name: str) -> ModelCard:
        """The entry of a model in `/v1/models`."""
        parent = None if name == self.name else self.name
        return ModelCard(id=name, object="model", created=self.created, owned_by="aifx", root=self.name, parent=parent)

    @abstractmethod
    def load(self) -> Load:
        """The load of the engine at this moment."""

    def status(self) -> ServerStatus:
        load = self.load()
        return ServerStatus(
            model=self.name,
            route=load.route,
            input=load.input,
            started=self.created,
            system_fingerprint=self.engine.fingerprint,
            is_reproducible=self.engine.is_reproducible,
            is_draining=self.is_draining,
            running=load.running,
            waiting=load.waiting,
            work=[Work(name=name, total=total) for name, total in load.work.items()],
            latencies=self.metrics.latencies(),
            pages=load.pages,
            compilations=load.compilations,
            swaps=self.swaps.taken,
            swaps_refused=self.swaps.refused,
        )

    async def read(self, request: Request, kind: type[BodyT]) -> BodyT:
        """The body of a request, which is JSON. Raises ApiError."""
        if content_type_of(request) != "application/json":
            # A web page of another origin can send other types, or none, without asking the server (CORS).
            raise wrong_type(request, ["application/json"])
        body = parse(kind, await self.read_bytes(request), lenient=self.settings.lenient)
        record = record_of(request)
        record.model = getattr(body, "model", None) or self.name
        if self.settings.log_prompts:
            known = body.model_dump(include=set(LOGGED), exclude_none=True)
            record.prompt = next(iter(known.values()), None)
        return body

    async def read_bytes(self, request: Request) -> bytes:
        """The body as it came. Raises ApiError."""
        most = self.settings.max_body_bytes
        too_large = ApiError(413, f"the body is larger than serve.max_body_bytes = {most}")
        try:
            body = await read_body(request, most, too_large, self.settings.request_s)
        except TimeoutError:
            raise ApiError(408, "the body took longer than serve.request_s", headers={"Connection": "close"}) from None
        if BODY in request.scope:
            request.scope[BODY] = body
        return body

    @property
    def mailbox(self) -> Mailbox:
        loop = asyncio.get_running_loop()
        if self._mailbox is None or self._mailbox.loop is not loop:
            self._mailbox = Mailbox(loop)
        return self._mailbox


def content_type_of(request: Request) -> str:
    """The content type of a request without its parameters; "" if the client names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def wrong_type(request: Request, expected: Sequence[str]) -> ApiError:
    given = content_type_of(request)
    found = f"the Content-Type is {given}" if given else "the Content-Type is missing"
    known = f"one of {', '.join(expected)}" if len(expected) > 1 else expected[0]
    return ApiError(415, f"{found}; it must be {known}")


def record_of(request: Request) -> AnswerRecord:
    record: AnswerRecord = request.scope["aifx.record"]
    return record
