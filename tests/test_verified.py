"""A sample of the cases is enough while no source changed, and every case is in the sample of some commit."""

from __future__ import annotations

from pathlib import Path

import pytest
import verified
from verified import code_of, left_out, sampled_out

SOURCE = '''"""What it does."""

from math import pi

LIMIT = 3
"""Of rows."""


def area(r: float) -> float:
    """Of a circle."""
    text = "# not a comment"
    return pi * r * r if text else 0.0  # squared
'''


@pytest.mark.sampled(3)
def sampled() -> None:
    """Not collected: its name does not begin with test_."""


@pytest.mark.parametrize(("num_cases", "step"), [(1, 5), (3, 5), (12, 5), (24, 4)])
def test_each_case_is_in_the_sample_of_some_commit(num_cases: int, step: int) -> None:
    cases = range(num_cases)
    samples = [set(cases) - set(left_out(cases, step, seed)) for seed in range(step)]
    assert set.union(*samples) == set(cases)
    assert all(1 <= len(sample) <= -(-num_cases // min(step, num_cases)) for sample in samples)


def test_every_case_runs_once_a_source_changed(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "IS_EVERY", False)
    monkeypatch.setattr(verified, "TABLE", tmp_path / "verified.json")
    module = request.node.parent
    items = [pytest.Function.from_parent(module, name=f"sampled[{i}]", callobj=sampled) for i in range(8)]
    others = [pytest.Function.from_parent(module, name=f"plain[{i}]", callobj=code_of) for i in range(8)]
    assert sampled_out([*items, *others]) == []
    verified.record()
    left = sampled_out([*items, *others])
    assert set(left) < set(items)
    assert len(left) in (5, 6)
    monkeypatch.setattr(verified, "digest", lambda: "another")
    assert sampled_out([*items, *others]) == []


def test_prose_does_not_count_as_source() -> None:
    code = code_of(SOURCE)
    assert code.splitlines() == [
        "from math import pi",
        "LIMIT = 3",
        "def area(r: float) -> float:",
        '    text = "# not a comment"',
        "    return pi * r * r if text else 0.0",
    ]
    assert code_of(SOURCE.replace("Of a circle", "Of\n    a disc").replace("  # squared", "")) == code
    assert code_of(SOURCE.replace("LIMIT = 3", "LIMIT = 4")) != code
