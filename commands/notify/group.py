"""`aifx notify`: events for business systems, sent to webhooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.format import date
from aifx.commands.console.options import DryRunOption, JsonOption
from aifx.commands.console.output import Output
from aifx.commands.line.options import line_terminal
from aifx.core.errors import AifxError, ErrorDocument
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.verbs.notifying import Deliveries, EventState

app = typer.Typer(
    help="""Send events to business systems: promotions, failures, diverged runs.

    Examples:
        aifx notify test ops                     send one test event
        aifx notify run                          send what is due now
        aifx notify ls                           show what waits, and dead letters
        aifx notify replay                       send dead letters again
    """,
    no_args_is_help=True,
)

MOST_ROWS = 50
"""Events of a target that are listed for people, waiting and dead ones each."""

FileOption = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", help="File with the targets. By default line.toml of the project."),
]
TargetsOption = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="NAME", help="Target to send to. By default all. Can be repeated."),
]


@app.command()
def run(
    target: TargetsOption = None, file: FileOption = None, dry_run: DryRunOption = False, json: JsonOption = False
) -> None:
    """Send the events that are due now, once.

    Examples:
        aifx notify run
        aifx notify run --target ops --json
        aifx notify run --dry-run
    """
    with line_terminal(file, json) as out:
        from aifx.verbs.notifying import notify_run

        _print_deliveries(out, notify_run(*target or (), dry_run=dry_run, file=file), file)


@app.command()
def ls(file: FileOption = None, json: JsonOption = False) -> None:
    """List the targets of events, with what waits for them and their dead letters.

    Examples:
        aifx notify ls
        aifx notify ls --json
    """
    with line_terminal(file, json) as out:
        from aifx.verbs.line_ticks import with_file
        from aifx.verbs.notifying import notify_ls

        found = notify_ls(file=file)
        out.result(found)
        rows = [
            (
                one.name,
                one.url_from,
                len(one.positions),
                _count(len(one.waiting), one.has_more),
                len(one.dead),
                ", ".join(one.on),
            )
            for one in found.targets
        ]
        out.table(
            ["target", "url from", "sources", "waiting", "dead", "on"], rows, right=["sources", "waiting", "dead"]
        )
        letters = [
            (one.name, state, event.id[:12], event.type, event.subject, date(event.time), event.attempts,
             date(event.next_at), event.reason or None)
            for one in found.targets
            for state, events in (("waiting", one.waiting), ("dead", one.dead))
            for event in events[:MOST_ROWS]
        ]  # fmt: skip
        if letters:
            out.print("")
            columns = ["target", "state", "event", "type", "subject", "time", "attempts", "next attempt", "reason"]
            out.table(columns, letters, right=["attempts"])
        if left := sum(len(one.waiting) + len(one.dead) for one in found.targets) - len(letters):
            out.print(with_file(f"and {counted(left, 'event')} more: aifx notify ls --json", file))
        _report(out, file, *(one.problem for one in found.targets), *found.problems)


@app.command()
def replay(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Events, by the beginnings of their ids.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Send all events from this time on. In UTC if it has no zone."),
    ] = None,
    target: TargetsOption = None,
    file: FileOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Send events again, under their ids. By default the dead letters.

    Examples:
        aifx notify replay
        aifx notify replay 3f2a91c0 --target ops
        aifx notify replay --since 2026-11-30T14:00 --dry-run
    """
    with line_terminal(file, json) as out:
        from aifx.verbs.notifying import notify_replay

        done = notify_replay(*ids or (), targets=target or (), since=since, dry_run=dry_run, file=file)
        _print_deliveries(out, done, file)


@app.command("test")
def send_test(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Target to send to.")],
    file: FileOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Send one event of the type aifx.test to a target, and say what came back.

    Examples:
        aifx notify test ops
        aifx notify test ops --dry-run
    """
    with line_terminal(file, json) as out:
        from aifx.verbs.notifying import notify_test

        done = notify_test(target, dry_run=dry_run, file=file)
        out.result(done)
        if done.is_planned:
            out.print(f"{done.target}: would send one event to {done.place} (not done: --dry-run)")
        elif done.status is not None:
            out.print(f"{done.target}: {done.place} accepted event {done.id[:12]} with {done.status}")
        else:
            out.print(f"{done.target}: {done.place} did not accept event {done.id[:12]}: {done.reason}")


def _count(waiting: int, has_more: bool) -> str:
    """The number of events that wait, with a plus sign if further ones come after them."""
    return f"{waiting}+" if has_more else str(waiting)


def _print_deliveries(out: Output, done: Deliveries, file: Path | None) -> None:
    from aifx.verbs.line_ticks import with_file

    out.result(done)
    for one in done.targets:
        sent, waiting = len(one.sent), _count(one.waiting, one.has_more)
        if done.is_planned:
            out.print(f"{one.target}: would send {sent} of {waiting} waiting (not done: --dry-run)")
        else:
            out.print(f"{one.target}: {sent} sent, {len(one.failed)} failed, {len(one.dead)} dead, {waiting} waiting")
        for event in one.sent if done.is_planned else ():
            out.print(f"  {_name(event)}")
        for event in one.failed:
            again = f"; next attempt {date(event.next_at)}" if event.next_at else ""
            out.print(f"  failed  {_name(event)}: {event.reason}{again}")
        for event in one.dead:
            again = with_file("aifx notify replay sends it again", file)
            out.print(f"  dead    {_name(event)}: {event.reason}; {again}")
    _report(out, file, *(one.problem for one in done.targets), *done.problems)


def _name(event: EventState) -> str:
    return f"{event.id[:12]} {event.type} {event.subject}"


def _report(out: Output, file: Path | None, *problems: ErrorDocument | None) -> None:
    from aifx.verbs.line_ticks import with_file

    out.report(AifxError(one["what"], one["why"], with_file(one["hint"], file)) for one in problems if one)
