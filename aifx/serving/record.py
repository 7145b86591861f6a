"""Requests and answers in `serve.jsonl`, and their replay: the same tokens and bits, or the first that differ."""

from __future__ import annotations

import base64
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from aifx.config.serve_section import ServeSection
from aifx.core.errors import AifxError, DataError, ExitCode, UsageError
from aifx.core.json_files import JsonLines, parse_line
from aifx.core.results import Result
from aifx.serving.requests import (
    Deliver,
    Delta,
    GenerationRequest,
    Grammar,
    SamplingSettings,
    ServingEngine,
    complete_answer,
)

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
SHADOW_FILE, SHADOW_VERSION = "shadow.jsonl", 1
"""The records of `aifx serve --shadow`."""
AT_ONCE = 32
"""Requests that are replayed together, in other company than the first time."""

MakeGrammar = Callable[[str], Grammar]
"""Makes a grammar from its source."""


class Recorder:
    """Writes each request with its complete answer as a line, in a thread of its own."""

    def __init__(self, path: Path) -> None:
        """Open the file of records. Raises OSError."""
        self._file = JsonLines(path)
        self._records: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="aifx-recorder", daemon=True)
        self._thread.start()

    def recorded(
        self, request: GenerationRequest, deliver: Deliver, fingerprint: str
    ) -> tuple[GenerationRequest, Deliver]:
        """The request with log-probabilities, and a `Deliver` that also records its deltas."""
        tokens: list[int] = []
        logprobs: list[float | None] = []
        started_at = time.time()

        def take(delta: Delta) -> None:
            tokens.extend(delta.token_ids)
            logprobs.extend(score.logprob for score in delta.scores)
            if delta.finish_reason is not None:
                answer = {"tokens": tokens, "logprobs": logprobs, "finish_reason": delta.finish_reason}
                record = {"schema_version": SCHEMA_VERSION, "time": started_at, "fingerprint": fingerprint}
                self._records.put({**record, "request": document_of(request), "answer": answer})
            deliver(delta if request.logprobs is not None else replace(delta, scores=()))

        return request if request.logprobs is not None else replace(request, logprobs=0), take

    def record_prediction(
        self, batch: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], taken_s: float, fingerprint: str
    ) -> None:
        """Write the examples of a request and their predictions.

        Args:
            taken_s: when the request came, in seconds since 1970.
        """
        record = {"schema_version": SCHEMA_VERSION, "time": taken_s, "fingerprint": fingerprint}
        request, answer = {"batch": document_of_arrays(batch)}, {"outputs": document_of_arrays(outputs)}
        self._records.put({**record, "request": request, "answer": answer})

    def close(self) -> None:
        """Write what is left."""
        self._records.put(None)
        self._thread.join()

    def _write(self) -> None:
        is_failing = False
        while (record := self._records.get()) is not None:
            try:
                self._file.append(record)
                is_failing = False
            except (AifxError, OSError) as error:
                if not is_failing:  # the answers matter more; each loss would be a line
                    logger.error(f"answers are not recorded: {error}")
                is_failing = True


def document_of(request: GenerationRequest) -> dict[str, Any]:
    """A request as JSON."""
    found = {**request.__dict__, "sampling": asdict(request.sampling)}
    found["prompt_ids"] = list(request.prompt_ids)
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
    values |= {"stop": tuple(values["stop"]), "stop_token_ids": frozenset(values["stop_token_ids"])}
    made = None if source is None else grammar(source)
    return GenerationRequest(**values, sampling=SamplingSettings(**sampling), grammar=made)


