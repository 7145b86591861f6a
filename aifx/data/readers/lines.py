"""Blocks of whole lines of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aifx.data.readers.base import BLOCK_BYTES, ROW_BYTES, DamagedFile


def line_blocks(stream: Any, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The bytes of a stream in blocks that end after a line. Raises DamagedFile for a line beyond ROW_BYTES."""
    parts: list[bytes] = []
    while data := stream.read(block_bytes):
        cut = data.rfind(b"\n") + 1
        if cut:
            yield b"".join([*parts, data[:cut]])
            parts = [data[cut:]] if cut < len(data) else []
        else:
            parts.append(data)
            if sum(map(len, parts)) > ROW_BYTES:
                raise DamagedFile(f"it has a line of more than {ROW_BYTES >> 20} MiB")
    if parts:
        yield b"".join(parts)
