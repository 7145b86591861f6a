"""Suite "serve": latencies and throughput of a server under closed and open loops, by a client of OpenAI's API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import nullcontext

from aifx.benchmarking.results import Measured
from aifx.benchmarking.serve.client import Client, Load
from aifx.benchmarking.serve.figures import notes, results
from aifx.benchmarking.serve.load import Level, LoadOptions, Planned, PromptWriter, levels, parse_slo, plan
from aifx.benchmarking.serve.target import Server, connected, served, served_digest
from aifx.benchmarking.suites import Bench
from aifx.core.errors import EnvironmentFault
from aifx.core.progress import report_progress

logger = logging.getLogger(__name__)


def measure(bench: Bench) -> Iterator[Measured]:
    """`start`, of a run: until the server takes requests. Then of each load `ttft`, `tpot`, `itl`, `latency` and
    `throughput`. If this process is ended, the requests until then count."""
    options = LoadOptions.model_validate(bench.options)
    options.check()
    running = served(options, bench.project.root) if options.run is not None else nullcontext()
    with running as server:
        if server is not None:
            yield Measured(name="serve.start", samples_s=[server.start_s])
        for level in levels(options):
            yield from _measure(options, level, server)


def _measure(options: LoadOptions, level: Level, server: Server | None) -> Iterator[Measured]:
    load, requests = Load(), plan(options, level)
    running = Running(options, level, requests, load, server)
    try:
        asyncio.run(running.run())
    finally:
        if running.client is not None:
            for note in notes(level, load, running.client.api):
                logger.warning(note)  # of the report
            for found in results(level, load, parse_slo(options.slo), options.price):
                yield found.model_copy(update={"model": running.model})
    if all(answered.error is not None for answered in load.answered):
        first = load.answered[0]
        raise EnvironmentFault(
            f"every request failed: {first.error}", first.detail, "aifx bench serve URL --requests 1"
        )


class Running:
    """A load on its way.

    Attributes:
        client: None until the server has answered once.
        model: the digest of the model that answers, if the server names it.
    """

    def __init__(
        self, options: LoadOptions, level: Level, requests: list[Planned], load: Load, server: Server | None
    ) -> None:
        self._options, self._level, self._requests = options, level, requests
        self._load, self._server = load, server
        self.client: Client | None = None
        self.model: str | None = None

    async def run(self) -> None:
        options, level = self._options, self._level
        url = options.url if self._server is None else self._server.url
        assert url is not None
        async with connected(options, url) as (client, ids, words_per_token):
            prompts = PromptWriter(ids, words_per_token, options.shared_prefix)
            at_once = max(int(level.value), 1) if level.mode == "concurrency" else 1
            if warmup := self._requests[: at_once if options.warmup is None else options.warmup]:
                await self._send(client, Level("concurrency", at_once), warmup, prompts, Load())
            self.client, self.model = client, await served_digest(client)
            await self._send(client, level, self._requests, prompts, self._load)
            if (now := await served_digest(client)) != self.model:
                why = f"{(self.model or 'none')[:12]} answered first, and {(now or 'none')[:12]} at the end"
                raise EnvironmentFault("another model took over while it was measured", why, "aifx bench serve URL")

    async def _send(
        self, client: Client, level: Level, requests: list[Planned], prompts: PromptWriter, load: Load
    ) -> None:
        with report_progress(f"serve: {describe(level)}", len(requests), "requests") as progress:

            def beat() -> None:
                progress.advance(0)  # a launch that is silent for long is ended
                if self._server is not None:
                    self._server.attend()

            await client.run(level, requests, prompts, load, on_answer=lambda: progress.advance(1), on_beat=beat)


def describe(level: Level) -> str:
    """A load for people."""
    if level.mode == "trace":
        return "a trace at its own times"
    if level.mode == "rate":
        return f"{level.value:g} requests per second"
    return f"{int(level.value)} at once"
