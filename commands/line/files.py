"""`aifx line`: commands about the file of a line, which run nothing of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption, SetOption
from aifx.commands.line.options import FileOption, line_terminal
from aifx.core.plurals import counted


def add_to(app: typer.Typer) -> None:
    """Add the commands to the group `aifx line`."""
    for command in (check, graph, unit, k8s):
        app.command()(command)


def _check_command(words: Sequence[str]) -> None:
    from aifx.commands.app import app
    from aifx.commands.console.typer_internals import check_words

    check_words(app, words)


def check(file: FileOption = None, json: JsonOption = False) -> None:
    """Check a line without running it, and report every finding with its place.

    It finds circles, two stations of one name, commands and options that aifx does not have, names that mean nothing,
    variables that are not set, and stations that train without cooldown and budget_per_day. Exit code 1 if there are
    findings.

    Examples:
        aifx line check
        aifx line check --file nightly.toml --json
    """
    with line_terminal(file, json) as out:
        from aifx.verbs.line_files import line_check

        found = line_check(file, check_command=_check_command)
        out.result(found)
        for one in found.findings:
            out.print(one.describe(found.path))
            if one.hint:
                out.print(f"  hint: {one.hint}")
        valid = f"valid, {counted(len(found.stations), 'station')}"
        out.print(f"{found.path}: {counted(len(found.findings), 'finding') if found.findings else valid}")


def graph(
    file: FileOption = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a web page to FILE.")] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Also write the picture to FILE.")] = None,
    json: JsonOption = False,
) -> None:
    """Show which stations need which, and the state of each. Starts no station, and asks schedulers about open jobs.

    Examples:
        aifx line graph
        aifx line graph --html line.html
        aifx line graph --svg line.svg
    """
    with line_terminal(file, json) as out:
        from aifx.verbs.line_files import line_graph

        found = line_graph(file, html=html, svg=svg)
        out.result(found)
        for row in found.text():
            out.print(row)


WatchOption = Annotated[bool, typer.Option("--watch", help="Run `aifx line watch` for ever, instead of each tick.")]
NameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name. By default that of the project's folder.")
]


def unit(
    file: FileOption = None,
    watch: WatchOption = False,
    name: NameOption = None,
    environment_file: Annotated[
        Path | None,
        typer.Option("--environment-file", metavar="FILE", help="File with lines NAME=VALUE that the line needs."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FOLDER", help="Write the units into FOLDER.")
    ] = None,
) -> None:
    """Print units of systemd that start a line: a service and a timer, or with --watch a service that stays.

    Examples:
        aifx line unit
        aifx line unit --output ~/.config/systemd/user && systemctl --user enable --now aifx-line-NAME.timer
        aifx line unit --watch --environment-file ~/.config/aifx/line.env
    """
    with line_terminal(file) as out:
        from aifx.verbs.line_files import line_unit, write_units

        made = line_unit(file, watch=watch, name=name, environment_file=environment_file)
        if output is None:
            for title, text in made.items():
                out.write(f"# {title}\n{text}\n")
            return
        for path in write_units(made, output):
            out.print(str(path))


def k8s(file: FileOption = None, watch: WatchOption = False, name: NameOption = None, set_: SetOption = None) -> None:
    """Print a CronJob of Kubernetes that starts a line, or with --watch a Deployment that stays.

    If a station submits jobs to Kubernetes, an account that may do so is printed too.

    Examples:
        aifx line k8s > line.yaml
        aifx line k8s --watch --set launch.image=registry/lm:1 --set k8s.runs_claim=runs
    """
    with line_terminal(file) as out:
        from aifx.verbs.line_files import line_k8s

        out.write(line_k8s(file, watch=watch, name=name, settings=set_))
