"""The pages of cached prefixes: the end of a chain is evicted before its beginning, which it is useless without."""

from __future__ import annotations

from aifx.serving.engine import PageAllocator, PrefixCache

CHUNK = 4


def cached(cache: PrefixCache, allocator: PageAllocator, tokens: list[int]) -> list[bytes]:
    """Prefill a prompt as the engine does, a page for each chunk; its row has ended."""
    names = cache.chain(b"", tokens)
    pages = cache.find(names)
    pages += allocator.take(len(names) - len(pages))
    for number in range(len(names)):
        cache.add(names[: number + 1], [pages[number]])
    allocator.release(pages)
    return names


def found(cache: PrefixCache, allocator: PageAllocator, names: list[bytes]) -> int:
    """Chunks of a chain that are cached, from its beginning."""
    pages = cache.find(names)
    allocator.release(pages)
    return len(pages)


def test_the_end_of_a_chain_is_evicted_first() -> None:
    allocator = PageAllocator(8)
    cache = PrefixCache(allocator, CHUNK)
    old = cached(cache, allocator, list(range(16)))
    new = cached(cache, allocator, list(range(100, 116)))
    assert allocator.num_free == 0
    for free in range(1, 9):  # nobody asked for either, and the looks of this test must not count
        cache.evict(free)
        assert allocator.num_free == free
        left = [sum(name in cache._pages for name in names) for names in (old, new)]
        assert left == [max(4 - free, 0), min(8 - free, 4)]
        for names, count in zip((old, new), left, strict=True):
            assert all(name in cache._pages for name in names[:count])


def test_a_chain_that_goes_on_keeps_its_beginning_longest() -> None:
    allocator = PageAllocator(6)
    cache = PrefixCache(allocator, CHUNK)
    short = cached(cache, allocator, list(range(8)))
    other = cached(cache, allocator, list(range(100, 108)))
    longer = cached(cache, allocator, list(range(16)))  # begins with the short one
    cache.evict(3)
    assert (found(cache, allocator, other), found(cache, allocator, longer)) == (0, 3)
    assert found(cache, allocator, short) == 2
