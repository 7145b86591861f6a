"""Servers under load: `aifx serve` against llama.cpp's server, and against what its engine can do without one.

    python benchmarks/serving.py --llama-server PATH [--peers-python PATH] [--rounds 3] [--parts float32,int8,...]

The model has the shape of SmolLM2-135M and random weights (benchmarks/smollm_shape.py). The client is that of `aifx
bench serve`, in this process, on the same cores as the server. Prompts are token ids, which no two requests share;
answers are greedy and have exactly the length asked for. Each round starts each server again.

    float32, int8   16 streams of 64 and 64 tokens, `--slots 16`, against llama.cpp in F32 and Q8_0 with 16 slots
    one             one stream: on `--slots 8` against the program of 8 rows; on `--slots 1` against `aifx generate`
    prefix          time to first token of 512 and 16 tokens: the 512 shared, against all new
    overhead        HTTP and scheduling of 16 streams: the time between the program of a step and that of the next
    start           from the start of a warm server until it takes requests; part of all others

llama.cpp's server is built on this machine, so that it uses what the processor has. The Python that writes its weights
(--peers-python, or $PEERS_PYTHON) has gguf.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import side_by_side
from side_by_side import Runs, Side, Told, Work

STREAMS, PROMPT, ANSWER, WAVES = 16, 64, 64, 3
SHARED, OWN = 512, 16
CONTEXT = 256
LOW_ID, HIGH_ID = 1000, 40_000
"""Token ids of prompts: words of their own in both vocabularies, and none that ends an answer."""

KINDS = {"float32": "F32", "int8": "Q8_0"}
GOALS = {"float32": 1.3, "int8": 2.5, "slots 8": 0.95, "slots 1": 0.95, "prefix": 5.0}
PARTS = ("float32", "int8", "one", "prefix", "overhead")
STEPS = 40


def ask(url: str, *, count: int, at_once: int, prompt: int = PROMPT, answer: int = ANSWER, shared: int = 0) -> Any:
    """The `Load` of so many requests, after a warm-up of one for each stream."""
    from aifx.benchmarking.serve.client import Api, Client, Load
    from aifx.benchmarking.serve.load import Level, Planned, PromptWriter

    async def run() -> Load:
        client = Client(Api(url, None), timeout_s=300)
        prompts, level = PromptWriter(range(LOW_ID, HIGH_ID), 1.0, shared), Level("concurrency", at_once)
        async with client.http:
            warm_up, load = Load(), Load()
            await client.run(level, [Planned(0.0, prompt, answer)] * at_once, prompts, warm_up)
            await client.run(level, [Planned(0.0, prompt, answer)] * count, prompts, load)
        for one in (*warm_up.answered, *load.answered):
            if one.error is not None or one.output_tokens != answer:
                raise SystemExit(f"{url}: {one.error or 'a short answer'} {one.detail}")
        return load

    return asyncio.run(run())


def token_s(load: Any) -> float:
    """Seconds per output token of all streams together."""
    return float((load.end_s - load.begin_s) / sum(one.output_tokens for one in load.answered))


def gaps_s(load: Any) -> list[float]:
    """Seconds per token after the first, a value per request."""
    from aifx.benchmarking.serve.figures import Times

    return [float(Times.of(one).tpot_s or 0.0) for one in load.answered]


def ttfts_s(load: Any) -> list[float]:
    from aifx.benchmarking.serve.figures import Times

    return [Times.of(one).ttft_s for one in load.answered]


@contextmanager
def aifx_server(project: Path, *settings: str) -> Iterator[Any]:
    from aifx.benchmarking.serve.load import LoadOptions
    from aifx.benchmarking.serve.target import served

    with served(LoadOptions(run="base", set=settings), project) as server:
        yield server


@contextmanager
def llama_server(program: str, weights: Path) -> Iterator[str]:
    """llama.cpp's server with as many slots as streams, on all cores; it keeps no prompts of earlier requests."""
    from aifx.core.processes import Child, pump

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = str(len(os.sched_getaffinity(0)))
    slots = ["--parallel", str(STREAMS), "--ctx-size", str(STREAMS * CONTEXT), "--cache-ram", "0", "--threads", cores]
    command = [program, "--model", str(weights), "--port", str(port), *slots, "--log-disable"]
    import httpx

    with Child(command, grace_s=2.0) as child:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            pump([child], 0.05)
            if child.ended is not None:
                raise RuntimeError(f"it ended: {child.ended.why}")
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                continue
        yield f"http://127.0.0.1:{port}"


