"""The server as an application: the routes of every server, those of what is served, and the page at `/`."""

from __future__ import annotations

import socket
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aifx.core.errors import AifxError, ExitCode
from aifx.core.web import app as web
from aifx.core.web.app import page_response
from aifx.core.web.connections import Limits
from aifx.core.web.server import Ending, HttpServer
from aifx.serving.http import documents
from aifx.serving.http.answers import json_response
from aifx.serving.http.documents import Operation, document
from aifx.serving.http.protocol import ApiError
from aifx.serving.http.shadow import shadow_of, shadowed
from aifx.serving.http.state import ServerState, policy_of


async def page(request: Request) -> Response:
    """A page for a browser."""
    return page_response(__package__ or "", "server.html", "server.js", command="aifx serve")


async def status(request: Request) -> Response:
    """The numbers on the page."""
    state: ServerState = request.app.state.server
    return json_response(state.status())


def make_app(state: ServerState) -> Starlette:
    """The server of a model as an ASGI application."""
    operations = [*state.operations, *OPERATIONS]
    routes = [Route(o.path, shadowed(o), methods=[o.method]) for o in operations]
    app = web.make_app(routes, policy_of(state.settings, state.key), state)
    app.state.server = state
    app.state.description = document(operations)
    return app


def open_server(state: ServerState, bound: socket.socket) -> HttpServer:
    """The server of a model at a socket, which is not started."""
    limits = Limits(idle_s=state.settings.idle_s)
    return HttpServer(make_app(state), bound, limits=limits, drain_s=state.settings.drain_s)


def check_ending(ending: Ending, drain_s: float) -> None:
    """Raise what the command ends with: nothing after SIGTERM if no request was cut."""
    ending.check()
    if ending.cut:
        plural = "request was" if ending.cut == 1 else "requests were"
        why = f"not finished within serve.drain_s = {drain_s:g} s after SIGTERM"
        hint = "aifx serve --set serve.drain_s=SECONDS"
        raise AifxError(f"{ending.cut} {plural} cut", why, hint, exit_code=ExitCode.PREEMPTED)


async def models(request: Request) -> Response:
    """The model and its adapters."""
    state: ServerState = request.app.state.server
    cards = [state.card(name) for name in state.models]
    return json_response(documents.Models(object="list", data=cards))


async def model(request: Request) -> Response:
    """One model."""
    state: ServerState = request.app.state.server
    name = request.path_params["model"]
    state.check_model(name)
    return json_response(state.card(name))


async def health(request: Request) -> Response:
    """Whether the server runs."""
    state: ServerState = request.app.state.server
    if state.engine.failure is not None:
        raise ApiError(503, f"the engine ended: {state.engine.failure}")
    return json_response(documents.Status(status="ok"))


async def ready(request: Request) -> Response:
    """Whether it takes requests, and has written an answer."""
    state: ServerState = request.app.state.server
    if state.is_draining or state.engine.failure is not None:
        why = "stopping" if state.is_draining else f"the engine ended: {state.engine.failure}"
        raise ApiError(503, why, headers={"Retry-After": "5"})
    answer = documents.Readiness(status="ready", watch=state.swaps.problem or None)
    if (served := state.swaps.models.get(state.engine.fingerprint)) is not None:
        answer.served = documents.ServedModel(**asdict(served))
    if (shadow := shadow_of(state)) is not None:
        model, counts = shadow.model, asdict(shadow.counts)
        answer.shadow = documents.ShadowStatus(**{**asdict(model), **counts, "problem": counts["problem"] or None})
    return json_response(answer)


async def metrics(request: Request) -> Response:
    """Prometheus' metrics."""
    state: ServerState = request.app.state.server
    return web.metrics_response(state.metrics.registry, request)


async def openapi(request: Request) -> Response:
    """This description."""
    return Response(request.app.state.description, media_type="application/json")


OPERATIONS = (
    Operation("GET", "/v1/models", None, documents.Models, models),
    Operation("GET", "/v1/models/{model:path}", None, documents.ModelCard, model),
    Operation("GET", "/health", None, documents.Status, health),
    Operation("GET", "/ready", None, documents.Readiness, ready),
    Operation("GET", "/status", None, documents.ServerStatus, status),
    Operation("GET", "/", None, None, page, produces=("text/html",)),
    Operation("GET", "/metrics", None, None, metrics, produces=("text/plain", "application/openmetrics-text")),
    Operation("GET", "/openapi.json", None, None, openapi),
)
"""The routes of every server."""
