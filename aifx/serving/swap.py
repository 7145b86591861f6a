"""Watch the run or the alias that is served, and swap to another model that passes the canary."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias

import numpy as np

from aifx.config.serve_section import ServeSection
from aifx.core.errors import AifxError, DataError, UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.os_errors import in_brief, is_passing
from aifx.core.processes import Child, aifx_command, run_many
from aifx.core.project import Project
from aifx.core.steps import StepChoice
from aifx.data.readers.rows import read_rows
from aifx.data.readers.sources import local_file
from aifx.loading.restore import RestoredRun, restore_run
from aifx.loading.steps import choose_step
from aifx.programs.build import tree_bytes
from aifx.serving.engine import Engine
from aifx.serving.predictor import Predictor, PredictorWeights
from aifx.serving.requests import (
    Delta,
    Draining,
    GenerationRequest,
    SamplingSettings,
    TokenScore,
    complete_answer,
)
from aifx.serving.rows import Weights
from aifx.serving.start import free_memory, load_weights, open_model
from aifx.serving.worker import W, Worker

logger = logging.getLogger(__name__)

PARITY = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.01}
"""Most difference in log-probability between serving and the training forward, by what the model computes in."""

WORSE = 0.5
"""Most nats per token by which a pinned answer may become less likely than under the weights that serve."""

PARITY_PROMPTS = 4
"""Prompts of the canary file that parity is measured on: each length compiles the training forward once."""

MOST_TOKENS = 256
"""Tokens of an answer that must contain a text."""

GATES_S = 3600.0
"""Time limit of `aifx eval`."""

FIXED_TEXT = "The quick brown fox jumps over the lazy dog. 0123456789"
"""The text on which parity is measured without a canary file."""

LEAVE_S = 2.0
"""Longest wait until the registry has written down that a server ended."""

SHARE_OF_COPY = 1.5
"""Memory for a second set of weights, in units of its size: matrices are copied while they are joined."""


Files: TypeAlias = tuple[tuple[str, int, int], ...]
"""Path, size and time of each file of a checkpoint."""

Load: TypeAlias = Callable[[RestoredRun], W]
"""A checkpoint's weights as the engine takes them."""

Checks: TypeAlias = "Generator[Check | None]"
"""The checks of a model, one after another, and None at times while one runs. Closing it ends that one."""

Judge: TypeAlias = "Callable[[W, W], Iterator[Check]]"
"""Checks of new weights, beside those that serve."""


@dataclass(frozen=True)
class ModelIdentity:
    """A run or model version, its step, and the digest of the version or of the checkpoint's arrays."""

    model: str
    step: int
    digest: str

    @classmethod
    def of(cls, trained: RestoredRun) -> ModelIdentity:
        return cls(trained.run.name, trained.step, trained.digest)


@dataclass
class SwapCounts:
    """The numbers of checkpoints that took over, and that were refused.

    Attributes:
        problem: why the last look for another one failed; empty if it did not.
        models: that have served, by the fingerprint of their answers.
    """

    taken: int = 0
    refused: int = 0
    problem: str = ""
    models: dict[str, ModelIdentity] = field(default_factory=dict)

    @property
    def failing(self) -> int:
        return int(bool(self.problem))


@dataclass(frozen=True)
class Candidate:
    """A model that may take over.

    Attributes:
        id: of its weights: those with the id of the weights that serve are not loaded again.
        state: if it was refused, it is tried again once this has changed.
        label: for the log, such as "step 200 of run main".
        restore: opens it, and verifies its digests.
        gates: arguments of `aifx eval` that measure it.
        is_way_back: whether it served before, and was made to serve again: then it is not compared with what serves.
    """

    id: int | str
    state: Hashable
    label: str
    restore: Callable[[], RestoredRun]
    gates: tuple[str, ...]
    is_way_back: bool = False


