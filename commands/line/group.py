"""`aifx line`: stations that run by themselves."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.format import clock, date
from aifx.commands.console.options import JsonOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.line import files
from aifx.commands.line.options import (
    AllowShellOption,
    DecisionOptions,
    FileOption,
    OptionalStationArgument,
    StationArgument,
    TickOptions,
    line_terminal,
)
from aifx.core.errors import AifxError, ExitCode
from aifx.core.lifecycle import collect_signals, exit_code_of

if TYPE_CHECKING:
    from aifx.verbs.line_ticks import LineTick, StationStatus, StationTick

app = typer.Typer(
    help="""Run stations by themselves, in their order, as data and models change.

    Examples:
        aifx line run                    one tick: start what is due, and wait for it
        aifx line watch                  a tick per period, for ever
        aifx line status                 the state of each station
        aifx line check                  find mistakes, without running anything
        aifx line unit                   units of systemd that start it
    """
)
files.add_to(app)

SelectOption = Annotated[
    list[str] | None,
    typer.Option("--select", metavar="STATION[+]", help="Run only this station; with + also what follows it. Can be "
                 "repeated.", show_default=False),
]  # fmt: skip


@app.command()
@option_group
def run(select: SelectOption = None, *, options: TickOptions) -> None:
    """Run one tick: start the stations that are due, in their order, and wait for them.

    Examples:
        aifx line run
        aifx line run --dry-run
        aifx line run --select train+
        aifx line run --allow-shell --json

    A station whose work is done is not started again. Ctrl-C and SIGTERM end the tick, and leave what runs to the next
    one. Exits 1 if a verdict is bad, and 2 if a station failed.
    """
    with line_terminal(options.file, options.json) as out:
        from aifx.verbs.line_ticks import line_run

        with collect_signals() as came:
            found = line_run(
                select=select or (),
                file=options.file,
                allow_shell=options.allow_shell,
                dry_run=options.dry_run,
                stop=came,
                on_line=out.log,
            )
        out.result(found)
        _print_tick(out, found, options.file)


@app.command()
def status(file: FileOption = None, json: JsonOption = False) -> None:
    """Show the state of each station: since when, what it waits for, its last verdict and its next time.

    Examples:
        aifx line status
        aifx line status --json

    Starts nothing and writes nothing.
    """
    with line_terminal(file, json) as out:
        from aifx.verbs.line_ticks import line_status, with_file

        found = line_status(file=file)
        out.result(found)
        rows = [(one.station, one.state, one.verdict or None, date(one.since), date(one.next), _reason(one))
                for one in found.stations]  # fmt: skip
        out.table(["station", "state", "last", "since", "next", "why"], rows, is_dense=True)
        _print_hints(out, [(one.station, one.hint) for one in found.stations])
        if found.is_paused:
            out.print(with_file("the line is paused: aifx line resume", file))
        if found.is_open:
            out.print("a tick is open: it runs, or the next one goes on with it")
        if found.next is not None:
            out.print(f"next tick: {date(found.next)}")
        if found.problem is not None:
            why = "so the next tick's stations are not known"
            hint = with_file(found.problem["hint"], file)
            out.report([AifxError(found.problem["what"], f"{found.problem['why']}, {why}", hint)])


def _print_tick(out: Output, found: LineTick, file: Path | None) -> None:
    from aifx.verbs.line_ticks import with_file

    out.table(["station", "state", "why"], [(one.station, one.state, _reason(one)) for one in found.stations])
    for one in found.stations:
        for words in one.commands:
            out.print(f"{one.station}: would start: {shlex.join(words)}")
    _print_hints(out, [(one.station, one.hint) for one in found.stations])
    if found.next is not None:
        out.print(f"next tick: {date(found.next)}; until then, what comes from outside is not read again")
    if found.stopped_by is not None:
        out.log(with_file("the tick was stopped; aifx line run goes on with it", file))


def _reason(one: StationTick | StationStatus) -> str:
    return f"{one.what}: {one.why}" if one.what and one.why else one.what or one.why


def _print_hints(out: Output, hints: Iterable[tuple[str, str]]) -> None:
    for station, hint in hints:
        if hint:
            out.print(f"{station}: {hint}")


@app.command()
def watch(allow_shell: AllowShellOption = False, file: FileOption = None) -> None:
    """Run a tick per period, for ever, and send the events of the line's targets.

    Examples:
        aifx line watch
        aifx line watch --allow-shell

    Ticks that were missed become one. An approval or another decision begins a tick at once. SIGTERM ends the command
    with 0, and Ctrl-C with 130: what runs goes on, and the next tick adopts it.
    """
    with line_terminal(file) as out:
        from aifx.verbs.line_ticks import line_watch

        with collect_signals() as came:
            line_watch(
                file=file, allow_shell=allow_shell, stop=came,
                on_line=lambda text: out.log(f"{date(time.time())} {text}"),
            )  # fmt: skip
        if came and exit_code_of(came[0]) == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt


@app.command()
def history(
    station: Annotated[
        str | None, typer.Argument(metavar="[STATION]", help="Show only this station. By default all.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="Number of records.")] = 20,
    file: FileOption = None,
    json: JsonOption = False,
) -> None:
    """List what the line did, newest first.

    Examples:
        aifx line history
        aifx line history train --limit 5
    """
    with line_terminal(file, json) as out:
        from aifx.verbs.line_decisions import line_history
        from aifx.verbs.line_ticks import with_file

        found = line_history(station, limit=limit, file=file)
        out.result(found)
        rows = [
            (one.number, date(one.time), one.station or None, ": ".join(filter(None, (one.kind, one.outcome))),
             None if one.duration_s is None else clock(one.duration_s), one.why)
            for one in found.records
        ]  # fmt: skip
        if rows:
            columns = ["record", "time", "station", "event", "took", "why"]
            out.table(columns, rows, right=["record", "took"], is_dense=True)
        else:
            out.log(with_file("the line has done nothing yet: aifx line run", file))


@app.command()
def logs(station: StationArgument, file: FileOption = None, json: JsonOption = False) -> None:
    """Print what the last attempt of a station wrote. It may still run.

    Examples:
        aifx line logs train
        aifx line logs train --json
    """
    with line_terminal(file, json) as out:
        from aifx.verbs.line_decisions import line_logs

        found = line_logs(station, file=file)
        out.result(found)
        for one in found.commands:
            out.print(f"$ {shlex.join(one.words)}")
            for text in (one.stdout, one.stderr):
                if text.strip():
                    out.print(text.rstrip("\n"))
        out.log(f"attempt {found.attempt}, try {found.number}: "
                + ("it has not ended" if found.code is None else f"exit code {found.code}"))  # fmt: skip


@app.command()
@option_group
def retry(station: StationArgument, *, options: DecisionOptions) -> None:
    """Let the next tick try a station again that failed, had a bad verdict or was skipped.

    Examples:
        aifx line retry train
        aifx line retry train --reason "the disk has room again"

    A station that failed is tried under the same id, so that effects that it had are not repeated.
    """
    with line_terminal(options.file, options.json) as out:
        from aifx.verbs.line_decisions import line_retry
        from aifx.verbs.line_ticks import with_file

        out.result(line_retry(station, reason=options.reason, file=options.file))
        out.print(with_file(f"{station} is tried again by the next tick: aifx line run", options.file))


@app.command()
@option_group
def skip(station: StationArgument, *, options: DecisionOptions) -> None:
    """Let a station count as ended for the work that it would do now, or let its bad verdict pass.

    Examples:
        aifx line skip evaluate --reason "its data is late"

    Stations after it use what had the verdict, or else what it last made without a bad one.
    Its next work is not skipped.
    """
    with line_terminal(options.file, options.json) as out:
        from aifx.verbs.line_decisions import line_skip

        found = line_skip(station, reason=options.reason, file=options.file)
        out.result(found)
        out.print(f"{station} is skipped for work {found.key[:12]}")


@app.command()
@option_group
def approve(station: StationArgument, *, options: DecisionOptions) -> None:
    """Approve the work that a station waits with.

    Examples:
        aifx line approve promote
        aifx line approve promote --reason "read the report"

    The approval holds for this work: for another model or other data, the line asks again.
    """
    with line_terminal(options.file, options.json) as out:
        from aifx.verbs.line_decisions import line_approve
        from aifx.verbs.line_ticks import with_file

        found = line_approve(station, reason=options.reason, file=options.file)
        out.result(found)
        hint = with_file("the next tick starts it: aifx line run", options.file)
        out.print(f"{station} is approved for work {found.key[:12]}; {hint}")


@app.command()
@option_group
def pause(station: OptionalStationArgument = None, *, options: DecisionOptions) -> None:
    """Start nothing more of the line, or of a station. What runs goes on.

    Examples:
        aifx line pause
        aifx line pause train --reason "the cluster moves"
    """
    with line_terminal(options.file, options.json) as out:
        from aifx.verbs.line_decisions import line_pause
        from aifx.verbs.line_ticks import with_file

        out.result(line_pause(station, reason=options.reason, file=options.file))
        hint = with_file(f"aifx line resume {station or ''}".rstrip(), options.file)
        out.print(f"{station or 'the line'} is paused until: {hint}")


@app.command()
@option_group
def resume(station: OptionalStationArgument = None, *, options: DecisionOptions) -> None:
    """End a pause of the line or of a station.

    Examples:
        aifx line resume
        aifx line resume train
    """
    with line_terminal(options.file, options.json) as out:
        from aifx.verbs.line_decisions import line_resume

        out.result(line_resume(station, reason=options.reason, file=options.file))
        out.print(f"{station or 'the line'} is not paused any more")


@app.command()
@option_group
def backfill(
    begin: Annotated[str, typer.Option("--from", metavar="TIME", help="Date or time of the first tick.")],
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="Date or time of the last tick.")],
    *,
    options: TickOptions,
) -> None:
    """Run the ticks of a time that has passed, the oldest first.

    Examples:
        aifx line backfill --from 2026-11-01 --to 2026-11-30
        aifx line backfill --from 2026-12-01T06:00 --to 2026-12-01T12:00 --dry-run

    Times are those of the line's time zone. Work that is done already is not done again.
    """
    with line_terminal(options.file, options.json) as out:
        from aifx.verbs.line_ticks import line_backfill

        with collect_signals() as came:
            found = line_backfill(
                begin,
                end,
                file=options.file,
                allow_shell=options.allow_shell,
                dry_run=options.dry_run,
                stop=came,
                on_line=out.log,
            )
        out.result(found)
        if options.dry_run:
            for moment in found.times:
                out.print(f"would tick for {date(moment)}")
        rows = [(one.tick, station.station, station.state, _reason(station))
                for one in found.ticks for station in one.stations]  # fmt: skip
        if rows:
            out.table(["tick", "station", "state", "why"], rows)
