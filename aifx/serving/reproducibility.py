"""A check on the device at hand that a row's bits do not depend on the rows beside it."""

from __future__ import annotations

from typing import Any

import numpy as np

from aifx.data.tokenizer import Tokenizer
from aifx.serving.device import Device
from aifx.serving.requests import GenerationRequest, SamplingSettings
from aifx.serving.rows import Row, Weights

STEPS = 3
"""Tokens that are written each time: what a step leaves in the cache decides the next."""

LEAST_LEN = STEPS + 2
"""Tokens of the shortest request that shows anything."""

PREFILLED = 4
"""Rows whose prompts are prefilled."""


def find_difference(device: Device, weights: Weights, tokenizer: Tokenizer) -> str | None:
    """Describe the company in which a row has other bits than alone, or return None.

    Call it before the first request, since it writes into the pool.
    """
    rng = np.random.default_rng(0)
    programs = device.programs
    page = programs.model.page_size
    longest = min(device.chunk + page // 2, programs.max_len - STEPS - 1)
    # In a small pool, short rows: company matters more than length.
    least, enough = (-(-(length + STEPS + 1) // page) for length in (1, longest))
    pages_each = max(least, min(enough, programs.num_pages // max(device.slots)))
    longest = min(longest, pages_each * page - STEPS - 1)
    most = min(max(device.slots), programs.num_pages // pages_each)

    def new_row(number: int, length: int) -> Row:
        prompt = rng.integers(0, programs.vocab_size, length).tolist()
        sampling = SamplingSettings(
            temperature=0.0 if number % 2 else 1.0, top_p=0.9 if number % 3 else 1.0, seed=number
        )
        adapter = (None, *weights.adapters)[number % (1 + len(weights.adapters))]
        request = GenerationRequest(prompt, STEPS, sampling, logprobs=1, adapter=adapter)
        row = Row(request, lambda _: None, tokenizer, weights)
        row.pages = list(range(number * pages_each, (number + 1) * pages_each))
        return row

    rows = [new_row(number, longest if number == 0 else int(rng.integers(1, longest + 1))) for number in range(most)]
    for row in rows:
        # Only a few, to save time: the other rows see pages of zeros.
        while not row.is_prefilled and row in rows[:PREFILLED]:
            last = row.held + device.chunk >= row.prompt_len
            found = device.prefill(weights.params, row, draws=last, scores=False)
            row.held = min(row.held + device.chunk, row.prompt_len)
        row.tokens.append(int(found.drawn.token[0]) if row in rows[:PREFILLED] else 0)

    def bits_of(company: list[Row]) -> dict[int, list[bytes]]:
        """The bits that these rows write together, by the number of the row."""
        for row in company:
            row.held, row.tokens = row.prompt_len, row.tokens[: row.prompt_len + 1]
        bits: dict[int, list[bytes]] = {rows.index(row): [] for row in company}
        for _ in range(STEPS):
            drawn = device.decode(weights.params, company)
            for place, (number, row) in enumerate(zip(bits, company, strict=True)):
                bits[number].append(_bits(drawn, place))
                row.held += 1
                row.tokens.append(int(drawn.token[place]))
        return bits

    smallest = min(device.slots)
    expected: dict[int, list[bytes]] = {}
    for start in range(0, most, smallest):
        expected |= bits_of(rows[start : start + smallest])
    trials = [rows[:1], *(rows[: min(size, most)][::-1] for size in device.slots)]
    for company in trials:
        for number, bits in bits_of(company).items():
            if bits != expected[number]:
                return f"a row of {len(company)} has other bits than among others in {smallest} slots"
    return None


def _bits(drawn: Any, place: int) -> bytes:
    return b"".join(np.asarray(x)[place].tobytes() for x in (drawn.token, drawn.logprob, drawn.top_logprobs))
