"""The order of training: each epoch its own shuffle, by arithmetic, never by a list in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

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


def prefetch(source: BatchSource, steps: range, rows: slice, depth: int = 2) -> Generator[Batch, None, None]:
    """The batches of `steps` in order, read ahead by up to `depth` in a thread of grain's: one that waits, one in the
    making. Closing the generator ends the thread."""
    import grain

    dataset = grain.MapDataset.range(steps.start, steps.stop).map(lambda step: source.read(step, rows))
    batches = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=depth)))
    try:
        yield from batches
    finally:
        batches.close()
