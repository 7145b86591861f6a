"""Watch the run that is served, and swap to a new checkpoint that passes the canary."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from aifx.config.serve_section import ServeSection
from aifx.core.errors import AifxError, UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.steps import StepChoice
from aifx.loading.restore import RestoredRun, choose_step, restore_run
from aifx.programs.build import tree_bytes
from aifx.serving.canary import Canary, Check, Prompt, check_gates, computes_in, read_canary
from aifx.serving.engine import Engine
from aifx.serving.predictor import Predictor, PredictorWeights
from aifx.serving.requests import Draining
from aifx.serving.rows import Weights
from aifx.serving.start import free_memory, open_model
from aifx.serving.start_predictor import load_weights

logger = logging.getLogger(__name__)

W = TypeVar("W")

FIXED_TEXT = "The quick brown fox jumps over the lazy dog. 0123456789"
"""The text on which parity is measured without a canary file."""

SHARE_OF_COPY = 1.5
"""Memory for a second set of weights, in units of its size: matrices are copied while they are joined."""


Files = tuple[tuple[str, int, int], ...]
"""Path, size and time of each file of a checkpoint."""


@dataclass
class SwapCounts:
    """The numbers of checkpoints that took over, and that were refused."""

    taken: int = 0
    refused: int = 0


class Swaps(Protocol[W]):
    """An engine whose weights can be exchanged while it runs."""

    @property
    def weights(self) -> W: ...

    @property
    def fingerprint(self) -> str: ...

    def swap(self, weights: W) -> None: ...


class Watcher(Generic[W]):
    """Looks for another checkpoint in a thread of its own, and swaps to it if it passes all checks."""

    def __init__(
        self,
        engine: Swaps[W],
        trained: RestoredRun,
        choice: StepChoice | None,
        load: Callable[[RestoredRun], W],
        checks: Callable[[RestoredRun, W, W], Iterator[Check]],
        *,
        overrides: Sequence[str],
        every_s: float,
        counts: SwapCounts | None = None,
    ) -> None:
        """Raises UsageError for a step that never changes.

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
    """Raises OSError."""
    found = ((str(path), path.stat()) for path in sorted(checkpoint.rglob("*")))
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in found)


def check_memory(arrays: Any, platform: str) -> None:
    """Raises UsageError unless a second set of a model's arrays fits beside the first."""
    needed = SHARE_OF_COPY * tree_bytes(arrays)
    free = free_memory(platform)
    if needed > free:
        why = f"it needs {readable_bytes(needed)} for a moment, and {readable_bytes(free)} are free"
        raise UsageError(
            "--watch: a second set of weights does not fit", why, "aifx serve --memory with a smaller pool"
        )


def watch(
    engine: Engine,
    trained: RestoredRun,
    serve: ServeSection,
    *,
    choice: StepChoice | None,
    canary: Path | None,
    overrides: Sequence[str] = (),
    counts: SwapCounts | None = None,
) -> Watcher[Weights]:
    """Start a watcher of text. Raises UsageError for what cannot be watched, DataError for a canary file."""
    if engine.adapters:
        why = "adapters belong to one set of weights"
        raise UsageError("--watch with --adapter", why, "aifx serve --adapter, without --watch")
    check_memory(engine.weights.params, engine.device.programs.decoding.layout.platform)
    prompts = [Prompt("a fixed text", FIXED_TEXT)] if canary is None else read_canary(canary)
    key = computes_in(engine.device.programs.decoding.dtype_name, serve.quantize)
    found = Watcher(
        engine,
        trained,
        choice,
        lambda opened: open_model(opened, serve).weights(engine.device),
        Canary(engine, prompts, key).checks,
        overrides=overrides,
        every_s=serve.watch_every_s,
        counts=counts,
    )
    found.start()
    return found


def watch_predictor(
    predictor: Predictor,
    trained: RestoredRun,
    serve: ServeSection,
    *,
    choice: StepChoice | None,
    canary: Path | None,
    overrides: Sequence[str] = (),
    counts: SwapCounts | None = None,
) -> Watcher[PredictorWeights]:
    """Start a watcher of predictions, whose program is the training forward. Raises UsageError."""
    if canary is not None:
        why = "its lines are prompts; predictions are judged by the gates of [eval]"
        raise UsageError("--canary, for a model that writes no text", why, "aifx serve --watch")
    check_memory((predictor.weights.params, predictor.weights.frozen), predictor.programs.layout.platform)

    def checks(opened: RestoredRun, weights: PredictorWeights, old: PredictorWeights) -> Iterator[Check]:
        found = predictor.probe(weights)
        yield Check("predictions", found is None, found or "numbers")
        if opened.config.eval.gates:
            yield check_gates(opened)

    found = Watcher(
        predictor,
        trained,
        choice,
        lambda opened: load_weights(opened, predictor.program_digest),
        checks,
        overrides=overrides,
        every_s=serve.watch_every_s,
        counts=counts,
    )
    found.start()
    return found
