from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aifx.checkpoint.manifest import kept, ranked

LOSSES = st.dictionaries(
    st.integers(0, 10_000),
    st.none() | st.floats(0, 10) | st.sampled_from([1.0, float("nan"), float("inf")]),
    max_size=12,
)


@given(LOSSES, st.integers(1, 5), st.integers(0, 5))
def test_kept(losses: dict[int, float | None], keep_last: int, keep_best: int) -> None:
    keep = kept(losses, keep_last, keep_best)
    assert keep <= losses.keys()
    assert set(sorted(losses)[-keep_last:]) <= keep
    assert len(keep) <= keep_last + keep_best
    best = [s for s in ranked(losses) if s in keep]
    for dropped in losses.keys() - keep:
        assert dropped < max(keep)
        if dropped in ranked(losses) and keep_best:
            assert all((losses[b], b) < (losses[dropped], dropped) for b in best[:keep_best])


@given(LOSSES, st.integers(1, 5), st.integers(0, 5))
def test_keeping_twice_is_keeping_once(losses: dict[int, float | None], keep_last: int, keep_best: int) -> None:
    keep = kept(losses, keep_last, keep_best)
    assert kept({s: losses[s] for s in keep}, keep_last, keep_best) == keep


def test_the_best_outlives_newer_ones() -> None:
    assert kept({1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 1.0}, 2, 1) == {2, 4, 5}
    assert kept({1: None, 2: None, 3: float("nan")}, 1, 2) == {3}
