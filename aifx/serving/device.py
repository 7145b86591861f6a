"""The device's side of the engine: compiled programs, the pool, and the arrays of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from aifx.core.digests import sha256_of
from aifx.programs.serving import MAX_LOGIT_BIAS, Drawn, Draws, Prefilled, ServingPrograms
from aifx.serving.rows import Row


class Device:
    """Programs for each number of rows, compiled before the first request, and the pool that they share."""

    def __init__(self, programs: ServingPrograms, slots: Sequence[int], chunk: int) -> None:
        """
        Args:
            slots: numbers of rows, rising.
            chunk: tokens of a prompt that one call prefills, a multiple of the page size.
        """
        self.programs, self.slots, self.chunk = programs, tuple(slots), chunk
        block = math.gcd(*self.slots)
        lowered = {size: programs.decode(size, block).lower() for size in self.slots}
        prefill = programs.prefill(chunk).lower()
        texts = "".join(x.as_text() for x in (*lowered.values(), prefill))
        self.digest = sha256_of(texts)
        self._decode = {size: x.compile() for size, x in lowered.items()}
        self._prefill = prefill.compile()
        self._pool = programs.init_pool()
        # What rows without rules need, once on the device.
        self._neutral = {size: jax.device_put(programs.draws(size)) for size in {1, *self.slots}}

    def prefill(self, params: Any, row: Row, *, draws: bool, scores: bool) -> Prefilled:
        """Prefill the next chunk of a row's prompt. With `draws`, draw the first token of its answer.

        Returns arrays that may not be there yet.
        """
        start = row.held
        count = min(self.chunk, row.prompt_len - start)
        tokens, targets = np.zeros((2, 1, self.chunk), np.int32)
        tokens[0, :count] = row.tokens[start : start + count]
        following = row.tokens[start + 1 : min(start + count + 1, row.prompt_len)]
        targets[0, : len(following)] = following
        facts = np.array([start, count, draws, scores], np.int32)
        table = self._table([row], 1)
        found: Prefilled
        self._pool, found = self._prefill(params, self._pool, tokens, targets, facts, table, self._draws([row], 1))
        return found

    def decode(self, params: Any, rows: Sequence[Row]) -> Drawn:
        """Write the next token of each row into its pages, and draw the one that follows. As `prefill`."""
        size = next(size for size in self.slots if size >= len(rows))
        tokens, lengths = np.zeros((2, size), np.int32)
        tokens[: len(rows)] = [row.tokens[row.held] for row in rows]
        lengths[: len(rows)] = [row.held for row in rows]
        table = self._table(rows, size)
        found: Drawn
        self._pool, found = self._decode[size](params, self._pool, tokens, lengths, table, self._draws(rows, size))
        return found

    def _table(self, rows: Sequence[Row], size: int) -> np.ndarray:
        table = np.full((size, self.programs.pages_per_row), -1, np.int32)
        for index, row in enumerate(rows):
            table[index, : len(row.pages)] = row.pages
        return table

    def _draws(self, rows: Sequence[Row], size: int) -> Draws:
        """How each row's next token is drawn. Arrays that no row needs stay on the device."""
        neutral = self._neutral[size]
        settings = [row.request.sampling for row in rows]
        padding = size - len(rows)

        def column(values: list[Any], empty: Any, dtype: Any) -> np.ndarray:
            return np.array(values + [empty] * padding, dtype)

        sampling = neutral.sampling._replace(
            temperature=column([s.temperature for s in settings], 0, np.float32),
            top_k=column([s.top_k for s in settings], 0, np.int32),
            top_p=column([s.top_p for s in settings], 1, np.float32),
        )
        rules = neutral.rules
        if any(s.min_p for s in settings):
            rules = rules._replace(min_p=column([s.min_p for s in settings], 0, np.float32))
        if any(row.is_penalized for row in rows):
            history, answer = np.zeros((size, self.programs.max_len), np.int32), np.zeros((size, 2), np.int32)
            for index, row in enumerate(rows):
                history[index, : len(row.tokens)] = row.tokens
                answer[index] = row.prompt_len, len(row.tokens)
            rules = rules._replace(
                presence=column([s.presence_penalty for s in settings], 0, np.float32),
                frequency=column([s.frequency_penalty for s in settings], 0, np.float32),
                repetition=column([s.repetition_penalty for s in settings], 1, np.float32),
                history=history,
                answer=answer,
            )
        if any(s.logit_bias for s in settings):
            tokens, bias = np.zeros((size, MAX_LOGIT_BIAS), np.int32), np.zeros((size, MAX_LOGIT_BIAS), np.float32)
            for index, s in enumerate(settings):
                tokens[index, : len(s.logit_bias)] = list(s.logit_bias)
                bias[index, : len(s.logit_bias)] = list(s.logit_bias.values())
            rules = rules._replace(bias_tokens=tokens, bias=bias)
        if any(row.mask is not None for row in rows):
            allowed = np.zeros(rules.allowed.shape, np.uint32)
            for index, row in enumerate(rows):
                if row.mask is not None:
                    allowed[index, : len(row.mask)] = row.mask
            masked = column([row.mask is not None for row in rows], False, bool)
            rules = rules._replace(allowed=allowed, is_masked=masked)
        tops = [-1 if row.request.logprobs is None else row.request.logprobs for row in rows]
        return Draws(
            sampling,
            column([s.seed for s in settings], 0, np.uint32),
            column([row.held + 1 - row.prompt_len if row.is_prefilled else 0 for row in rows], 0, np.int32),
            column(tops, -1, np.int32),
            column([row.adapter for row in rows], -1, np.int32),
            rules,
        )
