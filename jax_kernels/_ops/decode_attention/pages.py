"""A cache of keys or values in pages: where a token of a row lies, writing it there, and reading rows as a whole.

Pages are `[num_kv_heads, num_pages, page_size, head_dim]`. Row b of a page table names the pages of row b of the batch
in their order: its token at position p lies in page `page_table[b, p // page_size]` at `p % page_size`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def write_pages(pages: jax.Array, page_table: jax.Array, start: jax.Array, values: jax.Array) -> jax.Array:
    """Pages with `values` `[batch, seq, num_kv_heads, head_dim]` at positions start[b] + i of each row b.

    Nothing but those positions is touched: with `pages` donated, a step costs what it writes.

    Args:
        page_table: `[batch, pages_per_row]` integers.
        start: `[batch]` integers. Positions before 0 or past the row's table are dropped, as are those whose page does
            not exist.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    check_pages("pages", pages)
    check_table(page_table, page_table.shape[:1])
    batch, pages_per_row = page_table.shape
    num_kv_heads, num_pages, page_size, head_dim = pages.shape
    if values.ndim != 4 or values.shape != (batch, values.shape[1], num_kv_heads, head_dim):
        raise ValueError(f"values: expected [{batch}, seq, {num_kv_heads}, {head_dim}], got shape {values.shape}")
    if values.dtype != pages.dtype:
        raise ValueError(f"values: expected {pages.dtype} as pages, got {values.dtype}")
    check_counts("start", start, batch)

    position = start[:, None] + jnp.arange(values.shape[1], dtype=start.dtype)
    slot = jnp.clip(position // page_size, 0, pages_per_row - 1)
    page = jnp.take_along_axis(page_table, slot, axis=1, mode="clip")
    exists = (position >= 0) & (position < pages_per_row * page_size) & (page >= 0) & (page < num_pages)
    tokens = jnp.where(exists, page * page_size + position % page_size, num_pages * page_size)
    # One axis for page and place in it: a scatter whose index is a single number needs no transposed copy of the pages.
    flat = pages.reshape(num_kv_heads, num_pages * page_size, head_dim)
    return flat.at[:, tokens].set(values.transpose(2, 0, 1, 3), mode="drop").reshape(pages.shape)


def gather_pages(pages: jax.Array, page_table: jax.Array) -> jax.Array:
    """Rows as `attention` takes keys and values, `[batch, pages_per_row * page_size, num_kv_heads, head_dim]`.

    Entries of `page_table` `[batch, pages_per_row]` that name no page give what the nearest one holds.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    check_pages("pages", pages)
    check_table(page_table, page_table.shape[:1])
    rows = jnp.take(pages, page_table, axis=1, mode="clip").transpose(1, 2, 3, 0, 4)
    return rows.reshape(page_table.shape[0], -1, *rows.shape[3:])


def check_pages(name: str, pages: jax.Array) -> None:
    if pages.ndim != 4 or 0 in pages.shape:
        raise ValueError(f"{name}: expected [num_kv_heads, num_pages, page_size, head_dim], got shape {pages.shape}")
    if not jnp.issubdtype(pages.dtype, jnp.floating):
        raise ValueError(f"{name}: expected a floating-point type, got {pages.dtype}")


def check_table(page_table: jax.Array, batch: tuple[int, ...]) -> None:
    fits = page_table.ndim == 2 and page_table.shape[:1] == batch and page_table.shape[1] > 0
    if not fits or not jnp.issubdtype(page_table.dtype, jnp.integer):
        size = batch[0] if batch else "batch"
        raise ValueError(
            f"page_table: expected integers [{size}, pages_per_row], got {page_table.dtype} {page_table.shape}"
        )


def check_counts(name: str, counts: jax.Array, batch: int) -> None:
    if counts.shape != (batch,) or not jnp.issubdtype(counts.dtype, jnp.integer):
        raise ValueError(f"{name}: expected integers of shape ({batch},), got {counts.dtype} {counts.shape}")
