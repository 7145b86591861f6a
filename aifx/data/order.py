"""The order of training: each epoch its own shuffle, by arithmetic, never by a list in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from aifx.core.errors import DataError
from aifx.data.base import Batch, BatchSource


def derived_seed(*parts: object) -> int:
    """A 32-bit number that is a function of `parts`, unrelated for parts that differ."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


def shuffled(place: int, length: int, seed: int) -> tuple[int, int]:
    """Epoch and example of the place-th example of a training that visits each of `length` examples once per epoch."""
    # Grain takes a second to import, a tenth where jax and orbax are there already.
    from grain.experimental import index_shuffle

    assert 0 < length < 2**32
    epoch, within = divmod(place, length)
    epoch_seed = derived_seed("shuffle", seed, epoch)
    return epoch, index_shuffle(within, max_index=length - 1, seed=epoch_seed, rounds=4)


@dataclass(frozen=True, eq=False)
class BalancedOrder:
    """An order of training in which all classes are equally frequent, and so are the examples of each."""

    members: tuple[np.ndarray, ...]  # the examples of each class, by number

    def __call__(self, places: range, seed: int) -> np.ndarray:
        """The example at each place, int64 `[places]`."""
        picked = []
        for place in places:
            turn, which = shuffled(place, len(self.members), derived_seed("classes", seed))
            members = self.members[which]
            picked.append(members[shuffled(turn, len(members), derived_seed("class", seed, which))[1]])
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

    They are read ahead by up to `depth` in a thread of grain's: one that waits, one in the making. Closing the
    generator ends the thread.
    """
    import grain

    def read(step: int) -> Batch:
        number = batch_number(step + 1, left_out)
        try:
            return source.read(number, rows)
        except (StopIteration, SystemExit) as error:  # grain and Python would take it for an end of something else
            why = f"its source raised {type(error).__name__}: {error}"
            raise DataError(f"training batch {number} could not be read", why, "correct the source") from error

    dataset = grain.MapDataset.range(steps.start, steps.stop).map(read)
    batches = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=depth)))
    try:
        yield from batches
    finally:
        batches.close()
