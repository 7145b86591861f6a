"""The number of pages of the pool: as `serve.memory` says, otherwise what all slots need."""

from __future__ import annotations

import pytest

from aifx.config.serve_section import ServeSection
from aifx.core.errors import UsageError
from aifx.programs.decoding import DecodingPrograms
from aifx.programs.serving import page_bytes
from aifx.serving import start
from aifx.serving.start import pool_pages

MAX_LEN, PAGES_OF_ONE = 256, 4  # a page has 64 tokens


def test_the_pool_is_what_memory_says(decoding: DecodingPrograms) -> None:
    size = page_bytes(decoding.model, decoding.dtype)
    serve = ServeSection(memory=f"{9 * size + 5}")
    assert pool_pages(decoding, serve, 16, MAX_LEN) == 9


def test_without_memory_all_slots_fit_or_half_of_what_is_free(
    decoding: DecodingPrograms, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = page_bytes(decoding.model, decoding.dtype)
    monkeypatch.setattr(start, "free_memory", lambda platform: 1 << 40)
    assert pool_pages(decoding, ServeSection(), 16, MAX_LEN) == 16 * PAGES_OF_ONE
    monkeypatch.setattr(start, "free_memory", lambda platform: 20 * size)
    assert pool_pages(decoding, ServeSection(), 16, MAX_LEN) == 10


@pytest.mark.parametrize(("pages", "option"), [(3, "--max-model-len 192"), (0.5, "--memory 1MiB")])
def test_too_little_for_one_request_is_refused_with_what_is_enough(
    decoding: DecodingPrograms, pages: float, option: str
) -> None:
    size = page_bytes(decoding.model, decoding.dtype)
    with pytest.raises(UsageError, match="too little") as caught:
        pool_pages(decoding, ServeSection(memory=str(int(pages * size))), 16, MAX_LEN)
    assert caught.value.hint == f"aifx serve {option}"
    with pytest.raises(UsageError, match=r"serve\.memory = lots"):
        pool_pages(decoding, ServeSection(memory="lots"), 16, MAX_LEN)
