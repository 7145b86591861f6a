"""Measuring which implementation of an op is fastest on this device, or whether a kernel is right; kept on disk.

A file a kind of device and JAX version holds the winners: what was measured under one says little about another. Files
are replaced whole, and one that is damaged or foreign is set aside.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import os
import statistics
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_kernels import trials as trying
from jax_kernels.builtin_configs import builtin_choice, file_name, find_winner
from jax_kernels.implementations import Config, Device
from jax_kernels.op import Choice, Op, call_key, find_op
from jax_kernels.timing import Passes, time_in_turn
from jax_kernels.trials import Failure, TrialProcess

FORMAT = 2
TOLERANCE = {
    "float64": 1e-6,
    "float32": 1e-2,
    "float16": 5e-3,
    "bfloat16": 3e-2,
    "int8": 1e-2,
    "float8_e4m3fn": 3e-2,
}
"""Largest distance by norm of an implementation from XLA's: rounding of both, and for float32 TF32, in which XLA
multiplies on a GPU. int8 products are exact, so that only the rounding of results to bfloat16 remains, 2^-8 in each;
Hopper's units sum fp8 in fewer bits than float32 has. A kernel that is wrong is far beyond it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """The time of one candidate: the medians of its rounds, or why it cannot run.

    Attributes:
        backward_s: None if the call is never differentiated.
    """

    implementation: str
    config: Config
    forward_s: float | None = None
    backward_s: float | None = None
    failure: str | None = None

    @property
    def seconds(self) -> float | None:
        """The time of the passes that the call needs; None if the candidate cannot run."""
        return None if self.forward_s is None else self.forward_s + (self.backward_s or 0.0)


class TuningCache:
    """The winners that a folder holds for one kind of device under this JAX."""

    def __init__(self, folder: Path, device: Device) -> None:
        self.path = folder / f"{file_name(device)}-jax-{jax.__version__}.json"
        self._head = {
            "format": FORMAT,
            "device": device.kind,
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
        }
        self._choices: dict[str, Choice] | None = None
        self._failed: dict[str, Choice] = {}

    def __call__(self, op: Op, call: Any, device: Device) -> Choice | None:
        """The winner for a call, as `Choices.measured` asks for it, if its code is still as it was measured."""
        current = {
            key: c for key, c in self.choices().items() if c.implementation in op.implementations and is_current(op, c)
        }
        return find_winner(current, op, call, device)

    def choices(self) -> dict[str, Choice]:
        if self._choices is None:
            self._choices, self._failed = self._read()
        return self._choices

    def failed(self, op: Op, call: Any, implementation: str) -> str | None:
        """The reason not to use a kernel, as its code is now; None without one, or if it was never tried."""
        self.choices()
        found = self._failed.get(_failure_key(op, call, implementation))
        return found.reason if found is not None and is_current(op, found) else None

    def put(self, op: Op, call: Any, choice: Choice) -> None:
        """Remember a winner, beside what others have put there meanwhile."""
        self._write({call_key(op.name, call): choice}, {})

    def put_failure(self, op: Op, call: Any, implementation: str, config: Config, why: str) -> None:
        """Remember that a kernel may not be used for a call."""
        self._write({}, {_failure_key(op, call, implementation): op.choice(implementation, config, why)})

    def document(self) -> dict[str, dict[str, Any]]:
        """The document that `merge` takes, as JSON: the winners, and the kernels that may not be used."""
        parts = {"winners": self.choices(), "failed": self._failed}
        return {name: {key: choice.document() for key, choice in sorted(part.items())} for name, part in parts.items()}

    def merge(self, document: Mapping[str, Any]) -> None:
        """Remember what another process found on such a device; it replaces what is known of the same calls."""
        if document != self.document():  # processes often share the file
            self._write(*_parse(document))

    def _write(self, winners: Mapping[str, Choice], failed: Mapping[str, Choice]) -> None:
        kept_winners, kept_failed = self._read()
        self._choices, self._failed = {**kept_winners, **winners}, {**kept_failed, **failed}
        document = self._head | self.document()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", f".{self.path.name}.", self.path.parent)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)
            os.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _read(self) -> tuple[dict[str, Choice], dict[str, Choice]]:
        """The winners, by `call_key`, and the kernels that failed, by `_failure_key`."""
        try:
            document = json.loads(self.path.read_bytes())
            if {name: document[name] for name in self._head} != self._head:
                raise ValueError("of another device, version or format")
            return _parse(document)
        except (FileNotFoundError, NotADirectoryError):
            return {}, {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            aside = self.path.with_suffix(".damaged")
            with suppress(OSError):
                os.replace(self.path, aside)
            warnings.warn(f"{self.path} cannot be used ({error!r}) and was set aside as {aside.name}", stacklevel=2)
            return {}, {}


def _parse(document: Mapping[str, Any]) -> tuple[dict[str, Choice], dict[str, Choice]]:
    """The winners, by `call_key`, and the kernels that failed, by `_failure_key`."""
    winners, failed = (
        {_checked_key(key): Choice.from_document(value) for key, value in document[part].items()}
        for part in ("winners", "failed")
    )
    return winners, failed


def _checked_key(key: str) -> str:
    """A key of `call_key`. Raises KeyError, TypeError or ValueError for what is none."""
    json.loads(key)["op"]
    return key


def _failure_key(op: Op, call: Any, implementation: str) -> str:
    return json.dumps({**json.loads(call_key(op.name, call)), "implementation": implementation}, sort_keys=True)


def is_current(op: Op, choice: Choice) -> bool:
    """Whether an implementation's code is as it was when it was measured."""
    return choice.source == op.source_digest(choice.implementation)