def aifx_streams(project: Path, kind: str) -> Told:
    quantize = [f"serve.quantize={kind}"] if kind == "int8" else []
    with aifx_server(project, f"serve.slots=[{STREAMS}]", f"serve.max_model_len={CONTEXT}", *quantize) as server:
        load = ask(server.url, count=WAVES * STREAMS, at_once=STREAMS)
        return told(load, server.start_s)


def llama_streams(program: str, weights: Path) -> Told:
    try:
        with llama_server(program, weights) as url:
            version = subprocess.run([program, "--version"], capture_output=True, text=True).stderr.split("\n")[0]
            load = ask(url, count=WAVES * STREAMS, at_once=STREAMS)
            return {**told(load, None), "versions": {"llama.cpp": version.removeprefix("version: ")}}
    except (OSError, RuntimeError) as error:
        return {"absent": str(error)}


def told(load: Any, start_s: float | None) -> Told:
    seconds = {"all": [token_s(load)], "gap": gaps_s(load), "first": ttfts_s(load)}
    return {"seconds": seconds | ({} if start_s is None else {"start": [start_s]})}


def one_stream(project: Path, slots: int) -> Told:
    with aifx_server(project, f"serve.slots=[{slots}]", f"serve.max_model_len={CONTEXT}") as server:
        load = ask(server.url, count=4, at_once=1)
        return {"seconds": {"gap": gaps_s(load), "start": [server.start_s]}}


def prefixes(project: Path, *, is_shared: bool) -> Told:
    """Requests one after the other, of one token."""
    with aifx_server(project, "serve.slots=[8]", "serve.max_model_len=1024") as server:
        shared, own = (SHARED, OWN) if is_shared else (0, SHARED + OWN)
        load = ask(server.url, count=8, at_once=1, prompt=own, answer=1, shared=shared)
        return {"seconds": {"first": ttfts_s(load)}}


def open_service(slots: int) -> Any:
    """The service that `aifx serve` opens, in this process; the working directory is the project."""
    from aifx.core.project import find_project
    from aifx.core.web.traffic import AccessLog
    from aifx.kinds import read_config
    from aifx.loading.restore import CURRENT, restore_run
    from aifx.serving.http.services import open_service

    project = find_project()
    directory = project.existing_run("base")
    overrides = [f"serve.slots=[{slots}]", f"serve.max_model_len={CONTEXT}"]
    settings = read_config(directory.config, project, overrides, current=CURRENT).serve
    trained = restore_run(directory, project, step=None, overrides=overrides)
    return open_service(trained, name="base", settings=settings, log=AccessLog(Path(os.devnull)))


def full_rows(engine: Any, count: int) -> list[Any]:
    """Rows with a prompt, as the device takes them."""
    from aifx.serving.requests import GenerationRequest
    from aifx.serving.rows import Row

    rows = []
    for number in range(count):
        row = Row(
            GenerationRequest(list(range(2000, 2000 + PROMPT + 32)), ANSWER),
            lambda delta: None,
            engine.tokenizer,
            engine.weights,
        )
        per_row = CONTEXT // engine.page_size
        row.pages, row.held = list(range(number * per_row, (number + 1) * per_row)), PROMPT + 31
        rows.append(row)
    return rows


def step_side(slots: int, rows: int) -> Told:
    """The program of a step, by itself, with its arguments as the engine makes them."""
    import jax

    engine = open_service(slots).state.engine
    engine.stop()
    return {"seconds": {"gap": program_s(engine, rows)}, "versions": {"jax": jax.__version__}}


