"""The device's side of the engine: compiled programs, the pool, and the arrays of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from aifx.core.digests import sha256_of
from aifx.programs.program import Program
from aifx.programs.serving import MAX_LOGIT_BIAS, Drawn, Draws, Prefilled, Rules, ServingPrograms
from aifx.serving.rows import Row


class Device:
    """Programs for each number of rows, and the pool that they share. A program is compiled when it is first needed."""

    def __init__(self, programs: ServingPrograms, slots: Sequence[int], chunk: int) -> None:
        """
        Args:
            slots: numbers of rows, rising.
            chunk: tokens of a prompt that one call prefills, a multiple of the page size if prefixes are kept.
        """
        self.programs, self.slots, self.chunk = programs, tuple(slots), chunk
        block = math.gcd(*self.slots)
        self._decode = {size: programs.decode(size, block) for size in self.slots}
        self._prefill = programs.prefill(chunk)
        self._pool = programs.init_pool()
        self._neutral = {size: programs.draws(size) for size in {1, *self.slots}}
        if programs.has_rules:  # what rows without rules need, once on the device
            self._neutral = jax.device_put(self._neutral)

    @cached_property
    def digest(self) -> str:
        """Digest of all programs."""
        return sha256_of("".join(program.lower().as_text() for program in self._all))

    def compile(self) -> None:
        """Compile all programs, so that no request waits for it."""
        for program in self._all:
            program.compiled  # noqa: B018

    @property
    def _all(self) -> Sequence[Program]:
        return *self._decode.values(), self._prefill

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
        prefill, draws_of_row = self._prefill.compiled, self._draws([row], 1)
        self._pool, found = prefill(params, self._pool, tokens, targets, facts, table, draws_of_row)
        return found

    def decode(self, params: Any, rows: Sequence[Row]) -> Drawn:
        """Write the next token of each row into its pages, and draw the one that follows. Does not wait for it."""
        size = next(size for size in self.slots if size >= len(rows))
        tokens, lengths = np.zeros((2, size), np.int32)
        tokens[: len(rows)] = [row.tokens[row.held] for row in rows]
        lengths[: len(rows)] = [row.held for row in rows]
        found: Drawn
        decode, table, draws = self._decode[size].compiled, self._table(rows, size), self._draws(rows, size)
        self._pool, found = decode(params, self._pool, tokens, lengths, table, draws)
        return found

    def _table(self, rows: Sequence[Row], size: int) -> np.ndarray:
        table = np.full((size, self.programs.pages_per_row), -1, np.int32)
        for index, row in enumerate(rows):
            table[index, : len(row.pages)] = row.pages
        return table

    def _draws(self, rows: Sequence[Row], size: int) -> Draws:
        """The arrays by which each row's next token is drawn."""
        neutral = self._neutral[size]
        settings = [row.request.sampling for row in rows]
        sampling = neutral.sampling._replace(
            temperature=_column([s.temperature for s in settings], 0, np.float32, size),
            top_k=_column([s.top_k for s in settings], 0, np.int32, size),
            top_p=_column([s.top_p for s in settings], 1, np.float32, size),
        )
        seeds = _column([s.seed for s in settings], 0, np.uint32, size)
        # Of the token that follows those that are read now.
        positions = [max(row.held + 1, row.prompt_len) - row.answer_start for row in rows]
        drawn = neutral._replace(sampling=sampling, seeds=seeds, positions=_column(positions, 0, np.int32, size))
        if neutral.rules is None:
            return drawn
        tops = [-1 if row.request.logprobs is None else row.request.logprobs for row in rows]
        return drawn._replace(
            num_top=_column(tops, -1, np.int32, size),
            adapters=_column([row.adapter for row in rows], -1, np.int32, size),
            rules=self._rules(rows, size, neutral.rules),
        )

    def _rules(self, rows: Sequence[Row], size: int, rules: Rules) -> Rules:
        """The rules of each row. Arrays that no row needs stay on the device."""
        settings = [row.request.sampling for row in rows]
        if any(s.min_p for s in settings):
            rules = rules._replace(min_p=_column([s.min_p for s in settings], 0, np.float32, size))
        if any(row.is_penalized for row in rows):
            history, answer = np.zeros((size, self.programs.max_len), np.int32), np.zeros((size, 2), np.int32)
            for index, row in enumerate(rows):
                history[index, : len(row.tokens)] = row.tokens
                answer[index] = row.answer_start, len(row.tokens)
            rules = rules._replace(
                presence=_column([s.presence_penalty for s in settings], 0, np.float32, size),
                frequency=_column([s.frequency_penalty for s in settings], 0, np.float32, size),
                repetition=_column([s.repetition_penalty for s in settings], 1, np.float32, size),
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
            masked = _column([row.mask is not None for row in rows], False, bool, size)
            rules = rules._replace(allowed=allowed, is_masked=masked)
        return rules


def _column(values: list[Any], empty: Any, dtype: Any, size: int) -> np.ndarray:
    """The values of rows, and `empty` for slots without a row."""
    return np.array(values + [empty] * (size - len(values)), dtype)