def winners_folder() -> Path:
    """Where `aifx kernels tune` keeps what it measured: `kernels` in aifx's folder of caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("AIFX_CACHE_DIR") or f"{caches}/aifx") / "kernels"


def measured_here(op: Op, call: Any, device: Device) -> Choice | None:
    """The winner for a call among those in `winners_folder`, which are read once."""
    return _winners(winners_folder(), replace(device, is_partitioned=False, checks_vma=False))(op, call, device)


@functools.cache
def _winners(folder: Path, device: Device) -> TuningCache:
    return TuningCache(folder, device)


def candidates(op: Op, call: Any, device: Device) -> Iterator[tuple[str, Config]]:
    """The implementations that take a call on a device, each with what it may run with; the best guess first."""
    for name in op.preference[device.platform]:
        implementation = op.implementations[name]
        if implementation.unsupported_reason(call, device) is None:
            for config in implementation.configs(call, device):
                yield name, config


@dataclass(frozen=True)
class Candidate:
    """An implementation of an op for a call, and its config. Unlike an op, it can be sent to another process."""

    package: str
    op: str
    call: Any
    implementation: str
    config: Config

    @staticmethod
    def of(op: Op, call: Any, implementation: str, config: Config) -> Candidate:
        return Candidate(op.package, op.name, call, implementation, config)

    def compile(self) -> Passes:
        """The compiled workload over arrays of the call's shapes."""
        op, arguments = find_op(self.package, self.op), _arguments(replace(self, implementation="xla", config=()))
        program, _ = op.workload(self.call, op.implementations[self.implementation].run, self.config)
        return Passes(program, arguments)


@dataclass(frozen=True)
class Timings:
    """Candidates of one call, to be timed in turn."""

    candidates: tuple[Candidate, ...]
    is_trained: bool


def check_or_time(asked: Candidate | Timings) -> Any:
    """The work of a process that tries candidates: check one, or time some of one call in turn.

    Returns:
        Of one candidate, how far its results are from XLA's. Of Timings, the seconds of each candidate's passes in each
        round.
    """
    if isinstance(asked, Candidate):
        return relative_error(_compiled(asked)(), _expected(replace(asked, implementation="xla", config=())))
    return time_in_turn(list(map(_compiled, asked.candidates)), is_trained=asked.is_trained)


_compiled = functools.lru_cache(maxsize=64)(Candidate.compile)


@functools.lru_cache(maxsize=1)
def _arguments(candidate: Candidate) -> tuple[Any, ...]:
    """Arrays that all candidates of a call are given."""
    op = find_op(candidate.package, candidate.op)
    _, make = op.workload(candidate.call, op.implementations["xla"].run, ())
    return make()


@functools.lru_cache(maxsize=1)
def _expected(candidate: Candidate) -> Any:
    return jax.device_get(candidate.compile()())


def check(candidate: Candidate, trials: TrialProcess) -> str | None:
    """The reason not to use a candidate: it does not compile, crashes, hangs or differs from XLA. None if it is right.

    Args:
        trials: a process that does `check_or_time`.
    """
    error = trials.do(candidate)
    if isinstance(error, Failure):
        return error.why
    return None if error <= TOLERANCE[candidate.call.dtype] else f"its results are {error:.1e} from XLA's"


