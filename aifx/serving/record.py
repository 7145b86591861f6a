"""Requests and answers in `serve.jsonl`, and their replay: the same tokens and bits, or the first that differ."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

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


@dataclass(frozen=True)
class Difference:
    """The first token of an answer that differs from the record, or whose log-probability does."""

    line: int
    token: int  # its number in the answer, from 0
    recorded: str
    replayed: str


@dataclass(frozen=True)
class ReplayReport(Result):
    """The document of `aifx serve replay`."""

    fingerprint: str
    replayed: int
    tokens: int
    skipped: int  # answers of other weights or programs
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
    own = [(line, record) for line, record in records if record["fingerprint"] == engine.fingerprint]
    skipped = len(records) - len(own)
    if not own:
        what = f"{path} has no answer of {engine.fingerprint}"
        why = f"{skipped} answers are of other weights, settings or programs"
        raise UsageError(what, why, f"aifx serve replay {path} --run NAME --step N --set serve.slots=[8,16]")
    tokens = 0
    for start in range(0, len(own), AT_ONCE):
        part = own[start : start + AT_ONCE]
        asked = [(line, record["answer"], _ask(engine, record, line, path, grammar)) for line, record in part]
        for line, answer, found in asked:
            difference = _compare(line, answer, complete_answer(found))
            if difference is not None:
                return ReplayReport(engine.fingerprint, start + len(part), tokens, skipped, difference)
            tokens += len(answer["tokens"])
    return ReplayReport(engine.fingerprint, len(own), tokens, skipped, None)


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
    is_answer = isinstance(answer, dict) and {"tokens", "logprobs", "finish_reason"} <= set(answer)
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
            return Difference(line, index, _token_text(one), _token_text(other))
    return None


def _token_text(pair: tuple[int, float | None] | None) -> str:
    return "nothing" if pair is None else f"{pair[0]} with log-probability {pair[1]!r}"
