"""What a tick decides for each station, from the file, the journal and the ends of the stations before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from aifx.core.digests import sha256_of_json
from aifx.core.errors import AifxError, UsageError, did_you_mean
from aifx.core.sanitize import one_line, shorten
from aifx.lines.bindings import TICK
from aifx.lines.file import Station
from aifx.lines.state import Ended, LineState, StationState

State = Literal[
    "ready",  # to be started now
    "running",
    "pending",  # a station before it has not ended in this tick
    "done",
    "verdict",  # ended with a bad verdict
    "failed",
    "skipped",  # its condition does not hold, or a person skipped it
    "waiting",  # for an approval or until a time
    "blocked",  # by a station before it, or by what the person did not allow
    "paused",
    "left out",  # by --select
]

DAY_S = 86400.0
ALLOW_SHELL = "aifx line run --allow-shell"


class Meaning(Protocol):
    """What a station's texts mean in this tick."""

    def holds(
        self, station: Station, seen: Mapping[str, str], begins: Sequence[float], outcome_of: Callable[[str], str]
    ) -> str:
        """Return why the station's condition does not hold; empty if it does. Raises AifxError."""

    def missing(self, station: Station) -> list[str]:
        """Return the names of the station's condition that mean nothing and that no station makes."""

    def key(self, station: Station, identities: Mapping[str, Any]) -> str:
        """Return the digest of what the station works on. Raises AifxError if a name means nothing."""

    def commands(self, station: Station, key: str, outputs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
        """Return the words of the station's commands. Raises AifxError if a name means nothing."""

    def is_present(self, station: Station, outputs: Mapping[str, Any]) -> bool:
        """Return whether what the station made is still there."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a station now.

    Attributes:
        why: in a few words, for people.
        commands: words of each command, if the station is ready.
        what, hint: of the error that keeps it from running.
        asks: an approval is missing.
        usable: the end whose outputs later stations use.
    """

    station: str
    state: State
    why: str = ""
    key: str = ""
    commands: tuple[tuple[str, ...], ...] = ()
    what: str = ""
    hint: str = ""
    asks: bool = False
    usable: Ended | None = field(default=None, repr=False)

    @property
    def report(self) -> str:
        """Digest of what is reported of it: once, as long as it stays the same."""
        return sha256_of_json([self.state, self.key, self.what, self.why])


@dataclass(frozen=True)
class Rules:
    """What holds for all stations of a tick.

    Attributes:
        now: Unix time of the moment.
        selected: names of the stations that may run; None for all.
        allows_shell: stations with `shell = true` may run.
        check: raises AifxError if a station's environment is not there.
        tick: the time that the tick is for.
    """

    now: float
    selected: frozenset[str] | None = None
    allows_shell: bool = False
    check: Callable[[Station], object] = lambda station: None
    tick: str = ""


def decide(stations: Mapping[str, Station], state: LineState, meaning: Meaning, rules: Rules) -> dict[str, Decision]:
    """Decide each station, in the order of `stations`, in which parents come first."""
    made, kept = dict[str, Decision](), _kept(stations, state, rules.tick)
    for name, station in stations.items():
        own = state.of(name)
        if name in kept and own.open is None and own.last is not None and own.last == own.ends.get(own.last.key):
            made[name] = _ended(name, own.last)
            continue
        try:
            made[name] = _decide(station, state, meaning, rules, made)
        except AifxError as e:
            made[name] = Decision(name, "failed", e.why, what=e.what, hint=e.hint)
    return made


def _kept(stations: Mapping[str, Station], state: LineState, tick: str) -> set[str]:
    """The stations that keep their last end in this tick, whatever their keys are now.

    An attempt that a cluster runs outlives its tick. Its end counts in the tick in which it comes, although names may
    mean other versions by then. Until then the stations before it are not started again, nor those that began in the
    same tick and have a station after them in common with it: what a later station uses is of one pass. Otherwise it
    could take the verdict on one model, and push another one.
    """
    before, kept = dict[str, set[str]](), set[str]()
    for name, station in stations.items():
        before[name] = {up for parent in station.parents for up in (parent, *before[parent])}
    for name in stations:
        own = state.of(name)
        if own.open is not None and own.open.outlives(tick):
            began = own.open.seen.get(TICK)
        elif own.late and own.late == tick:
            began = own.seen.get(TICK)
        else:
            continue
        joined = {up for ups in before.values() if name in ups for up in ups}
        kept |= {name, *before[name], *(one for one in joined if state.of(one).seen.get(TICK) == began)}
    return kept


def _decide(
    station: Station, line: LineState, meaning: Meaning, rules: Rules, made: Mapping[str, Decision]
) -> Decision:
    name, own = station.name, line.of(station.name)
    last = own.last_usable
    if own.open is not None:
        return Decision(name, "running", own.open.why, own.open.key)
    if rules.selected is not None and name not in rules.selected:
        return Decision(name, "left out", "--select", usable=last)
    if (pause := line.paused or own.paused) is not None:
        hint = f"aifx line resume {pause.station}".strip()
        return Decision(name, "paused", str(pause.facts.get("reason", "")), hint=hint, usable=last)
    for parent in station.parents:
        if (behind := _behind(station, made[parent])) is not None:
            return behind
    if why := meaning.holds(station, own.seen, own.begins, line.outcome_of):
        if own.last is not None and own.last.outcome == "verdict":  # still bad: later stations stay blocked
            return _ended(name, own.last)
        missing = meaning.missing(station)
        why += f"; there is no {' and no '.join(missing)}, and no station makes it" if missing else ""
        return Decision(name, "skipped", why, hint="aifx line check" if missing else "", usable=last)
    before = [made[parent] for parent in station.parents]
    ends = {one.station: one.usable for one in before if one.usable is not None}
    failed = {one.station: {"failed": one.key} for one in before if one.state == "failed"}
    key = meaning.key(station, {parent: end.identity for parent, end in ends.items()} | failed)
    end = own.ends.get(key)
    if end is not None and (end.outcome != "done" or meaning.is_present(station, end.outputs)):
        return _ended(name, end)
    try:
        commands = meaning.commands(station, key, {parent: end.outputs for parent, end in ends.items()})
        if station.shell and not rules.allows_shell:
            why, hint = "it runs a program that is not aifx", ALLOW_SHELL
            return Decision(name, "blocked", why, key, hint=hint, usable=last)
        if station.ask == "approval" and key not in own.approved:
            return Decision(
                name, "waiting", "for approval", key, hint=f"aifx line approve {name}", asks=True, usable=last
            )
        if key not in own.again and (why := _rests(station, own, rules.now)):
            return Decision(name, "waiting", why, key, usable=last)
        rules.check(station)
    except AifxError as e:
        return Decision(name, "failed", e.why, key, what=e.what, hint=e.hint)
    why = "asked for again" if key in own.again else "new" if end is None else "its outputs are gone"
    return Decision(name, "ready", why, key, tuple(tuple(words) for words in commands))


def _behind(station: Station, parent: Decision) -> Decision | None:
    """The decision that a parent makes for a station; None if the station may go on."""
    name, hint = station.name, f"aifx line logs {parent.station}"
    if parent.state in ("ready", "running", "pending"):
        return Decision(name, "pending", f"for {parent.station}")
    named = {(term.kind, term.subject) for term in station.condition.terms()}
    if parent.state == "failed" and ("failed", parent.station) in named:
        return None
    if parent.state == "verdict" and ("verdict", parent.station) not in named:
        return Decision(name, "blocked", f"the verdict of {parent.station} is bad", hint=hint)
    if parent.state in ("failed", "blocked", "waiting", "paused"):
        return Decision(name, "blocked", f"{parent.station} is {parent.state}")
    return Decision(name, "skipped", f"{parent.station} has never run") if parent.usable is None else None


def _ended(name: str, end: Ended) -> Decision:
    if end.outcome == "failed":
        error = end.error
        hint = error.get("hint", "")
        return Decision(name, "failed", error.get("why", ""), end.key, what=error.get("what", ""), hint=hint)
    why = "by a person" if end.outcome == "skipped" else _missed(end.outputs) if end.outcome == "verdict" else ""
    hint = f"aifx line logs {name}" if end.outcome == "verdict" else ""
    return Decision(name, end.outcome, why, end.key, hint=hint, usable=end)


def _missed(outputs: Mapping[str, Any]) -> str:
    """The gates of an evaluation or the rules of a policy that a bad verdict rests on, if the document has them."""
    found = []
    for key, name, value in (("gates", "expr", "value"), ("findings", "rule", "found")):
        listed = outputs.get(key)
        for one in listed if isinstance(listed, list) else ():
            if isinstance(one, Mapping) and one.get("passed") is False and one.get(name):
                seen = one.get(value)
                found.append(f"{one[name]}: {f'{seen:.4g}' if isinstance(seen, float) else seen}")
    return shorten(one_line("; ".join(found)), MOST_REASON)


MOST_REASON = 200
"""Letters of the reason of a verdict: the whole document is in `aifx line logs`."""


def _rests(station: Station, own: StationState, now: float) -> str:
    """Why a station must not begin yet, by its cooldown and budget. A clock that ran back does not make it wait."""
    past = sorted(start for start in own.starts if start <= now)
    if station.cooldown_s and past and (left := past[-1] + station.cooldown_s - now) > 0:
        return f"until its cooldown ends in {left / 60:.0f} min"
    today = [start for start in past if start > now - DAY_S]
    if station.runs_per_day is not None and len(today) >= station.runs_per_day:
        left = today[-station.runs_per_day] + DAY_S - now
        return f"for its budget_per_day: {len(today)} runs in 24 h, the next in {left / 60:.0f} min"
    return ""


def select(stations: Mapping[str, Station], expressions: Sequence[str]) -> frozenset[str] | None:
    """The names that `train`, or `train+` with all that follows it, mean. None without expressions.

    Raises UsageError for a station that the line does not have.
    """
    names = set[str]()
    for expression in expressions:
        name = expression.removesuffix("+")
        if name not in stations:
            raise UsageError(f"the line has no station {name!r}", did_you_mean(name, stations), "aifx line status")
        found = {name}
        if expression.endswith("+"):
            for other in stations.values():
                if found.intersection(other.parents):
                    found.add(other.name)
        names |= found
    return frozenset(names) if expressions else None


def worst(decisions: Iterable[Decision]) -> Literal["failed", "verdict", "done"]:
    """The state that decides the exit code of a tick."""
    states = {decision.state for decision in decisions}
    return "failed" if "failed" in states else "verdict" if "verdict" in states else "done"
