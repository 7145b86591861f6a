"""`/v1/classify` and `/v1/predict`: predictions for files or rows, and awaiting results that come whole."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import anyio
import numpy as np
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response

from aifx.core.errors import DataError
from aifx.core.web.policy import ClientGone
from aifx.data.base import Batch, DataFormat
from aifx.data.readers.rows import Row
from aifx.data.readers.sources import STDIN
from aifx.loading.prediction import RowEncoder, record
from aifx.serving.http.answers import json_response
from aifx.serving.http.documents import Classification, Predictions, PredictionUsage, cost_of
from aifx.serving.http.metrics import PredictionMetrics
from aifx.serving.http.protocol import ApiError, FileRequest, PredictionRequest, from_engine
from aifx.serving.http.state import READERS, Load, ServerState, content_type_of, record_of, wrong_type
from aifx.serving.predictor import ForRecord, NotNumbers, Outputs, PredictionFailed, Predictor, PredictorWeights
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


@dataclass(kw_only=True)
class PredictionState(ServerState):
    """The state of a server of predictions."""

    engine: Predictor
    metrics: PredictionMetrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = PredictionMetrics(self.engine, self.name, self.swaps)
        self._limiter = anyio.CapacityLimiter(READERS)

    @property
    def form(self) -> DataFormat:
        """The way to read rows of the model of new requests."""
        return self.engine.weights.form

    def load(self) -> Load:
        stats = self.engine.stats()
        kind: Literal["file", "rows"] = "file" if self.form.media_types else "rows"
        work = {"rows": stats.rows, "calls of the program": stats.batches}
        return Load(self.operations[0].path, kind, stats.running, stats.waiting, work, stats.compilations)

    async def predict(
        self,
        request: Request,
        read: Callable[[DataFormat], Sequence[Row]],
        part: str,
        given: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[list[Row], list[dict[str, Any]], PredictorWeights, PredictionUsage]:
        """The rows, the prediction for each, the weights that made it, and the cost. Raises ApiError, ClientGone.

        Args:
            read: the rows, as a format reads them; called in a thread.
            part: the field of the request that has them.
            given: the rows as the client sent them, for their record.
        """
        start, outcome, weights = time.perf_counter(), "error", self.engine.weights  # a swap may come before the end
        try:
            rows, counts, batch = await run_sync(self._encode, read, weights.form, limiter=self._limiter)
            record_of(request).rows = len(rows)
            self.metrics.rows.observe(len(rows))
            decode = partial(self._decode, counts=counts, weights=weights)
            for_record = ForRecord(record_of(request).id, given, decode)
            on_started = self.metrics.queue_time.observe
            submit = partial(self.engine.submit, batch, weights=weights, on_started=on_started, for_record=for_record)
            (found,) = await results(self, request, [submit], part)
            if isinstance(found, NotNumbers):
                raise ApiError(400, f"{part}: {found}", param=part, code="not_numbers")
            if isinstance(found, PredictionFailed):
                raise ApiError(500, f"the prediction failed: {found}", code="engine_error")
            decoded = await run_sync(decode, found.outputs)
            usage = PredictionUsage(rows=len(rows), **cost_of(found.joules, found.energy_basis, found.cost))
            outcome = "success"
            self.metrics.latency.observe(time.perf_counter() - start)
            return rows, decoded, weights, usage
        except DataError as error:
            raise refusal(error) from None
        except ClientGone:
            outcome = "abort"
            raise
        finally:
            self.metrics.finished(outcome)

    def _encode(
        self, read: Callable[[DataFormat], Sequence[Row]], form: DataFormat
    ) -> tuple[list[Row], list[int], Batch]:
        """The rows, how many examples each has, and all of these."""
        rows, encoder = list(read(form)), RowEncoder(form)
        batches = [encoder.encode(row) for row in rows]
        counts = [len(next(iter(batch.values()))) for batch in batches]
        return rows, counts, {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def _decode(self, outputs: Outputs, counts: Sequence[int], weights: PredictorWeights) -> list[dict[str, Any]]:
        """The prediction for each row, which has so many examples."""
        decoded, start = [], 0
        for count in counts:
            own = {name: values[start : start + count] for name, values in outputs.items()}
            decoded.append(record(weights.objective, weights.objective.decode(own, weights.data)))
            start += count
        return decoded


async def predict(request: Request) -> Response:
    """Predict rows."""
    state: PredictionState = request.app.state.server
    body = await state.read(request, PredictionRequest)
    state.check_model(body.model)
    values = [body.rows] if isinstance(body.rows, dict) else body.rows
    if len(values) > state.settings.max_rows:
        why = f"{len(values)} rows; this server takes serve.max_rows = {state.settings.max_rows} at once"
        raise ApiError(400, f"rows: {why}", param="rows")

    def read(form: DataFormat) -> list[Row]:
        return [Row(STDIN, number + 1, f"rows[{number}]", row) for number, row in enumerate(values)]

    rows, decoded, weights, usage = await state.predict(request, read, "rows", values)
    try:
        form = weights.form
        records = [record for row, one in zip(rows, decoded, strict=True) for record in form.records(row, one)]
    except DataError as error:
        raise refusal(error) from None
    return json_response(
        Predictions(
            object="list",
            model=body.model or state.name,
            system_fingerprint=weights.fingerprint,
            predictions=records,
            usage=usage,
        )
    )


async def classify(request: Request) -> Response:
    """Predict a file, such as a picture."""
    state: PredictionState = request.app.state.server
    name = state.name
    if (content_type := content_type_of(request)) in state.form.media_types:
        data = await state.read_bytes(request)
        record_of(request).model = name
    elif content_type == "application/json":
        body = await state.read(request, FileRequest)
        state.check_model(body.model)
        name = body.model or name
        data = _decoded(body.image)
    else:
        raise wrong_type(request, (*state.form.media_types, "application/json"))

    def read(form: DataFormat) -> list[Row]:
        try:
            return [Row(STDIN, 1, "image", form.decode(data))]
        except ValueError as error:
            raise DataError("image", str(error), "file IMAGE") from None

    _, (prediction,), weights, usage = await state.predict(request, read, "image")
    if thresholds := weights.objective.decides_by(weights.data):
        prediction["thresholds"] = thresholds
    facts = {"object": "prediction", "model": name, "system_fingerprint": weights.fingerprint, "usage": usage}
    return json_response(Classification.model_validate({**prediction, **facts}))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "image: it is the base64 of a file", param="image") from None


def refusal(error: DataError) -> ApiError:
    """The answer for a row that cannot be used; `param` is its place."""
    return ApiError(400, f"{error.what}: {error.why}", param=error.what.partition(":")[0])
