"""The pages of the pool: an allocator with reference counts, and a cache of the prefixes of prompts."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from aifx.core.digests import Sha256


class PageAllocator:
    """Pages by number. A page that several hold is free when the last one lets it go."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take `count` free pages, each with one holder. Raises ValueError if there are fewer."""
        if count > len(self._free):
            raise ValueError(f"{count} pages wanted, {len(self._free)} are free")
        pages = [self._free.pop() for _ in range(count)]
        self.hold(pages)
        return pages

    def hold(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free.append(page)
            elif self._holders[page] < 0:
                raise AssertionError(f"page {page} was released twice")

    def holders(self, page: int) -> int:
        return self._holders[page]


class PrefixCache:
    """The pages of prefilled chunks, for prompts with the same prefix.

    The name of a chunk covers its own tokens and all before it: a chain of SHA-256, whose root is the digest of
    weights and adapter. The least recently used chunks are evicted first, and the end of a chain before its beginning,
    without which it would never be found.
    """

    def __init__(self, allocator: PageAllocator, chunk: int) -> None:
        self._allocator, self._chunk = allocator, chunk
        self._pages: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._lock = threading.Lock()  # for `num_unused`, which other threads ask for

    @property
    def num_unused(self) -> int:
        """Pages that no row holds."""
        with self._lock:
            return sum(self._allocator.holders(page) == 1 for pages in self._pages.values() for page in pages)

    def chain(self, root: bytes, tokens: Sequence[int]) -> list[bytes]:
        """The names of the full chunks of `tokens`."""
        return list(_chain(root, tokens, self._chunk))

    def find(self, names: Sequence[bytes]) -> list[int]:
        """Hold and return the pages of the leading chunks that are cached."""
        known: list[bytes] = []
        for name in names:
            if name not in self._pages:
                break
            known.append(name)
        self._touch(known)
        pages = [page for name in known for page in self._pages[name]]
        self._allocator.hold(pages)
        return pages

    def add(self, names: Sequence[bytes], pages: Sequence[int]) -> None:
        """Keep the pages of the last chunk of a chain after its row has ended."""
        if names[-1] not in self._pages:
            self._allocator.hold(pages)
            with self._lock:
                self._pages[names[-1]] = tuple(pages)
        self._touch(names)

    def _touch(self, names: Sequence[bytes]) -> None:
        """A chain was used: its chunks are the youngest, the end older than the beginning."""
        with self._lock:
            for name in reversed(names):
                if name in self._pages:
                    self._pages.move_to_end(name)

    def evict(self, count: int) -> None:
        """Evict chunks that no row holds until `count` pages are free, or none is left."""
        if self._allocator.num_free >= count:
            return
        for name in list(self._pages):
            pages = self._pages[name]
            if all(self._allocator.holders(page) == 1 for page in pages):
                with self._lock:
                    del self._pages[name]
                self._allocator.release(pages)
            if self._allocator.num_free >= count:
                return


def _chain(root: bytes, tokens: Sequence[int], chunk: int) -> Iterator[bytes]:
    name = root
    for start in range(0, len(tokens) - chunk + 1, chunk):
        part = np.asarray(tokens[start : start + chunk], np.int32)
        name = Sha256(name + part.tobytes()).digest()
        yield name
