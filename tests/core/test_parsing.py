"""Sizes as people write them."""

from __future__ import annotations

import pytest

from aifx.core.parsing import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("512M", 512 * 10**6), ("2GiB", 2 << 30), ("1kib", 1024), ("7", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "many", "-1GB", "1e9", "1iB", "5 GB of it", "nan"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)
