"""Find the bad node or link with collective tests over groups of nodes.

This module is pure: `test` measures a group, on a cluster or in a simulation. Groups are compared only with groups of
the same size, because the rate of a collective depends on the number of nodes. A bad node slows each of its groups. A
bad link slows each group that has both its ends. The test must therefore use every link of its group: all-to-all does,
a ring does not.

    1. Divide the nodes into four parts. Each two parts are a group, and the fastest group is the reference. If no group
       is slow, try groups half as large. If none of those is slow, no node or link is bad.
    2. Halve a slow group until two nodes are left. If it is slow and its halves are not, the link between the halves is
       slow: halve the two sides in turn.
    3. Test each of the two nodes with two good nodes. If both are fast with those, their link is bad.
    4. Start again without the nodes that were found, until no group is slow.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from aifx.health.report import Finding

logger = logging.getLogger(__name__)

MARGIN = 0.2
REPEATS = 3
MAX_TESTS = 400
SOURCE = "aifx doctor bisect; the margin is our estimate"
BUDGET_USED = "the budget is used up"

Group: TypeAlias = tuple[str, ...]
Bandwidth = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Verdict:
    """The bus bandwidth of a group, or 0 and the reason of a failure."""

    gb_s: float
    why: str = ""


Test: TypeAlias = Callable[[Sequence[str], float], Verdict]
"""Measures a group of at least two nodes, within a number of seconds."""


@dataclass(frozen=True)
class Culprit:
    """A slow node, or a slow link between two.

    Attributes:
        gb_s: the bandwidth of the pair that was tested; 0 if the test failed, and `why` then says how.
        usual_gb_s: the bandwidth of a pair of good nodes.
    """

    kind: Literal["node", "link"]
    nodes: Annotated[Group, Field(min_length=1, max_length=2)]
    gb_s: Bandwidth
    usual_gb_s: Bandwidth
    why: str


@dataclass
class Trial:
    """A group that was tested, with the bandwidth of each test."""

    nodes: Annotated[Group, Field(min_length=2)]
    gb_s: Annotated[list[Bandwidth], Field(min_length=1)] = field(default_factory=list)
    why: str = ""

    @property
    def rate(self) -> float:
        return statistics.median(self.gb_s)


@dataclass(frozen=True)
class BisectResult:
    """Attributes:
    culprits: the bad nodes and links, in the order in which they were found.
    suspects: nodes that are not cleared.
    ended: "done"; "budget" if time or tests ran out; "unclear" if a group is slow and its parts are not, or if there is
        no group to compare it with.
    why: the reason of "budget" and "unclear", one line.
    trials: in the order in which they first ran.
    margin: the share by which a slow group is slower than the reference.
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
        """Return the result for JSON; docs/doctor-bisect.md documents it."""
        return {
            "culprits": [asdict(culprit) for culprit in self.culprits],
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
            what = f"the tests did not find what is slow: {self.why}"
            seen, limit = f"{self.num_tests} tests; not cleared: {some or 'none'}", "a bad node or link, or none"
            action = "run it again with a larger --budget, among the suspects alone, or with --expect GB_S"
            found.append(Finding("fleet.bisect.unclear", "unknown", "", what, seen, limit, SOURCE, action))
        return tuple(found)


def _finding(culprit: Culprit, margin: float) -> Finding:
    rate = culprit.why or f"{culprit.gb_s:.3g} GB/s"
    seen = f"{rate}; a pair of good nodes has {culprit.usual_gb_s:.3g} GB/s"
    if culprit.kind == "node":
        what = f"{culprit.nodes[0]} slows each of its groups"
        action = "drain it; run aifx doctor --stress full there; check cables and ports of its network cards"
    else:
        what = f"the link between {' and '.join(culprit.nodes)} is slow, but both are fast with other nodes"
        action = "check the cables, ports and switches between the two; do not use both in one job"
    device, limit = " - ".join(culprit.nodes), f"more than {margin:.0%} under a pair of good nodes"
    return Finding(f"fleet.bisect.{culprit.kind}", "critical", device, what, seen, limit, SOURCE, action)


class _Ended(Exception):
    """The search ended without a result. Without `suspects`, they are what the search has narrowed it down to."""

    def __init__(self, ended: Literal["budget", "unclear"], why: str, suspects: Group | None = None) -> None:
        super().__init__(why)
        self.ended = ended
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
        budget_s: no test starts that would not end within it.
        expected_gb_s: the expected bandwidth of all nodes together: if they reach it, one test is enough; 0 if unknown.
        margin: the share by which a group must be slower than the reference to count as slow.
    """
    began, why = clock(), ""
    search = _Search(test, began + budget_s, margin, clock)
    ended: Literal["done", "budget", "unclear"] = "done"
    try:
        for end in (-1, 0):
            # Without one end of a link, the link is gone. Without the other end, faults that the first end hid show.
            while True:
                gone = {culprit.nodes[end] for culprit in search.culprits}
                search.suspects = left = tuple(node for node in nodes if node not in gone)
                is_enough = expected_gb_s > 0 and len(left) > 1 and search.reaches(left, expected_gb_s)
                if is_enough or not (found := search.round(left, bool(expected_gb_s))):
                    break
                search.culprits += found
            if all(culprit.kind == "node" for culprit in search.culprits):
                break
        search.suspects = ()
    except _Ended as error:
        ended, why = error.ended, str(error)
        search.suspects = error.suspects or search.suspects
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
        """Return what is bad in one slow group; empty if no group is slow.

        Raises _Ended if the nodes are slow but no group is slower than another.
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
                raise _Ended("unclear", f"no group could be tested: {'; '.join(whys)}"[:300], nodes)
            if len(nodes) < num_parts or (num_parts == 8 and not must_find):
                break
        if must_find:
            why = "all groups are below the expected bandwidth, and none is slower than the others"
            raise _Ended("unclear", why, nodes)
        if len(nodes) == 2 and not self.culprits:
            raise _Ended("unclear", "two nodes cannot be compared with others", nodes)
        return []

    def find(self, group: Group) -> list[Culprit]:
        """Return what is bad in a slow group."""
        self.suspects = group
        while len(group) > 2:
            half = -(-len(group) // 2)
            sides = group[:half], group[-half:]
            slow = next((side for side in sides if self.is_slow(side)), None)
            if slow is None:
                return self.find_link(group, *sides)
            group = self.suspects = slow
        return self.resolve_pair(group)

    def find_link(self, group: Group, left: Group, right: Group) -> list[Culprit]:
        """Return the bad link between two sides that are fast alone and slow together."""
        left, right = (tuple(n for n in side if n not in other) for side, other in ((left, right), (right, left)))
        while len(left) > 1 or len(right) > 1:
            if len(left) < len(right):
                left, right = right, left
            half = len(left) // 2
            left = left[:half] if self.is_slow(left[:half] + right) else left[half:]
            self.suspects = left + right
        if not self.is_slow(left + right):
            raise _Ended("unclear", "nodes are slow together, but no two of them are", group)
        return self.resolve_pair(left + right)

    def resolve_pair(self, pair: Group) -> list[Culprit]:
        """Return the bad nodes of a slow pair; if both are fast with others, their link."""
        others = [node for node in self.good if node not in pair][:2]
        if not others:
            raise _Ended("unclear", "no good node is known to test the two with", pair)
        bad = [node for node in pair if all(self.is_slow((node, other)) for other in others)]
        usual = max(trial.rate for trial in self.trials.values() if len(trial.nodes) == 2 and trial.gb_s)
        slow = [(node, self.measured((node, others[0]))) for node in bad]
        culprits = [Culprit("node", (node,), trial.rate, usual, trial.why) for node, trial in slow]
        if not culprits:
            trial = self.measured(pair)
            culprits = [Culprit("link", pair, trial.rate, usual, trial.why)]
        for culprit in culprits:
            logger.info(f"found: the {culprit.kind} {_named(culprit.nodes)}")
        return culprits

    def is_slow(self, group: Group) -> bool:
        """Whether a group is slower than the fastest group of its size."""
        size = len(group)
        self.measured(group)
        if len(self.good) >= size:
            self.measured(self.good[:size])
        usual = max(trial.rate for trial in self.trials.values() if len(trial.nodes) == size and trial.gb_s)
        return not self.reaches(group, usual)

    def reaches(self, group: Group, gb_s: float) -> bool:
        """Whether a group reaches a bandwidth: one fast run clears it, because noise only slows, and three slow runs
        convict it."""
        trial = self.measured(group)
        while trial.rate < gb_s * (1 - self.margin):
            if len(trial.gb_s) >= _repeats(trial):
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
            raise _Ended("budget", BUDGET_USED)
        verdict = self.test(trial.nodes, self.deadline - began)
        if verdict.why and self.clock() >= self.deadline:
            raise _Ended("budget", BUDGET_USED)  # it may have failed for lack of time
        # The very first run may compile. A failed test does not show how long others take.
        self.longest_s = max(self.longest_s, self.clock() - began) if not verdict.why else self.longest_s
        trial.gb_s.append(verdict.gb_s)
        trial.why = verdict.why or trial.why
        logger.info(f"{_named(trial.nodes)}: {verdict.why or f'{verdict.gb_s:.3g} GB/s'}")


def _repeats(trial: Trial) -> int:
    """Return how often a test runs before it counts as slow. A failing test can take its whole limit, so it runs again
    only for a pair of nodes, which it would convict."""
    return REPEATS if trial.rate else 2 if len(trial.nodes) == 2 else 1


def _groups(nodes: Group, num_parts: int) -> list[Group]:
    """Return groups of one size that cover all nodes. Of four parts, each two are a group, so that every pair of nodes
    is in one. Of more parts, each is in one group."""
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
    """Return the group, extended by the nodes after its last one if it is too small."""
    last = nodes.index(group[-1]) + 1
    more = (node for node in nodes[last:] + nodes[:last] if node not in group)
    return group + tuple(itertools.islice(more, size - len(group)))


def _named(nodes: Group) -> str:
    return ", ".join(nodes) if len(nodes) <= 4 else f"{len(nodes)} nodes ({nodes[0]} ... {nodes[-1]})"
