"""`aifx launch ls | logs | stop`, and how a job is followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.format import date
from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.verbs.completion import complete_launch

if TYPE_CHECKING:
    from aifx.verbs.launching import JobStatus, LaunchRecord

LaunchArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[LAUNCH]",
        help="Launch: its id, its run or its job. By default the newest.",
        autocompletion=complete_launch,
    ),
]


def ls(json: JsonOption = False) -> None:
    """List what was launched from this project, with the state of each job.

    Examples:
        aifx launch ls
        aifx launch ls --json
    """
    with terminal(json) as out:
        from aifx.verbs.launching import launch_ls

        found = launch_ls(on_error=lambda error: out.report([error]))
        out.result(found)
        rows = [
            (
                one.record.id,
                f"{one.record.backend} {one.record.job}",
                str(one.status),
                str(one.starts),
                date(one.record.time),
                " ".join(one.record.arguments),
            )
            for one in found.launches
        ]
        if rows:
            out.table(["launch", "job", "state", "starts", "launched", "command"], rows, right=["starts"])
        else:
            out.log("nothing was launched here")


def logs(
    launch: LaunchArgument = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
) -> None:
    """Print what a job has written.

    Examples:
        aifx launch logs
        aifx launch logs wide --follow

    With --follow, exits as the job does.
    """
    with terminal() as out:
        from aifx.verbs.launching import launch_logs

        if follow:
            follow_job(out, launch)
        else:
            launch_logs(launch, on_line=lambda line: _write_line(out, line))


def stop(
    launch: LaunchArgument = None,
    now: Annotated[bool, typer.Option("--now", help="End the job without waiting for a checkpoint.")] = False,
) -> None:
    """Stop a job: its run saves a checkpoint, and the job does not go back to the queue.

    Examples:
        aifx launch stop
        aifx launch stop wide --now
    """
    with terminal() as out:
        from aifx.verbs.launching import launch_stop

        record = launch_stop(launch, now=now)
        out.print(f"launch {record.id}: job {record.job} is asked to stop")


def follow_job(out: Output, launch: str | None) -> None:
    """Show what a job writes and how it fares until it is over. The command ends as the job does."""
    from aifx.verbs.launching import launch_follow

    def on_status(record: LaunchRecord, status: JobStatus) -> None:
        out.log(f"job {record.job}: {status}")

    out.result(launch_follow(launch, on_line=lambda line: _write_line(out, line), on_status=on_status))


def _write_line(out: Output, line: bytes) -> None:
    out.print(line.decode("utf-8", "replace"))