def program_s(engine: Any, rows: int) -> list[float]:
    import jax

    chosen, seconds = full_rows(engine, rows), []
    for number in range(STEPS + 5):
        began = time.perf_counter()
        jax.block_until_ready(engine.device.decode(engine.weights.params, chosen))
        if number >= 5:
            seconds.append(time.perf_counter() - began)
    return seconds


def generate_side() -> Told:
    """`aifx generate`, from token to token."""
    from aifx.core.project import find_project
    from aifx.loading.restore import restore_run
    from aifx.serving.generate import write_text

    project = find_project()
    trained = restore_run(project.existing_run("base"), project, step=None)
    given = {"prompt": "x" * PROMPT, "max_tokens": ANSWER, "temperature": 0.0}
    seconds = []
    for number in range(6):
        times = [time.perf_counter() for _ in write_text(trained, trained.config.generate.model_copy(update=given))]
        if number:
            seconds.append((times[-1] - times[0]) / (len(times) - 1))
    return {"seconds": {"gap": seconds}}


def overhead_side() -> Told:
    """A server in this process, asked by another one: the time between the program of a step of 16 streams and that of
    the next. The engine hands answers out while the program runs, and here after it: it is no longer than this."""
    import threading

    import jax

    from aifx.core.web.server import bind, url_of
    from aifx.serving.http.app import open_server

    state = open_service(STREAMS).state
    engine = state.engine
    steps: list[tuple[float, float, int]] = []  # begin, end, and how many rows ran
    programs, read = engine.device._decode, engine.device.prefill
    program = programs[STREAMS].compiled

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        found = jax.block_until_ready(program(*arguments))
        steps.append((began, time.perf_counter(), len(engine._running)))
        return found

    def reading(*arguments: Any, **options: Any) -> Any:
        steps.append((0.0, 0.0, 0))
        return read(*arguments, **options)

    programs[STREAMS], engine.device.prefill = SimpleNamespace(compiled=timed), reading
    bound = bind("127.0.0.1", 0, port_hint="")
    server, ready = open_server(state, bound), threading.Event()
    thread = threading.Thread(target=server.run, args=(ready.set,), daemon=True)
    thread.start()
    ready.wait()
    command = side_by_side.own(__file__, "client", "--folder", url_of(bound))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    server.stop()
    thread.join()
    pairs = [(one, two) for one, two in itertools.pairwise(steps) if one[2] == two[2] == STREAMS]
    return {
        "seconds": {"host": [two[0] - one[1] for one, two in pairs], "program": [two[1] - two[0] for _, two in pairs]}
    }


def client_side(url: str) -> Told:
    return {"seconds": {"all": [token_s(ask(url, count=2 * STREAMS, at_once=STREAMS))]}}


def prepare(folder: Path, peers_python: str, kinds: Sequence[str]) -> None:
    """A project with a run of the model, and llama.cpp's weights; what is there already stays."""
    import smollm_shape

    project = folder / "project"
    if not (project / "runs" / "base").exists():
        project.mkdir(parents=True, exist_ok=True)
        (project / "aifx.toml").touch()
        smollm_shape.write_folder(folder / "hf")
        command = [*side_by_side.AIFX, "import", str(folder / "hf"), "--name", "base"]
        subprocess.run(command, check=True, cwd=project, stdout=subprocess.DEVNULL)
    for kind in kinds:
        if not (path := folder / f"{kind}.gguf").exists():
            body = f"import generation, pathlib; generation.write_gguf(pathlib.Path({str(path)!r}), {kind!r})"
            command = [peers_python, "-c", f"import sys; sys.path.append({str(Path(__file__).parent)!r}); {body}"]
            subprocess.run(command, check=True)


