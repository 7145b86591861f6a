"""The engine of tasks that predict: examples of many requests in one call of the prediction program.

A call has a fixed number of rows, so that an example's bits do not depend on those beside it. Examples of the requests
that wait take turns, so that a request of many does not delay the others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from aifx.data.arrays import FOLD, WEIGHTS
from aifx.data.base import Batch, DataFormat
from aifx.data.spec import DataSpec
from aifx.loading.prediction import checked_predictions
from aifx.objectives.base import Objective
from aifx.programs.build import Programs
from aifx.serving.record import Recorder
from aifx.serving.requests import EnergyBasis
from aifx.serving.worker import RequestState, Shares, Worker
from aifx.specs import Params

Outputs = Mapping[str, np.ndarray]
"""Predictions by name, `[examples, ...]`."""

Fields = tuple[tuple[str, tuple[int, ...], str], ...]
"""Name, shape of an example and dtype of each array of a batch, by name."""


@dataclass(frozen=True, eq=False)
class PredictorWeights:
    """A model with its own programs, so that another one can be of another architecture or of other columns' means.

    Attributes:
        params, frozen: as `Programs.predict_step` takes them.
        compiled: the program by the fields of a batch; models with the same program share it.
        model: digest of the model version, or of the checkpoint's arrays.
    """

    params: Params
    frozen: Params
    programs: Programs
    program_digest: str
    fingerprint: str
    compiled: dict[Fields, Any] = field(default_factory=dict)
    model: str = ""

    @property
    def form(self) -> DataFormat:
        """The way to read rows for this model."""
        assert self.programs.task.format is not None
        return self.programs.task.format

    @property
    def data(self) -> DataSpec:
        return self.programs.task.data

    @property
    def objective(self) -> Objective:
        """The objective that reads the program's outputs."""
        return self.programs.task.objective

    def program(self, fields: Fields) -> Any:
        """The compiled program for batches of these fields."""
        if fields not in self.compiled:
            self.compiled[fields] = lower_prediction(self.programs, fields).compile()
        return self.compiled[fields]


@dataclass(frozen=True)
class Predicted:
    """The outputs of a request, and what they cost: its share by rows. None if that is not known."""

    outputs: Outputs
    joules: float | None = None
    energy_basis: EnergyBasis | None = None
    cost: float | None = None


class PredictionFailed(Exception):
    """A request has no prediction; the message says why."""


class NotNumbers(PredictionFailed):
    """The model gave no numbers for the rows of a request, such as some that are far too large."""


@dataclass(frozen=True)
class ForRecord:
    """What the record of a request has, beside its examples.

    Attributes:
        id: of the response.
        rows: as the client sent them.
        decode: makes the predictions of the rows from the outputs.
    """

    id: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    decode: Callable[[Outputs], list[dict[str, Any]]] = field(default=lambda outputs: [])


class Prediction(RequestState[PredictorWeights]):
    """A request on its way.

    Attributes:
        for_record: what its record has.
        started: examples that were given to the device.
        outputs: of the examples that are done, in their order.
    """

    def __init__(
        self,
        batch: Batch,
        deliver: Callable[[Any], None],
        weights: PredictorWeights,
        on_started: Callable[[float], None],
        for_record: ForRecord,
    ) -> None:
        super().__init__(weights)
        self.batch, self.deliver, self.on_started, self.for_record = batch, deliver, on_started, for_record
        self.fields = fields_of(batch)
        self.count = len(next(iter(batch.values())))
        self.started = 0
        self.outputs: list[Outputs] = []


@dataclass(frozen=True)
class PredictorStats:
    """The predictor at this moment, and its counts since it started."""

    running: int
    waiting: int
    rows: int  # examples that were predicted
    batches: int  # calls of the program
    compilations: int  # after the start: 0, or a program was missing


