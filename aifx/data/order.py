"""The order of training: each epoch its own shuffle, by arithmetic, never by a list in memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from aifx.core.digests import hash32
from aifx.core.errors import DataError
from aifx.data.base import Batch, BatchSource

READ_ENDS_S = 1.0
"""How long closing a reader waits for the read under way, lest Python's exit cuts into a library of C++."""


def shuffled(place: int, length: int, seed: int) -> tuple[int, int]:
    """Epoch and example of the place-th example of a training that visits each of `length` examples once per epoch."""
    # Grain takes a second to import, a tenth where jax and orbax are there already.
    from grain.experimental import index_shuffle

    assert 0 < length < 2**32
    epoch, within = divmod(place, length)
    epoch_seed = hash32("shuffle", seed, epoch)
    return epoch, index_shuffle(within, max_index=length - 1, seed=epoch_seed, rounds=4)


@dataclass(frozen=True, eq=False)
class BalancedOrder:
    """An order of training in which all classes are equally frequent, and so are the examples of each."""

    members: tuple[np.ndarray, ...]  # the examples of each class, by number

    def __call__(self, places: range, seed: int) -> np.ndarray:
        """The example at each place, int64 `[places]`."""
        picked = []
        for place in places:
            turn, which = shuffled(place, len(self.members), hash32("classes", seed))
            members = self.members[which]
            picked.append(members[shuffled(turn, len(members), hash32("class", seed, which))[1]])
        return np.array(picked, np.int64)


def batch_number(step: int, left_out: Sequence[int] = ()) -> int:
    """The batch, counted from 0, that the update `step`, counted from 1, is computed from.

    Args:
        left_out: numbers of batches that no step takes, in rising order.
    """
    number = step - 1
    for other in left_out:
        number += other <= number
    return number


def prefetch(
    source: BatchSource, steps: range, rows: slice, depth: int = 2, left_out: Sequence[int] = ()
) -> Generator[Batch, None, None]:
    """The batches of the updates that follow each of `steps`, in order, without those `left_out` (see `batch_number`).

    They are read ahead by up to `depth` (at least 2) in a thread: some wait, one is in the making. Closing the
    generator ends the thread, or leaves it if it is stuck in a read. Python's exit does not wait for it then, as it
    would for a thread of grain's or of an executor.
    """
    ready = queue.Queue[Batch | BaseException | None](depth - 1)
    closed = threading.Event()

    def read(step: int) -> Batch:
        number = batch_number(step + 1, left_out)
        try:
            return source.read(number, rows)
        except (StopIteration, SystemExit) as error:  # Python would take it for an end of something else
            why = f"its source raised {type(error).__name__}: {error}"
            raise DataError(f"training batch {number} could not be read", why, "correct the source") from error

    def read_all() -> None:
        try:
            for step in steps:
                ready.put(read(step))
                if closed.is_set():
                    return
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=read_all, name="aifx-prefetch", daemon=True)
    thread.start()
    try:
        while (batch := ready.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch
    finally:
        closed.set()
        with suppress(queue.Empty):
            while True:  # the thread may wait for room
                ready.get_nowait()
        thread.join(READ_ENDS_S)
