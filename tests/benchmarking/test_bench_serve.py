"""`aifx bench serve`: what is asked, when, and what is made of the answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from sse_server import Answer, Refusal, SseServer, Write, text, usage

from aifx.benchmarking import serve
from aifx.benchmarking.results import Measured, Result
from aifx.benchmarking.serve import client as client_module
from aifx.benchmarking.serve import target
from aifx.benchmarking.serve.client import Api, Client, Load
from aifx.benchmarking.serve.figures import MOST_SAMPLES, notes, results, thinned
from aifx.benchmarking.serve.load import (
    BLOCK,
    Lengths,
    Level,
    LoadOptions,
    Planned,
    PromptWriter,
    check_lengths,
    levels,
    parse_slo,
    plan,
    read_trace,
)
from aifx.benchmarking.suites import SUITES, Bench
from aifx.core import processes
from aifx.core.errors import DataError, EnvironmentFault, UsageError

ONE = Level("concurrency", 1)


def drawn(text: str, count: int = 4000) -> list[int]:
    return check_lengths(text, "--prompt-tokens").draw(np.random.default_rng(0), count)


def test_lengths_follow_their_distribution() -> None:
    assert set(drawn("128")) == {128}
    uniform = drawn("64..66")
    assert set(uniform) == {64, 65, 66}
    assert fmean(uniform) == pytest.approx(65, abs=0.1)
    logs = np.log(drawn("lognormal:200,0.5"))
    assert np.median(logs) == pytest.approx(np.log(200), abs=0.05)
    assert np.std(logs) == pytest.approx(0.5, abs=0.03)
    assert Lengths("64..512").draw(np.random.default_rng(3), 9) == Lengths("64..512").draw(np.random.default_rng(3), 9)


@pytest.mark.parametrize("text", ["", "0", "-1", "5..2", "0..4", "1.5", "many", "lognormal:200", "9999999"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--prompt-tokens") as raised:
        check_lengths(text, "--prompt-tokens")
    assert raised.value.hint == "--prompt-tokens 64..512"


MOONCAKE = """\
{"timestamp": 27482, "input_length": 655, "output_length": 52, "hash_ids": [46, 47]}

