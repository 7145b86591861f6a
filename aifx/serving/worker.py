"""The thread that answers requests, which the engine of text and the predictor share."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import jax

from aifx.serving.record import Recorder
from aifx.serving.requests import Draining, EnergyBasis, QueueFull

if TYPE_CHECKING:  # it opens NVML, which `aifx generate` does not need
    from aifx.machine.energy import Power, PowerMeter

logger = logging.getLogger(__name__)

_COMPILED = "/jax/core/compile/backend_compile_duration"


class ServedWeights(Protocol):
    """A model's arrays as a worker's programs take them."""

    @property
    def fingerprint(self) -> str:
        """The digest of these arrays and the programs."""
        ...


W = TypeVar("W", bound=ServedWeights)


class RequestState(Generic[W]):
    """A request and its state. Only the worker's thread changes it, except for `cancel`.

    Attributes:
        weights: those with which it began; it keeps them.
        joules, energy_basis, cost: its share of what the worker used; None if that is not known.
    """

    def __init__(self, weights: W) -> None:
        self.weights = weights
        self.is_cancelled = False
        self.taken = time.monotonic()
        self.started_at: float | None = None
        self.joules: float | None = None
        self.energy_basis: EnergyBasis | None = None
        self.cost: float | None = None

    @property
    def fingerprint(self) -> str:
        return self.weights.fingerprint

    @property
    def queue_s(self) -> float | None:
        """Seconds that it waited."""
        return None if self.started_at is None else self.started_at - self.taken

    def cancel(self) -> None:
        self.is_cancelled = True


class WorkClock:
    """Divides the time of this process among the engines that work at once, with its power and price.

    What all of them are charged adds up to the whole. An engine that has no request is charged nothing.

    Attributes:
        meter: of the devices of all engines; None if it is not known.
    """

    def __init__(self, meter: PowerMeter | None = None, price_per_hour: float | None = None) -> None:
        self.meter, self.price_per_hour = meter, price_per_hour
        self._lock = threading.Lock()
        self._working: set[Shares] = set()
        self._read_at, self._seconds_each = time.monotonic(), 0.0

    def begin(self, engine: Shares) -> float:
        """Count an engine among those that work, and return `seconds`."""
        with self._lock:
            found = self._advance()
            if self.meter is not None:
                self.meter.resume()
            self._working.add(engine)
            return found

    def pause(self, engine: Shares) -> None:
        """Count it no more, until it begins again."""
        with self._lock:
            self._advance()
            self._working.discard(engine)
            if self.meter is not None and not self._working:
                self.meter.pause()

    def seconds(self) -> float:
        """The seconds that each engine at work is charged, since some moment."""
        with self._lock:
            return self._advance()

    @property
    def power(self) -> Power | None:
        with self._lock:
            return None if self.meter is None else self.meter.power

    def _advance(self) -> float:
        now = time.monotonic()
        self._seconds_each += (now - self._read_at) / max(len(self._working), 1)
        self._read_at = now
        return self._seconds_each


class Shares:
    """Gives requests their share of the energy and price of the time that the engine works."""

    def __init__(self, clock: WorkClock | None = None) -> None:
        self.clock = clock or WorkClock()
        self._parts: list[tuple[RequestState[Any], int]] = []
        self._since = self.clock.seconds()

    def pause(self) -> None:
        """Stop counting: no request is there until `begin`."""
        self.clock.pause(self)

    def begin(self) -> None:
        """Restart the clock after idle time. What cancelled requests used just before it is nobody's."""
        self._since = self.clock.begin(self)
        self._parts.clear()

    def add(self, request: RequestState[Any], count: int) -> None:
        """Count tokens that were read or written, or rows that were predicted, since the last `settle`."""
        self._parts.append((request, count))

    def settle(self) -> None:
        """Divide what was used since the last call among the parts since then."""
        now = self.clock.seconds()
        seconds, self._since = now - self._since, now
        parts, self._parts = self._parts, []
        total = sum(count for _, count in parts)
        power, price_per_hour = self.clock.power, self.clock.price_per_hour
        for request, count in parts:
            share = seconds * count / total
            if power is not None:
                request.joules = (request.joules or 0.0) + power.watts * share
                request.energy_basis = power.basis
            if price_per_hour is not None:
                request.cost = (request.cost or 0.0) + price_per_hour / 3600 * share