class ModelSource(Protocol):
    """Names the model that should serve."""

    @property
    def first(self) -> int | str:
        """The id of the model that serves when the watch begins."""

    def newest(self) -> Candidate:
        """The model that should serve now. Raises AifxError or OSError if that cannot be found out."""

    def adopted(self, candidate: Candidate) -> None:
        """Take note that it serves."""

    def left(self) -> None:
        """Take note that the server has ended. Raises AifxError or OSError if that cannot be written."""


class StepsOfRun:
    """The checkpoints of a run."""

    def __init__(self, trained: RestoredRun, choice: StepChoice | None, overrides: Sequence[str]) -> None:
        """
        Args:
            choice: which checkpoint serves: "best", "last", or as `eval.checkpoint` says.
            overrides: `--set` strings with which checkpoints are restored.

        Raises UsageError for a step that never changes.
        """
        if isinstance(choice, int):
            raise UsageError(
                f"--watch with --step {choice}", "one step never changes", "aifx serve --watch --step last"
            )
        self.first = trained.step
        self._trained, self._choice, self._overrides = trained, choice, overrides
        self._reported: set[str] = set()

    def newest(self) -> Candidate:
        run, project = self._trained.run, self._trained.project
        step = choose_step(run, self._trained.config, self._choice, reported=self._reported)
        files = files_of(run.checkpoints / str(step))
        restore = partial(restore_run, run, project, step=step, overrides=self._overrides)
        gates = ("--run", run.name, "--step", str(step))
        return Candidate(step, files, f"step {step} of run {run.name}", restore, gates)

    def adopted(self, candidate: Candidate) -> None:
        """Nothing: the run's files say it all."""

    def left(self) -> None:
        """Nothing: no other machine asks."""


class _Overtaken(Exception):
    """Another model should serve at once."""


