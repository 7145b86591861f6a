"""Watch the run that is served, and swap to a new checkpoint that passes the canary."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias

import numpy as np

from aifx.config.serve_section import ServeSection
from aifx.core.errors import AifxError, DataError, UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.processes import Child, aifx_command
from aifx.core.steps import StepChoice
from aifx.data.readers.rows import read_rows
from aifx.data.readers.sources import local_file
from aifx.loading.restore import RestoredRun, choose_step, restore_run
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

SHARE_OF_COPY = 1.5
"""Memory for a second set of weights, in units of its size: matrices are copied while they are joined."""


Files: TypeAlias = tuple[tuple[str, int, int], ...]
"""Path, size and time of each file of a checkpoint."""

Load: TypeAlias = Callable[[RestoredRun], W]
"""A checkpoint's weights as the engine takes them."""

Judge: TypeAlias = "Callable[[W, W], Iterator[Check]]"
"""Checks of new weights, beside those that serve."""


@dataclass
class SwapCounts:
    """The numbers of checkpoints that took over, and that were refused."""

    taken: int = 0
    refused: int = 0


class Watcher(Generic[W]):
    """Looks for another checkpoint in a thread of its own, and swaps to it if it passes all checks."""

    def __init__(
        self,
        engine: Worker[W, Any],
        trained: RestoredRun,
        choice: StepChoice | None,
        load: Callable[[RestoredRun], W],
        checks: Callable[[RestoredRun, W, W], Iterator[Check]],
        *,
        overrides: Sequence[str],
        every_s: float,
        counts: SwapCounts | None = None,
    ) -> None:
        """Set up the watcher, which `start` starts. Raises UsageError for a step that never changes.

        Args:
            choice: which checkpoint serves: "best", "last", or as `eval.checkpoint` says.
            load: returns a checkpoint's weights as the engine takes them.
            checks: the checks of a checkpoint, from the run, its weights and those that serve.
            overrides: `--set` strings with which checkpoints are restored.
            every_s: seconds between two looks.
            counts: to be incremented.
        """
        if isinstance(choice, int):
            raise UsageError(
                f"--watch with --step {choice}", "one step never changes", "aifx serve --watch --step last"
            )
        self.counts, self.step = counts or SwapCounts(), trained.step
        self._engine, self._trained, self._choice, self._checks = engine, trained, choice, checks
        self._load, self._overrides, self._every_s = load, overrides, every_s
        self._refused: dict[int, Files] = {}
        self._reported: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aifx-watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        last = ""
        while not self._stop.wait(self._every_s):
            try:
                self.look()
                last = ""
            except Exception as error:  # a folder that is not there for a moment, or is being copied
                why = (
                    f"{error.what}: {error.why}" if isinstance(error, AifxError) else f"{type(error).__name__}: {error}"
                )
                if why != last:
                    logger.warning(f"looking for checkpoints: {why}")
                last = why

    def look(self) -> bool:
        """Whether another checkpoint took over. One that was refused is tried again when its files have changed."""
        trained = self._trained
        step = choose_step(trained.run, trained.config, self._choice, reported=self._reported)
        if step == self.step:
            return False
        files = files_of(trained.run.checkpoints / str(step))
        if self._refused.get(step) == files:
            return False
        logger.info(f"step {step} of run {trained.run.name}: verifying, while step {self.step} serves")
        try:
            failed = self._try(step)
        except Draining:  # the server stops, which says nothing of the step
            self.stop()
            return False
        if failed is None:
            self.step = step
            self.counts.taken += 1
            logger.info(f"step {step} of run {trained.run.name} serves: {self._engine.fingerprint}")
            return True
        if not self._stop.is_set():
            self._refused[step] = files
            self.counts.refused += 1
            logger.error(f"step {step} is refused, step {self.step} goes on serving: {failed}")
        return False

    def _try(self, step: int) -> str | None:
        """Swap to the step; return why not if it fails a check. Raises Draining if the engine stops meanwhile."""
        try:
            old = self._trained
            trained = restore_run(old.run, old.project, step=step, overrides=self._overrides)  # verifies digests
            weights = self._load(trained)
            for check in self._checks(trained, weights, self._engine.weights):
                self._log(check)
                if not check.passed:
                    return str(check)
        except AifxError as error:
            return f"{error.what}: {error.why}"
        except Draining:
            raise
        except Exception as error:  # whatever is wrong with new weights, the old ones serve
            logger.exception("a checkpoint could not be tried")
            return f"{type(error).__name__}: {error}"
        self._engine.swap(weights)
        return None

    def _log(self, check: Check) -> None:
        logger.info(f"{'passed' if check.passed else 'FAILED'}: {check}")


