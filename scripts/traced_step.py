"""The functions of a training step: a small language model is trained, and what it enters is noted."""

from __future__ import annotations

import inspect
import os
import pkgutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple
from unittest.mock import patch

STEPS = 2
"""The record of the first step goes to the hooks during the second one."""

SETTINGS = {
    "data.vocab_size": 300,
    "model.num_layers": 2,
    "train.num_steps": STEPS,
    "train.global_batch_size": 16,  # a step takes far longer than what the host does meanwhile, so waits are the same
    "train.validate_every": 0,
    "schedule.warmup_steps": 0,
}


class Window(NamedTuple):
    """A window from the first start of a function to a return of another one, as `module:function`."""

    first: str
    last: str
    returns: int = 1


WINDOWS = (
    Window("aifx.programs.program:Program.lower", "aifx.programs.program:Program.lower"),  # the step is traced
    Window("aifx.data.order:prefetch", "aifx.training.meter:Meter._record", STEPS),  # a batch taken, a record drained
)


def traced_step(root: Path) -> dict[str, int]:
    """Lines of each function of aifx and jax_kernels that a step enters, by `file:line: function`.

    A function within another one adds nothing to it. Needs Python 3.12.
    """
    folders = tuple(f"{root / name}{os.sep}" for name in ("aifx", "commands", "jax_kernels"))
    with tempfile.TemporaryDirectory(prefix="aifx-house-") as folder:
        for name in [name for name in os.environ if name.startswith(("AIFX_", "JAX_"))]:
            del os.environ[name]
        os.environ |= {"JAX_PLATFORMS": "cpu", "AIFX_CACHE_DIR": f"{folder}/cache", "AIFX_STATE_DIR": f"{folder}/state"}
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles in half the time
        import aifx

        project = Path(folder, "project")
        aifx.init(project, "language-model")
        # The same on each machine: a line of the ledger is always due, and no counter of energy can be read.
        due = patch("aifx.runs.records.LAST_INTERVAL_S", 0.0)
        no_counters = patch("aifx.machine.energy.cpu_counters", return_value=[])
        with due, no_counters:
            entered = entered_functions(lambda: aifx.train(project, settings=SETTINGS), WINDOWS, folders)
    return {f"{Path(file).relative_to(root)}:{line}: {name}": count for file, line, name, count in lines(entered)}


def entered_functions(
    run: Callable[[], object], windows: tuple[Window, ...], folders: tuple[str, ...]
) -> set[CodeType]:
    """The functions in `folders` that `run` enters in `windows`, one after the other, and those that begin one.

    Threads that a window starts, such as the one that reads batches, count too. Older threads do other work.
    """
    monitoring, tool = sys.monitoring, sys.monitoring.PROFILER_ID
    waiting = [(code_of(window.first), code_of(window.last), window.returns) for window in windows]
    entered: set[CodeType] = set()
    others: set[int | None] | None = None  # threads, while a window is open
    returns = 0

    def start(code: CodeType, _: int) -> Any:
        nonlocal others
        if not code.co_filename.startswith(folders):
            return monitoring.DISABLE
        if others is None and waiting and code is waiting[0][0]:
            others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
            entered.add(sys._getframe(2).f_code)
        if others is not None and threading.get_ident() not in others and code.co_flags & inspect.CO_OPTIMIZED:
            entered.add(code)  # and no module or body of a class
        return None

    def leave(code: CodeType, _: int, __: object) -> None:
        nonlocal others, returns
        if others is not None and code is waiting[0][1]:
            returns += 1
            if returns == waiting[0][2]:
                del waiting[0]
                others, returns = None, 0

    monitoring.use_tool_id(tool, "house")
    try:
        monitoring.register_callback(tool, monitoring.events.PY_START, start)
        monitoring.register_callback(tool, monitoring.events.PY_RETURN, leave)
        monitoring.set_events(tool, monitoring.events.PY_START)
        for _, last, _ in waiting:
            monitoring.set_local_events(tool, last, monitoring.events.PY_RETURN)
        run()
    finally:
        monitoring.free_tool_id(tool)
    if waiting:
        raise LookupError(f"no step was seen: {windows[-len(waiting)]} of {__file__} no longer begins and ends")
    return entered


def code_of(name: str) -> CodeType:
    code: CodeType = inspect.unwrap(pkgutil.resolve_name(name)).__code__
    return code


def last_line(code: CodeType) -> int:
    return max(last or 0 for _, last, _, _ in code.co_positions())


def lines(functions: set[CodeType]) -> list[tuple[str, int, str, int]]:
    """File, first line, name and number of lines of each function that is not within another one."""
    found, seen = [], dict[str, int]()
    for code in sorted(functions, key=lambda code: (code.co_filename, code.co_firstlineno, -last_line(code))):
        first, last = code.co_firstlineno, last_line(code)
        if last > seen.get(code.co_filename, 0):
            found.append((code.co_filename, first, code.co_qualname, last - first + 1))
            seen[code.co_filename] = last
    return found
