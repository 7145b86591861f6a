"""Recording requests and answers, and their replay: the same tokens and bits, or the first that differ."""

from __future__ import annotations

import base64
import logging
import queue
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from aifx.config.serve_section import ServeSection
from aifx.core.errors import AifxError, DataError, ExitCode, UsageError
from aifx.core.results import Result
from aifx.serving.records import SEGMENT_BYTES, Record, RecordWriter, encoded, read_records
from aifx.serving.requests import (
    Deliver,
    Delta,
    GenerationRequest,
    Grammar,
    NotRecorded,
    SamplingSettings,
    ServingEngine,
    complete_answer,
)

logger = logging.getLogger(__name__)

SHADOW_FILE, SHADOW_VERSION = "shadow.jsonl", 1
"""The records of `aifx serve --shadow`."""
AT_ONCE = 32
"""Requests that are replayed together, in other company than the first time."""

RETRY_S = 1.0
"""With serve.record_failure = "closed", seconds without requests after a record that could not be written."""

MakeGrammar = Callable[[str], Grammar]
"""Makes a grammar from its source."""

Done: TypeAlias = Callable[[Exception | None], None]
"""Called when a record is kept, or with the reason why its answer must not be given."""


class Recorder:
    """Keeps each request with its complete answer before the end of the answer is delivered."""

    # The worker's thread writes: the kernel has the record before the client has the end of the answer, and no other
    # thread has to get Python's lock first. A thread of its own flushes to the disk, every `flush_s` or, with "each",
    # all records that wait for it at once (group commit), and then delivers the ends of their answers.

    def __init__(
        self, folder: Path, flush: float | Literal["each"], *, is_open: bool, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        """Make the first segment, and start the thread that flushes. Raises AifxError, OSError.

        Args:
            folder: of the records of all servers of the run.
            flush: seconds between flushes, or "each": an answer ends once its record is on the disk.
            is_open: whether answers go on without records if these cannot be written.
        """
        self._writer = RecordWriter(folder, segment_bytes)
        self._flush, self._is_open = flush, is_open
        self._lost, self._failed_at, self._failure = 0, -RETRY_S, ""
        self._waiting: list[Done] = []
        self._wake, self._is_closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._flush_on, name="aifx-recorder", daemon=True)
        self._thread.start()

    @property
    def folder(self) -> Path:
        """The folder of this server's records."""
        return self._writer.folder

    def check(self) -> None:
        """Raise NotRecorded if answers need records, and none could be written just now."""
        if self._failure and not self._is_open and time.monotonic() < self._failed_at + RETRY_S:
            raise NotRecorded(self._failure)

    def recorded(
        self, request: GenerationRequest, deliver: Deliver, fingerprint: str, model: str
    ) -> tuple[GenerationRequest, Deliver]:
        """The request with log-probabilities, and a `Deliver` that also records its deltas. Raises NotRecorded.

        Args:
            model: digest of the model version.
        """
        self.check()
        tokens: list[int] = []
        logprobs: list[float] = []
        started_at = time.time()

        def take(delta: Delta) -> None:
            tokens.extend(delta.token_ids)
            logprobs.extend(score.logprob for score in delta.scores if score.logprob is not None)
            shown = delta if request.logprobs is not None else replace(delta, scores=())
            if delta.finish_reason is None:
                deliver(shown)
                return

            def done(error: Exception | None) -> None:
                is_answer = delta.finish_reason in ("stop", "length")
                if error is None or not is_answer:
                    deliver(shown)
                else:
                    deliver(Delta(finish_reason="error", usage=delta.usage, error=f"it was not recorded: {error}"))

            answer = {"finish_reason": delta.finish_reason, "tokens": packed("i", tokens)}
            answer["logprobs"] = packed("f", logprobs)
            identity = request.id, started_at, model, fingerprint
            self._keep(identity, document_of(request), answer, done)

        return request if request.logprobs is not None else replace(request, logprobs=0), take

    def record_prediction(
        self,
        identity: tuple[str, float, str, str],
        rows: Sequence[Mapping[str, Any]],
        batch: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        predictions: Sequence[Mapping[str, Any]],
        done: Done,
    ) -> None:
        """Write the rows of a request, the examples that were made of them, and their predictions.

        Args:
            identity: the response's id, when the request came, the model version's digest and the fingerprint.
            rows: as the client sent them; none of pictures.
            outputs: of the model, by name.
            predictions: of the rows, as the objective decodes outputs.
        """
        request = {"rows": rows, "batch": document_of_arrays(batch)}
        self._keep(identity, request, {"outputs": document_of_arrays(outputs), "predictions": predictions}, done)

    def _keep(
        self,
        identity: tuple[str, float, str, str],
        request: Mapping[str, Any],
        answer: Mapping[str, Any],
        done: Done,
    ) -> None:
        try:
            self._writer.append(*identity, encoded(request), encoded(answer), self._lost)
        except (AifxError, OSError) as error:
            self._lost += 1
            done(self._fail(error))
            return
        self._lost = 0
        if self._flush == "each":
            with self._wake:
                self._waiting.append(done)
                self._wake.notify()
        else:
            self._failure = ""
            done(None)

    def _fail(self, error: Exception) -> Exception | None:
        """Keep that records cannot be written. Returns the error if answers must not go on."""
        if not self._failure:  # each loss would be a line
            logger.error(f"answers are not recorded: {error}")
        self._failure, self._failed_at = str(error), time.monotonic()
        return None if self._is_open else error

    def close(self) -> None:
        """Flush what is left, and deliver the answers that wait for it."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()
        try:
            self._writer.close()
        except (AifxError, OSError) as error:
            logger.error(f"the last records are not flushed to the disk: {error}")

    def _flush_on(self) -> None:
        while True:
            with self._wake:
                if self._flush == "each":
                    self._wake.wait_for(lambda: self._waiting or self._is_closing)
                else:
                    self._wake.wait_for(lambda: self._is_closing, self._flush)
                waiting, self._waiting = self._waiting, []
                is_closing = self._is_closing
            refused = None
            try:
                self._writer.sync()
                if waiting:
                    self._failure = ""
            except (AifxError, OSError) as error:
                refused = self._fail(error)
            for done in waiting:
                done(refused)
            if is_closing and not waiting:
                return


def packed(kind: str, values: Sequence[float]) -> dict[str, Any]:
    """Numbers as `document_of_arrays` writes an array: int32 for "i"; for "f" float32, which scores of devices are."""
    data = base64.b64encode(array(kind, values).tobytes()).decode()
    return {"dtype": {"i": "int32", "f": "float32"}[kind], "shape": [len(values)], "base64": data}


def document_of(request: GenerationRequest) -> dict[str, Any]:
    """A request as JSON."""
    found = {**request.__dict__, "sampling": {**request.sampling.__dict__}}
    del found["id"]  # of the response: the chain has it
    found["prompt_ids"] = packed("i", request.prompt_ids)
    found["stop_token_ids"] = sorted(request.stop_token_ids)
    found["sampling"]["logit_bias"] = {str(k): v for k, v in request.sampling.logit_bias.items()}
    found["grammar"] = None if request.grammar is None else request.grammar.source
    return found


def request_of(document: Mapping[str, Any], grammar: MakeGrammar) -> GenerationRequest:
    """The request that `document_of` wrote. Raises KeyError, TypeError or ValueError for other documents."""
    values = dict(document)
    sampling = dict(values.pop("sampling"))
    sampling["logit_bias"] = {int(k): v for k, v in sampling["logit_bias"].items()}
    source = values.pop("grammar")
    values["prompt_ids"] = unpacked(values["prompt_ids"])
    values |= {"stop": tuple(values["stop"]), "stop_token_ids": frozenset(values["stop_token_ids"])}
    made = None if source is None else grammar(source)
    return GenerationRequest(**values, sampling=SamplingSettings(**sampling), grammar=made)


def unpacked(document: Mapping[str, Any]) -> list[Any]:
    """The numbers that `packed` wrote. Raises KeyError, TypeError or ValueError for other documents."""
    return list(arrays_of({"": document})[""].tolist())


def document_of_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays as JSON: the dtype, the shape and the bytes of each, by name."""
    return {
        name: {"dtype": one.dtype.str, "shape": list(one.shape), "base64": base64.b64encode(one.tobytes()).decode()}
        for name, one in arrays.items()
    }


