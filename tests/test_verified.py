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
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert sampled_out([*items, *others]) == []
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(verified, "digest", lambda: "another")
    assert sampled_out([*items, *others]) == []


def test_each_test_of_a_verified_folder_runs_on_some_commit(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole tests, with all of their cases; those of other folders and slow ones always."""
    monkeypatch.setattr(verified, "is_sample", lambda: True)
    monkeypatch.setitem(verified.FOLDERS, Path(__file__).parent.name, 3)
    module = request.node.parent
    items = [
        pytest.Function.from_parent(module, name=f"test_{i}[{j}]", callobj=code_of) for i in range(7) for j in "ab"
    ]
    slow = pytest.Function.from_parent(module, name="test_slow", callobj=code_of)
    slow.add_marker("slow")
    samples = []
    for seed in range(3):
        monkeypatch.setattr(verified, "seed_of_commit", lambda seed=seed: seed)
        samples.append([item for item in (*items, slow) if item not in sampled_out([*items, slow])])
    assert [len(sample) for sample in samples] in ([7, 5, 5], [5, 7, 5], [5, 5, 7])
    assert {item.name for sample in samples for item in sample} == {item.name for item in (*items, slow)}
    assert all({"a]", "b]"} == {item.name[-2:] for item in sample if item is not slow} for sample in samples)


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
