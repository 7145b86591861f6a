"""The order of training: each epoch its own shuffle, by arithmetic, never by a list in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Generator

from aifx.data.base import Batch, BatchSource


def derived_seed(*parts: object) -> int:
    """A 32-bit number that is a function of `parts`, unrelated for parts that differ."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


class Shuffle:
    """Visits `length` examples once an epoch. Grain's index_shuffle takes any place of any epoch to its example."""

    def __init__(self, length: int, seed: int) -> None:
        assert 0 < length < 2**32
        self.length = length
        self.seed = seed

    def at(self, place: int) -> tuple[int, int]:
        """Epoch and example of the place-th example of the whole training."""
        # Grain takes a second to import, a tenth where jax and orbax are there already.
        from grain.experimental import index_shuffle

        epoch, within = divmod(place, self.length)
        seed = derived_seed("shuffle", self.seed, epoch)
        return epoch, index_shuffle(within, max_index=self.length - 1, seed=seed, rounds=4)


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