class Predictor(Worker[PredictorWeights, Prediction]):
    """Predicts in a thread of its own."""

    def __init__(
        self,
        weights: PredictorWeights,
        *,
        queue: int,
        on_batch: Callable[[int], None] = lambda rows: None,
        shares: Shares | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """
        Args:
            queue: requests that may wait.
            shares: of energy and price; by default, neither is known.
            recorder: keeps what was asked and answered.
            on_batch: called with the number of examples of each call of the program.
        """
        super().__init__(weights, queue=queue, shares=shares, recorder=recorder)
        self.on_batch = on_batch
        self._waiting: deque[Prediction] = deque()  # some of whose examples were not given to the device
        self._rows = self._batches = 0
        self._batch_s = 0.0  # of the last call

    @property
    def rows_per_batch(self) -> int:
        """Rows in one call of the program of new requests."""
        return self.weights.programs.eval_rows

    def submit(
        self,
        batch: Batch,
        deliver: Callable[[Any], None],
        *,
        weights: PredictorWeights | None = None,
        on_started: Callable[[float], None] = lambda waited_s: None,
        for_record: ForRecord = ForRecord(),
    ) -> Prediction:
        """Predict examples. From any thread. Raises QueueFull, Draining, NotRecorded.

        Args:
            batch: at least one example, as `RowEncoder` makes them.
            deliver: called once, from another thread, with `Predicted`; with None if the request was cancelled
                or the server stops; with PredictionFailed. It must not wait.
            weights: those that answer, if not those of now. An encoder belongs to weights.
            on_started: called with how long the request waited for the device.
            for_record: what its record has.
        """
        if self._recorder is not None:
            self._recorder.check()
        return self._take(Prediction(batch, deliver, weights or self.weights, on_started, for_record))

    def predict_outputs(self, batch: Batch, deliver: Callable[[Any], None]) -> Prediction:
        """Predict examples as `submit` does, and deliver their outputs alone, or why there are none."""
        return self.submit(batch, lambda found: deliver(found.outputs if isinstance(found, Predicted) else found))

    def _num_waiting(self) -> int:
        return self.stats().waiting - 1  # the first one is taken with the next call

    def _retry_after_s(self, waiting: int) -> float:
        examples = sum(request.count - request.started for request in [*self._waiting, *self._arrived])
        return examples / self.rows_per_batch * self._batch_s

    def stats(self) -> PredictorStats:
        waiting = len(self._waiting) + len(self._arrived)
        running = max(len(self._unfinished) - waiting, 0)
        return PredictorStats(running, waiting, self._rows, self._batches, self._compilations.count)

    def predict(self, batch: Batch, weights: PredictorWeights) -> Outputs:
        """Predict up to `eval_rows` examples in one call: `[eval_rows, ...]`, the last of them from zeros."""
        rows = weights.programs.eval_rows
        whole = {name: np.zeros((rows, *shape), dtype) for name, shape, dtype in fields_of(batch)}
        for name, values in batch.items():
            whole[name][: len(values)] = values
        program = weights.program(fields_of(batch))
        predicted = program(weights.params, weights.frozen, weights.programs.place(whole))
        return checked_predictions(weights.objective, jax.device_get(predicted), rows)

    def probe(self, weights: PredictorWeights) -> str | None:
        """Return why the weights cannot predict random examples, or None."""
        found = _joined([self.predict(_examples(weights), weights)])
        return str(found) if isinstance(found, PredictionFailed) else None

    def find_difference(self, weights: PredictorWeights) -> str | None:
        """Describe the place in a batch at which an example has other bits than alone, or return None."""
        rows, batch = weights.programs.eval_rows, _examples(weights)
        alone = self.predict({name: values[:1] for name, values in batch.items()}, weights)
        for place in sorted({0, 1 % rows, rows // 2, rows - 1}):
            order = np.roll(np.arange(rows), place)
            found = self.predict({name: values[order] for name, values in batch.items()}, weights)
            if any(found[name][place].tobytes() != alone[name][0].tobytes() for name in alone):
                return f"other bits than alone among {rows} rows, at place {place}"
        return None

    # What follows runs in the predictor's thread.

    def _turn(self) -> bool:
        with self._lock:  # other threads count the requests that wait
            self._waiting.extend(self._arrived)
            self._arrived.clear()
            cancelled = [request for request in self._waiting if request.is_cancelled]
            for request in cancelled:
                self._waiting.remove(request)
            taken = self._examples_of_call()
        for request in cancelled:
            self._end(request, None)
        if taken:
            self._predict(taken)
        return bool(self._waiting or self._arrived)

    def _predict(self, taken: Sequence[tuple[Prediction, int]]) -> None:
        """Predict some examples, and end the requests of which they are the last."""
        start = time.monotonic()
        names = [name for name, _, _ in taken[0][0].fields]
        batch = {name: np.stack([request.batch[name][index] for request, index in taken]) for name in names}
        outputs = self.predict(batch, taken[0][0].weights)
        self._batch_s = time.monotonic() - start
        self._rows += len(taken)
        self._batches += 1
        self.on_batch(len(taken))
        for request, _ in taken:
            self._shares.add(request, 1)
        self._shares.settle()
        for place, (request, _) in enumerate(taken):
            request.outputs.append({name: values[place] for name, values in outputs.items()})
            if len(request.outputs) == request.count:
                joined = _joined(request.outputs)
                cost = request.joules, request.energy_basis, request.cost
                self._end(request, joined if isinstance(joined, PredictionFailed) else Predicted(joined, *cost))

    def _examples_of_call(self) -> list[tuple[Prediction, int]]:
        """Examples for a call, one of each request in turn; of one kind and one set of weights."""
        taken: list[tuple[Prediction, int]] = []
        others: list[Prediction] = []
        while self._waiting and (not taken or len(taken) < taken[0][0].weights.programs.eval_rows):
            request = self._waiting.popleft()
            first = taken[0][0] if taken else request
            if request.fields != first.fields or request.weights is not first.weights:
                others.append(request)
                continue
            if request.started_at is None:
                request.started_at = time.monotonic()
                request.on_started(request.started_at - request.taken)
            taken.append((request, request.started))
            request.started += 1
            if request.started < request.count:
                self._waiting.append(request)
        self._waiting.extendleft(reversed(others))
        return taken

    def _end(self, request: Prediction, result: Predicted | PredictionFailed | None) -> None:
        self._drop(request)
        if self._recorder is None or not isinstance(result, Predicted):
            request.deliver(result)
            return

        def done(error: Exception | None) -> None:
            request.deliver(result if error is None else PredictionFailed(f"it was not recorded: {error}"))

        asked, taken_s = request.for_record, time.time() - (time.monotonic() - request.taken)
        identity = asked.id, taken_s, request.weights.model, request.weights.fingerprint
        try:
            predictions = asked.decode(result.outputs)
        except Exception as error:  # a project's own code may raise anything
            request.deliver(PredictionFailed(f"the outputs cannot be read: {error}"))
            return
        self._recorder.record_prediction(identity, asked.rows, request.batch, result.outputs, predictions, done)

    def _end_all(self, requests: Collection[Prediction], error: str | None) -> None:
        self._waiting.clear()  # first: a caller may read `stats` when its request ends
        for request in requests:
            self._end(request, None if error is None else PredictionFailed(error))


def fields_of(batch: Batch) -> Fields:
    """The arrays of a batch, with the dtypes that the device takes."""
    return tuple(
        (name, values.shape[1:], jax.dtypes.canonicalize_dtype(values.dtype).name)
        for name, values in sorted(batch.items())
    )


def fields_of_spec(data: DataSpec) -> Fields:
    """The fields of an example that a spec describes, without targets, weights and folds, which no request has."""
    known = {name: field for name, field in data.fields.items() if name not in ("targets", WEIGHTS, FOLD)}
    return tuple((name, tuple(field.shape), str(field.dtype)) for name, field in sorted(known.items()))


def lower_prediction(programs: Programs, fields: Fields) -> jax.stages.Lowered:
    """The prediction program for batches of these fields."""
    program, known = programs.predict_step, programs.task.data.fields
    rows = programs.eval_rows
    batch = {
        name: jax.ShapeDtypeStruct(
            (rows, *shape), dtype, sharding=programs.layout.of_batch(known[name].axes if name in known else ())
        )
        for name, shape, dtype in fields
    }
    return replace(program, arguments=(*program.arguments[:2], batch)).lower()


def _examples(weights: PredictorWeights) -> Batch:
    """A random batch, always the same."""
    rng, rows = np.random.default_rng(0), weights.programs.eval_rows
    return {name: _random(rng, (rows, *shape), dtype) for name, shape, dtype in fields_of_spec(weights.data)}


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Bytes of any value, small whole numbers, which may be those of categories, or numbers of variance 1."""
    if np.dtype(dtype).kind in "iub":
        return rng.integers(0, 256 if dtype == "uint8" else 2, shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def _joined(outputs: list[Outputs]) -> Outputs | PredictionFailed:
    joined = {name: np.stack([one[name] for one in outputs]) for name in outputs[0]}
    for name, values in joined.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return NotNumbers(f"the model's {name} are not numbers")
    return joined
