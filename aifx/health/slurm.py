"""Drain and resume nodes of Slurm after a check.

A HealthCheckProgram must drain the node itself, with `scontrol update` (slurm.conf(5)). A Prolog must not call Slurm's
commands at all (https://slurm.schedmd.com/prolog_epilog.html): its exit code drains the node.

A drain whose reason starts with `aifx:` is one of aifx. It changes no other drain: a person or Slurm has set it.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from aifx.cluster.hosts import ask_slurm
from aifx.core.errors import EnvironmentFault
from aifx.core.sanitize import one_line
from aifx.health.report import headline
from aifx.health.rules import fits

MARK = "aifx:"
REASON_LENGTH = 200
SCONTROL_LIMIT_S = 5.0
FOLDERS = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/opt/slurm/bin")
"""Folders to search for Slurm's commands after PATH, which slurmd does not set for the programs that it starts."""

LEFT_OUT = ("jax", "project")
"""Families that are evaluated only if they are named: they start programs on devices that a job may be using."""

DRAINED = {"DRAIN", "DRAINING", "DRAINED"}
OUT_OF_SERVICE = {"DOWN", "FAIL", "FAILING", "ERROR", "FUTURE", "POWERED_DOWN", "POWERING_DOWN", "REBOOT_ISSUED"}
"""States in which Slurm or a person has taken the node out of service in another way than by a drain."""


@dataclass(frozen=True)
class Node:
    """A node of Slurm."""

    name: str
    states: frozenset[str]
    reason: str

    @property
    def is_drained(self) -> bool:
        return bool(self.states & DRAINED)

    @property
    def is_ours(self) -> bool:
        return self.is_drained and self.reason.startswith(MARK)

    @property
    def rule(self) -> str:
        """The rule in a reason of aifx."""
        return (self.reason.removeprefix(MARK).split() or [""])[0]


@dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        critical: rules with a critical finding, and its headline; worst first.
        evaluated: rules that were evaluated on every device.
    """

    status: str
    critical: tuple[tuple[str, str], ...]
    evaluated: frozenset[str]

    @property
    def reason(self) -> str:
        """The reason for a drain, `aifx: rule summary`, of an unhealthy node."""
        rule, summary = self.critical[0]
        text = one_line(f"{MARK} {rule} {summary}")
        return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 3] + "..."


@dataclass(frozen=True)
class Step:
    """A change of a node, and the reason. `scontrol update` gets `change` after the node's name."""

    action: Literal["drain", "reason", "resume", "nothing"]
    why: str
    change: tuple[str, ...] = ()


def verdict_of(report: dict[str, Any], rules: Iterable[str]) -> Verdict:
    """Return the verdict of a report on the selected `rules`. Raises KeyError or TypeError for any other document."""
    findings = report["findings"]
    unknown = {finding["id"] for finding in findings if finding["severity"] == "unknown"}
    skipped = [one["id"] for one in report["skipped"]]
    evaluated = (rule for rule in rules if rule not in unknown and not any(fits(rule, skip) for skip in skipped))
    critical = [(f["id"], headline(f["device"], f["summary"])) for f in findings if f["severity"] == "critical"]
    return Verdict(report["status"], tuple(critical), frozenset(evaluated))


def step_for(verdict: Verdict, node: Node, *, may_resume: bool) -> Step:
    """Return the change that a verdict requires.

    `unknown` changes nothing. A rule that could not be evaluated, perhaps because its device is gone, has not passed.
    """
    if node.is_drained and not node.is_ours:
        return Step("nothing", f"drained by someone else: {node.reason or 'no reason given'}")
    if away := sorted(node.states & OUT_OF_SERVICE):
        return Step("nothing", f"{'+'.join(away)}: {node.reason or 'no reason given'}")
    is_open = node.rule in dict(verdict.critical) or node.rule not in verdict.evaluated
    if verdict.status == "unhealthy":
        reason = f"Reason={verdict.reason}"
        if not node.is_drained:
            return Step("drain", verdict.reason, ("State=DRAIN", reason))
        if is_open:
            return Step("nothing", f"already drained: {node.reason}")
        return Step("reason", f"{verdict.reason} (before: {node.reason})", (reason,))
    if not node.is_drained:
        return Step("nothing", f"{verdict.status}, in service")
    if verdict.status == "unknown" or is_open:
        return Step("nothing", f"{verdict.status}, but the rule of the drain was not evaluated: {node.reason}")
    if not may_resume:
        return Step("nothing", f"{verdict.status} again, but without --resume it stays drained: {node.reason}")
    return Step("resume", f"{verdict.status} again: {node.reason}", ("State=RESUME",))


def node_name() -> str:
    """Return this node's name in Slurm: what slurmd says, otherwise the host's name up to the first dot."""
    return os.environ.get("SLURMD_NODENAME") or platform.node().split(".")[0]


def act(verdict: Verdict, name: str, *, may_resume: bool, dry_run: bool) -> Step:
    """Drain or resume a node as its verdict requires, and return what was done. Raises EnvironmentFault.

    Slurm is asked only if the verdict could change something there.
    """
    if verdict.status != "unhealthy" and not may_resume:
        return Step("nothing", verdict.status)
    node = parse_node(scontrol(["show", "node", name]))
    step = step_for(verdict, node, may_resume=may_resume)
    if step.change and not dry_run:
        scontrol(["update", f"NodeName={name}", *step.change])
    return step


def parse_node(text: str) -> Node:
    """Parse the output of `scontrol show node NAME`. Raises EnvironmentFault for any other text."""
    name = re.search(r"^NodeName=(\S+)", text)
    state = re.search(r"^\s+State=(\S+)", text, re.MULTILINE)
    if name is None or state is None:
        raise EnvironmentFault("scontrol did not show the node", text.strip()[:200] or "it printed nothing")
    # A state may have a suffix: a node in `DOWN*` does not respond.
    states = frozenset(word for part in state[1].split("+") if (word := re.sub(r"\W", "", part).upper()))
    reason = re.search(r"^\s+Reason=(.*?)(?: \[\S+@\S+\])?$", text, re.MULTILINE)
    return Node(name[1], states, reason[1].strip() if reason else "")


def scontrol(arguments: list[str]) -> str:
    """Run scontrol and return its output. Raises EnvironmentFault if it is missing, fails or takes too long."""
    command = f"scontrol {' '.join(arguments[:2])}"
    try:
        ended = ask_slurm("scontrol", *arguments, folders=FOLDERS, limit_s=SCONTROL_LIMIT_S)
    except OSError as error:
        raise EnvironmentFault(f"{command} could not be started", error.strerror or str(error)) from None
    output = ended.output.decode("utf-8", "replace")
    if ended.cut:
        raise EnvironmentFault(f"{command} did not answer within {SCONTROL_LIMIT_S:g} s", "check slurmctld")
    if not ended.succeeded:
        raise EnvironmentFault(f"{command} failed ({ended.how})", "\n".join(ended.last_lines)[:300] or output[:300])
    return output
