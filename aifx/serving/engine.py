"""The engine: takes requests from any thread, and answers all of them in one thread of its own.

It schedules by iteration, not by request (continuous batching; Yu et al. 2022, "Orca: A Distributed Serving System for
Transformer-Based Generative Models", OSDI). A turn admits new requests, prefills chunks of prompts, and writes one
token for every running row. A row that has ended leaves its slot at once. While the device computes, the engine
delivers the results of the turn before.

Keys and values are in pages of one pool (Kwon et al. 2023, "Efficient Memory Management for Large Language Model
Serving with PagedAttention", arXiv 2309.06180). A row gets a page when its next token needs one, so that no memory
waits for an answer's longest length. Rows with the same prefix share its pages (`PrefixCache`).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from aifx.core.digests import Sha256
from aifx.data.tokenizer import Tokenizer
from aifx.programs.serving import MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS
from aifx.serving.device import Device
from aifx.serving.record import Recorder
from aifx.serving.requests import (
    SEEDS,
    Deliver,
    Delta,
    Embedded,
    EngineStats,
    GenerationRequest,
    RequestError,
    SamplingSettings,
    TokenScore,
)
from aifx.serving.rows import Counts, EmbeddingRow, Row, Weights
from aifx.serving.worker import Shares, Worker

CHUNKS_PER_TURN = 4
"""Chunks of prompts to prefill between two tokens of the running rows: more delay these, fewer leave slots empty.

