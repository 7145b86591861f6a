"""An engine without a model, whose tokens are a function of the prompt: for tests of faults and of their timing."""

from __future__ import annotations

import codecs
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aifx.data.chat.assets import OWN_SPECIAL
from aifx.data.tokenizer import NUM_BYTES, Tokenizer, train_tokenizer
from aifx.serving.requests import (
    Deliver,
    Delta,
    Draining,
    Embedded,
    EngineStats,
    FinishReason,
    GenerationRequest,
    QueueFull,
    RequestError,
    TokenScore,
    Usage,
)


def byte_tokenizer() -> Tokenizer:
    data = train_tokenizer((), NUM_BYTES + len(OWN_SPECIAL), OWN_SPECIAL)
    return Tokenizer(data, "tokenizer.json", ends=("<|im_end|>",))


class ToyTicket:
    fingerprint = "toy-weights"

    def __init__(self, request: GenerationRequest, deliver: Deliver) -> None:
        self.request, self.deliver = request, deliver
        self.is_cancelled = False
        self.written: list[int] = []
        self.text = codecs.getincrementaldecoder("utf-8")("replace")
        self.whole = ""

    def cancel(self) -> None:
        self.is_cancelled = True


class ToyEngine:
    """Continues a prompt with its own tokens, over and over, or with `answer` of it.

    Attributes:
        step_s: time of a step.
        hold: while set, no request begins.
        pause: while set, no token is written.
    """

    max_model_len = 4096
    fingerprint = "toy-weights"
    is_reproducible = True
    failure: str | None = None

    def __init__(self, *, slots: int = 64, queue: int = 256, step_s: float = 0.0) -> None:
        self.tokenizer = byte_tokenizer()
        self.vocab_size = self.tokenizer.vocab_size
        self.adapters: Sequence[str] = ("legal",)
        self.slots, self.queue, self.step_s = slots, queue, step_s
        self.answer: Callable[[list[int]], list[int]] | None = None
        self.hold = self.pause = False
        self.failing = False
        self.refused: str | None = None
        self.running: list[ToyTicket] = []
        self.waiting: list[ToyTicket] = []
        self.requests: list[GenerationRequest] = []
        self.steps = self.prompt_tokens = self.generation_tokens = 0
        self._lock = threading.Lock()
        self._is_draining = self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="toy-engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, deliver: Deliver, *, beside: Any = None) -> ToyTicket:
        if request.sampling.top_k == 13:
            raise RequestError("sampling.top_k", "13 is not supported")
        with self._lock:
            if self._is_draining:
                raise Draining
            if len(self.waiting) >= self.queue:
                raise QueueFull(len(self.waiting), 2.4)
            ticket = ToyTicket(request, deliver)
            self.requests.append(request)
            self.waiting.append(ticket)
        return ticket

    def embed(
        self, prompt_ids: Sequence[int], deliver: Callable[[Any], None], *, adapter: str | None = None
    ) -> ToyTicket:
        vector = np.array([len(prompt_ids), sum(prompt_ids), 0.5 if adapter is None else 2.5], np.float32)
        found = Embedded(vector, Usage(len(prompt_ids), 0, joules=0.5, energy_basis="declared"))
        if not self.hold:
            threading.Thread(target=deliver, args=(found,)).start()
        return ToyTicket(GenerationRequest(prompt_ids, 1), deliver)

    def stats(self) -> EngineStats:
        used = sum(len(ticket.request.prompt_ids) for ticket in self.running)
        counts = (self.prompt_tokens, self.generation_tokens, self.steps)
        return EngineStats(len(self.running), len(self.waiting), 1000, used, 7, 50, 20, 3, *counts, 0)

    def drain(self) -> None:
        self._is_draining = True

    def stop(self) -> None:
        self.drain()
        self._is_stopped = True
        self._thread.join()

    def wait_idle(self, limit_s: float = 120.0) -> None:
        end = time.monotonic() + limit_s
        while (self.running or self.waiting) and time.monotonic() < end:
            time.sleep(0.005)
        assert not self.running
        assert not self.waiting

    def _run(self) -> None:
        while not self._is_stopped:
            with self._lock:
                while self.waiting and len(self.running) < self.slots and not self.hold:
                    self.running.append(self.waiting.pop(0))
                self.waiting = [ticket for ticket in self.waiting if not ticket.is_cancelled]
            if self.pause:
                time.sleep(0.002)
                continue
            if (self.failing or self.refused) and self.running:
                for ticket in self.running:
                    ticket.deliver(Delta(finish_reason="error", error="a toy broke", field=self.refused))
                self.running = []
            self.running = [ticket for ticket in self.running if not ticket.is_cancelled and not self._step(ticket)]
            self.steps += bool(self.running)
            time.sleep(self.step_s if self.running else 0.002)
        for ticket in (*self.running, *self.waiting):
            ticket.deliver(Delta(finish_reason="cancelled", usage=Usage(len(ticket.request.prompt_ids), 0)))
        self.running, self.waiting = [], []

    def _step(self, ticket: ToyTicket) -> bool:
        """One more token. Returns whether the answer is complete."""
        request, ids = ticket.request, list(ticket.request.prompt_ids)
        first = not ticket.written
        prompt_scores: tuple[TokenScore, ...] = ()
        if first:
            self.prompt_tokens += len(ids)
            if request.prompt_logprobs:
                prompt_scores = tuple(self._score(request, token, place) for place, token in enumerate(ids))
        if request.max_tokens == 0:
            usage = Usage(len(ids), 0)
            ticket.deliver(Delta(prompt_scores=prompt_scores, finish_reason="length", usage=usage))
            return True
        token = self._next(ticket, ids)
        ended = token in self.tokenizer.end_ids and not request.ignore_end
        text = ""
        if not ended:
            ticket.written.append(token)
            self.generation_tokens += 1
            if request.grammar is not None:
                request.grammar.accept(token)
                ended = request.grammar.is_complete
            text = ticket.text.decode(self._bytes(token))
        reason: FinishReason | None = (
            "stop" if ended else "length" if len(ticket.written) == request.max_tokens else None
        )
        for stop in request.stop:
            if stop in ticket.whole + text:
                text, reason = (ticket.whole + text).split(stop)[0][len(ticket.whole) :], "stop"
        ticket.whole += text
        if reason:
            text += ticket.text.decode(b"", True)
        scores = (self._score(request, token, 1),) if request.logprobs is not None and ticket.written else ()
        cost = Usage(len(ids), len(ticket.written), cached_tokens=1, queue_s=0.25) if reason else None
        written = (token,) if ticket.written and ticket.written[-1] == token else ()
        ticket.deliver(Delta(text, written, scores, prompt_scores, reason, cost))
        return reason is not None

    def _next(self, ticket: ToyTicket, ids: list[int]) -> int:
        place = len(ticket.written)
        if ticket.request.grammar is not None:
            words = ticket.request.grammar.mask()
            allowed = [t for t in range(self.vocab_size) if int(words[t // 32]) >> t % 32 & 1]
            return random.Random(hash((ticket.request.sampling.seed, place))).choice(allowed)
        answer = self.answer(ids) if self.answer is not None else None
        if answer is None:
            return next(itertools.islice(itertools.cycle(ids), place, None))
        return answer[place] if place < len(answer) else self.tokenizer.eos_id

    def _score(self, request: GenerationRequest, token: int, place: int) -> TokenScore:
        top = tuple((other, -1.0 - other / 1000) for other in range(3, 3 + (request.logprobs or 0)))
        return TokenScore(token, None if place == 0 else -0.5, () if place == 0 else top)

    def _bytes(self, token: int) -> bytes:
        return bytes([_BYTES[self.tokenizer.token(token)]]) if token >= len(OWN_SPECIAL) else b""


def _byte_names() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_names()