def document_of_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays as JSON: the dtype, the shape and the bytes of each, by name."""
    return {
        name: {"dtype": str(one.dtype), "shape": list(one.shape), "base64": base64.b64encode(one.tobytes()).decode()}
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
        place: number of the token or the row in the answer, from 0.
    """

    line: int
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
    """

    fingerprint: str
    replayed: int
    tokens: int
    rows: int
    skipped: int
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


Records: TypeAlias = Sequence[tuple[int, Mapping[str, Any]]]
"""Records with the numbers of their lines."""


def replay(path: Path, records: Records, engine: ServingEngine, grammar: MakeGrammar) -> ReplayReport:
    """Send the recorded requests of a file again, AT_ONCE at a time, up to the first difference.

    Raises DataError for a request that cannot be read, UsageError if no answer is of this engine's weights.
    """
    own, skipped = _of_fingerprint(path, records, engine.fingerprint)
    tokens = 0
    for start in range(0, len(own), AT_ONCE):
        part = own[start : start + AT_ONCE]
        asked = [(line, record["answer"], _ask(engine, record, line, path, grammar)) for line, record in part]
        for line, answer, found in asked:
            difference = _compare(line, answer, complete_answer(found))
            if difference is not None:
                return ReplayReport(engine.fingerprint, start + len(part), tokens, 0, skipped, difference)
            tokens += len(answer["tokens"])
    return ReplayReport(engine.fingerprint, len(own), tokens, 0, skipped, None)


Predict: TypeAlias = Callable[[dict[str, np.ndarray], Callable[[Any], None]], object]
"""Predicts examples, and hands over their outputs by name, or an exception."""


def replay_predictions(path: Path, records: Records, fingerprint: str, predict: Predict) -> ReplayReport:
    """Predict the recorded examples of a file again, AT_ONCE requests at a time, up to the first difference.

    Raises DataError for a request that cannot be read or predicted, UsageError if no answer has this fingerprint.
    """
    own, skipped = _of_fingerprint(path, records, fingerprint)
    rows = 0
    for start in range(0, len(own), AT_ONCE):
        part = own[start : start + AT_ONCE]
        asked = []
        for line, record in part:
            found: queue.Queue[Any] = queue.Queue()
            try:
                batch, recorded = arrays_of(record["request"]["batch"]), arrays_of(record["answer"]["outputs"])
                predict(batch, found.put)
            except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:  # edited by hand
                raise DataError(f"{path}:{line}: not a record of aifx serve", str(error), "docs/serve.md") from None
            asked.append((line, recorded, found))
        for line, recorded, found in asked:
            if not isinstance(replayed := found.get(), Mapping):
                raise DataError(f"{path}:{line}: its rows cannot be predicted", str(replayed), "docs/serve.md")
            if (difference := _first_row_that_differs(line, recorded, replayed)) is not None:
                return ReplayReport(fingerprint, start + len(part), 0, rows, skipped, difference)
            rows += len(next(iter(recorded.values()), ()))
    return ReplayReport(fingerprint, len(own), 0, rows, skipped, None)


def _of_fingerprint(path: Path, records: Records, fingerprint: str) -> tuple[Records, int]:
    """The records of a fingerprint, and the number of others. Raises UsageError if there are none."""
    own = [(line, record) for line, record in records if record["fingerprint"] == fingerprint]
    skipped = len(records) - len(own)
    if not own:
        what = f"{path} has no answer of {fingerprint}"
        why = f"{skipped} answers are of other weights, settings or programs"
        raise UsageError(what, why, f"aifx serve replay {path} --run NAME --step N --set serve.slots=[8,16]")
    return own, skipped


def _first_row_that_differs(
    line: int, recorded: Mapping[str, np.ndarray], replayed: Mapping[str, np.ndarray]
) -> Difference | None:
    """The first row with another prediction, compared by their bytes."""
    for name in sorted({*recorded, *replayed}):
        one, other = recorded.get(name), replayed.get(name)
        if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
            return Difference(line, "row", 0, _kind_text(name, one), _kind_text(name, other))
        for row, (before, after) in enumerate(zip(one, other, strict=True)):
            if before.tobytes() != after.tobytes():
                return Difference(line, "row", row, f"{name} {before.tolist()!r}", f"{name} {after.tolist()!r}")
    return None


def _kind_text(name: str, values: np.ndarray | None) -> str:
    return f"no {name}" if values is None else f"{name} of {values.dtype}{list(values.shape)}"


def read_records(path: Path) -> Records:
    """The records of a file. Raises DataError for a line that is not one."""
    records = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read", error.strerror or str(error), "aifx serve replay FILE") from None
    for number, line in enumerate(lines, 1):
        record = parse_line(line)
        if record is None and number == len(lines):
            break  # the server was killed while it wrote this one
        if record is None or not _is_record(record):
            why = f"expected schema_version {SCHEMA_VERSION}, fingerprint, request and answer"
            raise DataError(f"{path}:{number}: not a record of aifx serve", why, "docs/serve.md")
        records.append((number, record))
    if not records:
        raise DataError(f"{path} has no record", "it is empty", "aifx serve --set serve.log_requests=true")
    return records


def _is_record(record: Mapping[str, Any]) -> bool:
    answer = record.get("answer")
    keys = set(answer) if isinstance(answer, dict) else set()
    is_answer = {"tokens", "logprobs", "finish_reason"} <= keys or keys == {"outputs"}
    return is_answer and record.get("schema_version") == SCHEMA_VERSION and {"fingerprint", "request"} <= set(record)


def _ask(
    engine: ServingEngine, record: Mapping[str, Any], line: int, path: Path, grammar: MakeGrammar
) -> queue.Queue[Delta]:
    deltas: queue.Queue[Delta] = queue.Queue()
    try:
        request = request_of(record["request"], grammar)
        if not _is_complete(record["answer"]):  # its client went away: only what was written
            request = replace(request, max_tokens=len(record["answer"]["tokens"]))
        engine.submit(replace(request, logprobs=request.logprobs or 0), deltas.put)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # edited by hand
        why = f"its request cannot be read: {error}"
        raise DataError(f"{path}:{line}: not a record of aifx serve", why, "docs/serve.md") from None
    return deltas


def _is_complete(answer: Mapping[str, Any]) -> bool:
    return answer["finish_reason"] in ("stop", "length")


def _compare(line: int, answer: Mapping[str, Any], found: Sequence[Delta]) -> Difference | None:
    recorded = list(zip(answer["tokens"], answer["logprobs"], strict=False))
    replayed = [(score.token, score.logprob) for delta in found for score in delta.scores]
    for index in range(max(len(recorded), len(replayed))):
        one, other = (pairs[index] if index < len(pairs) else None for pairs in (recorded, replayed))
        if one is None and not _is_complete(answer):
            return None
        if one != other:
            return Difference(line, "token", index, _token_text(one), _token_text(other))
    return None


def _token_text(pair: tuple[int, float | None] | None) -> str:
    return "nothing" if pair is None else f"{pair[0]} with log-probability {pair[1]!r}"
