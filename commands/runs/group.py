"""`aifx runs`: what runs there are and how they went. Reads run directories without jax: quick, alive or dead."""

from __future__ import annotations

import time
from typing import Annotated, Any, Optional

import typer

from aifx.commands.console.completion import complete_run, complete_tag
from aifx.commands.console.failures import as_error
from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import Output, terminal
from aifx.commands.runs.manage import rename, rm, tag
from aifx.core.errors import ExitCode, UsageError
from aifx.core.files import UnsafeFile

app = typer.Typer(
    help="""List, show, compare, watch, tag, rename and delete runs.

    Examples:
        aifx runs ls                     every run, and how it went
        aifx runs show main              one run: settings, curve, checkpoints, evaluations
        aifx runs compare main other     two runs side by side
        aifx runs watch                  the newest run, live
        aifx runs rm trial               delete a run; also rename, tag
    """
)

NameArgument = Annotated[
    Optional[str],  # noqa: UP045 (typer reads it at run time)
    typer.Argument(
        metavar="[NAME]",
        help="Name of the run; the one written last when not given.",
        show_default=False,
        autocompletion=complete_run,
    ),
]


@app.command()
def ls(
    tag: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--tag",
            metavar="TAG",
            help="List only runs that have this tag.",
            show_default=False,
            autocompletion=complete_tag,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the project's runs, the one written last at the end.

    Examples:
        aifx runs ls
        aifx runs ls --tag baseline
        aifx runs ls --json
    """
    with terminal(json) as out:
        from aifx.commands.console.format import age, count, figure, rate
        from aifx.core.project import find_project
        from aifx.runs import run_status

        project = find_project()
        runs = []
        for run in project.runs():
            try:
                status = run_status(run)
            except (UnsafeFile, OSError) as error:  # one bad run does not hide the others
                out.tell([as_error(error)])
                continue
            if tag in (None, *status.tags):
                runs.append(status)
        out.document({"runs": [r.document() for r in runs]})
        if not runs:
            text = f"no run has the tag {tag}" if tag else f"no runs in {project.runs_path}: `aifx train` makes one"
            out.say(text)
            return
        columns = ["run", "status", "step", "loss", "validation", "best", "speed", "written"]
        if has_tags := any(r.tags for r in runs):
            columns.append("tags")
        rows = [
            (
                r.name,
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
                out.print(f"run {r.name} is damaged: {r.damage}")


@app.command()
def show(name: NameArgument = None, json: JsonOption = False) -> None:
    """Show one run: what was set, how the loss went, checkpoints, evaluations, where it came from.

    Examples:
        aifx runs show
        aifx runs show main --json
    """
    with terminal(json) as out:
        from aifx.checkpoint.listing import list_checkpoints
        from aifx.commands.runs.page import RunPage, print_run
        from aifx.core.json_files import read_jsonl
        from aifx.core.project import find_project
        from aifx.runs import read_provenance, run_status
        from aifx.runs.reading import changed_settings, read_evaluations

        run = find_project().existing_run(name)
        page = RunPage(
            status=run_status(run),
            settings=changed_settings(run),
            records=read_jsonl(run.metrics),
            checkpoints=list_checkpoints(run.checkpoints),
            evaluations=read_evaluations(run),
            provenance=read_provenance(run),
        )
        out.document(page.document())
        if not json:
            print_run(out, page)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="One run.", autocompletion=complete_run)],
    second: Annotated[str, typer.Argument(metavar="B", help="The other.", autocompletion=complete_run)],
    json: JsonOption = False,
) -> None:
    """Compare two runs of any lengths: settings that differ, validation, smoothed losses, evaluations.

    Examples:
        aifx runs compare main wide
        aifx runs compare main wide --json
    """
    with terminal(json) as out:
        from aifx.commands.runs.compare import comparison_document, print_comparison
        from aifx.core.project import find_project
        from aifx.runs import run_status
        from aifx.runs.comparison import compare_runs

        if first == second:
            raise UsageError(f"{first!r} would be compared with itself", "two runs are needed", "aifx runs ls")
        project = find_project()
        runs = [project.existing_run(name) for name in (first, second)]
        comparison = compare_runs(runs[0], runs[1])
        out.document(comparison_document([run_status(run).document() for run in runs], comparison))
        if not json:
            print_comparison(out, first, second, comparison)


@app.command()
def watch(
    name: NameArgument = None,
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, metavar="SECONDS", help="Time between two looks.")
    ] = 1.0,
    json: JsonOption = False,
) -> None:
    """Watch a run as it goes, from any terminal; ends when the run ends, or with Ctrl-C. The run takes no notice.

    Examples:
        aifx runs watch
        aifx runs watch main --once
        aifx runs watch main --json      waits for the end of the run, then tells how it went

    Off a terminal it prints a line now and then.
    """
    with terminal(json) as out:
        from aifx.commands.runs.watching import Watcher
        from aifx.core.project import find_project

        watcher = Watcher(find_project().existing_run(name))
        try:
            if not once:
                _follow(out, watcher, interval)
            elif not json:
                out.print(watcher.picture(out.out.width, ascii_only=not out.out.encoding.lower().startswith("utf")))
        except KeyboardInterrupt:
            raise SystemExit(ExitCode.INTERRUPTED) from None
        out.document(watcher.status.document())


app.command()(tag)
app.command()(rename)
app.command()(rm)


def _follow(out: Output, watcher: Any, interval_s: float) -> None:
    """Show the run until it ends: a panel on a terminal, lines elsewhere, nothing with --json."""
    if out.json:
        while watcher.look():
            time.sleep(interval_s)
    elif out.animated:
        watcher.live(out.err, interval_s)
    else:
        watcher.lines(out, interval_s)