{"timestamp": 10535, "input_length": 1100, "output_length": 26, "hash_ids": [46, 9, 10]}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.4799600,110,0
"""


def test_traces_of_mooncake_and_azure_are_read(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text(MOONCAKE)
    first, second = read_trace(tmp_path / "trace.jsonl")
    assert (first.at_s, first.prompt_tokens, first.output_tokens, first.blocks) == (0.0, 1100, 26, (46, 9, 10))
    assert (second.at_s, second.prompt_tokens) == (pytest.approx(16.947), 655)
    (tmp_path / "trace.csv").write_text(AZURE)
    assert [(row.prompt_tokens, row.output_tokens) for row in read_trace(tmp_path / "trace.csv")] == [
        (4808, 10),
        (110, 1),
    ]
    assert read_trace(tmp_path / "trace.csv")[1].at_s == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("[1]\n", "line 1 of .*it is no JSON object"),
        (MOONCAKE.replace("655", '"many"'), "line 1 of .*input_length: expected a number"),
        (MOONCAKE.replace("[46, 9, 10]", "[-1]"), "line 3 of .*hash_ids"),
        (MOONCAKE.replace("10535", "null"), "line 3 of .*timestamp"),
        (AZURE.replace("110", ""), "line 3 of .*ContextTokens"),
        (AZURE.replace("2023-11-16 18:17:04", "soon"), "line 3 of .*TIMESTAMP"),
        (AZURE.replace("TIMESTAMP", "TIMESTAMP_S"), "line 2 of .*TIMESTAMP"),
        (AZURE.replace("2023-11-16 18:17:04", '"') + AZURE * 2000, "line 3 of .*quote"),
        ("\n", "it has no requests"),
    ],
)
def test_a_bad_trace_names_its_line(tmp_path: Path, body: str, why: str) -> None:
    (tmp_path / "trace").write_text(body)
    with pytest.raises(DataError) as raised:
        read_trace(tmp_path / "trace")
    assert re.search(why, f"{raised.value.what} {raised.value.why}")
    assert raised.value.hint


def test_arrivals_are_a_poisson_process_of_the_seed() -> None:
    options = LoadOptions(url="http://x", rate=(50.0,), requests=4000, prompt_tokens="1..9")
    (level,) = levels(options)
    planned = plan(options, level)
    gaps = np.diff([one.at_s for one in planned])
    assert fmean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert np.std(gaps) == pytest.approx(1 / 50, rel=0.08), "exponential"
    assert planned == plan(options, level)
    assert planned != plan(options.model_copy(update={"seed": 1}), level)


def test_a_trace_gives_lengths_and_its_times_if_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(MOONCAKE)
    options = LoadOptions(url="http://x", trace=str(tmp_path / "trace"))
    assert levels(options) == [Level("trace")]
    assert [one.at_s for one in plan(options, Level("trace"))] == [0.0, pytest.approx(16.947)]
    assert [one.at_s for one in plan(options, ONE)] == [0.0, 0.0]
    assert plan(options, Level("rate", 1000.0))[1].at_s < 1


def test_prompts_share_what_they_should_and_nothing_else() -> None:
    writer = PromptWriter(range(1000), 1.0, 20)
    first, second = (writer.write(Planned(0, 600, 1, (7, 8))) for _ in range(2))
    assert len(first) == len(second) == 620
    assert first[: 20 + BLOCK] == second[: 20 + BLOCK], "the prefix and the whole block"
    assert first[20 + BLOCK :] == second[20 + BLOCK :], "the rest is the beginning of block 8"
    other = writer.write(Planned(0, 600, 1, (9,)))
    assert other[:20] == first[:20]
    assert other[20:40] != first[20:40]
    plain = [writer.write(Planned(0, 50, 1)) for _ in range(2)]
    assert plain[0][:20] == plain[1][:20]
    assert plain[0][20:] != plain[1][20:]
    assert PromptWriter(range(1000), 1.0, 20).write(Planned(0, 50, 1)) != plain[0], "each launch has its own"
    words = PromptWriter([], 0.5, 0).write(Planned(0, 40, 1))
    assert isinstance(words, str)
    assert len(words.split()) == 20


def test_limits_of_goodput() -> None:
    assert parse_slo("ttft=500ms, tpot=0.05s") == {"ttft": 0.5, "tpot": 0.05}
    assert parse_slo(None) == {}
    for bad in ("ttft", "ttft=5", "fast=5ms", "ttft=-1s", "ttft=xms"):
        with pytest.raises(UsageError, match="--slo"):
            parse_slo(bad)


class Clock:
    """Time that passes only when the server works."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now / 10


class Stream(httpx.AsyncByteStream):
    """An answer whose parts come at exact times: after `first_s`, then `gap_s` apart."""

    def __init__(self, clock: Clock, first_s: float, gap_s: float, tokens: int, last: dict[str, Any] | None) -> None:
        self.clock, self.first_s, self.gap_s, self.tokens, self.last = clock, first_s, gap_s, tokens, last

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number in range(self.tokens):
            self.clock.now += self.gap_s if number else self.first_s
            data = b"data: " + json.dumps(text("x")).encode() + b"\n\n"
            yield data[:9]  # the line's end comes with the next read
            yield data[9:]
        for event in (text("", "length"), self.last):
            if event is not None:
                yield b"data: " + json.dumps(event).encode() + b"\r\n\r\n"
        yield b"data: [DONE]\n\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(client_module, "time", made)
    return made


def answered_in(clock: Clock, times: list[tuple[float, float]], last: dict[str, Any] | None) -> Load:
    """A load of one client whose answers of 5 tokens come after so long, and in such steps."""
    streams = iter([Stream(clock, first_s, gap_s, 5, last) for first_s, gap_s in times])

    async def run() -> Load:
        load, client = Load(), Client(Api("http://x", "toy"), timeout_s=60)
        client.http = httpx.AsyncClient(
            transport=httpx.MockTransport(lambda _: httpx.Response(200, stream=next(streams)))
        )
        planned = [Planned(0.0, 3, 5)] * len(times)
        await client.run(ONE, planned, PromptWriter([1, 2], 1.0, 0), load)
        return load

    return asyncio.run(run())


def by_name(found: Iterator[Measured]) -> dict[str, Measured]:
    return {one.name.partition(".")[2]: one for one in found}


