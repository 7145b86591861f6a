"""Two reports compared with each other, and the gate on the result.

One comparison is significant at `estimate.SIGNIFICANCE`. A gate asks many at once, and among a hundred some look slower
by chance: a result regressed only if its p is, beside that, below FAMILY over the number of results (Holm's steps: the
second smallest below FAMILY over one less, and so on). Five launches against five have no p below 1/252, so that among
many results none could ever be significant: those that seem slower are `suspected`, and more launches decide.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import comb, isnan
from typing import Literal, TypedDict

from aifx.benchmarking.estimate import LEAST_LAUNCHES, SIGNIFICANCE, Change
from aifx.benchmarking.results import Param, Report, Request, Result
from aifx.core.units import listed

Verdict = Literal["slower", "faster", "same", "unsure"]

FAMILY = 0.1
"""Largest probability that any result is significant if none has changed (the family-wise error rate). A false alarm
must also exceed the threshold, and is far less probable."""

DOUBT = 0.5
"""Share of the threshold below which an estimated slowdown passes without more launches."""

ALIKE = 0.05
"""Two results are the same if the interval of their ratio is within this distance of 1."""


class ResultName(TypedDict):
    name: str
    params: dict[str, Param]


class ResultChange(ResultName):
    """A result of two reports in JSON. `ratio` and `interval` are null if the first took no time."""

    before_s: float
    after_s: float
    ratio: float | None
    interval: tuple[float | None, float | None]
    p: float | None
    launches: tuple[int, int]
    verdict: Verdict
    why: str


class GatedChange(ResultChange):
    regressed: bool
    inconclusive: bool


class Side(TypedDict):
    """One of the reports that a document compares."""

    source: str
    time: float
    commit: str | None
    host: str | None
    launches: int
    notes: list[str]


class Missing(TypedDict):
    only_before: list[ResultName]
    only_after: list[ResultName]
    differences: list[str]


class ComparedReports(Missing):
    """Document of `aifx bench compare --json`."""

    a: Side
    b: Side
    results: list[ResultChange]


class GatedReports(Missing):
    """Document of `aifx bench gate --json`."""

    baseline: Side
    now: Side
    results: list[GatedChange]
    passed: bool
    max_regression: float


@dataclass(frozen=True)
class Comparison:
    """One thing in two reports; `why` is empty unless the verdict is unsure."""

    before: Result
    after: Result
    change: Change
    verdict: Verdict
    why: str = ""

    @property
    def launches(self) -> tuple[int, int]:
        return len(self.before.samples_s), len(self.after.samples_s)

    def document(self) -> ResultChange:
        return {
            "name": self.after.name,
            "params": self.after.params,
            "before_s": self.before.median_s,
            "after_s": self.after.median_s,
            "ratio": self.change.ratio,
            "interval": (self.change.low, self.change.high),
            "p": self.change.p,
            "launches": self.launches,
            "verdict": self.verdict,
            "why": self.why,
        }


@dataclass(frozen=True)
class Compared:
    """Two reports; `differences` is what else differs, and may be why: versions, flags, commit, what was asked for."""

    results: list[Comparison]
    only_before: list[Result]
    only_after: list[Result]
    differences: list[str]

    def document(self, a: Side, b: Side) -> ComparedReports:
        return {"a": a, "b": b, "results": [found.document() for found in self.results], **self.missing()}

    @property
    def one_sided(self) -> str:
        """The results that only one of the reports has, in words."""
        return "; ".join(self.one_sided_lines)

    @property
    def one_sided_lines(self) -> list[str]:
        sides = (("A", self.only_before), ("B", self.only_after))
        return [f"only in {mark}: {listed([r.title for r in results], 6)}" for mark, results in sides if results]

    def missing(self) -> Missing:
        before, after = (
            [ResultName(name=result.name, params=result.params) for result in results]
            for results in (self.only_before, self.only_after)
        )
        return {"only_before": before, "only_after": after, "differences": self.differences}


@dataclass(frozen=True)
class Gated:
    """A gate's answer.

    Attributes:
        regressed: slower by more than the bound, and significant among all that was asked.
        suspected: the same, but significant only if nothing else had been asked.
        inconclusive: `suspected`, and results that more launches may show to be slower: the interval extends past the
            bound, the estimate exceeds DOUBT of it, and the baseline scatters by less.
        undecided: those of `suspected` whose launches are so few that they could never be significant among so many.
        launches: enough of them to decide what is suspected.
    """

    compared: Compared
    max_regression: float
    regressed: list[Comparison]
    suspected: list[Comparison]
    inconclusive: list[Comparison]
    undecided: list[Comparison]
    launches: int

    def document(self, baseline: Side, now: Side) -> GatedReports:
        results: list[GatedChange] = [
            {**found.document(), "regressed": found in self.regressed, "inconclusive": found in self.inconclusive}
            for found in self.compared.results
        ]
        return {
            "baseline": baseline,
            "now": now,
            "passed": not self.regressed,
            "max_regression": self.max_regression,
            "results": results,
            **self.compared.missing(),
        }


def compare(before: Report, after: Report, only: tuple[str, ...] = ()) -> Compared:
    """Each thing that both measured, of the names in `only` if it has any: "train", "train.forward"."""
    olds, news = (chosen(report, only) for report in (before, after))
    return Compared(
        results=[_comparison(old, news[key]) for key, old in olds.items() if key in news],
        only_before=[old for key, old in olds.items() if key not in news],
        only_after=[new for key, new in news.items() if key not in olds],
        differences=before.fingerprint.differences(after.fingerprint) + asked(before.request, after.request),
    )


def gate(before: Report, after: Report, max_regression: float, only: tuple[str, ...] = ()) -> Gated:
    """Whether `after` is slower than `before` by more than `max_regression` (0.05 is 5 %) in anything."""
    compared = compare(before, after, only)
    # Holm's step-down procedure (A simple sequentially rejective multiple test procedure, Scandinavian Journal of
    # Statistics 6, 1979). Of m results, the smallest p must be at most FAMILY / m, the next one at most
    # FAMILY / (m - 1), and so on; the first one that is larger ends it. The probability of any false alarm is then at
    # most FAMILY, however the results depend on each other. m counts all compared results, not only those that exceed
    # the threshold, since the same data decide which ones do.
    slower = [c for c in compared.results if c.change.ratio - 1 > max_regression and c.change.is_significant]
    slower.sort(key=lambda c: c.change.p or 0.0)
    regressed: list[Comparison] = []
    for left, comparison in zip(range(len(compared.results), 0, -1), slower, strict=False):
        if (comparison.change.p or 0.0) > FAMILY / left:
            break
        regressed.append(comparison)
    suspected, level = slower[len(regressed) :], FAMILY / max(len(compared.results) - len(regressed), 1)
    return Gated(
        compared,
        max_regression,
        regressed,
        suspected,
        inconclusive=[
            c for c in compared.results if c in suspected or (c not in regressed and _may_exceed(c, max_regression))
        ],
        undecided=[c for c in suspected if least_p(*c.launches) > level],
        launches=max((launches_for(c.launches[0], level) for c in suspected), default=0),
    )


def _may_exceed(found: Comparison, max_regression: float) -> bool:
    change = found.change
    is_likely = change.ratio - 1 > DOUBT * max_regression and change.high - 1 > max_regression
    return is_likely and found.before.scatter <= max_regression


def least_p(first: int, second: int) -> float:
    """The smallest one-sided p that Mann-Whitney can give for so many values on the sides."""
    return 1 / comb(first + second, first)


def launches_for(others: int, level: float) -> int:
    """The least launches of one side whose p can reach `level` against `others` of the other side."""
    return next(count for count in itertools.count(LEAST_LAUNCHES) if least_p(count, others) <= level)


def asked(before: Request, after: Request) -> list[str]:
    """List differences of two requests that give names another meaning: "set: [] -> ['train.seed=1']"."""
    old, new = ({"quick": request.quick, **request.options} for request in (before, after))
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in {**old, **new}
        if (old.get(name) or None) != (new.get(name) or None)
    ]


def _comparison(old: Result, new: Result) -> Comparison:
    found = new.change_since(old)
    if isnan(found.ratio):
        return Comparison(old, new, found, "unsure", "a lower decile is not above zero")
    if found.p is None:
        counts = f"{len(old.samples_s)} and {len(new.samples_s)} launches"
        return Comparison(old, new, found, "unsure", f"{counts}, {LEAST_LAUNCHES} are the least")
    if found.p < SIGNIFICANCE:
        return Comparison(old, new, found, "slower" if found.ratio > 1 else "faster")
    if found.low >= 1 - ALIKE and found.high <= 1 + ALIKE:
        return Comparison(old, new, found, "same")
    return Comparison(old, new, found, "unsure", f"noise: {found.low - 1:+.1%} to {found.high - 1:+.1%}")


def chosen(report: Report, only: tuple[str, ...]) -> dict[str, Result]:
    """Results by their keys, of `only` as `compare` takes it; each measurement once."""
    found = {
        result.key: result
        for result in report.results
        if not only or any(result.name == name or result.name.startswith(f"{name}.") for name in only)
    }
    return {key: result for key, result in found.items() if result.same_as not in found}


def side(report: Report, source: str) -> Side:
    """A report in a document about two."""
    return {
        "source": source,
        "time": report.time,
        "commit": report.fingerprint.commit,
        "host": report.fingerprint.hardware.get("host"),
        "launches": report.launches,
        "notes": report.notes,
    }