def arrays_of(document: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that `document_of_arrays` wrote. Raises KeyError, TypeError or ValueError for other documents."""
    return {
        name: np.frombuffer(base64.b64decode(one["base64"], validate=True), one["dtype"]).reshape(one["shape"])
        for name, one in document.items()
    }


@dataclass(frozen=True)
class Difference:
    """The first part of an answer that differs from the record: a token or its log-probability, or a row's prediction.

    Attributes:
        record: the file of the chain, and the line.
        place: number of the token or the row in the answer, from 0.
    """

    record: str
    unit: Literal["token", "row"]
    place: int
    recorded: str
    replayed: str


@dataclass(frozen=True)
class ReplayReport(Result):
    """The document of `aifx serve replay`.

    Attributes:
        replayed: answers that were computed again.
        tokens: of these answers; 0 if the model predicts.
        rows: of these answers; 0 if the model writes text.
        skipped: answers of other weights or programs.
        erased: records whose request and answer were erased.
        missing: records whose request and answer a loss of power took.
    """

    fingerprint: str
    replayed: int
    tokens: int
    rows: int
    skipped: int
    erased: int
    missing: int
    difference: Difference | None

    @property
    def passed(self) -> bool:
        return self.difference is None

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.passed else ExitCode.VERDICT


def replay_settings(serve: ServeSection) -> ServeSection:
    """Settings of an engine that replays: it records nothing, and its queue takes all requests of a batch."""
    return serve.model_copy(update={"log_requests": False, "queue": max(serve.queue, AT_ONCE)})


@dataclass
class RecordCounts:
    """Records by their state and fingerprint."""

    whole: Counter[str]
    erased: int = 0
    missing: int = 0

    @classmethod
    def of(cls, path: Path) -> RecordCounts:
        """Check the records of a folder, and count them. Raises DataError."""
        found = cls(Counter())
        for record in read_records(path):
            found.erased += record.state == "erased"
            found.missing += record.state == "missing"
            if record.state == "whole":
                found.whole[record.fingerprint] += 1
        return found

    def report(self, fingerprint: str, **found: Any) -> ReplayReport:
        skipped = self.whole.total() - self.whole[fingerprint]
        counts = {"tokens": 0, "rows": 0, "skipped": skipped, "erased": self.erased, "missing": self.missing}
        return ReplayReport(fingerprint=fingerprint, **{**counts, **found})


def replay(path: Path, counts: RecordCounts, engine: ServingEngine, grammar: MakeGrammar) -> ReplayReport:
    """Send the recorded requests of a folder again, AT_ONCE at a time, up to the first difference.

    Raises DataError for a request that cannot be read, UsageError if no answer is of this engine's weights.
    """
    replayed = tokens = 0
    for part in _of_fingerprint(path, counts, engine.fingerprint):
        asked = [(record, *_ask(engine, record, grammar)) for record in part]
        replayed += len(part)
        for record, answer, found in asked:
            difference = _compare(record.place, answer, complete_answer(found))
            if difference is not None:
                return counts.report(engine.fingerprint, replayed=replayed, tokens=tokens, difference=difference)
            tokens += len(answer.tokens)
    return counts.report(engine.fingerprint, replayed=replayed, tokens=tokens, difference=None)


Predict: TypeAlias = Callable[[dict[str, np.ndarray], Callable[[Any], None]], object]
"""Predicts examples, and hands over their outputs by name, or an exception."""


def replay_predictions(path: Path, counts: RecordCounts, fingerprint: str, predict: Predict) -> ReplayReport:
    """Predict the recorded examples of a folder again, AT_ONCE requests at a time, up to the first difference.

    Raises DataError for a request that cannot be read or predicted, UsageError if no answer has this fingerprint.
    """
    replayed = rows = 0
    for part in _of_fingerprint(path, counts, fingerprint):
        replayed += len(part)
        asked = []
        for record in part:
            found: queue.Queue[Any] = queue.Queue()
            try:
                batch, recorded = arrays_of(record.request["batch"]), arrays_of(record.answer["outputs"])
                predict(batch, found.put)
            except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
                raise _unreadable(record, error) from None
            asked.append((record.place, recorded, found))
        for place, recorded, found in asked:
            if not isinstance(answer := found.get(), Mapping):
                raise DataError(f"{place}: its rows cannot be predicted", str(answer), "docs/serve.md")
            if (difference := _first_row_that_differs(place, recorded, answer)) is not None:
                return counts.report(fingerprint, replayed=replayed, rows=rows, difference=difference)
            rows += len(next(iter(recorded.values()), ()))
    return counts.report(fingerprint, replayed=replayed, rows=rows, difference=None)


def _of_fingerprint(path: Path, counts: RecordCounts, fingerprint: str) -> Iterator[list[Record]]:
    """The whole records of a fingerprint, AT_ONCE at a time. Raises UsageError if there are none."""
    if not counts.whole[fingerprint]:
        what = f"{path} has no answer of {fingerprint}"
        why = f"{counts.whole.total()} answers are of other weights, settings or programs"
        raise UsageError(what, why, f"aifx serve replay {path} --run NAME --step N --set serve.slots=[8,16]")
    own = (one for one in read_records(path) if one.state == "whole" and one.fingerprint == fingerprint)
    left = counts.whole[fingerprint]  # a server may append meanwhile
    while left and (part := list(islice(own, min(AT_ONCE, left)))):
        left -= len(part)
        yield part


def _unreadable(record: Record, error: Exception) -> DataError:
    return DataError(f"{record.place}: its request cannot be read", str(error), "docs/serve.md")


def _first_row_that_differs(
    place: str, recorded: Mapping[str, np.ndarray], replayed: Mapping[str, np.ndarray]
) -> Difference | None:
    """The first row with another prediction, compared by their bytes."""
    for name in sorted({*recorded, *replayed}):
        one, other = recorded.get(name), replayed.get(name)
        if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
            return Difference(place, "row", 0, _kind_text(name, one), _kind_text(name, other))
        for row, (before, after) in enumerate(zip(one, other, strict=True)):
            if before.tobytes() != after.tobytes():
                return Difference(place, "row", row, f"{name} {before.tolist()!r}", f"{name} {after.tolist()!r}")
    return None


def _kind_text(name: str, values: np.ndarray | None) -> str:
    return f"no {name}" if values is None else f"{name} of {values.dtype}{list(values.shape)}"


@dataclass(frozen=True)
class _RecordedText:
    """A recorded answer of text."""

    tokens: list[int]
    logprobs: list[float]
    is_complete: bool


def _ask(engine: ServingEngine, record: Record, grammar: MakeGrammar) -> tuple[_RecordedText, queue.Queue[Delta]]:
    """Send a recorded request again. Returns its recorded answer, and the queue of the new one. Raises DataError."""
    deltas: queue.Queue[Delta] = queue.Queue()
    try:
        tokens, logprobs = (unpacked(record.answer[key]) for key in ("tokens", "logprobs"))
        answer = _RecordedText(tokens, logprobs, record.answer["finish_reason"] in ("stop", "length"))
        request = request_of(record.request, grammar)
        if not answer.is_complete:  # its client went away: only what was written
            request = replace(request, max_tokens=len(tokens))
        engine.submit(replace(request, logprobs=request.logprobs or 0), deltas.put)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of another model, or another version of aifx
        raise _unreadable(record, error) from None
    return answer, deltas


def _compare(place: str, answer: _RecordedText, found: Sequence[Delta]) -> Difference | None:
    recorded = list(zip(answer.tokens, answer.logprobs, strict=False))
    replayed = [(score.token, score.logprob) for delta in found for score in delta.scores]
    for index in range(max(len(recorded), len(replayed))):
        one, other = (pairs[index] if index < len(pairs) else None for pairs in (recorded, replayed))
        if one is None and not answer.is_complete:
            return None
        if one != other:
            return Difference(place, "token", index, _token_text(one), _token_text(other))
    return None


def _token_text(pair: tuple[int, float | None] | None) -> str:
    return "nothing" if pair is None else f"{pair[0]} with log-probability {pair[1]!r}"
