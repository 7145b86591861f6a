"""Await results that the engine's thread delivers whole, such as embeddings and predictions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request

from aifx.core.web.policy import ClientGone
from aifx.serving.http.errors import ApiError, from_engine
from aifx.serving.http.state import ServerState
from aifx.serving.requests import Draining, QueueFull, RequestError, Ticket


async def results(
    state: ServerState, request: Request, submits: Sequence[Callable[[Callable[[Any], None]], Ticket]], field: str
) -> list[Any]:
    """The result of each part of a request. If one is refused, or the client disconnects, all are cancelled.

    Args:
        submits: each gives a part to the engine, with the function that takes its result: None if it was cancelled.
        field: where the request has its parts.

    Raises ApiError, ClientGone.
    """
    loop, mailbox = asyncio.get_running_loop(), state.mailbox
    futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in submits]

    def resolve(future: asyncio.Future[Any], result: Any) -> None:
        if not future.done():
            future.set_result(result)

    tickets: list[Ticket] = []
    client, everything = loop.create_task(_gone(request)), loop.create_task(_all(futures))
    try:
        for submit, future in zip(submits, futures, strict=True):
            tickets.append(submit(partial(mailbox.call, resolve, future)))
        done, _ = await asyncio.wait(
            (everything, client), timeout=state.settings.request_s, return_when=asyncio.FIRST_COMPLETED
        )
        if client in done:
            raise ClientGone("the client went away")
        if not done:
            raise ApiError(504, "the request took longer than serve.request_s", code="timeout")
        found = everything.result()
        if any(result is None for result in found):
            raise ApiError(503, "the server stopped before the answer was complete", code="stopping")
        return found
    except (RequestError, QueueFull, Draining) as error:
        raise from_engine(error, field) from None
    finally:
        client.cancel()
        for ticket, future in zip(tickets, futures, strict=False):
            if not future.done():
                ticket.cancel()
            future.cancel()
        everything.cancel()  # last: it cancels the future that it awaits, whose ticket would then seem done


async def _all(futures: Sequence[asyncio.Future[Any]]) -> list[Any]:
    return [await future for future in futures]


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
