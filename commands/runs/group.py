"""`aifx runs`: list, show, compare, watch and report runs. Reads run directories without importing jax."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.confirming import confirm_deletion
from aifx.commands.console.failures import as_error
from aifx.commands.console.format import age, count, figure, rate
from aifx.commands.console.options import DryRunOption, JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import ExitCode
from aifx.core.json_files import readable_bytes
from aifx.core.project import find_project
from aifx.verbs.completion import complete_run, complete_tag

if TYPE_CHECKING:
    from aifx.verbs.runs import RemovedRuns, RunStatus


RunArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the run.", autocompletion=complete_run)]


def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names of the runs.", autocompletion=complete_run)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Delete runs with their checkpoints, metrics and reports.

    Examples:
        aifx runs rm trial
        aifx runs rm trial-1 trial-2 --yes
        aifx runs rm trial --dry-run

    On a terminal, aifx asks first. A script must use --yes. A run that is being trained cannot be deleted.
    """
    with terminal(json) as out:
        from aifx.verbs.runs import runs_rm

        def confirm(removed: RemovedRuns) -> None:
            listed = [one.run for one in removed.removed]
            size = readable_bytes(sum(one.size_bytes for one in removed.removed))
            confirm_deletion(out, ", ".join(listed), size, f"aifx runs rm {' '.join(listed)} --yes")

        found = runs_rm(*names, dry_run=dry_run, confirm=None if yes else confirm)
        out.result(found)
        verb = "would delete" if dry_run else "deleted"
        for one in found.removed:
            out.print(f"{verb} {one.run}: {readable_bytes(one.size_bytes)}")


def rename(
    old: RunArgument,
    new: Annotated[str, typer.Argument(metavar="NEW", help="New name.")],
    json: JsonOption = False,
) -> None:
    """Rename a run. Its checkpoints, metrics and reports keep their content.

    Examples:
        aifx runs rename main baseline

    A run that is being trained cannot be renamed. Trackers keep the old name.
    """
    with terminal(json) as out:
        from aifx.verbs.runs import runs_rename

        renamed = runs_rename(old, new)
        out.result(renamed)
        out.print(f"renamed {old} to {renamed.run}")


def tag(
    name: RunArgument,
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="TAG", help="Tags to add.", autocompletion=complete_tag)
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="TAG", help="Tag to remove. Can be repeated.", autocompletion=complete_tag),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Add tags to a run, remove tags, or print them.

    Examples:
        aifx runs tag main                        print the tags
        aifx runs tag main baseline paper         add two tags
        aifx runs tag main --remove paper
        aifx runs ls --tag baseline               list the runs with a tag
    """
    with terminal(json) as out:
        from aifx.verbs.runs import runs_tag

        tagged = runs_tag(name, *(tags or ()), remove=remove or ())
        out.result(tagged)
        out.print(f"{tagged.run}: {', '.join(tagged.tags) or 'no tag'}")


app = typer.Typer(
    help="""List, show, compare, watch, report, tag, rename and delete runs.

    Examples:
        aifx runs ls                     list all runs
        aifx runs show main              show its settings, losses and checkpoints
        aifx runs compare main other     compare two runs
        aifx runs watch                  watch the newest run live
        aifx runs report main            write it as a page
        aifx runs rm trial               delete a run
    """
)

NameArgument = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="Run to use. By default the run written last.", autocompletion=complete_run),
]


@app.command()
def ls(
    tag: Annotated[
        str | None,
        typer.Option("--tag", metavar="TAG", help="List only runs with this tag.", autocompletion=complete_tag),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the project's runs, the newest at the end.

    Examples:
        aifx runs ls
        aifx runs ls --tag baseline
        aifx runs ls --json
    """
    with terminal(json) as out:
        from aifx.verbs.runs import runs_ls

        found = runs_ls(tag, on_error=lambda error: out.report([as_error(error)]))
        out.result(found)
        if found.runs:
            _print_runs(out, found.runs)


def _print_runs(out: Output, runs: list[RunStatus]) -> None:
    columns = ["run", "status", "step", "loss", "validation", "best", "speed", "written"]
    if has_tags := any(r.tags for r in runs):
        columns.append("tags")
    rows = [
        (
            r.run,
            f"{r.status}, damaged" if r.damage else r.status,
            f"{count(r.step)}/{count(r.num_steps)}",
            figure(r.loss),
            figure(r.validation_loss),
            figure(r.best_validation_loss),
            rate(r.units_per_s, r.unit),
            age(r.updated),
            *([", ".join(r.tags)] if has_tags else []),
        )
        for r in runs
    ]
    out.table(columns, rows, right=["step", "loss", "validation", "best", "speed"])
    for r in runs:
        if r.damage:
            out.print(f"run {r.run} is damaged: {r.damage}")


@app.command()
def show(name: NameArgument = None, json: JsonOption = False) -> None:
    """Show one run: settings, losses, checkpoints, evaluations and provenance.

    Examples:
        aifx runs show
        aifx runs show main --json
    """
    with terminal(json) as out:
        from aifx.commands.runs.page import print_run
        from aifx.verbs.runs import runs_metrics, runs_show

        name = find_project().existing_run(name).name
        records = runs_metrics(name)
        details = runs_show(name, records=records)
        out.result(details)
        print_run(out, details, records)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="First run.", autocompletion=complete_run)],
    second: Annotated[str, typer.Argument(metavar="B", help="Second run.", autocompletion=complete_run)],
    json: JsonOption = False,
) -> None:
    """Compare two runs: different settings, validation, smoothed losses and evaluations.

    Examples:
        aifx runs compare main wide
        aifx runs compare main wide --json
    """
    with terminal(json) as out:
        from aifx.commands.runs.page import print_comparison
        from aifx.verbs.runs import runs_compare

        comparison = runs_compare(first, second)
        out.result(comparison)
        print_comparison(out, comparison)


@app.command()
def watch(
    name: NameArgument = None,
    once: Annotated[bool, typer.Option("--once", help="Print the current state and exit.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, metavar="SECONDS", help="Time between two readings.")
    ] = 1.0,
    json: JsonOption = False,
) -> None:
    """Watch a run until it ends. Ctrl-C stops watching and does not affect the run.

    Examples:
        aifx runs watch
        aifx runs watch main --once
        aifx runs watch main --json     wait until it ends, then print its result

    Without a terminal, it prints a line at most every ten seconds.
    """
    with terminal(json) as out:
        from aifx.commands.runs.watching import follow, picture
        from aifx.verbs.runs import runs_watch

        watched = runs_watch(name)
        try:
            if not once:
                follow(out, watched, interval)
            elif not json:
                out.print(picture(out.out, watched))
        except KeyboardInterrupt:
            raise SystemExit(ExitCode.INTERRUPTED) from None
        out.result(watched.status)


@app.command()
def report(
    name: NameArgument = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="File to write. By default NAME.html in this folder.")
    ] = None,
) -> None:
    """Write a run as one page: curves, time, checkpoints, evaluations, samples, settings and provenance.

    Examples:
        aifx runs report
        aifx runs report main --html report.html

    The page is one file, which loads nothing and runs nothing.
    """
    with terminal() as out:
        from aifx.verbs.runs import runs_report

        out.print(str(runs_report(name, html=html)))


app.command()(tag)
app.command()(rename)
app.command()(rm)