def test_statistics_are_exact(clock: Clock) -> None:
    energy = {"joules": 2.5, "basis": "nameplate"}
    load = answered_in(clock, [(0.1, 0.01), (0.3, 0.02), (0.2, 0.04)], usage(3, 5, energy=energy))
    found = by_name(results(ONE, load, parse_slo("ttft=250ms,tpot=30ms"), 7.2))
    assert found["ttft"].samples_s == pytest.approx([0.1, 0.3, 0.2])
    assert found["tpot"].samples_s == pytest.approx([0.01, 0.02, 0.04])
    assert found["itl"].samples_s == pytest.approx([0.01] * 4 + [0.02] * 4 + [0.04] * 4)
    assert found["latency"].samples_s == pytest.approx([0.14, 0.38, 0.36])
    assert found["ttft"].figures == {"p90_s": pytest.approx(0.28), "p99_s": pytest.approx(0.298)}
    span_s = 0.14 + 0.38 + 0.36
    whole = found["throughput"]
    assert whole.samples_s == pytest.approx([span_s / 15])
    figures = whole.figures
    assert figures["units_per_s"] == pytest.approx(15 / span_s)
    assert figures["total_units_per_s"] == pytest.approx((15 + 9) / span_s)
    assert figures["requests_per_s"] == pytest.approx(3 / span_s)
    assert figures["goodput_fraction"] == pytest.approx(1 / 3)
    assert figures["goodput_requests_per_s"] == pytest.approx(1 / span_s)
    assert figures["units_per_joule"] == pytest.approx(15 / 7.5)
    assert figures["cost_per_million_units"] == pytest.approx(7.2 / 3600 * span_s / 15 * 1e6)
    assert whole.sources == {"units_per_joule": "nameplate", "cost_per_million_units": "declared"}
    assert Result.of([found["ttft"]]).compared_at == 0.5, "requests differ by themselves, not by disturbances alone"


def test_what_a_server_does_not_say_stays_unknown(clock: Clock) -> None:
    load = answered_in(clock, [(0.1, 0.01)], None)
    whole = by_name(results(ONE, load, {}, None))["throughput"]
    assert whole.samples_s == pytest.approx([0.14 / 5]), "parts of the stream are counted"
    assert [whole.figures[name] for name in ("total_units_per_s", "units_per_joule", "cost_per_million_units")] == [
        None
    ] * 3
    assert "goodput_fraction" not in whole.figures
    assert whole.sources == {}


def test_long_results_keep_their_quantiles() -> None:
    seconds = np.random.default_rng(0).exponential(1.0, 50_000).tolist()
    kept = thinned(seconds)
    assert len(kept) == MOST_SAMPLES
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(kept, share) == pytest.approx(np.quantile(seconds, share), rel=0.01)
    assert thinned(seconds[:9]) == seconds[:9]


@pytest.fixture
def servers() -> Iterator[Callable[..., SseServer]]:
    made: list[SseServer] = []

    def start(answer: Answer, tokens: list[int] | None = None) -> SseServer:
        made.append(SseServer(answer, tokens))
        return made[-1]

    yield start
    for one in made:
        one.close()


async def plain(body: dict[str, Any], write: Write) -> None:
    for _ in range(body["max_tokens"]):
        await write(text("x"))
    await write(text("", "length"))
    await write(usage(len(body["prompt"]), body["max_tokens"]))
    await write("[DONE]")


def measured(server: SseServer, caplog: pytest.LogCaptureFixture, **options: Any) -> dict[str, Measured]:
    bench = Bench(SUITES["serve"], False, {"url": server.url, **options})
    with caplog.at_level("INFO", "aifx"):
        return by_name(serve.measure(bench))


