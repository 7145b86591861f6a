"""`aifx bench serve`: measure a server."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from aifx.commands.bench.measuring import Measuring, bench
from aifx.commands.console.options import SetOption
from aifx.commands.console.terminal import terminal
from aifx.core.errors import UsageError
from aifx.verbs.completion import complete_run

QUICK_REQUESTS = 16


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
        from aifx.benchmarking.serve.load import LoadOptions

        given: dict[str, Any] = {name: value for name, value in asdict(options).items() if value is not None}
        given |= {"url": url, "trace": None if options.trace is None else str(options.trace)}
        given["concurrency"] = _numbers("--concurrency", options.concurrency, int)
        given["rate"] = _numbers("--rate", options.rate, float)
        if how.quick and options.requests is None:
            given["requests"] = QUICK_REQUESTS
        load = LoadOptions.model_validate(given)
        load.check()
        if load.run is not None:
            from aifx.core.project import find_project

            find_project().existing_run(load.run)
        bench(out, ["serve"], load.model_dump(mode="json", exclude_defaults=True), how)


def _numbers(option: str, text: str | None, kind: type[int] | type[float]) -> list[float]:
    """Raises UsageError for what is no list of numbers above 0."""
    try:
        found = [kind(part) for part in text.split(",")] if text is not None else []
        if all(0 < number < 1e6 for number in found):
            return list(found)
    except ValueError:
        pass
    wanted = "whole numbers" if kind is int else "numbers"
    raise UsageError(f"{option} {text} cannot be used", f"expected {wanted} above 0, with commas", f"{option} 1,4,16")
