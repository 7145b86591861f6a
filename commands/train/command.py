"""`aifx train`: train the project's model, or resume a training that stopped."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.format import best
from aifx.commands.console.interrupted import write_interrupted
from aifx.commands.console.options import JsonOption, RequestOption, SetOption
from aifx.commands.console.output import Output
from aifx.commands.console.progress import ProgressDisplay
from aifx.commands.console.terminal import report, terminal
from aifx.core.errors import AifxError
from aifx.core.limits import check_limits
from aifx.core.progress import listen
from aifx.core.statuses import STOPPED
from aifx.verbs.completion import complete_run
from aifx.verbs.jobs import AGAIN, is_first_of_job, started_by

if TYPE_CHECKING:
    from aifx.commands.train.panel import Lines, Panel
    from aifx.core.statuses import ProcessStatus
    from aifx.core.stop_signals import StopSignals
    from aifx.verbs.training import TrainResult

NewRunOption = Annotated[
    str,
    typer.Option(
        "--run",
        metavar="NAME",
        help="Run to start or resume. By default main.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Configuration to read instead of the project's aifx.toml.", show_default=False
    ),
]
ForkOption = Annotated[
    str | None, typer.Option("--fork", metavar="NAME", help="Start run NAME from a checkpoint of --run.")
]
ForkStepOption = Annotated[
    str | None,
    typer.Option(
        "--step", metavar="N|best|last", help="Checkpoint to start a fork from. By default the last. Requires --fork."
    ),
]
RefitOption = Annotated[
    bool,
    typer.Option(
        "--refit",
        help="Train the settings of the finished run --run on its training and validation rows, as run NAME-refit.",
    ),
]
MetricsPortOption = Annotated[
    int | None,
    typer.Option(
        "--metrics-port", metavar="P", min=0, max=65535, help="Serve step, loss and throughput to Prometheus on port P."
    ),
]
ProfileOption = Annotated[bool, typer.Option("--profile", help="Trace a few steps with JAX's profiler, into the run.")]


def train(
    run: NewRunOption = "main",
    config: ConfigOption = None,
    overrides: SetOption = None,
    fork: ForkOption = None,
    step: ForkStepOption = None,
    refit: RefitOption = False,
    metrics_port: MetricsPortOption = None,
    profile: ProfileOption = False,
    request: RequestOption = None,
    json: JsonOption = False,
) -> None:
    """Train the project's model, or resume a training that stopped.

    After a stop, a crash or a lost machine, run the command again. aifx resumes from the latest checkpoint, bit for
    bit. Ctrl-C saves a checkpoint first; a second Ctrl-C exits at once.

    Examples:
        aifx train                                         the run "main"
        aifx train --run wide --set model.embed_dim=256    another run
        aifx train --run base --config base.toml           another configuration
        aifx train --run main --fork longer --set train.num_steps=4000
        aifx train --fork calmer --step 400 --set optimizer.learning_rate=3e-4
        aifx train --run main --refit                      the run "main-refit"
        aifx train --json                                  a JSON document at the end
    """
    with terminal(json) as out:
        from aifx.core.stop_signals import StopSignals

        # Before anything heavy is imported: signals are handled from here on, during imports and compilations too.
        with StopSignals() as stop:
            stop.before_exit.append(partial(_write_interrupted, json))
            check_limits()
            from aifx.verbs import training

            is_first = is_first_of_job()
            settings = [*(overrides or []), *([] if metrics_port is None else [f"log.metrics_port={metrics_port}"])]
            progress = _progress(out)
            stop.before_exit.append(lambda *_: progress.abandon())
            with listen(progress.activity):
                result = training.train(
                    run=run if fork is None else fork,
                    config=config,
                    settings=settings,
                    fork_from=None if fork is None else run,
                    fork_at=step,
                    refit=refit,
                    profile=profile,
                    hooks=[progress],
                    stop=stop,
                    on_exit=partial(_write_latest_result, out, progress, stop) if is_first else _log_end,
                    request=request,
                )
            stop.finish()  # also of a run that had ended before: a signal must not replace its answer
            if is_first:
                out.document(result.document())
                again = ["--run", run, "--refit"] if refit else ["--run", result.run.name]
                _show(result, out, profile, config, settings, again)
        if result.exit_code:
            raise SystemExit(int(result.exit_code))


def _progress(out: Output) -> Panel | Lines:
    from aifx.commands.train.panel import Lines, Panel

    return Panel(out.err, ProgressDisplay(out)) if out.animated else Lines(out)


def _write_latest_result(
    out: Output,
    progress: Panel | Lines,
    stop: StopSignals,
    status: ProcessStatus | None,
    why: str,
    latest: Callable[[], TrainResult],
) -> None:
    """Write how far the run is. Called by the thread that received the signal, which must not wait for an import."""
    progress.abandon()
    with suppress(BrokenPipeError):
        if status is None:
            with redirect_stdout(out.stdout):  # instead of `terminal`, which sends to stderr what user code prints
                report(AifxError(why, "", stop.hint), json=out.json)
            return
        out.document(latest().document())
        out.flush()
        out.log(f"{status}: {why}\nhint: {stop.hint or AGAIN}")


def _log_end(status: ProcessStatus | None, why: str, latest: Callable[[], TrainResult]) -> None:
    """Write why a process of a job ends that gives no answer."""
    os.write(2, f"{status or 'failed'}: {why}\n".encode())


def _write_interrupted(json: bool, status: ProcessStatus | None, why: str) -> None:
    """Write the answer of a run that a signal ends before its configuration is read."""
    write_interrupted(signal.SIGINT if status == "interrupted" else signal.SIGTERM, json=json)


def _show(
    result: TrainResult, out: Output, profile: bool, config: Path | None, overrides: list[str], run_options: list[str]
) -> None:
    """The answer for people; `run_options` name the run in the command that resumes it."""
    if result.error is not None:
        out.report([result.error])
        return
    if out.json:
        return
    loss = "" if result.loss is None else f", loss {result.loss:.4f}"
    best_so_far = best(result.best_by, result.best_value, result.best_step, result.best_over)
    validation = f", best validation {best_so_far}" if best_so_far else ""
    already = "already " if result.already else ""
    ended = f"{already}{result.status.replace('_', ' ')} at step {result.step} of {result.num_steps}"
    out.print(f"run {result.run.name}: {ended}{loss}{validation}")
    if result.units_per_s is not None and not result.already:
        digest = (result.state_digest or "")[:16]
        out.print(
            f"{result.units_per_s:,.0f} {result.unit}/s; state digest {digest}; everything is in {result.run.path}"
        )
    if profile and not any(result.run.profile.rglob("*.gz")):
        out.log("no trace: too few steps were left to warm up and trace")
    elif profile and not result.already:
        out.print(f"trace in {result.run.profile}: open its perfetto_trace.json.gz at https://ui.perfetto.dev")
        out.print(f"or: pip install xprof && xprof --logdir {result.run.profile}")
    if result.status in STOPPED:
        again = [
            *started_by(),
            "train",
            *run_options,
            *(() if config is None else ("--config", str(config))),
            *(part for o in overrides for part in ("--set", o)),
        ]
        out.print(f"resume with: {shlex.join(again)}")
    else:
        out.print(f"next: aifx eval --run {result.run.name}")