def test_a_closed_loop_has_so_many_requests_at_once(
    servers: Callable[..., SseServer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(body: dict[str, Any], write: Write) -> None:
        while len(server.bodies) > 1 + 3 and server.at_once < 3:
            await asyncio.sleep(0.002)
        await plain(body, write)

    monkeypatch.setenv("MY_KEY", "se-cret")
    server = servers(answer, list(range(10, 60)))
    found = measured(
        server, caplog, concurrency=[3], requests=20, prompt_tokens="7", output_tokens="2..5", key_variable="MY_KEY"
    )
    assert server.at_once == 3
    assert set(server.keys) == {"Bearer se-cret"}
    assert len(server.bodies) == 1 + 3 + 20, "the trial, the warm-up, and the load"
    for body in server.bodies[1:]:
        assert len(body["prompt"]) == 7
        assert set(body["prompt"]) <= set(range(10, 60))
        assert 2 <= body["max_tokens"] <= 5
        assert body["ignore_eos"] is True
        assert body["model"] == "toy"
    assert found["throughput"].params == {"concurrency": 3}
    assert len(found["ttft"].samples_s) == 20
    assert re.search("prompts are token ids.*counted by the server", caplog.text)
    assert "failed" not in caplog.text


def test_an_open_loop_waits_for_no_answer(servers: Callable[..., SseServer], caplog: pytest.LogCaptureFixture) -> None:
    """No answer ends before all requests have been sent."""

    async def answer(body: dict[str, Any], write: Write) -> None:
        while body["max_tokens"] == 9 and len(server.bodies) < 1 + 12:
            await asyncio.sleep(0.002)
        await plain(body, write)

    server = servers(answer)
    found = measured(server, caplog, rate=[300.0], requests=12, warmup=0, output_tokens="9")
    assert server.at_once == 12
    assert found["throughput"].figures["schedule_lag_s"] is not None
    assert len(found["ttft"].samples_s) == 12


def test_a_late_client_says_so() -> None:
    load = Load(begin_s=0.0, end_s=1.0, lags_s=[0.0] * 50 + [0.02] * 2, cpu_s=0.9)
    told = list(notes(ONE, load, Api("http://x", None)))
    assert any("late" in note and "bottleneck" in note for note in told)
    assert any("80% of a processor" in note for note in told)
    quiet = Load(begin_s=0.0, end_s=1.0, lags_s=[0.0001] * 50, cpu_s=0.1)
    assert len(list(notes(ONE, quiet, Api("http://x", None)))) == 1


def test_fields_that_a_server_refuses_are_left_out(
    servers: Callable[..., SseServer], caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(body: dict[str, Any], write: Write) -> None:
        if "ignore_eos" in body or "stream_options" in body or not isinstance(body["prompt"], str):
            raise Refusal(400, "unrecognized request argument")
        for _ in range(2):  # it ends by itself
            await write(text("x"))
        await write(text("", "stop"))

    server = servers(answer, [1, 2, 3])
    found = measured(server, caplog, requests=3, output_tokens="4")
    assert len(found["tpot"].samples_s) == 3
    assert re.search("prompts are words.*counted as parts", caplog.text)
    assert re.search("3 of 3 answers.*ignore_eos", caplog.text)


def test_failures_are_counted_by_kind(
    servers: Callable[..., SseServer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, timeouts, timeout = 0, list[tuple[asyncio.AbstractEventLoop, asyncio.Timeout]](), asyncio.timeout

    def made(after_s: float) -> asyncio.Timeout:
        timeouts.append((asyncio.get_running_loop(), timeout(after_s)))
        return timeouts[-1][1]

    async def answer(body: dict[str, Any], write: Write) -> None:
        nonlocal count
        count += 1
        kind = count - 2  # after the trial
        if kind in (0, 1):
            raise Refusal(429, "the queue is full")
        await write(text("x"))
        if kind == 2:
            await write({"error": {"message": "the engine failed"}})
            return
        if kind == 3:
            return  # without an end
        if kind == 4:  # the client's time is up now, and not that of a request before
            loop, running = timeouts[-1]
            loop.call_soon_threadsafe(running.reschedule, loop.time())
            await asyncio.sleep(600)
        await write(text("y", "stop"))
        await write("[DONE]")

    server = servers(answer)
    monkeypatch.setattr(client_module.asyncio, "timeout", made)
    found = measured(server, caplog, requests=7, warmup=0, output_tokens="2", slo="ttft=600s")
    note = next(record.getMessage() for record in caplog.records if "failed" in record.getMessage())
    assert re.match("serve concurrency 1: 5 of 7 .*: 2 x HTTP 429, ", note)
    for kind in ("1 x error in the stream", "1 x incomplete answer", "1 x timeout"):
        assert kind in note
    assert note.endswith("the queue is full")
    assert found["throughput"].figures["failed_requests"] == 5
    assert found["throughput"].figures["goodput_fraction"] == pytest.approx(2 / 7)
    assert len(found["latency"].samples_s) == 2


@pytest.mark.parametrize("resets", [False, True])
def test_a_connection_that_the_server_has_closed_is_opened_again(
    servers: Callable[..., SseServer], caplog: pytest.LogCaptureFixture, resets: bool
) -> None:
    server = servers(plain)
    server.closes_reused, server.resets = True, resets
    found = measured(server, caplog, requests=5, output_tokens="2")
    assert found["throughput"].figures["failed_requests"] == 0


def test_results_name_the_model_that_answered(
    servers: Callable[..., SseServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = servers(plain)
    server.digests = ["d1", "d1"]
    found = measured(server, caplog, requests=2, output_tokens="2")
    assert {one.model for one in found.values()} == {"d1"}
    server.digests = ["d1", "d2"]
    with pytest.raises(EnvironmentFault, match="another model took over"):
        measured(server, caplog, requests=2, output_tokens="2")
    assert measured(server, caplog, requests=2, output_tokens="2")["latency"].model is None


def test_chats_are_measured_from_their_first_words(
    servers: Callable[..., SseServer], caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(body: dict[str, Any], write: Write) -> None:
        assert body["messages"][0]["role"] == "user"
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}, {}]
        for delta in deltas:
            await write({"choices": [{"delta": delta, "finish_reason": None if delta else "length"}]})
        await write("[DONE]")

    server = servers(answer)
    found = measured(server, caplog, chat=True, requests=2, output_tokens="2")
    assert len(found["itl"].samples_s) == 2, "one gap between two parts of each answer"


def test_servers_that_cannot_be_measured_say_why(
    servers: Callable[..., SseServer], caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(body: dict[str, Any], write: Write) -> None:
        raise Refusal(401, "no key")

    server = servers(refuse)
    with pytest.raises(UsageError, match="requires a key") as raised:
        measured(server, caplog)
    assert raised.value.hint == "export AIFX_SERVE__API_KEY=KEY"

    async def overloaded(body: dict[str, Any], write: Write) -> None:
        raise Refusal(503, "4010 requests are waiting")  # 401 is not its status

    with pytest.raises(EnvironmentFault, match="does not answer requests") as busy:
        measured(servers(overloaded), caplog)
    assert re.match("HTTP 503: 4010", busy.value.why)

    async def fail_later(body: dict[str, Any], write: Write) -> None:
        if len(server.bodies) > 1:
            raise Refusal(500, "out of pages")
        await plain(body, write)

    server = servers(fail_later)
    with pytest.raises(EnvironmentFault, match="HTTP 500") as failed:
        measured(server, caplog, requests=2)
    assert failed.value.why == "out of pages"
    nobody = SimpleNamespace(url="http://127.0.0.1:9")
    with pytest.raises(EnvironmentFault, match="no server answers at"):
        measured(nobody, caplog)  # type: ignore[arg-type]


def test_a_run_that_cannot_be_served_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = "import sys; print('error: no such port', file=sys.stderr); sys.exit(2)"
    monkeypatch.setattr(processes, "PROGRAM", program)
    with (
        pytest.raises(EnvironmentFault, match="aifx serve ended") as raised,
        target.served(LoadOptions(run="main"), tmp_path),
    ):
        pass
    assert "no such port" in raised.value.why

    def pump_at_its_end(children: list[target.Child], wait_s: float) -> None:
        """As on a busy machine: one look reads all of the output and sees the end."""
        children[0]._process.wait()
        pump(children, wait_s)

    pump = target.pump
    monkeypatch.setattr(target, "pump", pump_at_its_end)
    error = {"what": "no run 'mian'", "why": "did you mean 'main'?", "hint": "aifx runs ls", "exit_code": 2}
    program = f"import json; print(json.dumps({{'error': {error}}}, indent=2)); raise SystemExit(2)"
    monkeypatch.setattr(processes, "PROGRAM", program)
    with (
        pytest.raises(EnvironmentFault, match="no run 'mian'") as failed,
        target.served(LoadOptions(run="mian"), tmp_path),
    ):
        pass
    assert (failed.value.why, failed.value.hint) == (error["why"], error["hint"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "requires URL or --run"),
        ({"url": "http://x", "run": "main"}, "requires URL or --run"),
        ({"url": "127.0.0.1:8000"}, "is no URL"),
        ({"url": "http://me:pw@x"}, "holds a name or password"),
        ({"url": "http://x", "set": ("serve.slots=[1]",)}, "--set requires --run"),
        ({"url": "http://x", "rate": (1.0,), "concurrency": (2,)}, "exclude each other"),
        ({"url": "http://x", "slo": "ttft"}, "--slo ttft is no limit"),
        ({"url": "http://x", "trace": "/nowhere"}, "/nowhere cannot be read"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, DataError), match=message) as raised:
        LoadOptions(**options).check()
    assert raised.value.hint
