"""Checks of a node for Slurm. The module imports little: the checks have limits, and imports count."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aifx.core.errors import ExitCode
from aifx.core.results import Result
from aifx.verbs.arguments import StrPath

if TYPE_CHECKING:
    from aifx.health.slurm import Verdict


@dataclass(frozen=True)
class NodeStep(Result):
    """The change of a node in Slurm that a health check made, or would make.

    Attributes:
        node: its name in Slurm.
        action: "drain", "reason", "resume" or "nothing".
        why: the reason.
        changes: whether the action changes anything.
    """

    node: str
    action: str
    why: str
    changes: bool


def doctor_slurm_health_check(
    *,
    node: str | None = None,
    resume: bool = False,
    limit_s: float = 30.0,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    site: StrPath | None = None,
    root: StrPath | None = None,
    replay: StrPath | None = None,
    dry_run: bool = False,
) -> NodeStep:
    """Drain this node in Slurm if it is unhealthy, as a HealthCheckProgram does.

    A drain that others have set stays.

    Args:
        node: name of the node; by default $SLURMD_NODENAME, or the host's name.
        resume: undo a drain by aifx if its rule passes again.
        limit_s: most seconds for all of it.
        only: rules or families to evaluate.
        skip: rules or families to leave out.
        site: the site's file; by default the one that `aifx doctor` reads.
        root: a folder with the copy of a machine's files, to read instead of this machine.
        replay: a file that `aifx.doctor(record=...)` wrote, to evaluate instead of this machine.
        dry_run: change nothing.

    Example:
        >>> aifx.doctor_slurm_health_check(only=["cpu.governor"], dry_run=True).action
        'nothing'
    """
    began = time.monotonic()
    from aifx.health.slurm import SCONTROL_LIMIT_S, act, node_name

    paths = (site, root, replay)
    verdict = _verdict(began, limit_s - 2 * SCONTROL_LIMIT_S, only, skip, paths)
    name = node or node_name()
    step = act(verdict, name, may_resume=resume, dry_run=dry_run)
    return NodeStep(name, step.action, step.why, bool(step.change))


@dataclass(frozen=True)
class JobAdmission(Result):
    """Whether a node can take a job.

    Attributes:
        node: its name in Slurm.
        status: "unhealthy" keeps jobs off it.
        reason: `aifx: rule summary`; empty if the node is not unhealthy.
    """

    node: str
    status: str
    reason: str = ""

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.VERDICT if self.status == "unhealthy" else ExitCode.OK


def doctor_slurm_prolog(
    *,
    limit_s: float = 8.0,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    site: StrPath | None = None,
    root: StrPath | None = None,
    replay: StrPath | None = None,
) -> JobAdmission:
    """Check whether this node can take a job, as Slurm's Prolog does. The verdict is bad if it is unhealthy.

    Args:
        limit_s: most seconds for the check.
        only: rules or families to evaluate.
        skip: rules or families to leave out.
        site: the site's file; by default the one that `aifx doctor` reads.
        root: a folder with the copy of a machine's files, to read instead of this machine.
        replay: a file that `aifx.doctor(record=...)` wrote, to evaluate instead of this machine.

    Example:
        >>> aifx.doctor_slurm_prolog(only=["cpu.governor"]).reason
        ''
    """
    began = time.monotonic()
    from aifx.health.slurm import node_name

    verdict = _verdict(began, limit_s, only, skip, (site, root, replay))
    name = node_name()
    return JobAdmission(name, verdict.status, verdict.reason if verdict.status == "unhealthy" else "")


def _verdict(
    began: float, limit_s: float, only: Sequence[str], skip: Sequence[str], paths: Sequence[StrPath | None]
) -> Verdict:
    """Return the verdict of a check that ends `limit_s` after `began` at the latest."""
    from aifx.health.isolated_check import Asked, run_isolated_check
    from aifx.health.slurm import LEFT_OUT, verdict_of

    asked = Asked(only, skip, LEFT_OUT, *(os.fspath(path) if path else None for path in paths))
    return verdict_of(*run_isolated_check(asked, limit_s - (time.monotonic() - began)))
