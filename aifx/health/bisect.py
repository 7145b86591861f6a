"""The bad node or link, found with collective tests over groups of nodes that are halved.

Pure: `test` measures a group, and may be a cluster or a simulation. Groups are only ever compared with groups of the
same size, since a collective's rate depends on how many take part. One bad node makes each group slow that it is in, a
bad link each group that holds both its ends; so the test must use every link of its group (all-to-all does, a ring
does not).

    1. The nodes in four parts: each two of them are a group. The quickest is what the others are held against. Where
       none is slow, groups half as large; where none of them is, nothing sticks out.
    2. A slow group is halved until two nodes are left. Where it is slow and its halves are not, the link between them
       is what is slow: the two sides are halved in turn.
    3. Each of the two is tested with two nodes that are known to be good. If both are quick with those, it is the link.
    4. Without the nodes that were found, from the beginning, until nothing sticks out.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from aifx.health.report import Finding

logger = logging.getLogger(__name__)

MARGIN = 0.2
REPEATS = 3
MAX_TESTS = 400
SOURCE = "aifx doctor bisect; the margin is our estimate"

Group: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    gb_s: the group's bus bandwidth; 0 where the test failed.
    why: how it failed; empty where it did not.
    """

    gb_s: float
    why: str = ""


Test: TypeAlias = Callable[[Sequence[str], float], Verdict]
"""Measures a group, at least two nodes, within so many seconds."""


@dataclass(frozen=True)
class Culprit:
    """Attributes:
    nodes: one: that node; two: the link between them.
    gb_s: of the pair with which it was seen.
    usual_gb_s: of a pair of good nodes.
    why: what a test said that failed there.
    """

    nodes: Group
    gb_s: float
    usual_gb_s: float
    why: str = ""

    @property
    def kind(self) -> Literal["node", "link"]:
        return "node" if len(self.nodes) == 1 else "link"


@dataclass
class Trial:
    """What was measured of one group, each time that it was."""

    nodes: Group
    gb_s: list[float] = field(default_factory=list)
    why: str = ""

    @property
    def rate(self) -> float:
        return statistics.median(self.gb_s)


@dataclass(frozen=True)
class BisectResult:
    """Attributes:
    culprits: in the order in which they were found.
    suspects: nodes among which there is something that was not pinned down.
    ended: "done"; "budget" where time or tests ran out; "unclear" where a group is slow and its parts are not, or
        nothing is there to hold it against.
    why: of "budget" and "unclear", one line.
    trials: in the order in which they were first run.
    duration_s: of the whole.
    margin: which part slower than its like was slow.
    """

    culprits: tuple[Culprit, ...]
    suspects: Group
    ended: Literal["done", "budget", "unclear"]
    why: str
    trials: tuple[Trial, ...]
    duration_s: float
    margin: float = MARGIN

    @property
    def num_tests(self) -> int:
        return sum(len(trial.gb_s) for trial in self.trials)

    def document(self) -> dict[str, Any]:
        """JSON-ready; docs/doctor-bisect.md documents it."""
        return {
            "culprits": [{"kind": c.kind, **asdict(c)} for c in self.culprits],
            "suspects": list(self.suspects),
            "ended": self.ended,
            "why": self.why,
            "tests": [asdict(trial) for trial in self.trials],
            "num_tests": self.num_tests,
            "duration_s": round(self.duration_s, 3),
        }

    def findings(self) -> tuple[Finding, ...]:
        found = [_finding(culprit, self.margin) for culprit in self.culprits]
        if self.ended != "done":
            some = ", ".join(self.suspects[:8]) + (f" and {len(self.suspects) - 8} more" if self.suspects[8:] else "")
            found.append(
                Finding(
                    "fleet.bisect.unclear",
                    "unknown",
                    "",
                    f"the tests did not tell what is slow: {self.why}",
                    f"{self.num_tests} tests; not cleared: {some or 'none'}",
                    "found, or nothing sticks out",
                    SOURCE,
                    "again with a larger --budget, over the suspects alone, or with `aifx doctor bisect --expect GB_S`",
                )
            )
        return tuple(found)


def _finding(culprit: Culprit, margin: float) -> Finding:
    rate = culprit.why or f"{culprit.gb_s:.3g} GB/s"
    seen = f"{rate}; a pair of good nodes has {culprit.usual_gb_s:.3g} GB/s"
    if culprit.kind == "node":
        what = f"{culprit.nodes[0]} slows each group that it is in"
        action = "drain it; aifx doctor --stress full there, cables and ports of its network cards"
    else:
        what = f"the link between {' and '.join(culprit.nodes)} is slow, and both are quick with others"
        action = "look at the cables, ports and switches between the two; keep them out of one job"
    device, limit = " - ".join(culprit.nodes), f"more than {margin:.0%} under a pair of good nodes"
    return Finding(f"fleet.bisect.{culprit.kind}", "critical", device, what, seen, limit, SOURCE, action)