class Watcher(Generic[W]):
    """Looks for another model in a thread of its own, and swaps to it if it passes all checks."""

    def __init__(
        self,
        engine: Worker[W, Any],
        source: ModelSource,
        load: Callable[[RestoredRun], W],
        checks: Callable[[Candidate, RestoredRun, W, W], Checks],
        *,
        every_s: float,
        counts: SwapCounts | None = None,
    ) -> None:
        """Set up the watcher, which `start` starts.

        Args:
            source: names the model that should serve.
            load: returns a model's weights as the engine takes them.
            checks: the checks of a model, from itself, what was restored, its weights and those that serve.
            every_s: seconds between two looks.
            counts: to be incremented.
        """
        self.counts, self.current = counts or SwapCounts(), source.first
        self._engine, self._source, self._checks, self._load = engine, source, checks, load
        self._every_s, self._looked = every_s, 0.0
        self._refused: dict[int | str, Hashable] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aifx-watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        """Stop, and let the source take note, for which the end of a server waits LEAVE_S at most."""
        self.stop()
        noting = threading.Thread(target=self._leave, name="aifx-leave", daemon=True)
        noting.start()
        noting.join(LEAVE_S)

    def _leave(self) -> None:
        try:
            self._source.left()
        except (AifxError, OSError) as error:
            logger.warning(f"that this server has ended could not be written: {in_brief(error)}")

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.look()
                self.counts.problem = ""
            except Exception as error:  # a folder that is not there for a moment, or is being copied
                why = in_brief(error) if isinstance(error, AifxError) else f"{type(error).__name__}: {error}"
                if why != self.counts.problem:
                    logger.warning(f"looking for another model failed, and the one that serves goes on: {why}")
                self.counts.problem = why

    def look(self) -> bool:
        """Whether another model took over. One that was refused is tried again when its state has changed."""
        candidate = self._source.newest()
        if candidate.id == self.current:
            self._source.adopted(candidate)
            return False
        if self._refused.get(candidate.id) == candidate.state:
            return False
        logger.info(f"{candidate.label}: verifying, while another model serves")
        try:
            failed = self._try(candidate)
        except Draining:  # the server stops, which says nothing of the model
            self.stop()
            return False
        except _Overtaken as error:
            logger.info(f"{candidate.label} is left: {error}")
            return False
        if failed is None:
            self.current = candidate.id
            self.counts.taken += 1
            logger.info(f"{candidate.label} serves: {self._engine.fingerprint}")
            self._source.adopted(candidate)
            return True
        if not self._stop.is_set():
            self._refused[candidate.id] = candidate.state
            self.counts.refused += 1
            logger.error(f"{candidate.label} is refused, and the model that serves goes on: {failed}")
        return False

    def _try(self, candidate: Candidate) -> str | None:
        """Swap to a model; return why not if it fails a check.

        Raises Draining if the engine stops meanwhile, and a fault that passes, which says nothing of the model.
        """
        try:
            trained = candidate.restore()
            weights = self._load(trained)
            with closing(self._checks(candidate, trained, weights, self._engine.weights)) as checks:
                for check in checks:
                    if check is not None:
                        self._log(check)
                        if not check.passed:
                            return str(check)
                    self._check_overtaken(candidate, at_once=check is not None)
        except (Draining, _Overtaken):
            raise
        except Exception as error:  # whatever is wrong with new weights, the old ones serve
            if is_passing(error):
                raise
            if isinstance(error, AifxError):
                return in_brief(error)
            logger.exception("a model could not be tried")
            return f"{type(error).__name__}: {error}"
        self.counts.models[weights.fingerprint] = ModelIdentity.of(trained)
        self._engine.swap(weights)
        return None

    def _check_overtaken(self, candidate: Candidate, *, at_once: bool) -> None:
        """Raise _Overtaken if another model became the way back from an emergency: it does not wait for checks.

        Args:
            at_once: look now, and not only if the last look is long enough ago.

        Raises Draining if the server stops.
        """
        if self._stop.is_set():
            raise Draining
        if not at_once and time.monotonic() < self._looked + self._every_s:
            return
        self._looked = time.monotonic()
        with suppress(AifxError, OSError):
            newest = self._source.newest()
            if newest.is_way_back and newest.state != candidate.state:
                raise _Overtaken(f"{newest.label} is the way back")

    def _log(self, check: Check) -> None:
        logger.info(f"{'passed' if check.passed else 'FAILED'}: {check}")


def files_of(checkpoint: Path) -> Files:
    """The state of a checkpoint's files. Raises OSError."""
    found = ((str(path), path.stat()) for path in sorted(checkpoint.rglob("*")))
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in found)


def check_memory(num_bytes: int, platform: str) -> None:
    """Check that so many bytes of a second model fit beside the first. Raises UsageError if they do not."""
    needed = SHARE_OF_COPY * num_bytes
    free = free_memory(platform)
    if needed > free:
        why = f"it needs {readable_bytes(needed)} for a moment, and {readable_bytes(free)} are free"
        raise UsageError(
            "--watch: a second set of weights does not fit", why, "aifx serve --memory with a smaller pool"
        )


def watch(
    engine: Engine | Predictor,
    serve: ServeSection,
    source: ModelSource,
    *,
    canary: Path | None,
    project: Project,
    counts: SwapCounts | None = None,
) -> Watcher[Any]:
    """Start a watcher. Raises UsageError for what cannot be watched, DataError for a canary file.

    Args:
        source: names the model that should serve.
        project: in which `aifx eval` measures models with gates.
    """
    load: Load[Any]
    judge: Judge[Any]
    if isinstance(engine, Engine):
        load, judge = _for_text(engine, serve, canary)
    else:
        load, judge = _for_predictions(engine, canary)

    def checks(candidate: Candidate, opened: RestoredRun, weights: Any, old: Any) -> Checks:
        """The checks in the order of their cost; the caller stops at the first that fails."""
        if candidate.is_way_back:
            return
        yield from judge(weights, old)
        if opened.config.eval.gates:
            yield from check_gates(candidate.gates, opened.config.eval.gates, project)

    worker: Worker[Any, Any] = engine
    found = Watcher(worker, source, load, checks, every_s=serve.watch_every_s, counts=counts)
    found.start()
    return found


