"""`aifx serve` and `aifx serve replay`: a trained model over HTTP, and its recorded answers written again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.failures import as_error
from aifx.commands.console.options import (
    JsonOption,
    ModelOption,
    RunOption,
    SetOption,
    StepOption,
    TrustCodeOption,
    option_group,
)
from aifx.commands.console.terminal import terminal
from aifx.core.errors import AifxError, UsageError
from aifx.core.json_values import encode_json
from aifx.core.limits import check_limits
from aifx.core.plurals import counted
from aifx.verbs.jobs import refuse_job


@dataclass(frozen=True)
class ServeOptions:
    """Settings of [serve] that have an option."""

    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Listen at ADDRESS. By default 127.0.0.1.")
    ] = None
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="PORT",
            min=0,
            max=65535,
            help="Listen at PORT. By default 8000; 0 takes a free one.",
        ),
    ] = None
    slots: Annotated[
        str | None,
        typer.Option(
            "--slots", metavar="N[,N]", help="Compile a program for each number of requests at once. By default 8,16."
        ),
    ] = None
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Size of the page pool, such as 2GiB. By default all slots fit, in half of free memory at most.",
        ),
    ] = None
    max_model_len: Annotated[
        int | None,
        typer.Option(
            "--max-model-len",
            metavar="N",
            help="Limit a prompt with its answer to N tokens. By default the context of the model.",
        ),
    ] = None
    served_model_name: Annotated[
        str | None,
        typer.Option("--served-model-name", metavar="NAME", help="Name the model in the API. By default by its run."),
    ] = None
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=RUN", help="Also serve a run's LoRA adapters. Can be repeated."),
    ] = None
    quantize: Annotated[
        str | None, typer.Option("--quantize", metavar="TYPE", help="Quantize the model's matrices, such as int8.")
    ] = None
    lenient: Annotated[bool, typer.Option("--lenient", help="Ignore unknown fields of requests.")] = False
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Serve new checkpoints of the run, or what the alias means, once they pass the canary."
        ),
    ] = False
    canary: Annotated[
        Path | None, typer.Option("--canary", metavar="FILE", help="With --watch: prompts that new weights must pass.")
    ] = None

    shadow: Annotated[
        str | None,
        typer.Option(
            "--shadow",
            metavar="RUN[:STEP]|MODEL",
            help="Let another run or NAME@ALIAS answer a share of the requests, too, and record both answers.",
        ),
    ] = None
    shadow_share: Annotated[
        float | None,
        typer.Option("--shadow-share", metavar="SHARE", help="With --shadow: share of the requests. By default 0.1."),
    ] = None

    def overrides(self) -> list[str]:
        """The same as `--set` strings, so that they are checked in one place. Raises UsageError."""
        if self.slots is not None and not re.fullmatch(r"\d+(,\d+)*", self.slots):
            raise UsageError(
                f"--slots {self.slots} cannot be used", "expected numbers with commas", "aifx serve --slots 8,16"
            )
        slots = f"[{self.slots}]" if self.slots is not None else None
        given: dict[str, object] = {"host": self.host, "port": self.port, "slots": slots, "memory": self.memory}
        given |= {"max_model_len": self.max_model_len, "served_model_name": self.served_model_name}
        given |= {"adapters": encode_json(self.adapter) if self.adapter else None, "quantize": self.quantize}
        given |= {"lenient": "true" if self.lenient else None, "shadow_share": self.shadow_share}
        if self.shadow_share is not None and self.shadow is None:
            why = "it is the share of the second model"
            raise UsageError("--shadow-share requires --shadow", why, "aifx serve --shadow NAME@ALIAS")
        return [f"serve.{key}={value}" for key, value in given.items() if value is not None]


@option_group
def start(
    run: RunOption = None,
    model: ModelOption = None,
    trust_code: TrustCodeOption = None,
    step: StepOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
    *,
    options: ServeOptions,
) -> None:
    """Serve a trained model over HTTP: text with OpenAI's API, or predictions.

    Examples:
        aifx serve
        aifx serve --run main --step last --port 8080
        aifx serve --model fraud@production
        aifx serve --slots 1 --quantize int8
        aifx serve --step last --watch --canary canary.jsonl
        aifx serve --model fraud@production --watch
        aifx serve --model fraud@production --shadow fraud@v4 --shadow-share 0.2
        AIFX_SERVE__API_KEY=$(cat key) aifx serve --host 0.0.0.0
        curl --json '{"prompt": "Call me"}' localhost:8000/v1/completions
        curl --json '{"rows": [{"width": 3}]}' localhost:8000/v1/predict

    Settings that are not given come from [serve] of aifx.toml, otherwise from the run's configuration. SIGTERM and
    Ctrl-C finish the requests that run; a second signal ends the server at once.

    Without a key, the server refuses web pages of other sites (serve.cors_origins allows some), and JSON needs
    Content-Type: application/json. An address has at most 64 unfinished requests: behind a proxy such as nginx, use
    --set serve.max_client_requests=0.
    """
    with terminal(json, streams=True) as out:
        refuse_job("serve")
        check_limits()
        from aifx.verbs.models import choose_model, choose_other
        from aifx.verbs.serving import serve

        shadow, shadow_step = (None, None) if options.shadow is None else choose_other(options.shadow)
        server = serve(
            choose_model(run, model),
            step=step,
            settings=[*(set_ or ()), *options.overrides()],
            trust_code=trust_code,
            watch=options.watch,
            canary=options.canary,
            shadow=shadow,
            shadow_step=shadow_step,
        )
        started = server.listening

        def report() -> None:
            routes = ", ".join(started.routes)
            out.log(f"listening at {started.url}; {started.model} of step {started.step}: {routes}. Ctrl-C stops it")
            if json:
                out.write(encode_json(started.document()) + "\n")

        try:
            server.wait(report)
        except (AifxError, KeyboardInterrupt) as error:
            if not json:
                raise
            failure = as_error(error)  # stdout has its document already
            out.report([failure])
            raise SystemExit(int(failure.exit_code)) from None


RecordsArgument = Annotated[
    Path, typer.Argument(metavar="RECORDS", help="Folder of records: of a server, or of all servers of a run.")
]


def replay(
    records: RecordsArgument,
    run: RunOption = None,
    model: ModelOption = None,
    trust_code: TrustCodeOption = None,
    step: StepOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Compute recorded answers again, many at once, and exit 1 at the first token or bit that differs.

    Examples:
        aifx serve replay runs/main/records
        aifx serve replay runs/main/records --run main --step 800 --json

    `aifx serve --set serve.log_requests=true` writes the records. Replay needs the weights and the [serve] settings of
    that server. It counts the answers of others and skips them. Before that, aifx checks that no
    record was changed or removed.
    """
    with terminal(json) as out:
        refuse_job("serve replay")
        check_limits()
        from aifx.verbs.models import choose_model
        from aifx.verbs.serving import serve_replay

        report = serve_replay(records, choose_model(run, model), step=step, settings=set_, trust_code=trust_code)
        out.result(report)
        found = report.difference
        if found is None:
            what = counted(report.rows, "row") if report.rows else counted(report.tokens, "token")
            out.print(f"{counted(report.replayed, 'answer')} of {what} came again, bit by bit")
        else:
            place = f"{found.record}, {found.unit} {found.place}"
            out.print(f"{place}: recorded {found.recorded}, replayed {found.replayed}")
        if report.skipped:
            out.print(f"{report.skipped} answers of other weights, settings or programs were skipped")
        if report.erased:
            out.print(f"{counted(report.erased, 'answer')} had been erased")
        if report.missing:
            out.print(f"{counted(report.missing, 'answer')} did not reach the disk before it lost power")


app = typer.Typer(
    help="""Serve a trained model over HTTP: text with OpenAI's API, or predictions.

    Without a command, `aifx serve` runs `start`: see `aifx serve start --help`.

    Examples:
        aifx serve                               serve the run that was written last
        aifx serve --run main --port 8080        a run, at a port
        aifx serve --watch --canary FILE         take over checkpoints that pass
        aifx serve replay runs/main/records      prove that answers come again
    """
)
for command in (start, replay):
    app.command()(command)