def verify(
    op: Op,
    call: Any,
    device: Device,
    tuning_cache: TuningCache,
    trials: TrialProcess,
) -> None:
    """Try the kernels that come before XLA's implementation on this device, and keep the first that agrees with it.

    Nothing is tried of a call that has a winner, and no kernel that has failed before.

    Args:
        trials: a process that does `check_or_time`.
    """
    if call_key(op.name, call) in tuning_cache.choices() or builtin_choice(op, call, device) is not None:
        return
    for name in op.preference[device.platform]:
        implementation = op.implementations[name]
        if (
            implementation.unsupported_reason(call, device) is not None
            or tuning_cache.failed(op, call, name) is not None
        ):
            continue
        if not implementation.is_kernel:
            return
        config = implementation.configs(call, device)[0]
        failure = check(Candidate.of(op, call, name, config), trials)
        if failure is None:
            tuning_cache.put(op, call, op.choice(name, config, f"verified: on {device.kind} it computes what XLA does"))
            logger.info(f"{op.name}: {name} computes what XLA does here ({call}), and is used")
            return
        tuning_cache.put_failure(op, call, name, config, failure)
        logger.info(f"{op.name}: {name} fails on {device.kind} ({failure}), and is not used ({call})")


def tune(
    op: Op, call: Any, device: Device, trials: TrialProcess, *, is_trained: bool = True
) -> tuple[Choice, list[Timing]]:
    """The implementation of a call that is the fastest on this device, and what each candidate took.

    Args:
        trials: a process that does `check_or_time`.
        is_trained: the backward pass counts, too.
    """
    good, failures = [], []
    for implementation, config in candidates(op, call, device):
        candidate = Candidate.of(op, call, implementation, config)
        failure = check(candidate, trials)
        logger.info(f"{implementation} {dict(config)}: {failure or 'computes what XLA does'}")
        if failure is None:
            good.append(candidate)
        else:
            failures.append(Timing(implementation, config, failure=failure))
    timings, spoiled = _time(good, trials, is_trained)
    failures += spoiled
    if not timings:
        raise RuntimeError(
            f"{op.name}: no implementation runs {call}: "
            + "; ".join(f"{t.implementation}: {t.failure}" for t in failures)
        )
    best = timings[0]
    assert best.forward_s is not None
    backward = "" if best.backward_s is None else f" forward and {best.backward_s * 1e3:.3g} ms backward"
    reason = f"measured: {best.forward_s * 1e3:.3g} ms{backward}, the fastest of {len(timings)}"
    return op.choice(best.implementation, best.config, reason), [*timings, *failures]


def _time(good: list[Candidate], trials: TrialProcess, is_trained: bool) -> tuple[list[Timing], list[Timing]]:
    """Timings in alternation, the shortest first, and failures of those that spoil it."""
    failures: list[Timing] = []
    while good:
        measured = trials.do(Timings(tuple(good), is_trained), trying.LIMIT_S * len(good))
        if not isinstance(measured, Failure):
            timings = [_timing(candidate, rounds) for candidate, rounds in zip(good, measured, strict=True)]
            return sorted(timings, key=lambda timing: timing.seconds or 0.0), failures
        alone = {candidate: trials.do(Timings((candidate,), is_trained)) for candidate in good}
        bad = {c: found.why for c, found in alone.items() if isinstance(found, Failure)}
        # All of them run alone, but not in turn: perhaps memory does not hold them. Try with one less.
        bad = bad or {good[-1]: measured.why}
        failures += [Timing(c.implementation, c.config, failure=why) for c, why in bad.items()]
        good = [candidate for candidate in good if candidate not in bad]
    return [], failures


def _timing(candidate: Candidate, rounds: list[tuple[float, float | None]]) -> Timing:
    forward, backward = zip(*rounds, strict=True)
    backward_s = None if None in backward else statistics.median(backward)
    return Timing(candidate.implementation, candidate.config, statistics.median(forward), backward_s)


def relative_error(actual: Any, expected: Any) -> float:
    """By norm, the largest of the arrays; infinite where one is not finite."""
    errors = []
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        wide_a, wide_b = (np.asarray(x, np.float64) for x in (a, b))
        error = float(np.linalg.norm(wide_a - wide_b) / max(float(np.linalg.norm(wide_b)), 1e-30))
        errors.append(error if np.isfinite(error) else np.inf)
    return max(errors, default=0.0)
