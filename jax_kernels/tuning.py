"""Measuring which form of an op is fastest for a call on this device, and remembering it on disk.

A file a kind of device and JAX version holds the winners: what was measured under one says little about another. Files
are replaced whole, and one that is damaged or foreign is set aside.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_kernels.forms import Config, Device, current_device
from jax_kernels.nearest import find_winner
from jax_kernels.op import Choice, Op, call_key
from jax_kernels.shipped import file_name

FORMAT = 1
ROUNDS = 7
"""Timings of each candidate, in alternation: the machine's moods meet all of them."""

SHORTEST_S = 0.01
"""A timing lasts so long at the least."""

TOLERANCE = {
    "float64": 1e-6,
    "float32": 1e-2,
    "float16": 5e-3,
    "bfloat16": 3e-2,
    "int8": 1e-2,
    "float8_e4m3fn": 3e-2,
}
"""How far by norm a form may be from XLA's: rounding of both, and for float32 TF32, in which XLA multiplies on a GPU.
int8 products are exact, so that only the rounding of results to bfloat16 remains, 2^-8 in each; Hopper's units sum fp8
in fewer bits than float32 has. A kernel that is wrong is far beyond it."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """What one candidate took: the median of its rounds, or why it cannot run."""

    form: str
    config: Config
    seconds: float | None = None
    failure: str | None = None


class Winners:
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

    def __call__(self, op: Op, call: Any, device: Device) -> Choice | None:
        """The winner for a call, as `Choices.measured` asks for it, if its code is still as it was measured."""
        current = {key: c for key, c in self.choices().items() if c.form in op.forms and is_current(op, c)}
        return find_winner(current, op, call, device)

    def choices(self) -> dict[str, Choice]:
        if self._choices is None:
            self._choices = self._read()
        return self._choices

    def put(self, op: Op, call: Any, choice: Choice) -> None:
        """Remember a winner, beside what others have put there meanwhile."""
        self._choices = self._read() | {call_key(op.name, call): choice}
        document = self._head | {"winners": {key: c.document() for key, c in sorted(self._choices.items())}}
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

    def _read(self) -> dict[str, Choice]:
        try:
            document = json.loads(self.path.read_bytes())
            if {name: document[name] for name in self._head} != self._head:
                raise ValueError("of another device, version or format")
            return {_checked_key(key): Choice.from_document(value) for key, value in document["winners"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            aside = self.path.with_suffix(".damaged")
            with suppress(OSError):
                os.replace(self.path, aside)
            warnings.warn(f"{self.path} cannot be used ({error!r}) and was set aside as {aside.name}", stacklevel=2)
            return {}


def _checked_key(key: str) -> str:
    """A key of `call_key`. Raises KeyError, TypeError or ValueError for what is none."""
    json.loads(key)["op"]
    return key


def is_current(op: Op, choice: Choice) -> bool:
    """Whether a form's code is as it was when it was measured."""
    return choice.source == op.source_digest(choice.form)


def winners_folder() -> Path:
    """Where `aifx kernels tune` keeps what it measured: `kernels` in aifx's folder of caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("AIFX_CACHE_DIR") or f"{caches}/aifx") / "kernels"


def measured_here(op: Op, call: Any, device: Device) -> Choice | None:
    """The winner for a call among those in `winners_folder`, which are read once."""
    return _winners(winners_folder(), replace(device, is_partitioned=False, checks_vma=False))(op, call, device)


@functools.cache
def _winners(folder: Path, device: Device) -> Winners:
    return Winners(folder, device)


def candidates(op: Op, call: Any, device: Device) -> Iterator[tuple[str, Config]]:
    """The forms that take a call on a device, each with what it may run with; the best guess first."""
    for name in op.preference[device.platform]:
        form = op.forms[name]
        if form.refuses(call, device) is None:
            for config in form.configs(call, device):
                yield name, config


def tune(op: Op, call: Any, *, tell: Tell = lambda text: None) -> tuple[Choice, list[Timing]]:
    """The fastest form of a call on the current device, forward and backward, and what each candidate took.

    Args:
        tell: told of each candidate as it was measured.
    """
    programs, failures = _compile(op, call, tell)
    if not programs:
        raise RuntimeError(f"{op.name}: no form runs {call}: " + "; ".join(f"{t.form}: {t.failure}" for t in failures))
    seconds = time_in_turn(programs)
    timings = [Timing(form, config, statistics.median(s)) for (form, config), s in seconds.items()]
    timings.sort(key=lambda timing: timing.seconds or 0.0)
    best = timings[0]
    assert best.seconds is not None
    reason = f"measured: {best.seconds * 1e3:.3g} ms, the fastest of {len(timings)}"
    return op.choice(best.form, best.config, reason), [*timings, *failures]


def _compile(op: Op, call: Any, tell: Tell) -> tuple[dict[tuple[str, Config], Any], list[Timing]]:
    """The candidates that run and compute the same as XLA's form, and why the others do not."""
    programs: dict[tuple[str, Config], Any] = {}
    failures = []
    program, make = op.workload(call, op.forms["xla"].run, ())
    arguments = make()
    expected = jax.jit(program)(*arguments)
    for form, config in candidates(op, call, current_device()):
        program, _ = op.workload(call, op.forms[form].run, config)
        try:
            compiled = jax.jit(program).lower(*arguments).compile()
            error = relative_error(compiled(*arguments), expected)
            failure = None if error <= TOLERANCE[call.dtype] else f"its results are {error:.1e} from XLA's"
        except Exception as error:  # the compilers' own types; one candidate less
            failure = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        tell(f"{form} {dict(config)}: {failure or 'compiled'}")
        if failure is None:
            programs[form, config] = partial(compiled, *arguments)
        else:
            failures.append(Timing(form, config, failure=failure))
    return programs, failures


def relative_error(actual: Any, expected: Any) -> float:
    """By norm, the largest of the arrays; infinite where one is not finite."""
    errors = []
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        wide_a, wide_b = (np.asarray(x, np.float64) for x in (a, b))
        error = float(np.linalg.norm(wide_a - wide_b) / max(float(np.linalg.norm(wide_b)), 1e-30))
        errors.append(error if np.isfinite(error) else np.inf)
    return max(errors, default=0.0)


def time_in_turn(programs: Mapping[Any, Callable[[], Any]], rounds: int = ROUNDS) -> dict[Any, list[float]]:
    """Seconds that each program takes, `rounds` times, in alternation.

    A timing is of as many calls in a row as last SHORTEST_S, so that what the host does between them is hidden where
    the device is another.
    """
    calls = {}
    for key, program in programs.items():
        jax.block_until_ready(program())  # what is done once
        calls[key] = max(1, round(SHORTEST_S / max(_seconds(program, 1), 1e-6)))
    seconds: dict[Any, list[float]] = {key: [] for key in programs}
    for _ in range(rounds):
        for key, program in programs.items():
            seconds[key].append(_seconds(program, calls[key]))
    return seconds


def _seconds(program: Callable[[], Any], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls - 1):
        program()
    jax.block_until_ready(program())
    return (time.perf_counter() - started) / calls