class _OutOfBudget(Exception):
    pass


class _Unclear(Exception):
    """Args:
    why: one line.
    suspects: what is slow together.
    """

    def __init__(self, why: str, suspects: Group) -> None:
        super().__init__(why)
        self.suspects = suspects


def bisect(
    nodes: Sequence[str],
    test: Test,
    budget_s: float,
    *,
    expected_gb_s: float = 0.0,
    margin: float = MARGIN,
    clock: Callable[[], float] = time.monotonic,
) -> BisectResult:
    """Find what is slow among nodes, and log each test.

    Args:
        nodes: two or more, each once.
        budget_s: a test that would not end within it is not begun.
        expected_gb_s: what all of them together should reach, then one test is all; 0 where that is not known.
        margin: which part slower than its like is slow.
    """
    search = _Search(test, clock() + budget_s, margin, clock)
    began, why = clock(), ""
    ended: Literal["done", "budget", "unclear"] = "done"
    try:
        for end in (-1, 0):
            # Without one of its ends there is no link; without the other, what that one may have hidden is seen.
            while True:
                gone = {culprit.nodes[end] for culprit in search.culprits}
                search.suspects = left = tuple(node for node in nodes if node not in gone)
                if search.is_enough(left, expected_gb_s) or not (found := search.round(left, bool(expected_gb_s))):
                    break
                search.culprits += found
            if all(culprit.kind == "node" for culprit in search.culprits):
                break
        search.suspects = ()
    except _OutOfBudget:
        ended, why = "budget", "the budget was used up"
    except _Unclear as error:
        ended, why, search.suspects = "unclear", str(error), error.suspects
    except KeyboardInterrupt:
        ended, why = "budget", "interrupted"
    trials = tuple(trial for trial in search.trials.values() if trial.gb_s)
    return BisectResult(tuple(search.culprits), search.suspects, ended, why, trials, clock() - began, margin)