A long prompt so never stops the running rows (chunked prefill; Agrawal et al. 2024, "Taming Throughput-Latency Tradeoff
in LLM Inference with Sarathi-Serve", arXiv 2403.02310).
"""


class Engine(Worker[Weights, Row]):
    """Answers requests for text; `aifx.serving.requests.ServingEngine` documents the methods that servers call.

    It answers in a thread of its own once it is started, or in that of the caller of `write`.
    """

    def __init__(
        self,
        device: Device,
        weights: Weights,
        tokenizer: Tokenizer,
        *,
        queue: int,
        prefix_cache: bool = True,
        pooling: str = "mean",
        shares: Shares | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """
        Args:
            queue: requests that may wait for a slot.
            prefix_cache: whether pages of prompts are kept.
            pooling: of embeddings, "mean" or "last".
            shares: of energy and price; by default, neither is known.
            recorder: keeps what was asked and answered.
        """
        super().__init__(weights, queue=queue, shares=shares, recorder=recorder)
        self.device, self.tokenizer = device, tokenizer
        programs = device.programs
        self.vocab_size, self.max_model_len = programs.vocab_size, programs.max_len
        self.page_size = programs.model.page_size
        self.max_rows = max(device.slots)
        self._pooling = pooling
        self._allocator = PageAllocator(programs.num_pages)
        self._prefixes = PrefixCache(self._allocator, device.chunk)
        self._keeps_prefixes = prefix_cache
        self._waiting: deque[Row] = deque()
        self._prefilling: list[Row] = []
        self._running: list[Row] = []
        self._outbox: list[tuple[Deliver, Delta]] = []
        self._counts = Counts()

    @property
    def adapters(self) -> Sequence[str]:
        return self.weights.adapters

    def submit(self, request: GenerationRequest, deliver: Deliver, *, beside: Row | None = None) -> Row:
        """See `ServingEngine`."""
        self._check(request)
        weights = self.weights if beside is None else beside.weights
        if self._recorder is not None:
            request, deliver = self._recorder.recorded(request, deliver, weights.fingerprint, weights.model)
        return self._take(self._row(request, deliver, weights))

    def submit_own(self, request: GenerationRequest, deliver: Deliver, weights: Weights) -> Row:
        """A request of the server itself, to any weights: it is not recorded, and no queue is too full for it."""
        self._check(request)
        return self._take(self._row(request, deliver, weights), is_own=True)

    def write(self, request: GenerationRequest) -> Iterator[Delta]:
        """The answer, computed in the caller's thread while it is read, by an engine that is not started.

        Raises RequestError, QueueFull.
        """
        deltas = deque[Delta]()
        row = self.submit(request, deltas.append)

        def read() -> Iterator[Delta]:
            try:
                while row in self._unfinished:
                    self._turn()
                    while deltas:
                        yield deltas.popleft()
            finally:
                row.cancel()  # if it was not read to its end: the next turn frees its pages

        return read()

    def embed(
        self, prompt_ids: Sequence[int], deliver: Callable[[Embedded | None], None], *, adapter: str | None = None
    ) -> Row:
        self._check(request := GenerationRequest(prompt_ids, 0, adapter=adapter))
        return self._take(EmbeddingRow(request, deliver, self.tokenizer, self.weights))

    def stats(self) -> EngineStats:
        counts, cached = self._counts, self._prefixes.num_unused
        running = len(self._running) + len(self._prefilling)
        return EngineStats(
            running=running,
            waiting=max(len(self._unfinished) - running, 0),
            pages_total=self._allocator.num_pages,
            pages_used=self._allocator.num_pages - self._allocator.num_free - cached,
            pages_cached=cached,
            prefix_queries=counts.prefix_queries,
            prefix_hits=counts.prefix_hits,
            preemptions=counts.preemptions,
            prompt_tokens=counts.prompt_tokens,
            generation_tokens=counts.generation_tokens,
            steps=counts.steps,
            compilations=self._compilations.count,
        )

    @property
    def _room(self) -> int:
        """Tokens of a prompt with its answer, at the most."""
        return min(self.max_model_len, self._allocator.num_pages * self.page_size)

    def _check(self, request: GenerationRequest) -> None:
        """Check that the engine can serve a request. Raises RequestError if it cannot."""
        check_request(request, self.vocab_size, self._room, self.adapters)

    def _row(self, request: GenerationRequest, deliver: Deliver, weights: Weights) -> Row:
        row = Row(request, deliver, self.tokenizer, weights)
        if request.forgets:
            row.forget(self._room)
        return row

    def _num_waiting(self) -> int:
        return len(self._unfinished) - self.max_rows

    def _retry_after_s(self, waiting: int) -> float:
        mean = self._counts.seconds / self._counts.finished if self._counts.finished else 1.0
        return mean * (waiting + 1) / self.max_rows

    # What follows runs in the engine's thread.

    def _turn(self) -> bool:
        while self._arrived:
            self._waiting.append(self._arrived.popleft())
        for row in [r for rows in (self._waiting, self._prefilling, self._running) for r in rows if r.is_cancelled]:
            self._end(row, row.end("cancelled"))
        self._admit()
        self._prefill()
        self._write()
        self._hand_out()
        return bool(self._waiting or self._prefilling or self._running or self._arrived)

    def _admit(self) -> None:
        """Give slots and pages to those who wait, in their order."""
        while self._waiting and len(self._prefilling) + len(self._running) < self.max_rows:
            row = self._waiting[0]
            # Of an embedding, and of a prompt's scores, every part must be read.
            use_prefixes = self._keeps_prefixes and not row.request.prompt_logprobs and type(row) is Row
            if use_prefixes:
                # Never the last token of a prompt: the first of the answer is drawn from what it gives.
                row.chunks = row.chunks or self._prefixes.chain(row.root, row.tokens[: row.prompt_len])
                row.pages = self._prefixes.find(row.chunks[: (row.prompt_len - 1) // self.device.chunk])
                row.held = row.cached_tokens = len(row.pages) * self.page_size
            missing = -(-row.prompt_len // self.page_size) - len(row.pages)
            # A page for each row that runs, so that a new one does not drive another out at once.
            if not self._make_free(missing + len(self._running)):
                self._allocator.release(row.preempted())
                return
            row.pages += self._allocator.take(missing)
            row.started_at = row.started_at or time.monotonic()
            if use_prefixes:
                self._counts.prefix_queries += row.prompt_len
                self._counts.prefix_hits += row.cached_tokens
            self._prefilling.append(self._waiting.popleft())

    def _prefill(self) -> None:
        for _ in range(CHUNKS_PER_TURN):
            if not self._prefilling:
                return
            self._prefill_chunk(self._prefilling[0])

    def _prefill_chunk(self, row: Row) -> None:
        start = row.held
        is_last = start + self.device.chunk >= row.prompt_len
        # A row that was preempted has its answer already, and replays it token by token (`_preempt`).
        draws = is_last and row.request.max_tokens > 0 and len(row.tokens) == row.prompt_len
        scores = row.request.prompt_logprobs and row.num_written == 0
        if draws and not self._set_mask(row):
            return
        found = self.device.prefill(row.weights.params, row, draws=draws, scores=scores)
        self._hand_out()
        row.held = min(start + self.device.chunk, row.prompt_len)
        self._counts.prompt_tokens += row.held - start
        self._shares.add(row, row.held - start)
        number = start // self.device.chunk
        if row.held - start == self.device.chunk and number < len(row.chunks):
            pages = self.device.chunk // self.page_size
            self._prefixes.add(row.chunks[: number + 1], row.pages[number * pages : (number + 1) * pages])
        if scores:
            self._add_prompt_scores(row, found, start)
        if isinstance(row, EmbeddingRow):
            row.hidden_sum = row.hidden_sum + np.asarray(found.hidden_sum)
            row.hidden_last = np.asarray(found.hidden_last)
        if not is_last:
            return
        self._prefilling.remove(row)
        if isinstance(row, EmbeddingRow):
            self._shares.settle()
            row.pooled(self._pooling)
            self._drop(row)
        elif row.request.max_tokens == 0:
            self._shares.settle()
            row.finish = "length"
            self._end(row, row.delta())
        else:
            self._running.append(row)
            if draws:
                self._accept([row], found.drawn)

    def _add_prompt_scores(self, row: Row, found: Any, start: int) -> None:
        if start == 0:
            row.prompt_scores.append(TokenScore(row.tokens[0], None))
        wanted = row.request.logprobs or 0
        logprobs, tops, top_logprobs = map(np.asarray, (found.logprobs, found.top_tokens, found.top_logprobs))
        for index in range(min(self.device.chunk, row.prompt_len - 1 - start)):
            top = tuple(zip(tops[index, :wanted].tolist(), top_logprobs[index, :wanted].tolist(), strict=True))
            row.prompt_scores.append(TokenScore(row.tokens[start + index + 1], float(logprobs[index]), top))

    def _write(self) -> None:
        """Write one more token of every row that runs; rows of other weights have a program call of their own."""
        for row in list(self._running):
            # A row before it may have taken its pages (`_give_page`).
            if row in self._running and self._set_mask(row):
                self._give_page(row)
        for _, rows in groupby(sorted(self._running, key=lambda r: id(r.weights)), lambda r: id(r.weights)):
            group = list(rows)
            drawn = self.device.decode(group[0].weights.params, group)
            self._hand_out()
            for row in group:
                row.held += 1
                self._shares.add(row, 1)
            self._counts.steps += 1
            self._accept(group, drawn)

    def _accept(self, rows: Sequence[Row], drawn: Any) -> None:
        """Add the drawn tokens to their rows. A preempted row that still replays its answer ignores what was drawn."""
        tokens, is_finite = np.asarray(drawn.token).tolist(), np.asarray(drawn.is_finite)
        self._shares.settle()
        has_scores = any(row.request.logprobs is not None for row in rows)
        logprobs, tops, top_logprobs = (
            (np.asarray(x).tolist() for x in (drawn.logprob, drawn.top_tokens, drawn.top_logprobs))
            if has_scores
            else ([], [], [])
        )
        for index, row in enumerate(rows):
            if row.held < len(row.tokens):
                continue
            if not is_finite[index]:
                self._end(row, row.end("error", "the model's scores are not numbers"))
                continue
            score, wanted = None, row.request.logprobs
            if wanted is not None:
                top = tuple(zip(tops[index][:wanted], top_logprobs[index][:wanted], strict=True))
                score = TokenScore(tokens[index], logprobs[index], top)
            try:
                delta = row.accept(tokens[index], score)
            except Exception as error:  # of a grammar: what its library does must not end other answers
                delta = row.end("error", f"the grammar failed: {error}", "grammar")
            self._counts.generation_tokens += 1
            if row.finish is not None:
                self._end(row, delta)
            else:
                self._outbox.append((row.deliver, delta))

    def _set_mask(self, row: Row) -> bool:
        """Ask the row's grammar which tokens may come next. False if it failed, which ends the row."""
        if row.request.grammar is not None:
            try:
                row.mask = row.request.grammar.mask()
            except Exception as error:  # of a library: it must not end other answers
                self._end(row, row.end("error", f"the grammar failed: {error}", "grammar"))
                return False
        return True

    def _give_page(self, row: Row) -> None:
        """Give a row the page that its next token needs. If none is free, the youngest row waits again."""
        if row.held == self._room:  # it forgets: other rows end before
            self._preempt(row)
            row.forget(self._room)
            return
        if row.held < len(row.pages) * self.page_size:
            return
        while not self._make_free(1):
            youngest = (self._running + self._prefilling)[-1]
            self._preempt(youngest)
            self._counts.preemptions += 1
            if youngest is row:
                return
        row.pages += self._allocator.take(1)

    def _preempt(self, row: Row) -> None:
        """Take a row's pages and its slot. It waits, before the others, to be prefilled again."""
        # Preemption by recomputation, as in vLLM (PagedAttention, section 4.5): all pages of a row are freed, and
        # its tokens are kept, so that it loses time and no text. Keys and values are computed again: those of the
        # prompt by chunks, often from the prefix cache, and those of the answer token by token, as before. A prefill
        # of the answer would be faster, and would round otherwise: the next token could become another one. The
        # youngest row goes first, so that the oldest always gets to its end and the engine makes progress.
        self._remove(row)
        self._allocator.release(row.preempted())
        self._waiting.appendleft(row)

    def _make_free(self, count: int) -> bool:
        self._prefixes.evict(count)
        return self._allocator.num_free >= count

    def _end(self, row: Row, delta: Delta) -> None:
        self._drop(row)
        self._outbox.append((row.deliver, delta))

    def _drop(self, row: Row) -> None:
        """Free the pages, the slot and the place in the queue of a row that is done."""
        self._remove(row)
        self._allocator.release(row.pages)
        row.pages = []
        self._counts.row_ended(row)
        super()._drop(row)

    def _remove(self, row: Row) -> None:
        for rows in (self._waiting, self._prefilling, self._running):
            if row in rows:
                rows.remove(row)

    def _hand_out(self) -> None:
        """Deliver the deltas that wait, while the device computes."""
        out, self._outbox = self._outbox, []
        for deliver, delta in out:
            deliver(delta)

    def _end_all(self, requests: Collection[Row], error: str | None) -> None:
        for row in requests:
            self._end(row, row.end("cancelled") if error is None else row.end("error", error))
        self._hand_out()


def check_request(request: GenerationRequest, vocab_size: int, room: int, adapters: Collection[str]) -> None:
    """Check a request: its prompt, its length and its settings. Raises RequestError that names the field.

    Args:
        room: tokens of a prompt with its answer, at the most.
    """
    prompt, bias = request.prompt_ids, request.sampling.logit_bias
    if not prompt:
        raise RequestError("prompt_ids", "the prompt is empty")
    for field, tokens in (("prompt_ids", prompt), ("logit_bias", bias)):
        if outside := [token for token in tokens if not 0 <= token < vocab_size]:
            raise RequestError(field, f"token {outside[0]} is not one of 0 to {vocab_size - 1}")
    if request.max_tokens < 0:
        raise RequestError("max_tokens", f"expected 0 or more, got {request.max_tokens}")
    if (total := len(prompt) + request.max_tokens) > room and not request.forgets:
        why = f"{len(prompt)} tokens of the prompt and max_tokens = {request.max_tokens} are {total}, and {room} fit"
        raise RequestError("max_tokens" if len(prompt) < room else "prompt_ids", why)
    if request.adapter is not None and request.adapter not in adapters:
        raise RequestError("adapter", f"there is no adapter {request.adapter}")
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_TOP_LOGPROBS:
        raise RequestError("logprobs", f"expected 0 to {MAX_TOP_LOGPROBS}, got {request.logprobs}")
    if len(bias) > MAX_LOGIT_BIAS:
        raise RequestError("logit_bias", f"expected {MAX_LOGIT_BIAS} tokens at most, got {len(bias)}")
    for name, is_valid, expected in _limits(request.sampling):
        if not is_valid:
            raise RequestError(name, f"expected {expected}, got {getattr(request.sampling, name)}")


def _limits(s: SamplingSettings) -> Iterator[tuple[str, bool, str]]:
    """For each setting: its name, whether its value is valid, and the valid range."""
    yield "temperature", 0 <= s.temperature <= 100, "0 to 100"
    yield "top_p", 0 < s.top_p <= 1, "more than 0 and 1 at most"
    yield "min_p", 0 <= s.min_p <= 1, "0 to 1"
    yield "top_k", 0 <= s.top_k < 2**31, "0 or more"
    yield "seed", 0 <= s.seed < SEEDS, "0 to 2^32 - 1"
    yield "repetition_penalty", 0 < s.repetition_penalty <= 100, "more than 0 and 100 at most"
    yield "presence_penalty", abs(s.presence_penalty) <= 100, "-100 to 100"
    yield "frequency_penalty", abs(s.frequency_penalty) <= 100, "-100 to 100"


class PageAllocator:
    """Pages by number. A page that several hold is free when the last one lets it go."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take `count` free pages, each with one holder. Raises ValueError if there are fewer."""
        if count > len(self._free):
            raise ValueError(f"{count} pages wanted, {len(self._free)} are free")
        pages = [self._free.pop() for _ in range(count)]
        self.hold(pages)
        return pages

    def hold(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free.append(page)
            elif self._holders[page] < 0:
                raise AssertionError(f"page {page} was released twice")

    def holders(self, page: int) -> int:
        return self._holders[page]


class PrefixCache:
    """The pages of prefilled chunks, for prompts with the same prefix.

    The name of a chunk covers its own tokens and all before it: a chain of SHA-256, as vLLM's prefix cache has it
    (`hash_block_tokens` in vllm/v1/core/kv_cache_utils.py). Keys and values depend on all tokens before, so equal names
    mean equal pages. The root is the digest of weights and adapter. The least recently used chunks are evicted first,
    and the end of a chain before its beginning, without which it would never be found.
    """

    def __init__(self, allocator: PageAllocator, chunk: int) -> None:
        self._allocator, self._chunk = allocator, chunk
        self._pages: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._lock = threading.Lock()  # for `num_unused`, which other threads ask for

    @property
    def num_unused(self) -> int:
        """Pages that no row holds."""
        with self._lock:
            return sum(self._allocator.holders(page) == 1 for pages in self._pages.values() for page in pages)

    def chain(self, root: bytes, tokens: Sequence[int]) -> list[bytes]:
        """The names of the full chunks of `tokens`."""
        return list(_chain(root, tokens, self._chunk))

    def find(self, names: Sequence[bytes]) -> list[int]:
        """Hold and return the pages of the leading chunks that are cached."""
        known: list[bytes] = []
        for name in names:
            if name not in self._pages:
                break
            known.append(name)
        self._touch(known)
        pages = [page for name in known for page in self._pages[name]]
        self._allocator.hold(pages)
        return pages

    def add(self, names: Sequence[bytes], pages: Sequence[int]) -> None:
        """Hold the pages of the last chunk of a chain, so that they stay when its row ends."""
        if names[-1] not in self._pages:
            self._allocator.hold(pages)
            with self._lock:
                self._pages[names[-1]] = tuple(pages)
        self._touch(names)

    def _touch(self, names: Sequence[bytes]) -> None:
        """Mark the chunks of a chain as the most recently used, its beginning as the last to be evicted."""
        with self._lock:
            for name in reversed(names):
                if name in self._pages:
                    self._pages.move_to_end(name)

    def evict(self, count: int) -> None:
        """Evict chunks that no row holds until `count` pages are free, or none is left."""
        if self._allocator.num_free >= count:
            return
        for name in list(self._pages):
            pages = self._pages[name]
            if all(self._allocator.holders(page) == 1 for page in pages):
                with self._lock:
                    del self._pages[name]
                self._allocator.release(pages)
            if self._allocator.num_free >= count:
                return


def _chain(root: bytes, tokens: Sequence[int], chunk: int) -> Iterator[bytes]:
    name = root
    for start in range(0, len(tokens) - chunk + 1, chunk):
        part = np.asarray(tokens[start : start + chunk], np.int32)
        name = Sha256(name + part.tobytes()).digest()
        yield name