def main() -> None:
    parser = side_by_side.arguments_of(__doc__, rounds=3, quick_rounds=1)
    parser.add_argument("--llama-server", default=os.environ.get("LLAMA_SERVER", "llama-server"))
    parser.add_argument("--peers-python", default=os.environ.get("PEERS_PYTHON", sys.executable))
    parser.add_argument("--parts", default=",".join(PARTS), type=lambda text: text.split(","))
    arguments = parser.parse_args()
    own_sides = {
        "steps": partial(step_side, 8, 1),
        "generate": generate_side,
        "overhead": overhead_side,
        "client": partial(client_side, arguments.folder),
    }
    if arguments.side:
        side_by_side.tell(own_sides[arguments.side])
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(arguments.folder or made).resolve()
        kinds = [KINDS[part] for part in arguments.parts if part in KINDS]
        prepare(folder, arguments.peers_python, kinds)
        report(folder, arguments)


def report(folder: Path, arguments: Any) -> None:
    project, rounds = folder / "project", side_by_side.rounds_of(arguments)
    all_runs: list[Runs] = []
    rows: list[dict[str, Any]] = []
    notes: list[str] = []

    def compare(label: str, *sides: Side) -> Runs:
        all_runs.append(side_by_side.alternate(sides, rounds, label=f"{label}: "))
        return all_runs[-1]

    def own(side: str) -> Side:
        command = side_by_side.own(str(Path(__file__).resolve()), side)
        return Side(side, lambda: in_project(command, project))

    for kind in [part for part in arguments.parts if part in KINDS]:
        weights = folder / f"{KINDS[kind]}.gguf"
        peer = Side("llama.cpp", partial(llama_streams, arguments.llama_server, weights))
        runs = compare(kind, Side("aifx", partial(aifx_streams, project, kind)), peer)
        what = f"{STREAMS} streams of {PROMPT} and {ANSWER} tokens, {kind}"
        against = f"llama.cpp's server, {KINDS[kind]}"
        if not runs.peers:
            continue
        rows += [
            side_by_side.versus(runs, Work("all", what, GOALS[kind], 1, "tokens"), "llama.cpp", against=against),
            side_by_side.versus(runs, Work("gap", f"{what}: time per token"), "llama.cpp", against=against),
            side_by_side.versus(runs, Work("first", f"{what}: time to first token"), "llama.cpp", against=against),
        ]
    if "one" in arguments.parts:
        for slots, side, against in ((8, "steps", "the program of 8 rows"), (1, "generate", "`aifx generate`")):
            runs = compare(f"slots {slots}", Side("aifx", partial(one_stream, project, slots)), own(side))
            work = Work("gap", f"one stream on --slots {slots}", GOALS[f"slots {slots}"], 1, "tokens")
            rows.append(side_by_side.versus(runs, work, side, against=against))
    if "prefix" in arguments.parts:
        sides = (
            Side("hit", partial(prefixes, project, is_shared=True)),
            Side("miss", partial(prefixes, project, is_shared=False)),
        )
        work = Work("first", f"time to first token, {SHARED} shared and {OWN} own tokens", GOALS["prefix"])
        rows.append(side_by_side.versus(compare("prefix", *sides), work, "miss", against=f"{SHARED + OWN} new tokens"))
    if "overhead" in arguments.parts:
        found = compare("overhead", own("overhead")).told["overhead"]
        host, program = (
            statistics.median(s for told in found for s in told["seconds"][name]) for name in ("host", "program")
        )
        text = f"{1e3 * host:.2f} ms at the median, between programs of {1e3 * program:.1f} ms"
        notes.append(f"HTTP and scheduling per step at {STREAMS} streams: {text}.")
    starts = [s for runs in all_runs for told in runs.told.get("aifx", ()) for s in told["seconds"].get("start", ())]
    if starts:
        warm = sorted(starts[1:] or starts)
        notes.append(f"Warm starts until the server took requests: {warm[0]:.1f} to {warm[-1]:.1f} s ({len(warm)}).")
    side_by_side.report(side_by_side.document("serving", rows, arguments, *all_runs, notes=notes), arguments)


def in_project(command: Sequence[str], project: Path) -> Told:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=project)
    if done.returncode:
        return {"absent": f"it ended with {done.returncode}", "stderr": done.stderr}
    found: Told = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
