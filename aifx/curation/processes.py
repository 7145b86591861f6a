"""Calls of a function in processes of this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from aifx.core.errors import EnvironmentFault

T = TypeVar("T")
R = TypeVar("R")


def call_each(
    function: Callable[[T], R],
    items: Sequence[T],
    workers: int,
    sizes: Sequence[int] = (),
    report: Callable[[int], None] = lambda amount: None,
) -> Iterator[tuple[int, R]]:
    """The index and result of each call, as they end; in this process if there is one item or one worker.

    The function and the items must be picklable. Raises what the function raises, after ending the other calls.

    Args:
        sizes: amount of work of each item.
        report: called with amounts of work that are done; during a call, with those that it gives to `advance`.
    """
    workers = min(workers, len(items))
    sizes = sizes or [0] * len(items)
    if workers <= 1:
        for index, (item, size) in enumerate(zip(items, sizes, strict=True)):
            yield index, _reporting(function, item, size, report)
        return
    context = get_context("spawn")
    done, reported = context.Value("q"), 0
    pool = ProcessPoolExecutor(workers, context, _begin, (function, done))
    try:
        waiting: dict[Future[R], int] = {
            pool.submit(_call, item, size): index for index, (item, size) in enumerate(zip(items, sizes, strict=True))
        }
        while waiting:
            ended, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            now = done.value
            report(now - reported)
            reported = now
            for future in ended:
                yield waiting.pop(future), future.result()
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def generated(function: Callable[..., Iterator[T]], *arguments: Any) -> Generator[Iterator[T]]:
    """What `function(*arguments)` yields, in a process of its own, which is killed when the block ends.

    So a signal ends what the function does, although a library may not return to Python for hours. The function, the
    arguments and what is yielded must be picklable. Raises what the function raises, EnvironmentFault if the process is
    ended by something else.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_generate, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()

    def received() -> Iterator[T]:
        try:
            while True:
                value, error = receiver.recv()
                if isinstance(error, StopIteration):
                    return
                if error is not None:
                    raise error
                yield value
        except EOFError:
            process.join()
            number = -(process.exitcode or 0)
            why = f"signal {number}" if number > 0 else f"exit {process.exitcode}"
            what, hint = "the process that does the work ended without an answer", "give it more --memory"
            raise EnvironmentFault(what, f"{why}: it may have needed more memory than there is", hint) from None

    try:
        yield received()
    finally:
        process.kill()
        process.join()
        receiver.close()


def advance(amount: int) -> None:
    """Report a part of the work of the call that runs in this process."""
    global _left
    amount = min(amount, _left)
    _left -= amount
    if _report is not None:
        _report(amount)


def return_memory() -> None:
    """Let Arrow return memory to the system at once. Its own allocator keeps what it may need again."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())


_function: Callable[[Any], Any] | None = None
_done: Any = None  # a number that the processes of a pool share
_report: Callable[[int], None] | None = None
_left = 0  # of the work of the call


def _reporting(function: Callable[[T], R], item: T, size: int, report: Callable[[int], None]) -> R:
    """Call the function, and report `size` in all."""
    global _report, _left
    _report, _left = report, size
    try:
        result = function(item)
        advance(size)
        return result
    finally:
        _report, _left = None, 0


def _add(amount: int) -> None:
    with _done.get_lock():
        _done.value += amount


def _begin(function: Callable[[Any], Any], done: Any) -> None:
    """In a new process of a pool: take the function."""
    global _function, _done
    _function, _done = function, done
    _follow_parent()


def _generate(sender: Any, function: Callable[..., Iterator[Any]], arguments: Sequence[Any]) -> None:
    _follow_parent()
    try:
        for value in function(*arguments):
            sender.send((value, None))
        sender.send((None, StopIteration()))
    except Exception as e:
        sender.send((None, e))


def _follow_parent() -> None:
    """In a new process: leave signals to the parent, and end with it, however it ends."""
    import signal

    return_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _call(item: Any, size: int) -> Any:
    assert _function is not None
    return _reporting(_function, item, size, _add)