def files_of(checkpoint: Path) -> Files:
    """The state of a checkpoint's files. Raises OSError."""
    found = ((str(path), path.stat()) for path in sorted(checkpoint.rglob("*")))
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in found)


def check_memory(arrays: Any, platform: str) -> None:
    """Check that a second set of a model's arrays fits beside the first. Raises UsageError if it does not."""
    needed = SHARE_OF_COPY * tree_bytes(arrays)
    free = free_memory(platform)
    if needed > free:
        why = f"it needs {readable_bytes(needed)} for a moment, and {readable_bytes(free)} are free"
        raise UsageError(
            "--watch: a second set of weights does not fit", why, "aifx serve --memory with a smaller pool"
        )


def watch(
    engine: Engine | Predictor,
    trained: RestoredRun,
    serve: ServeSection,
    *,
    choice: StepChoice | None,
    canary: Path | None,
    overrides: Sequence[str] = (),
    counts: SwapCounts | None = None,
) -> Watcher[Any]:
    """Start a watcher of a run. Raises UsageError for what cannot be watched, DataError for a canary file."""
    load: Load[Any]
    judge: Judge[Any]
    if isinstance(engine, Engine):
        load, judge = _for_text(engine, serve, canary)
    else:
        load, judge = _for_predictions(engine, canary)

    def checks(opened: RestoredRun, weights: Any, old: Any) -> Iterator[Check]:
        """The checks in the order of their cost; the caller stops at the first that fails."""
        yield from judge(weights, old)
        if opened.config.eval.gates:
            yield check_gates(opened)

    options: dict[str, Any] = {"overrides": overrides, "every_s": serve.watch_every_s, "counts": counts}
    worker: Worker[Any, Any] = engine
    found = Watcher(worker, trained, choice, load, checks, **options)
    found.start()
    return found


def _for_text(engine: Engine, serve: ServeSection, canary: Path | None) -> tuple[Load[Weights], Judge[Weights]]:
    if engine.adapters:
        why = "adapters belong to one set of weights"
        raise UsageError("--watch with --adapter", why, "aifx serve --adapter, without --watch")
    decoding = engine.device.programs.decoding
    check_memory(engine.weights.params, decoding.layout.platform)
    prompts = [Prompt("a fixed text", FIXED_TEXT)] if canary is None else read_canary(canary)
    judge = Canary(engine, prompts, computes_in(decoding.dtype_name, serve.quantize)).checks
    return lambda opened: open_model(opened, serve).weights(engine.device), judge


def _for_predictions(
    predictor: Predictor, canary: Path | None
) -> tuple[Load[PredictorWeights], Judge[PredictorWeights]]:
    """The program of predictions is the training forward, so that parity is not in question."""
    if canary is not None:
        why = "its lines are prompts; predictions are judged by the gates of [eval]"
        raise UsageError("--canary, for a model that writes no text", why, "aifx serve --watch")
    check_memory((predictor.weights.params, predictor.weights.frozen), predictor.programs.layout.platform)

    def judge(weights: PredictorWeights, old: PredictorWeights) -> Iterator[Check]:
        found = predictor.probe(weights)
        yield Check("predictions", found is None, found or "numbers")

    return lambda opened: load_weights(opened, predictor.program_digest), judge


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


def check_gates(trained: RestoredRun) -> Check:
    """The project's evaluation with its gates, by a process of its own."""
    arguments = ("eval", "--run", trained.run.name, "--step", str(trained.step))
    options: Any = {"cwd": trained.project.root, "limit_s": GATES_S}
    with Child(aifx_command(*arguments), **options) as child:
        ended = child.wait()
    found = "passed" if ended.succeeded else f"aifx eval ended with {ended.how}: {ended.last_line}"
    return Check(f"the gates {', '.join(trained.config.eval.gates)}", ended.succeeded, found)


def computes_in(dtype_name: str, quantize: str) -> str:
    """The key of PARITY. Raises UsageError for what has none."""
    key = dtype_name if quantize == "none" else quantize
    if key not in PARITY:
        raise UsageError(
            f"--watch with {key}", f"parity is known for {', '.join(PARITY)}", "aifx serve, without --watch"
        )
    return key
