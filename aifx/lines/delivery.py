"""Delivery of events to the targets of a line file: each at least once, in order per subject.

Nothing needs to run for events to be kept: they are derived from records that stay. A sender reads what is new for a
target, keeps it in the outbox, and sends what is due. An event that fails waits, and those of the same subject wait
behind it. After the last attempt it is a dead letter, and the next one of its subject is sent.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import AifxError, DataError, ErrorDocument, ExitCode, UsageError, did_you_mean
from aifx.core.os_errors import first_line, is_passing
from aifx.core.project import Project
from aifx.core.results import Result
from aifx.lines.events import TEST, Event, Reading, read_events
from aifx.lines.file import Target
from aifx.lines.outbox import Letter, Outbox
from aifx.lines.webhook import Receiver, Refused, open_connections, open_receiver, post
from aifx.registry.roots import Root, open_root

if TYPE_CHECKING:
    import httpx

PAUSES_S = (5.0, 300.0, 1800.0, 2 * 3600.0, 5 * 3600.0, 10 * 3600.0, 14 * 3600.0, 20 * 3600.0, 24 * 3600.0)
"""Seconds between attempts: the schedule in the specification of Standard Webhooks, three days and 3.6 hours in all."""

FIRST_S = 3 * 86400.0
"""A new target gets the events of so many seconds before it is first seen."""

LIMIT_S = 60.0
MOST_WAITING = 10_000
"""Events of a target in its outbox above which it takes in no others: they stay in their sources."""

MOST_NEW = 1000
"""Events of a source after which an outbox takes in those of the next source."""

MOST_DOWN = 3
"""Attempts without an answer after which a target is left alone until the next call."""

Clock = Callable[[], float]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EventState:
    """An event of a target.

    Attributes:
        time: Unix time at which it happened.
        attempts: that failed.
        next_at: Unix time of the next attempt; null if it is due, or if there is none.
        reason: why the last attempt failed.
    """

    id: str
    type: str
    subject: str
    time: float
    attempts: int = 0
    next_at: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class TargetState:
    """A target, and what waits for it.

    Attributes:
        on: types of events that it gets.
        url_from: the environment variable with its URL.
        positions: how far each source was read for it.
        waiting: events that were not sent yet, in order per subject.
        has_more: whether their sources have further events, which the outbox takes in later.
        dead: events that are not sent any more: `aifx notify replay` sends them.
        problem: why nothing can be sent to it now.
    """

    name: str
    on: tuple[str, ...]
    url_from: str
    positions: Mapping[str, Mapping[str, int | str]]
    waiting: tuple[EventState, ...]
    dead: tuple[EventState, ...]
    problem: ErrorDocument | None
    has_more: bool = False


@dataclass(frozen=True)
class Delivery:
    """Attempts of one call for a target.

    Attributes:
        sent: events that the receiver accepted; with --dry-run, those that would be tried.
        failed: events whose attempt failed, and that wait for another one.
        dead: events whose last attempt failed.
        waiting: events of the outbox that were not accepted yet.
        problem: why nothing was tried.
        has_more: whether their sources have further events, which the outbox takes in later.
    """

    target: str
    sent: tuple[EventState, ...]
    failed: tuple[EventState, ...]
    dead: tuple[EventState, ...]
    waiting: int
    problem: ErrorDocument | None
    has_more: bool = False


@dataclass(frozen=True)
class Deliveries(Result):
    """The document of `aifx notify run` and `replay`.

    Attributes:
        problems: sources that could not be read. Their events come with a later call.
        is_planned: whether this is what --dry-run found.
    """

    targets: tuple[Delivery, ...]
    problems: tuple[ErrorDocument, ...] = ()
    is_planned: bool = False

    @property
    def exit_code(self) -> ExitCode:
        if self.problems or any(one.problem for one in self.targets):
            return ExitCode.UNABLE
        return ExitCode.VERDICT if any(one.failed or one.dead for one in self.targets) else ExitCode.OK


@dataclass(frozen=True)
class TargetList(Result):
    """The document of `aifx notify ls`."""

    targets: tuple[TargetState, ...]
    problems: tuple[ErrorDocument, ...] = ()


@dataclass(frozen=True)
class TargetTest(Result):
    """The document of `aifx notify test`.

    Attributes:
        status: of HTTP; null if the event was not accepted.
        reason: why it was not accepted.
        is_planned: whether this is what --dry-run found: the target can be used, and nothing was sent.
    """

    target: str
    place: str
    id: str
    status: int | None
    reason: str
    is_planned: bool = False

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.is_planned or self.status is not None else ExitCode.VERDICT


@dataclass
class _Turn:
    """The work of one call for a target."""

    project: Project
    root: Root
    target: Target
    clock: Clock
    sent: list[EventState] = field(default_factory=list)
    failed: list[EventState] = field(default_factory=list)
    dead: list[EventState] = field(default_factory=list)
    problem: AifxError | None = None
    has_more: bool = False

    def __post_init__(self) -> None:
        self.outbox = outbox_of(self.project, self.target)

    def take_in(self, problems: list[AifxError]) -> bool:
        """Let new events wait, unless many do. Returns whether some may have come, and adds what cannot be read."""
        if len(self.outbox.waiting) >= MOST_WAITING:
            self.has_more = True
            return False
        if self.outbox.since is None:
            self.outbox.begin(self.clock() - FIRST_S)
        reading = _new_events(self.project, self.root, self.target, self.outbox, self.clock())
        self.outbox.add(reading.events, reading.positions)
        problems += reading.problems
        self.has_more = reading.has_more
        return True

    def result(self) -> Delivery:
        problem = self.problem.document() if self.problem else None
        sent, failed, dead, waiting = tuple(self.sent), tuple(self.failed), tuple(self.dead), len(self.outbox.waiting)
        return Delivery(self.target.name, sent, failed, dead, waiting, problem, self.has_more)


def outbox_of(project: Project, target: Target) -> Outbox:
    return Outbox(project.root / "line" / "notify" / target.name)


def deliver(
    project: Project,
    targets: Sequence[Target],
    environ: Mapping[str, str],
    *,
    limit_s: float = LIMIT_S,
    clock: Clock = time.time,
    again: Mapping[str, Sequence[Event]] | None = None,
) -> Deliveries:
    """Send what is due, once. Receivers that refuse, targets that cannot be used and sources that fail are reported.

    Args:
        project: with the root of its registry (`Config.apply_to`).
        environ: has the URLs and secrets.
        limit_s: seconds after the first attempt for a target in which further ones begin.
        clock: Unix time, by which attempts are due.
        again: events that are sent whether they were sent before or not, by target.
    """
    root, problems = open_root(None, project), list[AifxError]()

    async def serve_all() -> list[Delivery]:
        works = (_serve(_Turn(project, root, one, clock), environ, limit_s, (again or {}).get(one.name, ()), problems)
                 for one in targets)  # fmt: skip
        return list(await asyncio.gather(*works))

    done = asyncio.run(serve_all()) if targets else []
    return Deliveries(tuple(done), _documents(problems))


def _documents(problems: Sequence[AifxError]) -> tuple[ErrorDocument, ...]:
    """Each problem once: every target reads the same sources."""
    return tuple({str(one): one.document() for one in problems}.values())


async def _serve(
    turn: _Turn, environ: Mapping[str, str], limit_s: float, again: Sequence[Event], problems: list[AifxError]
) -> Delivery:
    name = turn.target.name
    try:
        with turn.outbox.writing():
            turn.take_in(problems)
            for event in again:
                turn.outbox.again(event)
            if turn.outbox.waiting:
                await _send_due(turn, open_receiver(turn.target, environ), limit_s, problems)
    except AifxError as e:
        turn.problem = e
    except OSError as e:
        what, hint = f"the outbox {turn.outbox.path} cannot be used", f"df -h {turn.project.root}"
        turn.problem = AifxError(what, first_line(e), hint, transient=is_passing(e))
    except Exception as e:  # a fault of aifx must not keep events of other targets back; its text may have the URL
        logger.error("the delivery to %s ended: %s", name, "".join(traceback.format_tb(e.__traceback__)))
        what = f"the delivery to {name} ended with {type(e).__name__}, a fault of aifx"
        turn.problem = AifxError(what, "the log has where", "aifx notify ls")
    return turn.result()


def _new_events(project: Project, root: Root, target: Target, outbox: Outbox, now: float) -> Reading:
    """The next events of a target after the positions of its outbox."""
    first = now - FIRST_S
    begin = first if outbox.since is None else min(outbox.since, first)  # the clock may have been ahead at first

    def is_wanted(event: Event) -> bool:
        return event.type in target.on and event.time >= begin and event.id not in outbox.waiting

    return read_events(project, root, outbox.positions, is_wanted=is_wanted, most=MOST_NEW)


async def _send_due(turn: _Turn, receiver: Receiver, limit_s: float, problems: list[AifxError]) -> None:
    """Send what is due, and what comes into its place."""
    until = time.monotonic() + limit_s  # not from the begin of the call: a long outbox takes longer to read
    async with open_connections(receiver) as connections:
        while await _send_queues(turn, receiver, connections, until):
            if not (turn.has_more and turn.take_in(problems)):
                return


async def _send_queues(turn: _Turn, receiver: Receiver, connections: httpx.AsyncHTTPTransport, until: float) -> bool:
    """Send what is due. Returns whether there was time for it, and a receiver."""
    down = 0
    for queue in turn.outbox.queues():
        for letter in queue:
            if not is_due(letter, turn.clock()):
                break
            if time.monotonic() >= until or down >= MOST_DOWN:
                return False
            if (refused := await _attempt(connections, turn, receiver, letter)) is None:
                down = 0
                continue
            down = down + 1 if refused.is_down else 0
            if letter.event.id in turn.outbox.waiting:
                break
    return down < MOST_DOWN


def is_due(letter: Letter, now: float) -> bool:
    """Whether an attempt can be made. A pause longer than any is that of a clock that was set back meanwhile."""
    return letter.next_at <= now or letter.next_at > now + PAUSES_S[-1]


async def _attempt(
    connections: httpx.AsyncHTTPTransport, turn: _Turn, receiver: Receiver, letter: Letter
) -> Refused | None:
    """Send an event, and write down what became of it."""
    now = turn.clock()
    try:
        await post(connections, receiver, letter.event)
    except Refused as e:
        is_last = letter.attempts >= len(PAUSES_S)
        next_at = 0.0 if is_last else now + PAUSES_S[letter.attempts]
        letter = replace(letter, attempts=letter.attempts + 1, next_at=next_at, last_at=now, reason=str(e))
        turn.outbox.failed(letter, dead=is_last)
        (turn.dead if is_last else turn.failed).append(_state(letter, now))
        return e
    turn.outbox.sent(letter)
    turn.sent.append(_state(letter, now))
    return None


def _state(letter: Letter, now: float) -> EventState:
    event, next_at = letter.event, letter.next_at if letter.next_at > now else None
    return EventState(event.id, event.type, event.subject, event.time, letter.attempts, next_at, letter.reason)


def list_targets(
    project: Project, targets: Sequence[Target], environ: Mapping[str, str], clock: Clock = time.time
) -> TargetList:
    """The targets with what waits for them, also what no sender has read yet. Writes nothing."""
    root, now, states, problems = open_root(None, project), clock(), list[TargetState](), list[AifxError]()
    for target in targets:
        outbox, problem = outbox_of(project, target), _problem_of(target, environ)
        try:
            outbox.read()
        except DataError as e:
            states.append(TargetState(target.name, target.on, target.url_from, {}, (), (), e.document()))
            continue
        new = _new_events(project, root, target, outbox, now)
        problems += new.problems
        waiting = [*outbox.waiting.values(), *(Letter(event) for event in new.events)]
        dead = tuple(_state(letter, now) for letter in outbox.dead.values())
        queued = tuple(_state(letter, now) for letter in waiting)
        states.append(TargetState(
            target.name, target.on, target.url_from, outbox.positions, queued, dead, problem, new.has_more
        ))  # fmt: skip
    return TargetList(tuple(states), _documents(problems))


def plan_delivery(
    project: Project, targets: Sequence[Target], environ: Mapping[str, str], clock: Clock = time.time
) -> Deliveries:
    """Find what `deliver` would try. Writes and sends nothing."""
    found = list_targets(project, targets, environ, clock)
    done = []
    for one in found.targets:
        due = tuple(event for event in one.waiting if event.next_at is None)
        done.append(Delivery(one.name, due, (), (), len(one.waiting), one.problem, one.has_more))
    return Deliveries(tuple(done), found.problems, is_planned=True)


def find_again(
    project: Project, targets: Sequence[Target], ids: Sequence[str], since: float | None = None
) -> dict[str, list[Event]]:
    """The events to send again, by target: the dead ones, or those of some ids or beginnings of ids, or since a time.

    An event that was sent long ago is derived from its record. Raises UsageError for an id that no record has.
    """
    boxes = {target.name: outbox_of(project, target).read() for target in targets}
    if not ids and since is None:
        return {name: [letter.event for letter in box.dead.values()] for name, box in boxes.items()}

    def is_meant(event: Event) -> bool:
        return (since is not None and event.time >= since) or event.id.startswith(tuple(ids))

    found = read_events(project, open_root(None, project), {}, is_wanted=is_meant).events
    known = {event.id: event for event in found}
    known |= {letter.event.id: letter.event for box in boxes.values()
              for letters in (box.waiting, box.dead) for letter in letters.values()}  # fmt: skip
    events = [] if since is None else [event for event in known.values() if event.time >= since]
    for id in ids:
        matching = [event for event in known.values() if event.id.startswith(id)]
        if len(matching) != 1 or len(id) < 4:
            why = f"{len(matching)} events begin with it" if matching else "no record gives an event of this id"
            raise UsageError(f"{id!r} names no event", why, "aifx notify ls")
        events += matching
    events = list({event.id: event for event in events}.values())
    return {target.name: [event for event in events if event.type in target.on] for target in targets}


def plan_again(
    targets: Sequence[Target], again: Mapping[str, Sequence[Event]], environ: Mapping[str, str]
) -> Deliveries:
    """What `deliver` would send again. Writes and sends nothing."""
    done = []
    for target in targets:
        events = tuple(_state(Letter(event), 0.0) for event in again[target.name])
        done.append(Delivery(target.name, events, (), (), len(events), _problem_of(target, environ)))
    return Deliveries(tuple(done), is_planned=True)


def _problem_of(target: Target, environ: Mapping[str, str]) -> ErrorDocument | None:
    try:
        open_receiver(target, environ)
    except AifxError as e:
        return e.document()
    return None


def send_test(target: Target, environ: Mapping[str, str], *, dry_run: bool = False) -> TargetTest:
    """Send an event of the type "aifx.test" once. Raises ConfigError for a target that cannot be used."""
    receiver = open_receiver(target, environ)
    if dry_run:
        return TargetTest(target.name, receiver.place, "", None, "", is_planned=True)
    event = Event(secrets.token_hex(32), TEST, "notify", target.name, time.time(), {"target": target.name})

    async def send() -> int:
        async with open_connections(receiver) as connections:
            return await post(connections, receiver, event)

    try:
        status, reason = asyncio.run(send()), ""
    except Refused as e:
        status, reason = None, str(e)
    return TargetTest(target.name, receiver.place, event.id, status, reason)


def choose_targets(path: Path, targets: Sequence[Target], names: Sequence[str]) -> tuple[Target, ...]:
    """The targets of some names, or all. Raises UsageError for an unknown name, and if there is no target."""
    if not targets:
        raise UsageError(
            f"{path} has no target of events", "it has no table [[notify]]", "docs/notify.md has an example"
        )
    known = {target.name: target for target in targets}
    for name in names:
        if name not in known:
            raise UsageError(f"no target {name!r} in {path}", did_you_mean(name, known), "aifx notify ls")
    return tuple(known[name] for name in names) if names else tuple(targets)
