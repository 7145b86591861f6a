"""`aifx serve replay`: the answers that a server recorded, written again and compared."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.jobs import refuse_job
from aifx.commands.console.options import JsonOption, RunOption, SetOption, StepOption
from aifx.commands.console.terminal import terminal
from aifx.commands.serve.command import check_packages
from aifx.core.errors import ExitCode
from aifx.core.limits import check_limits
from aifx.core.project import find_project
from aifx.core.steps import parse_step

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
        at = parse_step(step)
        refuse_job("serve replay")
        check_limits()
        check_packages()
        project = find_project()
        directory = project.existing_run(run)
        from aifx.loading.restore import restore_run
        from aifx.serving import record
        from aifx.serving.grammar import Grammars
        from aifx.serving.start import start_engine

        records = record.read_records(file)  # a wrong file is reported before minutes of loading
        trained = restore_run(directory, project, step=at, overrides=set_ or ())
        engine = start_engine(trained, record.replay_settings(trained.config.serve))
        grammars = cache(lambda: Grammars(engine.tokenizer, engine.vocab_size))
        try:
            report = record.replay(file, records, engine, lambda source: grammars().new(source))
        finally:
            engine.stop()
        found = report.difference
        if found is None:
            out.print(f"{report.replayed} answers of {report.tokens} tokens came again, bit by bit")
        else:
            out.print(f"{file}:{found.line}, token {found.token}: recorded {found.recorded}, replayed {found.replayed}")
        if report.skipped:
            out.print(f"{report.skipped} answers of other weights, settings or programs were skipped")
        out.document(asdict(report))
        if found is not None:
            raise SystemExit(int(ExitCode.VERDICT))
