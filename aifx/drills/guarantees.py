"""Guarantees about faults, as data, and the check of measurements against them. Pure: it starts nothing."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from aifx.core.errors import ExitCode
from aifx.core.lifecycle import exit_code_of
from aifx.core.results import Result

DrillName: TypeAlias = Literal[
    "kill",
    "preempt",
    "hang",
    "nan",
    "spike",
    "disk-full",
    "io-error",
    "corrupt-ckpt",
    "slow-step",
    "loader-death",
    "lost-host",
]

DRILL_NAMES: tuple[DrillName, ...] = get_args(DrillName)
ALL = "all"

State: TypeAlias = Literal["equal", "different"]
"""Whether the final state is that of the undisturbed run, bit for bit."""

Verdict: TypeAlias = Literal["passed", "broken", "not shown", "not run"]
"""passed: the fault came, and the guarantee was kept. not shown: so it seems, but the run resumed from nothing."""

Interrupt: TypeAlias = Literal["SIGINT", "SIGTERM"]

NOTHING_RESUMED = "no checkpoint was complete when the fault came, so the run began again: a larger --every may help"

KILLED = "signal 9"
PREEMPTED = "exit 75"


@dataclass(frozen=True)
class Guarantee:
    """The promise that a drill tests.

    Attributes:
        text: the promise in a sentence.
        phases: of the run when the fault comes, or kinds of the fault.
        ends: how the process may end that the fault hits; `code_text` writes it.
        state: of the end, compared with the undisturbed run.
    """

    text: str
    phases: tuple[str, ...]
    ends: tuple[str, ...]
    state: State = "equal"


PHASES = ("start", "compilation", "data", "step", "checkpoint", "evaluation")

GUARANTEES: Mapping[DrillName, Guarantee] = {
    "kill": Guarantee(
        "After SIGKILL, the run resumes from its newest complete checkpoint. The final state is that of the "
        "undisturbed run.",
        PHASES,
        (KILLED,),
    ),
    "preempt": Guarantee(
        "After SIGTERM, the run saves within checkpoint.stop_timeout_s and loses no step. The final state is that of "
        "the undisturbed run.",
        PHASES,
        (PREEMPTED,),
    ),
    "hang": Guarantee(
        "A run that makes no progress writes down what each thread does and exits with 75. It resumes from its newest "
        "complete checkpoint. The final state is that of the undisturbed run.",
        ("data", "evaluation"),
        (PREEMPTED,),
    ),
    "nan": Guarantee(
        "The update of a batch with NaN is not applied. A run that is killed after it passes over the same batch, and "
        "its final state is that of the same run without the kill.",
        ("data",),
        (KILLED,),
    ),
    "spike": Guarantee(
        "With guards.spike = roll_back, a run goes back to before a batch with a spike of the loss and leaves it out. "
        "The final state is that of a run that never had the batch.",
        ("data",),
        ("exit 0",),
    ),
    "disk-full": Guarantee(
        "A run goes on while the disk is full, and has lost nothing if there is room again before it ends. Otherwise "
        "it exits with 2 after checkpoint.disk_timeout_s and resumes from its newest complete checkpoint. The final "
        "state is that of the undisturbed run.",
        ("passing", "lasting"),
        ("exit 0", "exit 2"),
    ),
    "io-error": Guarantee(
        "If files cannot be written, a run exits with 2 and resumes from its newest complete checkpoint. The final "
        "state is that of the undisturbed run.",
        ("step", "checkpoint"),
        ("exit 2",),
    ),
    "corrupt-ckpt": Guarantee(
        "A damaged checkpoint is set aside, and the run resumes from the one before. The final state is that of the "
        "undisturbed run.",
        ("flip", "cut", "missing"),
        (KILLED,),
    ),
    "slow-step": Guarantee(
        "A process that is stopped for longer than guards.step_timeout_s goes on, loses nothing and does not count as "
        "hung. The final state is that of the undisturbed run.",
        ("step",),
        ("exit 0",),
    ),
    "loader-death": Guarantee(
        "If the reader of the data fails, the run exits with 2 and its error. It resumes from its newest complete "
        "checkpoint. The final state is that of the undisturbed run.",
        ("data", "evaluation"),
        ("exit 2",),
    ),
    "lost-host": Guarantee(
        "If one of two processes is killed or goes silent, the other ends. Both start again from the newest complete "
        "checkpoint. The final state is that of the undisturbed job.",
        ("compilation", "step", "checkpoint", "evaluation", "silent"),
        ("exit 0",),
    ),
}


@dataclass(frozen=True)
class Expected:
    """The outcome of one injected fault that a guarantee allows.

    Attributes:
        ends: how the disturbed process may end.
        resumed_from: the step of the newest complete checkpoint, which the run must resume from; 0 if there is none,
            so that the guarantee cannot be shown; None if the process must go on by itself.
        max_steps_lost: steps since the checkpoint that the run must resume from.
        max_safe_s: time until nothing more can be lost; None if it is only measured.
    """

    ends: tuple[str, ...]
    resumed_from: int | None
    max_steps_lost: int
    state: State
    max_safe_s: float | None = None


@dataclass(frozen=True)
class Measured:
    """Measurements of a run with one injected fault.

    Attributes:
        end: how the disturbed process ended.
        resumed_from: the step of the checkpoint that the run resumed from; 0 if it began again; None if no process
            started again or went back.
        steps_lost: steps that were done and had to be done again.
        safe_s: from the fault until the disturbed processes had ended, or the damaged checkpoint was set aside;
            None if none had to end.
        next_step_s: from the fault until the next step of the resumed run was recorded.
        state: of the end, compared with the undisturbed run; None if the run did not end.
        faults: other promises that were broken.
    """

    end: str
    resumed_from: int | None
    steps_lost: int
    safe_s: float | None
    next_step_s: float | None
    state: State | None
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class DrillResult:
    """One fault, in one phase.

    Attributes:
        reasons: the broken promises, or why the drill shows nothing or was not run.
    """

    drill: DrillName
    phase: str
    verdict: Verdict
    reasons: list[str]
    expected: Expected | None = None
    measured: Measured | None = None


@dataclass(frozen=True)
class DrillReport(Result):
    """The document of `aifx drill --json`.

    Attributes:
        passed: each drill shows its guarantee, and no signal stopped the command. Of `all`, those that were not run
            count for nothing, if any was.
        checkpoint_every: steps between checkpoints of the runs.
        ended: when, in UTC.
        folder: the copy of the project, if it was kept.
        interrupted: the signal that stopped the command.
        config_digest: SHA-256 of the settings that answers depend on, as a version of this model has them.
    """

    passed: bool
    num_steps: int
    checkpoint_every: int
    ended: str
    folder: str | None
    interrupted: Interrupt | None = None
    results: list[DrillResult] = field(default_factory=list)
    config_digest: str = ""

    @property
    def exit_code(self) -> ExitCode:
        if self.interrupted is not None:
            return exit_code_of(signal.Signals[self.interrupted])
        if self.passed:
            return ExitCode.OK
        is_verdict = any(result.verdict in ("broken", "not shown") for result in self.results)
        return ExitCode.VERDICT if is_verdict else ExitCode.UNABLE


def judge(expected: Expected, measured: Measured) -> list[str]:
    """The expectations that measurements break; empty if none."""
    broken = []
    if measured.end not in expected.ends:
        broken.append(f"the disturbed process ended with {measured.end}, not with {' or '.join(expected.ends)}")
    if measured.resumed_from != expected.resumed_from:
        broken.append(f"the run resumed from {_place(measured.resumed_from)}, not {_place(expected.resumed_from)}")
    if measured.steps_lost > expected.max_steps_lost:
        broken.append(f"{measured.steps_lost} steps were lost, more than {expected.max_steps_lost}")
    if expected.max_safe_s is not None and (measured.safe_s or 0.0) > expected.max_safe_s:
        broken.append(
            f"it took {measured.safe_s or 0.0:.1f} s to a safe state, longer than {expected.max_safe_s:.1f} s"
        )
    if measured.state is None:
        broken.append("the run did not get to its end")
    elif measured.state != expected.state:
        broken.append(f"the final state is {measured.state}, not {expected.state}")
    return [*broken, *measured.faults]


def _place(step: int | None) -> str:
    return f"step {step}" if step else "nothing"


def judged(drill: DrillName, phase: str, expected: Expected, measured: Measured) -> DrillResult:
    """The verdict on a fault that was injected. A run that resumed from nothing shows nothing."""
    verdict: Verdict = "passed"
    if reasons := judge(expected, measured):
        verdict = "broken"
    elif measured.resumed_from == 0:
        verdict, reasons = "not shown", [NOTHING_RESUMED]
    return DrillResult(drill, phase, verdict, reasons, expected, measured)


def passed(results: Sequence[DrillResult], *, is_all: bool) -> bool:
    """Whether drills show their guarantees; `is_all` if they were not asked for by their names, but as `all`."""
    verdicts = {result.verdict for result in results}
    return verdicts == {"passed"} or (is_all and verdicts == {"passed", "not run"})
