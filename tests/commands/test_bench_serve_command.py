"""`aifx bench serve` as a person uses it: its table, baselines and gate, and Ctrl-C."""

from __future__ import annotations

import asyncio
import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import program
import pytest
from published_schemas import check_document

from aifx.benchmarking.results import Measured, Result

sys.path.append(str(Path(__file__).parents[1] / "benchmarking"))
sse = importlib.import_module("sse_server")
fake_suite = importlib.import_module("fake_suite")


@pytest.fixture
def server() -> Iterator[Any]:
    """It writes a token every few milliseconds, and none from the 40th request on."""
    count = 0

    async def answer(body: dict[str, Any], write: Any) -> None:
        nonlocal count
        count += 1
        is_answered = count < 40
        for _ in range(body["max_tokens"]):
            await asyncio.sleep(0.004 if is_answered else 600)
            await write(sse.text("x"))
        await write(sse.usage(len(body["prompt"]), body["max_tokens"]))
        await write("[DONE]")

    server = sse.SseServer(answer, list(range(100)))
    yield server
    server.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    fake_suite.fork_launches(monkeypatch)
    return lambda *arguments: program.run(tmp_path, "bench", *map(str, arguments))


@pytest.mark.slow
def test_a_server_is_measured_and_its_report_printed(bench: Callable[..., Any], server: Any, tmp_path: Path) -> None:
    options = ["--concurrency", "2", "--requests", "8", "--output-tokens", "4", "--slo", "ttft=10s", "--price", "3.6"]
    done = bench(
        "serve", server.url, *options, "--launches", "1", "--output", tmp_path / "out.json", "--html", tmp_path / "p"
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "note:" not in line]
    assert max(map(len, lines)) <= 80
    table = " ".join(done.stdout.split())
    assert "concurrency 2 p50 ± p90 p99 ttft" in table
    for words in (
        "tpot",
        "itl",
        "latency",
        "tokens/s",
        "goodput fraction 100 %",
        "cost per million tokens",
        "(declared)",
    ):
        assert words in table
    report = json.loads((tmp_path / "out.json").read_text())
    check_document("commands/bench", report)
    assert report["request"]["options"]["concurrency"] == [2]
    names = [result["name"] for result in report["results"]]
    assert names == ["serve.ttft", "serve.tpot", "serve.itl", "serve.latency", "serve.throughput"]
    assert min(report["results"][0]["samples_s"][0]) >= 0.004
    printed = bench("show", tmp_path / "out.json")
    assert "concurrency 2 p50" in " ".join(printed.stdout.split())
    assert "ttft" in (tmp_path / "p").read_text()


def test_comparisons_of_latencies_go_by_medians(bench: Callable[..., Any], tmp_path: Path) -> None:
    """A request in ten that hits a cache must not hide that all others became slower."""
    from test_bench_command import report

    from aifx.benchmarking.fingerprint import Fingerprint
    from aifx.benchmarking.results import write_report

    def ttft(seconds: float) -> Result:
        launches = [[0.001, *(seconds * (1 + 0.001 * n + 0.0001 * k) for k in range(7))] for n in range(5)]
        return Result.of([Measured(name="serve.ttft", samples_s=samples, compared_at=0.5) for samples in launches])

    for name, seconds in (("a", 0.1), ("b", 0.2)):
        write_report(report(Fingerprint(), ttft(seconds)), tmp_path / f"{name}.json")
    done = bench("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert done.returncode == 0, done.stderr
    assert "slower" in done.stdout
    assert "medians of the requests" in done.stdout
    gated = bench("gate", "--baseline", tmp_path / "a.json", "--results", tmp_path / "b.json")
    assert gated.returncode == 1, gated.stderr
    assert "regression: serve.ttft" in gated.stdout


PATIENT = """
from aifx.benchmarking import runner
from aifx.commands.main import main
runner.GRACE_S = 300
main()
"""


@pytest.mark.slow
def test_ctrl_c_shows_what_there_is(server: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PATIENT, "bench", "serve", server.url, "--requests", "1000"]
    with subprocess.Popen(
        [*command, "--concurrency", "4", "--warmup", "0", "--output-tokens", "4"],
        cwd=tmp_path, env=program.environ(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 300
        while len(server.bodies) < 39 + 4 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=300)
    assert process.returncode == 130, told
    table = " ".join(out.split())
    assert "concurrency 4 p50" in table
    assert "4 requests" in out
    assert "Ctrl-C" in out
    assert "Traceback" not in told
