"""`aifx launch ls | logs | stop`, and how a job is followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.completion import complete_launch
from aifx.commands.console.format import date
from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import ExitCode, UsageError
from aifx.core.project import Project, find_project

if TYPE_CHECKING:
    from aifx.cluster.jobs import JobStatus, LaunchRecord

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
        from aifx.cluster.launched import list_launches

        found = list_launches(find_project(), lambda error: out.report([error]))
        out.document(found)
        rows = [
            (
                one.record.id,
                f"{one.record.backend} {one.record.job}",
                describe(one.status),
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
    code = 0
    with terminal() as out:
        from aifx.cluster.launched import backend_of, find_record, folder_of

        project = find_project()
        record = find_record(project, launch)
        if follow:
            code = follow_job(out, project, record)
        else:
            for line in backend_of(record).lines(record, folder_of(project, record.id)):
                if line is None:
                    break
                _write_line(out, line)
    if code:
        raise SystemExit(code)


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
        from aifx.cluster.jobs import OVER
        from aifx.cluster.launched import backend_of, find_record, folder_of

        project = find_project()
        record = find_record(project, launch)
        backend = backend_of(record)
        status = backend.status(record, folder_of(project, record.id))
        if status.state in OVER:
            raise UsageError(f"launch {record.id} is over: {describe(status)}", "", "aifx launch ls")
        backend.stop(record, status, now=now)
        out.print(f"launch {record.id}: job {record.job} is asked to stop")


def follow_job(out: Output, project: Project, record: LaunchRecord) -> int:
    """Show what a job writes and how it fares until it is over. Returns its exit code."""
    from aifx.cluster.launched import folder_of, follow

    def on_status(status: JobStatus) -> None:
        out.log(f"job {record.job}: {describe(status)}")

    try:
        status = follow(record, folder_of(project, record.id), lambda line: _write_line(out, line), on_status)
    except KeyboardInterrupt:
        out.log(f"job {record.job} goes on; aifx launch logs {record.id} --follow shows it, aifx launch stop ends it")
        raise
    unknown = {"completed": ExitCode.OK, "stopped": ExitCode.INTERRUPTED}.get(status.state, ExitCode.UNABLE)
    return int(status.exit_code or unknown)


def describe(status: JobStatus) -> str:
    """`pending (Priority)`, `running on n[1-2]`, `failed (exit 2)`."""
    where = f" on {status.nodes}" if status.nodes else ""
    code = f"exit {status.exit_code}" if status.exit_code else ""
    more = ", ".join(part for part in (status.why, code) if part)
    return f"{status.state}{where}{f' ({more})' if more else ''}"


def _write_line(out: Output, line: bytes) -> None:
    out.print(line.decode("utf-8", "replace"))
