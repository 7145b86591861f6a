"""`aifx bench`: measure hardware, kernels, a project and a server, and save baselines."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.bench.compare import OutputOption, compare, gate, history, ls, read_share, show
from aifx.commands.console.options import JsonOption, SetOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import UsageError
from aifx.core.lifecycle import sigterm_as_ctrl_c
from aifx.verbs.completion import complete_run

if TYPE_CHECKING:
    from aifx.verbs.benchmarks import Report

app = typer.Typer(
    help="""Measure this machine and this project, and compare the results with a baseline.

    Examples:
        aifx bench all --quick                  measure everything in two minutes
        aifx bench train                        measure the project's training step
        aifx bench train --save main            save the results as baseline main
        aifx bench gate --baseline main --max-regression 5%
    """
)


@dataclass(frozen=True)
class Measuring:
    """Options of a measurement and of its report: one attribute per option."""

    quick: Annotated[
        bool, typer.Option("--quick", help="Measure only the most important sizes, each for a short time.")
    ] = False
    launches: Annotated[
        int | None,
        typer.Option(
            "--launches",
            min=1,
            max=50,
            metavar="N",
            help="Number of processes that measure, one after the other. By default 3; 1 with --quick, 5 with --save.",
        ),
    ] = None
    save: Annotated[
        str | None,
        typer.Option("--save", metavar="NAME", help="Save the report as baseline NAME. Needs five launches or more."),
    ] = None
    max_noise: Annotated[
        str, typer.Option("--max-noise", metavar="SHARE", help="Maximum relative noise allowed in a baseline.")
    ] = "4%"
    output: OutputOption = None
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report to FILE, as a page with plots.")
    ] = None
    json: JsonOption = False

    def arguments(self, out: Output) -> dict[str, Any]:
        """Return the arguments of a verb that measures. Raises UsageError."""
        from aifx.commands.bench.report import line_of, show_report

        def on_report(report: Report) -> None:
            out.result(report)
            show_report(out, report)

        return {
            "quick": self.quick,
            "launches": self.launches,
            "save": self.save,
            "max_noise": read_share(self.max_noise, "--max-noise"),
            "output": self.output,
            "html": self.html,
            "on_measured": lambda measured: out.log(f"  {line_of(measured)}"),
            "on_report": on_report,
        }


@dataclass(frozen=True)
class ServeLoad:
    """The load on the server: one attribute per option."""

    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="NAME",
            help="Run to serve: each launch starts its own server.",
            autocompletion=complete_run,
        ),
    ] = None
    set: SetOption = None
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Model to ask. By default the server's first.")
    ] = None
    chat: Annotated[bool, typer.Option("--chat", help="Ask /v1/chat/completions instead of /v1/completions.")] = False
    concurrency: Annotated[
        str | None,
        typer.Option("--concurrency", metavar="N[,N]", help="Clients that each wait for their answer. By default 1."),
    ] = None
    rate: Annotated[
        str | None,
        typer.Option("--rate", metavar="R[,R]", help="Requests per second, which arrive whatever the server does."),
    ] = None
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="FILE", help="Take lengths and times from a trace of Mooncake or Azure."),
    ] = None
    requests: Annotated[
        int | None,
        typer.Option("--requests", min=1, metavar="N", help="Requests per load. By default 64, or the whole trace."),
    ] = None
    warmup: Annotated[
        int | None,
        typer.Option("--warmup", min=0, metavar="N", help="Requests before that. By default one per client."),
    ] = None
    prompt_tokens: Annotated[
        str,
        typer.Option("--prompt-tokens", metavar="LENGTHS", help="N, LOW..HIGH, or lognormal:MEDIAN,SIGMA."),
    ] = "128"
    output_tokens: Annotated[
        str, typer.Option("--output-tokens", metavar="LENGTHS", help="Length of the answers, in the same form.")
    ] = "64"
    shared_prefix: Annotated[
        int,
        typer.Option("--shared-prefix", min=0, metavar="N", help="Tokens at the start that all prompts have alike."),
    ] = 0
    slo: Annotated[
        str | None,
        typer.Option("--slo", metavar="LIMITS", help="Limits for goodput, such as ttft=500ms,tpot=50ms."),
    ] = None
    price: Annotated[
        float | None, typer.Option("--price", min=0.0, metavar="AMOUNT", help="Price of the server per hour.")
    ] = None
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of the lengths and arrival times.")] = 0
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.001, metavar="SECONDS", help="Most time for one answer.")
    ] = 600.0
    key_variable: Annotated[
        str, typer.Option("--key-variable", metavar="NAME", help="Environment variable with the server's key.")
    ] = "AIFX_SERVE__API_KEY"


@app.command()
@option_group
def hardware(*, how: Measuring) -> None:
    """Measure the rates that this machine reaches: products, memory, copies, collectives, dispatch.

    aifx keeps the best rates, and other commands compare with them.

    Examples:
        aifx bench hardware
        aifx bench hardware --quick --html hardware.html
    """
    with terminal(how.json) as out:
        _bench(out, how, "hardware")


@app.command()
@option_group
def kernels(
    op: Annotated[
        list[str] | None,
        typer.Option("--op", metavar="OP", help="Measure only this op. Can be repeated."),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="NAME", help="Measure only this case. Can be repeated."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="DTYPE", help="Type to measure in. By default bfloat16 on accelerators, float32 on CPUs."
        ),
    ] = None,
    *,
    how: Measuring,
) -> None:
    """Measure each implementation of each op of jax_kernels, compared with jax.nn and tokamax.

    Examples:
        aifx bench kernels --op attention
        aifx bench kernels --quick
    """
    with terminal(how.json) as out:
        _bench(out, how, "kernels", ops=op or (), cases=case or (), dtype=dtype)


def _add_project_suite(name: str, help: str) -> None:
    @app.command(name, help=help)
    @option_group
    def suite(set_: SetOption = None, *, how: Measuring) -> None:
        with terminal(how.json) as out:
            _bench(out, how, name, settings=set_ or ())


_add_project_suite(
    "train",
    """Measure the project's training step and its parts, memory, energy and scaling.

    Examples:
        aifx bench train
        aifx bench train --set train.global_batch_size=16
        aifx bench train --save main
    """,
)
_add_project_suite(
    "data",
    """Measure how fast the project's batches are ready, and whether training waits for them.

    Examples:
        aifx bench data
    """,
)
_add_project_suite(
    "checkpoint",
    """Measure how long a checkpoint stalls training, and how saving and restoring compare with the disk's rate.

    Examples:
        aifx bench checkpoint
    """,
)
_add_project_suite(
    "startup",
    """Measure the time from the command to the first step, with and without caches.

    Examples:
        aifx bench startup
    """,
)


@app.command()
@option_group
def serve(
    url: Annotated[str | None, typer.Argument(metavar="[URL]", help="Server with OpenAI's API.")] = None,
    *,
    options: ServeLoad,
    how: Measuring,
) -> None:
    """Measure a server: latencies, throughput and goodput under a load.

    Examples:
        aifx bench serve http://127.0.0.1:8000 --concurrency 1,4,16
        aifx bench serve --run main --rate 2 --slo ttft=500ms,tpot=50ms
        aifx bench serve --run main --concurrency 16 --save serving
        aifx bench serve http://10.0.0.7:8000 --trace mooncake_trace.jsonl
    """
    with terminal(how.json) as out:
        from aifx.verbs.benchmarks import bench_serve

        given = {field.name: getattr(options, field.name) for field in fields(options)}
        given["settings"] = given.pop("set") or ()
        given["concurrency"] = _numbers("--concurrency", options.concurrency, int)
        given["rate"] = _numbers("--rate", options.rate, float)
        with sigterm_as_ctrl_c():
            bench_serve(url, **given, **how.arguments(out))


def _numbers(option: str, text: str | None, kind: type[int] | type[float]) -> list[float]:
    """Parse a list of numbers above 0. Raises UsageError."""
    try:
        found = [kind(part) for part in text.split(",")] if text is not None else []
        if all(0 < number < 1e6 for number in found):
            return list(found)
    except ValueError:
        pass
    wanted = "whole numbers" if kind is int else "numbers"
    raise UsageError(f"{option} {text} cannot be used", f"expected {wanted} above 0, with commas", f"{option} 1,4,16")


@app.command("all")
@option_group
def all_(set_: SetOption = None, *, how: Measuring) -> None:
    """Run all suites and write one report. Outside a project, run only suites that need no project.

    Examples:
        aifx bench all --quick --html node.html
    """
    with terminal(how.json) as out:
        _bench(out, how, settings=set_ or ())


def _bench(out: Output, how: Measuring, *suites: str, **options: Any) -> None:
    from aifx.verbs.benchmarks import bench

    with sigterm_as_ctrl_c():
        bench(*suites, **options, **how.arguments(out))


# After the suites: the help lists commands in this order.
for command in (show, compare, gate, ls, history):
    app.command()(command)
