"""`aifx serve`: a trained model over HTTP."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.failures import as_error
from aifx.commands.console.jobs import refuse_job
from aifx.commands.console.options import JsonOption, RunOption, SetOption, StepOption, option_group
from aifx.commands.console.terminal import terminal
from aifx.core.errors import AifxError, EnvironmentFault, UsageError
from aifx.core.json_values import encode_json
from aifx.core.limits import check_limits
from aifx.core.project import Project, RunDirectory, find_project
from aifx.core.steps import StepChoice, parse_step

if TYPE_CHECKING:
    from aifx.core.web.server import HttpServer
    from aifx.serving.http.services import Service


@dataclass(frozen=True)
class Listening:
    """The line that `aifx serve --json` prints when the server takes requests.

    Attributes:
        model: its name in the API.
        system_fingerprint: the digest of weights and programs, which each answer has.
        routes: those of the run's task, such as "/v1/completions", without those that every server has.
        pool_tokens: capacity of the page pool, in tokens of running requests and cached prompts.
        max_model_len: most tokens of a request with its answer.
        rows_per_batch: rows that one call of the program predicts; null for text. `adapters`, `slots`, `pool_tokens`
            and `max_model_len` are null for predictions.
        is_reproducible: whether a check on this device showed that an answer's bits do not depend on other requests.
    """

    url: str
    run: str
    step: int
    model: str
    routes: list[str]
    system_fingerprint: str
    is_reproducible: bool
    adapters: list[str] | None = None
    slots: list[int] | None = None
    pool_tokens: int | None = None
    max_model_len: int | None = None
    rows_per_batch: int | None = None


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
        bool, typer.Option("--watch", help="Serve new checkpoints of the run, once they pass the canary.")
    ] = False
    canary: Annotated[
        Path | None, typer.Option("--canary", metavar="FILE", help="With --watch: prompts that new weights must pass.")
    ] = None

    def overrides(self) -> list[str]:
        """The same as `--set` strings, so that they are checked in one place. Raises UsageError."""
        if self.slots is not None and not re.fullmatch(r"\d+(,\d+)*", self.slots):
            raise UsageError(
                f"--slots {self.slots} cannot be used", "expected numbers with commas", "aifx serve --slots 8,16"
            )
        slots = f"[{self.slots}]" if self.slots is not None else None
        given = {"host": self.host, "port": self.port, "slots": slots, "memory": self.memory}
        given |= {"max_model_len": self.max_model_len, "served_model_name": self.served_model_name}
        given |= {"adapters": encode_json(self.adapter) if self.adapter else None, "quantize": self.quantize}
        given |= {"lenient": "true" if self.lenient else None}
        return [f"serve.{key}={value}" for key, value in given.items() if value is not None]


@option_group
def start(
    run: RunOption = None,
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
        aifx serve --slots 1 --quantize int8
        aifx serve --step last --watch --canary canary.jsonl
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
        at = parse_step(step)
        refuse_job("serve")
        check_limits()
        check_packages()
        if options.canary is not None and not options.watch:
            raise UsageError(
                "--canary requires --watch", "it judges new checkpoints", "aifx serve --watch --canary FILE"
            )
        from aifx.serving.http.app import check_ending

        project = find_project()
        directory = project.existing_run(run)
        overrides = [*(set_ or ()), *options.overrides()]
        prepared = prepare(directory, project, at, overrides)
        server, listening = prepared.server, prepared.listening
        if options.watch:
            prepared.watch(at, options.canary, overrides)

        def report() -> None:
            routes = ", ".join(listening.routes)
            out.log(
                f"listening at {listening.url}; {listening.model} of step {listening.step}: {routes}. Ctrl-C stops it"
            )
            if json:
                out.write(encode_json({"schema_version": 1, **vars(listening)}) + "\n")

        ending = server.run(report)
        try:
            check_ending(ending, server.drain_s)
        except (AifxError, KeyboardInterrupt) as error:
            if not json:
                raise
            failure = as_error(error)  # stdout has its document already
            out.report([failure])
            raise SystemExit(int(failure.exit_code)) from None


@dataclass(frozen=True)
class Prepared:
    """A server whose model has answered once."""

    server: HttpServer
    listening: Listening
    service: Service

    def watch(self, choice: StepChoice | None, canary: Path | None, overrides: Sequence[str]) -> None:
        """Let new checkpoints take over. Raises UsageError, DataError; the engine has stopped then."""
        try:
            self.service.watch(choice, canary, overrides)
        except AifxError:
            self.service.state.engine.stop()
            raise


def prepare(directory: RunDirectory, project: Project, step: StepChoice | None, overrides: Sequence[str]) -> Prepared:
    """Load a run and start its engine. Raises AifxError for what cannot be served."""
    from aifx.core.web.access_log import AccessLog
    from aifx.core.web.sockets import bind, url_of
    from aifx.kinds import read_config
    from aifx.loading.restore import CURRENT, restore_run
    from aifx.serving.http.app import open_server
    from aifx.serving.http.policy import read_key
    from aifx.serving.http.services import open_service
    from aifx.serving.http.tracing import open_tracer

    # A port that is taken, or a key that is missing, is reported before minutes of loading.
    settings = read_config(directory.config, project, overrides, current=CURRENT).serve
    key = read_key(settings.host, dict(os.environ))
    tracer = open_tracer(os.environ)
    log_file = Path(settings.access_log) if settings.access_log else None
    log = AccessLog(log_file, "aifx serve --set serve.access_log=FILE")
    bound = bind(settings.host, settings.port, port_hint="aifx serve --port 0", host_hint="aifx serve --host 127.0.0.1")
    trained = restore_run(directory, project, step=step, overrides=overrides)
    name = settings.served_model_name or directory.name
    service = open_service(trained, name=name, settings=settings, log=log, key=key)
    state = service.state
    state.tracer = tracer
    listening = Listening(
        url=url_of(bound),
        run=directory.name,
        step=trained.step,
        model=state.name,
        routes=[operation.path for operation in state.operations],
        system_fingerprint=state.engine.fingerprint,
        is_reproducible=state.engine.is_reproducible,
        **service.fits,
    )
    return Prepared(open_server(state, bound), listening, service)


def check_packages() -> None:
    """Raise EnvironmentFault if the package of the extra is missing."""
    from importlib.util import find_spec

    from aifx.core.extras import install_command

    if find_spec("llguidance") is None:
        raise EnvironmentFault("llguidance is not installed", "aifx serve needs it", install_command("serve"))
