"""The engine: whole answers beside any other requests, and the pages of cached prefixes."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from answers import Answer, Whole, ask, bits, random_request, send

from aifx.serving.engine import Engine, PageAllocator, PrefixCache
from aifx.serving.requests import Delta, Draining, GenerationRequest, QueueFull, RequestError, SamplingSettings
from aifx.serving.rows import Weights
from aifx.serving.worker import Shares, WorkClock

Engines = Callable[..., Engine]


@pytest.mark.representative("an answer in company")
def test_an_answer_is_its_own_in_any_company(engines: Engines) -> None:
    rng = np.random.default_rng(0)
    requests = [random_request(rng) for _ in range(14)]
    alone = engines(prefix_cache=False)
    expected = [bits(ask(alone, request)) for request in requests]
    together = engines()
    company = [send(together, requests[number]) for number in rng.permutation(14)]
    answers = [send(together, request) for request in requests]
    assert [bits(Whole.of(answer.all())) for answer in answers] == expected
    assert sorted(bits(Whole.of(answer.all())) for answer in company) == sorted(expected)
    assert together.stats().prefix_hits > 0
    assert together.stats().compilations == 0


@pytest.mark.slow
def test_a_preempted_row_gives_the_same_answer(engines: Engines) -> None:
    rng = np.random.default_rng(1)
    requests = [
        GenerationRequest(rng.integers(1, 257, 60).tolist(), 70, SamplingSettings(seed=i), ignore_end=True, logprobs=0)
        for i in range(4)
    ]
    roomy = engines()
    expected = [bits(ask(roomy, request)) for request in requests]
    cramped = engines(pages=4)
    answers = [send(cramped, request) for request in requests]
    assert [bits(Whole.of(answer.all())) for answer in answers] == expected
    assert cramped.stats().preemptions > 0


@pytest.mark.slow
def test_rows_that_forget_write_the_same_in_company_and_after_preemption(engines: Engines) -> None:
    rng = np.random.default_rng(5)
    requests = [
        GenerationRequest(
            rng.integers(1, 257, length).tolist(), 300, SamplingSettings(seed=length), ignore_end=True, forgets=True
        )
        for length in (20, 240, 400)  # and 256 fit
    ]
    others = [GenerationRequest([9] * 100, 90, ignore_end=True) for _ in range(3)]
    alone, cramped = engines(), engines(pages=4)
    expected = [ask(alone, request) for request in requests]
    answers = [send(cramped, request) for request in (others[0], *requests, *others[1:])]
    assert [bits(Whole.of(answer.all())) for answer in answers[1:4]] == [bits(whole) for whole in expected]
    assert cramped.stats().preemptions > 0
    assert [len(whole.tokens) for whole in expected] == [300] * 3
    usage = expected[2].last.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (400, 300)
    assert alone.stats().pages_used == 0


@pytest.mark.representative("an answer in company")
def test_a_long_prompt_does_not_stop_the_rows_that_write(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.serving.engine.CHUNKS_PER_TURN", 1)
    engine, came = engines(prefix_cache=False), []
    has_started, is_asked, is_read = threading.Event(), threading.Event(), threading.Event()

    def take_token(delta: Delta) -> None:
        came.append("token")
        has_started.set()
        assert is_asked.wait(60)

    def take_prompt(delta: Delta) -> None:
        came.append("prompt")
        is_read.set()

    engine.submit(GenerationRequest([1, 2, 3], 200, ignore_end=True), take_token)
    assert has_started.wait(60)
    came.append("asked")
    engine.submit(GenerationRequest([4] * 250, 1, ignore_end=True), take_prompt)  # of four chunks
    is_asked.set()
    assert is_read.wait(60)
    between = came[came.index("asked") : came.index("prompt")]
    assert between.count("token") >= 3


@pytest.mark.slow
def test_no_page_is_lost_to_requests_that_are_cancelled(engines: Engines) -> None:
    rng = np.random.default_rng(2)
    engine = engines()
    for _ in range(25):
        answers = [send(engine, random_request(rng)) for _ in range(int(rng.integers(1, 8)))]
        for answer in answers:
            if rng.random() < 0.5:
                threading.Event().wait(float(rng.random()) * 0.003)
                answer.ticket.cancel()
        for answer in answers:
            answer.all()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)


@pytest.mark.slow
def test_scores_are_those_of_the_training_forward(engines: Engines, decoding: Any, params: Any) -> None:
    import jax

    from aifx.parallel.context import ForwardContext
    from aifx.parallel.layout import local_layout

    rng = np.random.default_rng(3)
    prompt = rng.integers(1, 257, 140).tolist()
    request = GenerationRequest(prompt, 20, SamplingSettings(), ignore_end=True, logprobs=5, prompt_logprobs=True)
    deltas = send(engines(), request).all()
    scores = [*deltas[0].prompt_scores, *(s for d in deltas for s in d.scores)]
    tokens = [s.token for s in scores]
    assert tokens[:140] == prompt
    context = ForwardContext(local_layout(1))
    hidden = decoding.model.hidden(params, {"inputs": np.array([tokens])}, context)
    logprobs = np.asarray(jax.nn.log_softmax(decoding.model.head(params, context)(hidden)))
    assert scores[0].logprob is None
    for place, score in enumerate(scores[1:]):
        assert score.logprob == pytest.approx(logprobs[place, score.token], abs=1e-4)
        best = np.sort(logprobs[place])[::-1][:5]
        np.testing.assert_allclose([value for _, value in score.top], best, atol=1e-4)
        assert all(value == pytest.approx(logprobs[place, t], abs=1e-4) for t, value in score.top)


@pytest.mark.representative("an answer in company")
def test_rules_hold(engines: Engines) -> None:
    engine, prompt = engines(), [5, 6, 7]

    def tokens(**sampling: Any) -> tuple[int, ...]:
        settings = SamplingSettings(temperature=0, **sampling)
        return ask(engine, GenerationRequest(prompt, 12, settings, ignore_end=True)).tokens

    assert set(tokens(logit_bias={42: 1e9})) == {42}
    assert 42 not in tokens(logit_bias={42: -1e9})
    repeated = tokens(frequency_penalty=100)
    assert len(set(repeated)) == len(repeated)
    assert len(set(tokens(presence_penalty=100))) == len(repeated)
    assert not set(tokens(repetition_penalty=100)) & set(prompt)
    settings = SamplingSettings(temperature=1.0, min_p=1.0, seed=3)
    assert ask(engine, GenerationRequest(prompt, 12, settings, ignore_end=True)).tokens == tokens()


@pytest.mark.representative("an answer in company")
def test_a_grammar_holds_each_draw(engines: Engines) -> None:
    class Digits:
        """Three digits: tokens of the bytes, of which the first is 1."""

        source = "three digits"

        def __init__(self) -> None:
            self.seen = 0

        def mask(self) -> np.ndarray:
            words = np.zeros(9, np.uint32)
            for token in digits:
                words[token // 32] |= np.uint32(1 << (token % 32))
            return words

        def accept(self, token: int) -> None:
            self.seen += 1

        @property
        def is_complete(self) -> bool:
            return self.seen == 3

    engine = engines()
    digits = engine.tokenizer.encode("0123456789")
    found = ask(engine, GenerationRequest([5], 9, SamplingSettings(seed=1), grammar=Digits()))
    assert found.finish == "stop"
    assert found.text.isdigit()
    assert len(found.text) == 3


@pytest.mark.representative("an answer in company")
def test_a_grammar_that_fails_ends_its_own_answer_alone(engines: Engines) -> None:
    class Broken:
        source, is_complete = "", False

        def mask(self) -> np.ndarray:
            raise ValueError("too complex")

        def accept(self, token: int) -> None: ...

    engine = engines()
    other = send(engine, GenerationRequest([5, 6, 7], 30, ignore_end=True))
    found = ask(engine, GenerationRequest([5], 9, grammar=Broken()))
    assert (found.finish, found.last.field) == ("error", "grammar")
    assert "too complex" in str(found.last.error)
    assert len(Whole.of(other.all()).tokens) == 30
    assert engine.stats().pages_used == 0


@pytest.mark.representative("an answer in company")
def test_a_stop_text_ends_the_answer_before_it(engines: Engines) -> None:
    engine = engines()
    request = GenerationRequest([5, 6, 7], 40, SamplingSettings(seed=9), ignore_end=True)
    whole = ask(engine, request)
    readable = [c for c in whole.text if c.isascii() and c.isprintable()]
    assert len(readable) > 3
    stop = whole.text[whole.text.index(readable[2]) :][:2]
    found = ask(engine, GenerationRequest([5, 6, 7], 40, SamplingSettings(seed=9), ignore_end=True, stop=(stop,)))
    assert found.finish == "stop"
    assert found.text == whole.text[: whole.text.index(stop)]


@pytest.mark.slow
def test_an_embedding_is_the_mean_of_the_hidden_states(engines: Engines, decoding: Any, params: Any) -> None:
    from aifx.parallel.context import ForwardContext
    from aifx.parallel.layout import local_layout

    prompt = np.random.default_rng(4).integers(1, 257, 100).tolist()
    found: queue.Queue[Any] = queue.Queue()
    engines().embed(prompt, found.put)
    hidden = decoding.model.hidden(params, {"inputs": np.array([prompt])}, ForwardContext(local_layout(1)))
    vector, usage = found.get(timeout=60)
    np.testing.assert_allclose(vector, np.asarray(hidden).mean(axis=0), atol=1e-5)
    assert (usage.prompt_tokens, usage.completion_tokens) == (100, 0)


@pytest.mark.representative("an answer in company")
def test_each_request_has_its_share_of_the_price(engines: Engines) -> None:
    """Also one that is only read. Nothing is kept of requests that are done."""
    shares = Shares(WorkClock(price_per_hour=3600.0))
    engine, start = engines(shares=shares), time.monotonic()
    embedded: queue.Queue[Any] = queue.Queue()
    costs = []
    for _ in range(3):
        engine.embed([1] * 100, embedded.put)
        costs.append(embedded.get(timeout=60).usage.cost)
        scored = GenerationRequest([1] * 100, 0, logprobs=0, prompt_logprobs=True)
        answers = [send(engine, request) for request in (scored, GenerationRequest([2] * 70, 5))]
        costs += [Whole.of(answer.all()).last.usage.cost for answer in answers]
    assert all(cost is not None and cost > 0 for cost in costs)
    assert sum(costs) <= time.monotonic() - start
    assert not shares._parts


@pytest.mark.representative("an answer in company")
def test_two_engines_charge_no_more_than_the_time_of_both(engines: Engines) -> None:
    clock = WorkClock(price_per_hour=3600.0)
    both, start = [engines(pages=pages, shares=Shares(clock)) for pages in (24, 4)], time.monotonic()
    answers = [send(engine, GenerationRequest([2] * 70, 100)) for engine in both]
    costs = [Whole.of(answer.all()).last.usage.cost for answer in answers]
    elapsed = time.monotonic() - start
    assert elapsed / 2 < sum(cost or 0.0 for cost in costs) <= elapsed


@pytest.mark.representative("an answer in company")
def test_answers_to_one_request_are_of_the_same_weights(engines: Engines, params: Any) -> None:
    engine = engines()
    request = GenerationRequest([5, 6, 7], 5)
    first = send(engine, request).ticket
    engine.swap(Weights(params, "others", b"others"))
    deltas: queue.Queue[Any] = queue.Queue()
    beside = engine.submit(request, deltas.put, beside=first)
    assert (first.fingerprint, beside.fingerprint) == ("weights", "weights")
    assert send(engine, request).ticket.fingerprint == "others"


@pytest.mark.representative("an answer in company")
@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("prompt_ids", GenerationRequest([], 5)),
        ("prompt_ids", GenerationRequest([257], 5)),
        ("prompt_ids", GenerationRequest([1] * 300, 5)),
        ("max_tokens", GenerationRequest([1] * 250, 7)),
        ("logprobs", GenerationRequest([1], 7, logprobs=21)),
        ("top_p", GenerationRequest([1], 7, SamplingSettings(top_p=0.0))),
        ("logit_bias", GenerationRequest([1], 7, SamplingSettings(logit_bias={999: 1.0}))),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(engines: Engines, field: str, request_: GenerationRequest) -> None:
    with pytest.raises(RequestError) as caught:
        engines().submit(request_, lambda _: None)
    assert caught.value.field == field


@pytest.mark.representative("an answer in company")
@pytest.mark.parametrize(("held", "is_full"), [(0, False), (3, False), (4, True)])
def test_a_queue_of_0_takes_as_many_requests_as_it_has_slots(
    devices: Callable[..., Any], params: Any, tokenizer: Any, held: int, is_full: bool
) -> None:
    engine = Engine(devices(), Weights(params, "weights", b"weights"), tokenizer, queue=0)  # not started: none ends
    for _ in range(held):
        send(engine, GenerationRequest([1], 1))
    with pytest.raises(QueueFull, match=r"^0 requests") if is_full else contextlib.nullcontext():
        send(engine, GenerationRequest([1], 1))


@pytest.mark.representative("an answer in company")
def test_a_full_queue_refuses_and_draining_finishes(engines: Engines) -> None:
    engine = engines(queue=2)
    request = GenerationRequest([1, 2, 3], 60, ignore_end=True)
    first, is_full = Answer(), threading.Event()

    def hold(delta: Delta) -> None:
        assert is_full.wait(60)
        first.deltas.put(delta)

    engine.submit(request, hold)
    answers = [first, *(send(engine, request) for _ in range(5))]
    with pytest.raises(QueueFull):
        send(engine, request)
    is_full.set()
    engine.drain()
    with pytest.raises(Draining):
        send(engine, request)
    assert all(len(Whole.of(answer.all()).tokens) == 60 for answer in answers)


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
