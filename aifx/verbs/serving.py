"""Serving a trained model over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aifx.core.errors import AifxError, EnvironmentFault, UsageError
from aifx.core.project import Project, RunDirectory
from aifx.core.results import Result
from aifx.core.steps import StepChoice, parse_step
from aifx.verbs.arguments import Settings, Step, StrPath, overrides
from aifx.verbs.models import is_reference, open_model, open_registry
from aifx.verbs.servers import RunningServer

if TYPE_CHECKING:
    from aifx.core.web.server import HttpServer
    from aifx.loading.restore import RestoredRun
    from aifx.serving.http.services import Service
    from aifx.serving.record import ReplayReport
    from aifx.serving.swap import ModelSource, Watcher


@dataclass(frozen=True)
class Listening(Result):
    """The line that `aifx serve --json` prints when the server takes requests.

    Attributes:
        model: its name in the API.
        system_fingerprint: the digest of weights and programs, which each answer has.
        routes: those of the run's task, such as "/v1/completions", without those that every server has.
        pool_tokens: capacity of the page pool, in tokens of running requests and cached prompts.
        max_model_len: most tokens of a request with its answer.
        rows_per_batch: rows that one call of the program predicts; null for text. `adapters`, `slots`, `pool_tokens`
            and `max_model_len` are null for predictions.
        model_digest: of the model version, with `--model`.
        shadow: the run or version of the second model, with its step and the digest of its version or its arrays.
        is_reproducible: whether a check on this device showed that an answer's bits do not depend on other requests.
    """

    url: str
    run: str
    step: int
    model: str
    routes: list[str]
    system_fingerprint: str
    is_reproducible: bool
    model_digest: str | None = None
    shadow: str | None = None
    shadow_step: int | None = None
    shadow_digest: str | None = None
    adapters: list[str] | None = None
    slots: list[int] | None = None
    pool_tokens: int | None = None
    max_model_len: int | None = None
    rows_per_batch: int | None = None


@dataclass(frozen=True)
class PreparedServer:
    """A server whose model has answered once."""

    server: HttpServer
    listening: Listening
    service: Service

    def watch(self, make: Callable[[RestoredRun], ModelSource], canary: Path | None) -> Watcher[Any]:
        """Let another model take over until the watcher is closed.

        Raises UsageError, DataError; the engine has stopped then.

        Args:
            make: returns what names the model that should serve, from the one that does.
        """
        try:
            return self.service.watch(make(self.service.trained), canary)
        except AifxError:
            self.service.state.engine.stop()
            raise


def serve(
    run: StrPath,
    *,
    step: Step = None,
    settings: Settings = None,
    trust_code: str | None = None,
    watch: bool = False,
    canary: StrPath | None = None,
    shadow: StrPath | None = None,
    shadow_step: Step = None,
) -> RunningServer[Listening]:
    """Serve a trained model over HTTP: text with OpenAI's API, or predictions.

    The server answers in a thread of its own, until `close()` or the end of a `with` block. It has a `url`, and
    `listening` says what it serves. Settings that are not given come from `[serve]` of the project.

    Args:
        run: the run's folder, or a model version: "fraud@production".
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint`.
        settings: values over those of the run's configuration, by key, such as `{"serve.port": 8080}`.
        trust_code: digest of a model version whose own code may run.
        watch: serve new checkpoints of the run, or what the alias means, once they pass the canary.
        canary: file with prompts that new weights must pass.
        shadow: the folder of another run, or a model version, that answers a share of the requests, too. Both answers
            are recorded in the `shadow.jsonl` of the run; clients get the first.
        shadow_step: that of the other run.

    Example:
        >>> with aifx.serve("runs/main", settings={"serve.port": 0, "serve.slots": [1]}) as server:
        ...     server.url.startswith("http://127.0.0.1:"), server.listening.model
        (True, 'main')
    """
    at, given = parse_step(step), overrides(settings)
    _check_packages()
    if canary is not None and not watch:
        hint = "aifx serve --watch --canary FILE"
        raise UsageError("--canary requires --watch", "it judges new checkpoints", hint)
    second = None
    if shadow is not None:
        second = (*open_model(shadow, trust_code if is_reference(shadow) else None), parse_step(shadow_step))
        trust_code = trust_code if is_reference(run) or not is_reference(shadow) else None
    directory, project = open_model(run, trust_code)
    from aifx.serving.http.app import check_ending
    from aifx.serving.http.shadow import shadow_of

    prepared = prepare(directory, project, at, given, second)

    def source(trained: RestoredRun) -> ModelSource:
        from aifx.serving.alias import VersionOfAlias, server_name
        from aifx.serving.swap import StepsOfRun

        if directory.model_digest is None:
            return StepsOfRun(trained, at, given)
        root, around = open_registry(directory.name)
        server = server_name(urlsplit(prepared.listening.url).port or 0)
        options: dict[str, Any] = {"server": server, "trust_code": trust_code}
        return VersionOfAlias(root, directory.name, directory.model_digest, around, given, **options)

    with ExitStack() as opened:
        if (beside := shadow_of(prepared.service.state)) is not None:
            opened.callback(beside.close)
        if watch:
            opened.callback(prepared.watch(source, None if canary is None else Path(canary)).close)
        held = opened.pop_all()
    check = partial(check_ending, drain_s=prepared.server.drain_s)
    return RunningServer(prepared.server, prepared.listening, held, check)


def prepare(
    directory: RunDirectory,
    project: Project,
    step: StepChoice | None,
    overrides: Sequence[str],
    second: tuple[RunDirectory, Project, StepChoice | None] | None = None,
) -> PreparedServer:
    """Load a run and start its engine. Raises AifxError for what cannot be served.

    Args:
        second: the run that also answers a share of the requests.
    """
    from aifx.core.web.server import bind, url_of
    from aifx.core.web.traffic import AccessLog
    from aifx.loading.restore import read_current, restore_run
    from aifx.serving.http.app import open_server
    from aifx.serving.http.services import add_shadow, open_service
    from aifx.serving.http.shadow import shadow_of
    from aifx.serving.http.state import read_key
    from aifx.serving.http.tracing import open_tracer

    # A port that is taken, or a key that is missing, is reported before minutes of loading.
    settings = read_current(directory, project, overrides).serve
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
    if second is not None:
        try:
            add_shadow(service, *second, overrides)
        except AifxError:
            state.engine.stop()
            raise
    beside = shadow_of(state)
    listening = Listening(
        url=url_of(bound),
        run=directory.name,
        step=trained.step,
        model=state.name,
        routes=[operation.path for operation in state.operations],
        system_fingerprint=state.engine.fingerprint,
        is_reproducible=state.engine.is_reproducible,
        model_digest=directory.model_digest,
        shadow=beside.model.model if beside else None,
        shadow_step=beside.model.step if beside else None,
        shadow_digest=beside.model.digest if beside else None,
        **service.fits,
    )
    return PreparedServer(open_server(state, bound), listening, service)


def serve_replay(
    records: StrPath, run: StrPath, *, step: Step = None, settings: Settings = None, trust_code: str | None = None
) -> ReplayReport:
    """Compute answers that a server recorded again, many at once. The verdict is bad if a token or a bit differs.

    A server writes the records with `serve.log_requests`. Replay needs the weights and the `[serve]` settings of that
    server. It counts the answers of others and skips them.

    Args:
        records: the folder of a server's records, or one with such folders: "runs/main/records".
        run: the run's folder, or a model version: "fraud@production".
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint`.
        settings: values over those of the run's configuration, by key.
        trust_code: digest of a model version whose own code may run.

    Example:
        >>> aifx.serve_replay("runs/main/records", "runs/main", settings={"serve.slots": [1]})
        Traceback (most recent call last):
        ...
        aifx.core.errors.DataError: ...
    """
    at, path = parse_step(step), Path(records)
    _check_packages()
    directory, project = open_model(run, trust_code)
    from aifx.loading.restore import restore_run
    from aifx.programs.build import build
    from aifx.serving import record
    from aifx.serving.generate import unable_to_write
    from aifx.serving.grammar import Grammars
    from aifx.serving.start import start_engine, start_predictor

    counts = record.RecordCounts.of(path)  # a broken chain is reported before minutes of loading
    trained = restore_run(directory, project, step=at, overrides=overrides(settings))
    serve = record.replay_settings(trained.config.serve)
    if unable_to_write(build(trained.config, trained.task, trained.layout)) is not None:
        predictor = start_predictor(trained, serve)
        try:
            return record.replay_predictions(path, counts, predictor.fingerprint, predictor.predict_outputs)
        finally:
            predictor.stop()
    engine = start_engine(trained, serve)
    grammars = cache(lambda: Grammars(engine.tokenizer, engine.vocab_size))
    try:
        return record.replay(path, counts, engine, lambda source: grammars().new(source))
    finally:
        engine.stop()


def _check_packages() -> None:
    """Raise EnvironmentFault if the package of the extra is missing."""
    from importlib.util import find_spec

    from aifx.core.extras import install_command

    if find_spec("llguidance") is None:
        raise EnvironmentFault("llguidance is not installed", "aifx serve needs it", install_command("serve"))
