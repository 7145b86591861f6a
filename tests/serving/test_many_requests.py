"""Thousands of requests: every answer is its own, no page is lost, memory stays flat."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import numpy as np
import psutil
import pytest
from answers import Whole, ask, bits, random_request, send
from effort import IS_LONG

from aifx.serving.engine import Engine

Engines = Callable[..., Engine]


@pytest.mark.slow
def test_answers_are_their_own_in_random_company(engines: Engines) -> None:
    rng = np.random.default_rng(0)
    requests = [random_request(rng) for _ in range(1000 if IS_LONG else 100)]
    alone, together = engines((8, 16), 64, prefix_cache=False), engines((8, 16), 64)
    expected = [bits(ask(alone, request)) for request in requests]
    found = [None] * len(requests)
    order = rng.permutation(len(requests)).tolist()
    while order:
        part = [order.pop() for _ in range(min(int(rng.integers(1, 40)), len(order)))]
        answers = [(number, send(together, requests[number])) for number in part]
        for number, answer in answers:
            found[number] = bits(Whole.of(answer.all()))
    assert found == expected
    assert together.stats().compilations == 0


@pytest.mark.slow
def test_many_requests_leave_nothing_behind(engines: Engines) -> None:
    rng = np.random.default_rng(1)
    engine = engines((8, 16), 64)
    sizes = []
    for _ in range(500 if IS_LONG else 50):
        answers = [send(engine, random_request(rng)) for _ in range(20)]
        for answer in answers:
            if rng.random() < 0.5:
                threading.Event().wait(float(rng.random()) * 0.003)
                answer.ticket.cancel()
        for answer in answers:
            answer.all()
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    assert stats.pages_cached <= stats.pages_total
    fifth, half = len(sizes) // 5, len(sizes) // 2
    assert max(sizes[half:]) - max(sizes[fifth:half]) < 20e6
