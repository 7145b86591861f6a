"""A request's energy and price: its share of what the engine used, by tokens, and how that is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aifx.machine import energy
from aifx.machine.energy import Counter, PowerMeter, Unreadable
from aifx.serving import worker
from aifx.serving.http.completions import usage_answer
from aifx.serving.http.text import total_usage
from aifx.serving.requests import Usage
from aifx.serving.worker import Shares, WorkClock

CPU = SimpleNamespace(device_kind="cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that tests advance."""
    made = SimpleNamespace(now=100.0)
    for module in (energy, worker):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def meter(monkeypatch: pytest.MonkeyPatch, read: Any, device: Any = CPU, declared_w: float | None = None) -> PowerMeter:
    """A meter of a device whose counter is `read`; None for a device without a counter."""

    def open_counters(devices: Any) -> list[Counter]:
        if read is None:
            raise Unreadable("no counter")
        return [Counter("package-0", read, range_j=1000.0)]

    monkeypatch.setattr(energy, "open_counters", open_counters)
    return PowerMeter([device], declared_w)


def requests(count: int) -> list[Any]:
    return [SimpleNamespace(joules=None, energy_basis=None, cost=None) for _ in range(count)]


def test_shares_are_by_tokens(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, (one, other) = Shares(WorkClock(meter(monkeypatch, None, declared_w=20.0), 36.0)), requests(2)
    clock.now += 50  # no request is there
    shares.begin()
    shares.add(one, 6)  # of its prompt
    shares.add(other, 1)
    shares.add(one, 1)
    clock.now += 4
    shares.settle()
    assert (one.joules, other.joules) == (pytest.approx(70), pytest.approx(10))  # of 20 W for 4 s
    assert (one.cost, other.cost) == (pytest.approx(0.035), pytest.approx(0.005))  # of 0.01 per second
    assert one.energy_basis == "declared"
    shares.add(other, 1)
    clock.now += 1
    shares.settle()
    assert other.joules == pytest.approx(30)
    assert one.joules == pytest.approx(70)


@pytest.mark.parametrize("is_measured", [True, False])
def test_engines_that_work_at_once_divide_what_both_use(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, is_measured: bool
) -> None:
    """As with `--shadow`: what requests of both are charged adds up to the whole."""
    work = WorkClock(meter(monkeypatch, (lambda: 20 * clock.now) if is_measured else None, declared_w=20.0), 36.0)
    (first, second), (one, other) = (Shares(work), Shares(work)), requests(2)
    for engine in (first, second):
        engine.pause()
    clock.now += 50  # neither works
    first.begin()
    first.add(one, 1)
    clock.now += 2
    second.begin()
    second.add(other, 1)
    clock.now += 4
    second.settle()
    second.pause()
    clock.now += 1
    first.settle()
    assert (one.joules, other.joules) == (pytest.approx(20 * (2 + 2 + 1)), pytest.approx(20 * 2))
    assert (one.cost, other.cost) == (pytest.approx(0.05), pytest.approx(0.02))


def test_a_counter_is_read_and_wraps(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = SimpleNamespace(joules=990.0)
    found = meter(monkeypatch, lambda: readings.joules, declared_w=5.0)
    assert found.power is None, "half a second has not passed"
    clock.now, readings.joules = clock.now + 2, 20.0
    assert found.power == energy.Power(15.0, "measured")
    clock.now += 0.1
    assert found.power == energy.Power(15.0, "measured")


def test_idle_time_is_charged_to_nobody(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    used = SimpleNamespace(joules=0.0)

    def pass_time(seconds: float, watts: float) -> None:
        clock.now, used.joules = clock.now + seconds, used.joules + seconds * watts

    shares, (first, second, third) = Shares(WorkClock(meter(monkeypatch, lambda: used.joules % 1000))), requests(3)
    pass_time(3, 80)  # programs are compiled
    for request in (first, second):
        shares.pause()
        pass_time(40, 10)
        shares.begin()
        for _ in range(3):
            shares.add(request, 1)
            pass_time(0.15, 100)
            shares.settle()
    shares.pause()
    pass_time(40, 10)
    shares.begin()
    shares.add(third, 1)
    pass_time(0.15, 100)
    shares.settle()
    at_start = 255 / 3.15  # watts, with 0.15 s of the first request
    assert first.joules == pytest.approx(0.45 * at_start)
    assert second.joules == pytest.approx(0.15 * at_start + 30)  # then half a second of work was measured
    assert third.joules == pytest.approx(15)


def test_a_counter_that_fails_leaves_energy_unknown(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    def fail() -> float:
        if clock.now > 100:
            raise Unreadable("permission denied")
        return 0.0

    found = meter(monkeypatch, fail)
    clock.now += 1
    assert found.power is None
    assert found.power is None
    assert len([line for line in logged if line.startswith("warning: ") and "permission denied" in line]) == 1
    shares, (one,) = Shares(WorkClock(found)), requests(1)
    shares.add(one, 1)
    shares.settle()
    assert (one.joules, one.energy_basis, one.cost) == (None, None, None)


def test_without_a_counter_the_catalogue_knows_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    power = meter(monkeypatch, None, SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")).power
    assert power is not None
    assert (power.watts, power.basis) == (700, "nameplate")
    assert meter(monkeypatch, None).power is None


def test_usage_says_how_energy_is_known() -> None:
    parts = [
        Usage(3, 4, joules=2.0, energy_basis="measured", cost=0.1),
        Usage(3, 5, joules=1.0, energy_basis="measured"),
    ]
    usage = usage_answer(total_usage(parts, 2)).model_dump(exclude_unset=True)
    assert usage["energy"] == {"joules": 3.0, "basis": "measured"}
    assert "cost" not in usage, "one of the answers has none"
    assert "energy" not in usage_answer(Usage(1, 1)).model_dump(exclude_unset=True)
