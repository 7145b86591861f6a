"""`aifx serve replay`: the answers that a server recorded, written again and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption, RunOption, SetOption, StepOption
from aifx.commands.console.terminal import terminal
from aifx.core.limits import check_limits
from aifx.core.project import find_project
from aifx.verbs.jobs import refuse_job

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The serve.jsonl of a server.")]


def replay(
    file: FileArgument,
    run: RunOption = None,
    step: StepOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Write recorded answers again, many at once, and exit 1 at the first token or bit that differs.

    Examples:
        aifx serve replay runs/main/serve.jsonl
        aifx serve replay serve.jsonl --run main --step 800 --json

    `aifx serve --set serve.log_requests=true` writes the records. Replay needs the weights and the [serve] settings of
    that server. It counts the answers of others and skips them.
    """
    with terminal(json) as out:
        refuse_job("serve replay")
        check_limits()
        from aifx.verbs.serving import serve_replay

        report = serve_replay(file, find_project().existing_run(run).path, step=step, settings=set_)
        out.result(report)
        found = report.difference
        if found is None:
            out.print(f"{report.replayed} answers of {report.tokens} tokens came again, bit by bit")
        else:
            out.print(f"{file}:{found.line}, token {found.token}: recorded {found.recorded}, replayed {found.replayed}")
        if report.skipped:
            out.print(f"{report.skipped} answers of other weights, settings or programs were skipped")