def _for_text(engine: Engine, serve: ServeSection, canary: Path | None) -> tuple[Load[Weights], Judge[Weights]]:
    if engine.adapters:
        why = "adapters belong to one set of weights"
        raise UsageError("--watch with --adapter", why, "aifx serve --adapter, without --watch")
    decoding = engine.device.programs.decoding
    check_memory(tree_bytes(engine.weights.params), decoding.layout.platform)
    prompts = [Prompt("a fixed text", FIXED_TEXT)] if canary is None else read_canary(canary)
    judge = Canary(engine, prompts, computes_in(decoding.dtype_name, serve.quantize)).checks
    return lambda opened: open_model(opened, serve).weights(engine.device), judge


def _for_predictions(
    predictor: Predictor, canary: Path | None
) -> tuple[Load[PredictorWeights], Judge[PredictorWeights]]:
    """The program of predictions is the training forward, so that parity is not in question.

    A model with another program is loaded with that program: `load` compiles it, while the old one answers.
    """
    if canary is not None:
        why = "its lines are prompts; predictions are judged by the gates of [eval]"
        raise UsageError("--canary, for a model that writes no text", why, "aifx serve --watch")
    serving = predictor.weights
    check_memory(tree_bytes((serving.params, serving.frozen)), serving.programs.layout.platform)

    def judge(weights: PredictorWeights, old: PredictorWeights) -> Iterator[Check]:
        found = predictor.probe(weights)
        yield Check("predictions", found is None, found or "numbers")
        if weights.compiled is not old.compiled and predictor.is_reproducible:
            found = predictor.find_difference(weights)
            yield Check("bits", found is None, found or "those of a row do not depend on other rows")

    return lambda opened: load_weights(opened, predictor.weights), judge


@dataclass(frozen=True)
class Prompt:
    """A line of the canary file.

    Attributes:
        place: file and line.
        answer: pinned; it may not become much less likely.
        contains: what the likeliest answer must contain.
    """

    place: str
    prompt: str
    answer: str = ""
    contains: str = ""


@dataclass(frozen=True)
class Check:
    """One condition, and what was found."""

    name: str
    passed: bool
    found: str

    def __str__(self) -> str:
        return f"{self.name}: {self.found}"


def read_canary(path: Path) -> list[Prompt]:
    """The prompts of a .jsonl file: objects with "prompt", and "answer", "contains" or both. Raises DataError."""
    prompts = []
    for row in read_rows(local_file(path, format="jsonl")):
        values = {key: row.values.get(key, "") for key in ("prompt", "answer", "contains")}
        if unknown := sorted(set(row.values) - set(values)):
            raise DataError(
                f"{row.place}: unknown field {unknown[0]!r}", "a prompt, an answer, contains", "docs/serve.md"
            )
        if not all(isinstance(value, str) for value in values.values()) or not values["prompt"]:
            raise DataError(f"{row.place}: no prompt", 'it is {"prompt": TEXT, "answer": TEXT}', "docs/serve.md")
        prompts.append(Prompt(row.place, **values))
    if not prompts:
        raise DataError(f"{path} has no prompt", "it is empty", "docs/serve.md")
    return prompts


