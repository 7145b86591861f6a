"""The learning rate at the steps that matter."""

from __future__ import annotations

from typing import Any

import jax
import pytest

from aifx.config.sections import ScheduleSection
from aifx.optim import make_schedule


def rates(num_steps: int, **section: object) -> list[float]:
    """The share of the peak at each update, the first one first."""
    schedule = jax.jit(make_schedule(ScheduleSection(**section), num_steps))  # type: ignore[arg-type]
    return [float(schedule(i)) for i in range(num_steps)]


def test_cosine() -> None:
    found = rates(100, kind="cosine", warmup_steps=10, final_fraction=0.1)
    assert found[0] == pytest.approx(0.1)
    assert found[4] == pytest.approx(0.5)
    assert found[9] == pytest.approx(1.0)
    assert found[54] == pytest.approx(0.55, abs=0.01), "half-way between the peak and the end"
    assert found[99] == pytest.approx(0.1)
    assert found[9:] == sorted(found[9:], reverse=True)


@pytest.mark.slow
def test_warm_up_stable_decay() -> None:
    found = rates(100, kind="wsd", warmup_steps=10, decay_fraction=0.2, final_fraction=0.0)
    assert found[0] == pytest.approx(0.1)
    assert found[9:80] == pytest.approx([1.0] * 71)
    assert found[89] == pytest.approx(0.5)
    assert found[99] == pytest.approx(0.0, abs=1e-7)
    for num_steps in range(30, 150, 7):
        assert min(rates(num_steps, kind="wsd", decay_fraction=0.5, final_fraction=0.0)) >= 0.0


def test_constant() -> None:
    assert rates(5, kind="constant", warmup_steps=2) == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0])
    assert rates(3, kind="constant") == pytest.approx([1.0, 1.0, 1.0])


def test_no_warm_up_begins_at_the_peak() -> None:
    assert rates(10, kind="cosine", final_fraction=0.0)[0] > 0.97


@pytest.mark.parametrize("warmup_steps", [5, 10, 1000])
@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_the_warm_up_takes_at_most_half_of_the_run(kind: str, warmup_steps: int) -> None:
    found = rates(10, kind=kind, warmup_steps=warmup_steps, final_fraction=0.1)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[9] == pytest.approx(0.1)
    assert rates(10, kind=kind, warmup_steps=4, final_fraction=0.1)[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_a_short_trial_of_a_long_schedule(kind: str, num_steps: int) -> None:
    found = rates(num_steps, kind=kind, warmup_steps=1000, decay_fraction=0.5, final_fraction=0.1)
    assert all(0.0 < rate <= 1.0 for rate in found)


def test_a_decay_as_long_as_the_run() -> None:
    found = rates(4, kind="wsd", decay_fraction=1.0, final_fraction=0.0)
    assert found == pytest.approx([0.75, 0.5, 0.25, 0.0], abs=1e-7)


@pytest.mark.slow
def test_a_run_that_shortens_its_warm_up_says_so(tiny: Any, logged: list[str]) -> None:
    tiny.train("train.num_steps=4", "schedule.warmup_steps=4", "train.validate_every=0")
    assert [line for line in logged if "schedule.warmup_steps = 4" in line and "train.num_steps = 4" in line]
    assert [r["learning_rate"] for r in tiny.records()] == pytest.approx([0.01, 0.02, 0.011, 0.002])