R = TypeVar("R", bound=RequestState[Any])


# A swap needs no pause, because each request holds the weights with which it began. It only changes the weights that
# new requests get. Those that are there end with theirs, in program calls of their own, and the old arrays are freed
# when the last of these requests has ended. A drain refuses new requests (`Draining`, HTTP 503) and lets the others go
# on. The server waits for them for serve.drain_s; `stop` then ends those that are left as cancelled.


class Worker(ABC, Generic[W, R]):
    """Takes requests from any thread, and answers them in a thread of its own.

    Attributes:
        weights: of new requests.
        is_reproducible: whether an answer's bits were shown not to depend on other requests.
        failure: why the thread ended by itself, or None.
    """

    def __init__(
        self, weights: W, *, queue: int, shares: Shares | None = None, recorder: Recorder | None = None
    ) -> None:
        """
        Args:
            queue: requests that may wait.
            shares: of energy and price; by default, neither is known.
            recorder: keeps what was asked and answered.
        """
        self.weights = weights
        self.is_reproducible = True
        self.failure: str | None = None
        self._queue, self._shares, self._recorder = queue, shares or Shares(), recorder
        self._arrived: deque[R] = deque()
        self._unfinished: dict[R, None] = {}  # in the order in which they came
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_draining = self._is_stopping = False
        self._compilations = CompilationCounter()
        self._thread = threading.Thread(target=self._run, name=f"aifx-{type(self).__name__.lower()}", daemon=True)

    @property
    def fingerprint(self) -> str:
        return self.weights.fingerprint

    @property
    def clock(self) -> WorkClock:
        return self._shares.clock

    def start(self) -> None:
        self._thread.start()

    def swap(self, weights: W) -> None:
        """Answer new requests by these weights. From any thread; requests that are there keep theirs."""
        self.weights = weights

    def drain(self) -> None:
        self._is_draining = True

    def stop(self) -> None:
        """End all requests and the thread. Waits for it."""
        self._is_draining = self._is_stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._recorder is not None:
            self._recorder.close()

    def _take(self, request: R, *, is_own: bool = False) -> R:
        """Queue a request. Raises Draining, QueueFull.

        Args:
            is_own: whether the server itself asks: no queue is too full for it.
        """
        with self._lock:
            if self._is_draining or self.failure is not None:
                raise Draining(self.failure or "")
            waiting = self._num_waiting()
            if not is_own and waiting >= self._queue:
                waiting = max(waiting, 0)
                raise QueueFull(waiting, max(1.0, self._retry_after_s(waiting)))
            self._unfinished[request] = None
            self._arrived.append(request)
        self._wake.set()
        return request

    @abstractmethod
    def _num_waiting(self) -> int:
        """The number of requests that would wait before a new one; less than 0 if it would not wait itself."""

    @abstractmethod
    def _retry_after_s(self, waiting: int) -> float:
        """Estimate when one of so many requests that wait begins."""

    @abstractmethod
    def _turn(self) -> bool:
        """Take what arrived, and let the device compute once. False if no request is left."""

    @abstractmethod
    def _end_all(self, requests: Collection[R], error: str | None) -> None:
        """End requests as cancelled, or with an error."""

    def _drop(self, request: R) -> None:
        """Drop a request that has ended."""
        with self._lock:
            self._unfinished.pop(request)

    def _run(self) -> None:
        self._compilations.start()
        self._shares.begin()
        try:
            while not self._is_stopping:
                if not self._turn():
                    self._shares.pause()
                    self._wake.wait()
                    self._wake.clear()
                    self._shares.begin()
        except Exception as error:  # the requests must hear of it, and the server must not look healthy
            logger.exception(f"the {type(self).__name__.lower()} has failed")
            self.failure = f"{type(error).__name__}: {error}"
        self._shares.pause()
        with self._lock:
            self._arrived.clear()
            unfinished = list(self._unfinished)
        self._end_all(unfinished, self.failure)


class CompilationCounter:
    """Counts compilations of the thread that called `start`: after the start of a worker, there are none."""

    def __init__(self) -> None:
        self.count = 0
        self._thread: int | None = None

    def start(self) -> None:
        self._thread = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED and threading.get_ident() == self._thread:
            self.count += 1
