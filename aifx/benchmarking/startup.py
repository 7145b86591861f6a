"""Suite "startup": the time from the start of a process to step 1 in metrics.jsonl, measured from outside.

The runs are those of a copy of the project (its configuration copied, its other files linked) with caches of its own,
so that nothing of the operator's is touched.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import Samples
from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.processes import Child, Ended, aifx_command, pump, run
from aifx.core.progress import report_progress
from aifx.core.project import Project

logger = logging.getLogger(__name__)

REPEATS, QUICK_REPEATS = 3, 1
LIMIT_S = 540.0
"""Limit of one start: less than a launch may be silent (`runner.SILENCE_S`), so that the error has its last lines."""

POLL_S = 0.002


def measure(bench: Bench) -> Iterator[Measured]:
    """`help`: `aifx --help`. `first`: with nothing made before, the data's stores neither. `cold`: with the data ready
    and no compiled program. `warm`: with both. `resumed`: warm, and a checkpoint is restored."""
    repeats = QUICK_REPEATS if bench.quick else REPEATS
    logger.info("startup: help")
    yield _result(bench, "help", [_help_s() for _ in range(max(repeats, 3))])
    with bench.scratch() as folder:
        project = _copied(bench.project, folder / "project")
        first_step_s = partial(_first_step_s, bench, project, folder / "cache")
        logger.info("startup: first")
        yield _result(bench, "first", [first_step_s("first")])
        taken: dict[str, list[float]] = {"cold": [], "warm": [], "resumed": []}
        with report_progress("timing starts", repeats * (2 if bench.quick else 4), "starts") as progress:
            for number in range(repeats):
                logger.info(f"startup: cold and warm, {number + 1} of {repeats}")
                shutil.rmtree(folder / "cache" / "jax", ignore_errors=True)
                for thing in ("cold", "warm"):
                    taken[thing].append(first_step_s(thing))
                    progress.advance(1)
                if not bench.quick:
                    first_step_s("resumed", leave_checkpoint=True)
                    progress.advance(1)
                    taken["resumed"].append(first_step_s("resumed", keep=True))
                    progress.advance(1)
        for thing, seconds in taken.items():
            if seconds:
                yield _result(bench, thing, seconds)


def _first_step_s(
    bench: Bench, project: Project, cache: Path, run: str, *, leave_checkpoint: bool = False, keep: bool = False
) -> float:
    """Seconds to the first new record of a run, which goes on only with `keep`. The process is then killed, or asked to
    leave a checkpoint."""
    metrics = project.run(run).metrics
    if not keep:
        shutil.rmtree(metrics.parent, ignore_errors=True)
    before = metrics.stat().st_size if metrics.exists() else 0
    settings = [part for setting in bench.options.get("set") or () for part in ("--set", setting)]
    environ = {**os.environ, "AIFX_CACHE_DIR": str(cache)}
    environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    started = time.perf_counter()
    command = aifx_command("train", "--run", run, *settings)
    with Child(command, cwd=project.root, env=environ, limit_s=LIMIT_S) as child:
        while not (metrics.exists() and metrics.stat().st_size > before):
            pump([child], POLL_S)
            if child.ended is not None:
                raise _failed("aifx train", child.ended)
        seconds = time.perf_counter() - started
        if leave_checkpoint:
            child.send_signal(signal.SIGTERM)
            child.wait()
    return seconds


def _failed(command: str, ended: Ended) -> AifxError:
    why = " ".join(line.strip() for line in ended.last_lines[-3:]) or "it printed nothing"
    how = f"did not reach its first step in {LIMIT_S:.0f} s" if ended.cut else f"failed ({ended.how})"
    return EnvironmentFault(f"{command} {how}", why, command)


def _help_s() -> float:
    started = time.perf_counter()
    ended = run(aifx_command("--help"), limit_s=LIMIT_S)
    seconds = time.perf_counter() - started
    if not ended.succeeded:
        raise _failed("aifx --help", ended)
    return seconds


def _copied(project: Project, folder: Path) -> Project:
    """The project under another root: its configuration copied, all else but its runs linked."""
    folder.mkdir()
    for path in project.root.iterdir():
        if path == project.config_path:
            shutil.copy(path, folder / path.name)
        elif path != project.runs_path and not folder.is_relative_to(path):
            (folder / path.name).symlink_to(path)
    return Project(folder)


def _result(bench: Bench, thing: str, seconds: list[float]) -> Measured:
    return bench.measured(thing, Samples(seconds, 1, seconds[0], 0))