class _Search:
    def __init__(self, test: Test, deadline: float, margin: float, clock: Callable[[], float]) -> None:
        self.test, self.deadline, self.margin, self.clock = test, deadline, margin, clock
        self.trials: dict[frozenset[str], Trial] = {}
        self.culprits: list[Culprit] = []
        self.suspects: Group = ()
        self.good: Group = ()
        self.longest_s = 0.0

    def round(self, nodes: Group, must_find: bool) -> list[Culprit]:
        """What is found in one group that is slow; empty where nothing sticks out.

        Raises _Unclear where something is slow all the same.
        """
        if len(nodes) < 2:
            return []
        for num_parts in (4, 8, 16):
            groups = _groups(nodes, num_parts)
            rates = {group: self.measured(group).rate for group in groups}
            self.good = max(rates, key=rates.__getitem__)
            for group in sorted(groups, key=rates.__getitem__):
                if self.is_slow(group):
                    logger.info(f"slow: {_named(group)}")
                    return self.find(group)
            if rates[self.good] == 0:
                whys = dict.fromkeys(self.measured(group).why for group in groups)
                raise _Unclear(f"no group could be tested: {'; '.join(whys)}"[:300], nodes)
            if len(nodes) < num_parts or (num_parts == 8 and not must_find):
                break
        if must_find:
            raise _Unclear("all are below what is expected, and none sticks out", nodes)
        if len(nodes) == 2 and not self.culprits:
            raise _Unclear("two nodes have nothing to be held against", nodes)
        return []

    def find(self, group: Group) -> list[Culprit]:
        """What is bad in a group that is slow."""
        self.suspects = group
        while len(group) > 2:
            half = -(-len(group) // 2)
            sides = group[:half], group[-half:]
            slow = next((side for side in sides if self.is_slow(side)), None)
            if slow is None:
                return self.find_link(group, *sides)
            group = self.suspects = slow
        return self.judge_pair(group)

    def find_link(self, group: Group, left: Group, right: Group) -> list[Culprit]:
        """The link between two sides that are quick each and slow together."""
        left, right = (tuple(n for n in side if n not in other) for side, other in ((left, right), (right, left)))
        while len(left) > 1 or len(right) > 1:
            if len(left) < len(right):
                left, right = right, left
            half = len(left) // 2
            left = left[:half] if self.is_slow(left[:half] + right) else left[half:]
            self.suspects = left + right
        if not self.is_slow(left + right):
            raise _Unclear("nodes are slow together, and no two of them are", group)
        return self.judge_pair(left + right)

    def judge_pair(self, pair: Group) -> list[Culprit]:
        """Which of a slow pair is bad; if neither is with others, it is their link."""
        others = [node for node in self.good if node not in pair][:2]
        if not others:
            raise _Unclear("no node is known to be good, to try the two with", pair)
        bad = [node for node in pair if all(self.is_slow((node, other)) for other in others)]
        usual = max(trial.rate for trial in self.trials.values() if len(trial.nodes) == 2 and trial.gb_s)
        seen: list[tuple[Group, Trial]] = [((node,), self.measured((node, others[0]))) for node in bad]
        seen = seen or [(pair, self.measured(pair))]
        culprits = [Culprit(nodes, trial.rate, usual, trial.why) for nodes, trial in seen]
        for culprit in culprits:
            logger.info(f"found: the {culprit.kind} {_named(culprit.nodes)}")
        return culprits

    def is_slow(self, group: Group) -> bool:
        """Whether a group is slower than its like. One quick run clears it, for noise slows; three find it slow."""
        trial = self.measured(group)
        usual = self.measured(self.good[: len(group)]).rate if len(self.good) >= len(group) else 0.0
        usual = max(usual, *(t.rate for t in self.trials.values() if len(t.nodes) == len(group) and t.gb_s))
        while trial.rate < usual * (1 - self.margin):
            if len(trial.gb_s) >= _repeats(trial):
                return True
            self.measure(trial)
        return False

    def is_enough(self, group: Group, expected_gb_s: float) -> bool:
        """Whether nodes do together what is expected of them."""
        if not expected_gb_s or len(group) < 2:
            return False
        trial = self.measured(group)
        while trial.rate < expected_gb_s * (1 - self.margin):
            if len(trial.gb_s) >= REPEATS:
                return False
            self.measure(trial)
        return True

    def measured(self, group: Group) -> Trial:
        trial = self.trials.setdefault(frozenset(group), Trial(group))
        if not trial.gb_s:
            self.measure(trial)
        return trial

    def measure(self, trial: Trial) -> None:
        began = self.clock()
        num_tests = sum(len(t.gb_s) for t in self.trials.values())
        if began + self.longest_s > self.deadline or began >= self.deadline or num_tests >= MAX_TESTS:
            raise _OutOfBudget
        verdict = self.test(trial.nodes, self.deadline - began)
        if verdict.why and self.clock() >= self.deadline:
            raise _OutOfBudget  # it may have failed for want of time
        # The first run of all may compile or wake something; a test that failed says nothing of how long others take.
        self.longest_s = max(self.longest_s, self.clock() - began) if not verdict.why else self.longest_s
        trial.gb_s.append(verdict.gb_s)
        trial.why = verdict.why or trial.why
        logger.info(f"{_named(trial.nodes)}: {verdict.why or f'{verdict.gb_s:.3g} GB/s'}")


def _repeats(trial: Trial) -> int:
    """How often a test is run before it counts as slow. One that fails may take all its time to do so, and is run again
    only where it would blame somebody."""
    return REPEATS if trial.rate else 2 if len(trial.nodes) == 2 else 1


def _groups(nodes: Group, num_parts: int) -> list[Group]:
    """Groups of one size that cover all nodes: with four parts each two of them, which covers all pairs of nodes; with
    more the parts two by two."""
    num_parts = min(num_parts, len(nodes) if num_parts <= 4 else len(nodes) // 2 * 2)
    ends = [i * len(nodes) // num_parts for i in range(num_parts + 1)]
    parts = [nodes[begin:end] for begin, end in itertools.pairwise(ends)]
    pairs = (
        list(itertools.combinations(parts, 2)) if num_parts <= 4 else list(zip(parts[::2], parts[1::2], strict=True))
    )
    size = max(len(a) + len(b) for a, b in pairs)
    groups = {frozenset(group): group for a, b in pairs for group in [_filled(a + b, nodes, size)]}
    return list(groups.values())


def _filled(group: Group, nodes: Group, size: int) -> Group:
    """The group, with the nodes that follow its last one where it is too small."""
    last = nodes.index(group[-1]) + 1
    more = (node for node in nodes[last:] + nodes[:last] if node not in group)
    return group + tuple(itertools.islice(more, size - len(group)))


def _named(nodes: Group) -> str:
    return ", ".join(nodes) if len(nodes) <= 4 else f"{len(nodes)} nodes ({nodes[0]} ... {nodes[-1]})"
