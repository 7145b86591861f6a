"""`aifx line`: stations that run by themselves."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.format import date
from aifx.commands.console.options import DryRunOption, JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.line import files
from aifx.core.errors import AifxError
from aifx.core.lifecycle import collect_signals

if TYPE_CHECKING:
    from aifx.verbs.lines import LineTick, StationStatus, StationTick

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

FileOption = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", help="Line to use. By default line.toml of the project.",
                 show_default=False),
]  # fmt: skip
AllowShellOption = Annotated[
    bool, typer.Option("--allow-shell", help="Run stations with shell = true, which start any program.")
]
SelectOption = Annotated[
    list[str] | None,
    typer.Option("--select", metavar="STATION[+]", help="Run only this station; with + also what follows it. Can be "
                 "repeated.", show_default=False),
]  # fmt: skip


@app.command()
def run(
    select: SelectOption = None,
    allow_shell: AllowShellOption = False,
    dry_run: DryRunOption = False,
    file: FileOption = None,
    json: JsonOption = False,
) -> None:
    """Run one tick: start the stations that are due, in their order, and wait for them.

    Examples:
        aifx line run
        aifx line run --dry-run
        aifx line run --select train+
        aifx line run --allow-shell --json

    A station whose work is done is not started again. Ctrl-C and SIGTERM end the tick, and leave what runs to the next
    one. Exits 1 if a verdict is bad, and 2 if a station failed.
    """
    with terminal(json) as out:
        from aifx.verbs.lines import line_run

        with collect_signals() as came:
            found = line_run(
                file=file, select=select or (), allow_shell=allow_shell, dry_run=dry_run, stop=came, on_line=out.log
            )
        out.result(found)
        _print_tick(out, found)


@app.command()
def status(file: FileOption = None, json: JsonOption = False) -> None:
    """Show the state of each station: since when, what it waits for, its last verdict and its next time.

    Examples:
        aifx line status
        aifx line status --json

    Starts nothing and writes nothing.
    """
    with terminal(json) as out:
        from aifx.verbs.lines import line_status

        found = line_status(file=file)
        out.result(found)
        rows = [(one.station, one.state, one.verdict or None, date(one.since), date(one.next), _reason(one))
                for one in found.stations]  # fmt: skip
        out.table(["station", "state", "last", "since", "next", "why"], rows)
        _print_hints(out, [(one.station, one.hint) for one in found.stations])
        if found.is_paused:
            out.print("the line is paused: aifx line resume")
        if found.is_open:
            out.print("a tick is open: it runs, or the next one goes on with it")
        if found.next is not None:
            out.print(f"next tick: {date(found.next)}")
        if found.problem is not None:
            why = "so the next tick's stations are not known"
            out.report([AifxError(found.problem["what"], f"{found.problem['why']}, {why}", found.problem["hint"])])


def _print_tick(out: Output, found: LineTick) -> None:
    out.table(["station", "state", "why"], [(one.station, one.state, _reason(one)) for one in found.stations])
    for one in found.stations:
        for words in one.commands:
            out.print(f"{one.station}: would start: {shlex.join(words)}")
    _print_hints(out, [(one.station, one.hint) for one in found.stations])
    if found.stopped_by is not None:
        out.log("the tick was stopped; aifx line run goes on with it")


def _reason(one: StationTick | StationStatus) -> str:
    return f"{one.what}: {one.why}" if one.what and one.why else one.what or one.why or "-"


def _print_hints(out: Output, hints: Iterable[tuple[str, str]]) -> None:
    for station, hint in hints:
        if hint:
            out.print(f"{station}: {hint}")