class Canary:
    """Judges weights by an engine that serves with others at the same time."""

    def __init__(self, engine: Engine, prompts: Sequence[Prompt], computes_in: str) -> None:
        """
        Args:
            computes_in: a key of PARITY.
        """
        self._engine, self._prompts, self._bound = engine, prompts, PARITY[computes_in]
        self._log_probs = engine.device.programs.decoding.log_probs

    def checks(self, weights: Weights, old: Weights) -> Iterator[Check]:
        yield self._parity(weights)
        yield from self._pinned(weights, old)

    def _parity(self, weights: Weights) -> Check:
        worst = 0.0
        for prompt in self._prompts[:PARITY_PROMPTS]:
            ids = self._ids(prompt.prompt + prompt.answer)
            scores = self._scores(ids, weights)
            expected = np.asarray(self._log_probs(weights.params, np.array([ids], np.int32)))
            own = expected[np.arange(len(ids) - 1), ids[1:]]
            found = np.array([score.logprob for score in scores[1:]], np.float32)
            worst = max(worst, float(np.max(np.abs(found - own), initial=0.0)))
            if not np.isfinite(found).all():
                worst = float("inf")
        return Check("parity with training", worst <= self._bound, f"{worst:.2g} nats of at most {self._bound:g}")

    def _pinned(self, weights: Weights, old: Weights) -> Iterator[Check]:
        for prompt in self._prompts:
            if prompt.answer:
                before, after = (self._nats(prompt, w) for w in (old, weights))
                found = f"{after:.3f} nats per token, {before:.3f} before"
                yield Check(f"{prompt.place}, its answer", after <= before + WORSE, found)
            if prompt.contains:
                text = self._text(prompt.prompt, weights)
                yield Check(f"{prompt.place}, its text", prompt.contains in text, f"{text[:80]!r}")

    def _nats(self, prompt: Prompt, weights: Weights) -> float:
        """The mean negative log-probability of the tokens of the pinned answer."""
        ids, start = self._ids(prompt.prompt + prompt.answer), len(self._ids(prompt.prompt))
        scores = self._scores(ids, weights)[min(start, len(ids) - 1) :]
        return -float(np.mean([score.logprob for score in scores]))

    def _ids(self, text: str) -> list[int]:
        return self._engine.tokenizer.encode_prompt(text)[: self._engine.max_model_len - 1]

    def _scores(self, ids: list[int], weights: Weights) -> list[TokenScore]:
        request = GenerationRequest(ids, 0, SamplingSettings(temperature=0), prompt_logprobs=True)
        return [score for delta in self._ask(request, weights) for score in delta.prompt_scores]

    def _text(self, prompt: str, weights: Weights) -> str:
        ids = self._ids(prompt)
        most = min(MOST_TOKENS, self._engine.max_model_len - len(ids))
        request = GenerationRequest(ids, most, SamplingSettings(temperature=0))
        return "".join(delta.text for delta in self._ask(request, weights))

    def _ask(self, request: GenerationRequest, weights: Weights) -> list[Delta]:
        """The whole answer to a request. Raises Draining if the engine stops meanwhile, RuntimeError if it fails."""
        deltas: queue.Queue[Delta] = queue.Queue()
        self._engine.submit_own(request, deltas.put, weights)
        found = complete_answer(deltas)
        if found[-1].finish_reason == "cancelled":
            raise Draining
        if found[-1].finish_reason == "error":
            raise RuntimeError(found[-1].error)
        return found


def check_gates(arguments: Sequence[str], gates: Sequence[str], project: Project) -> Checks:
    """The project's evaluation with its gates, by a process of its own."""
    evaluation = Child(aifx_command("eval", *arguments), cwd=project.root, limit_s=GATES_S)
    with closing(run_many([evaluation], at_once=1)) as running:
        for child in running:
            if child is None:
                yield None
            elif (ended := child.ended) is not None:
                found = "passed" if ended.succeeded else f"aifx eval ended with {ended.how}: {ended.last_line}"
                yield Check(f"the gates {', '.join(gates)}", ended.succeeded, found)


def computes_in(dtype_name: str, quantize: str) -> str:
    """The key of PARITY. Raises UsageError for what has none."""
    key = dtype_name if quantize == "none" else quantize
    if key not in PARITY:
        raise UsageError(
            f"--watch with {key}", f"parity is known for {', '.join(PARITY)}", "aifx serve, without --watch"
        )
    return key
