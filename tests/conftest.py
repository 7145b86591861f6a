"""The fixtures and settings of all tests: a fixed environment, in which no test touches files of the user."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import tiers

from aifx.core.logs import log_lines

# Set before anything imports jax. Tests are about the CPU unless the caller says otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
for name in [name for name in os.environ if name.startswith("AIFX_")]:
    del os.environ[name]

# LLVM's optimization takes longer than what most tests compute. Tests about bits start processes without it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Tests write many small files and wait for each to reach the disk. In memory, where there is plenty, they do not wait.
IN_MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > 4 << 30:
    os.environ["TMPDIR"] = tempfile.tempdir = str(IN_MEMORY)  # pytest has asked for the folder already

# One compilation cache for all workers, and with the variable set (.ci/run) for several calls of pytest. Workers
# inherit the variable, so only the process that made the folder removes it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="aifx-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Tests started in the background may ignore signals, and their children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The first example of a property may compile a program and the machine may be busy, so time is no failure; and what
# passes once passes again.
hypothesis.settings.register_profile(
    "aifx",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("aifx")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Token stores, compiled programs and ceilings go to folders of this test session."""
    os.environ["AIFX_CACHE_DIR"] = str(tmp_path_factory.mktemp("aifx-cache"))
    os.environ["AIFX_STATE_DIR"] = str(tmp_path_factory.mktemp("aifx-state"))
    yield
    del os.environ["AIFX_CACHE_DIR"], os.environ["AIFX_STATE_DIR"]


MOST_MAPS = 30_000
"""Memory maps of a worker, of 65,530 that Linux allows a process. Each compiled program has some."""


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps() -> Iterator[None]:
    """A worker drops compiled programs before it has no maps left, and a compilation fails without a reason."""
    yield
    if "jax" in sys.modules and _num_maps() > MOST_MAPS:
        sys.modules["jax"].clear_caches()


def _num_maps() -> int:
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # not Linux
        return 0


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The lines that aifx logs during the test, as a command shows them."""
    lines: list[str] = []
    with log_lines(lines.append, propagate=False):
        yield lines


SLOWEST_FIRST = (
    "test_plan_command.py",
    "test_meshes.py",
    "test_main_job.py",
    "test_training.py",
    "test_health_rules.py",
    "test_gate_script.py",
    "test_eval_command.py",
    "test_language_model.py",
    "test_finetuning.py",
    "test_linear_cross_entropy.py",
    "test_attention.py",
    "test_decoder.py",
    "test_every_op.py",
    "test_quantized_matmul.py",
    "test_tuning.py",
    "test_decode_attention.py",
    "test_decoder_dropout.py",
    "test_own_pictures.py",
    "test_kernels_command.py",
    "test_signals.py",
    "test_ema.py",
    "test_health_stress.py",
    "test_bench_kernels.py",
    "test_tables.py",
    "test_bench_page.py",
    "test_bisect_processes.py",
    "test_norms.py",
)
"""Files that take longest, so that no worker is left alone with one of them at the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    tiers.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(tiers.Costs())
    if config.option.journal and not hasattr(config, "workerinput"):
        config.pluginmanager.register(tiers.Journal(config.option.journal))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Leave what is imported out of garbage collections: a million objects, which take a second each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_sessionfinish() -> None:
    """Collect once what is garbage at the end: pytest does it five times, for all that the tests have kept."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[pytest.CollectReport]:
    """Let every other worker import the files from the last one on.

    Importing a file rewrites its assertions, which takes long, and keeps what it has made for others. Workers that
    import the same file at the same time all rewrite it.
    """
    report = yield
    if isinstance(collector, pytest.Directory) and os.environ.get("PYTEST_XDIST_WORKER", "gw0")[-1] in "13579":
        report.result.reverse()
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tiers.select(config, items)
    rank = {name: i for i, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: (rank.get(item.path.name, len(rank)), item.path))
