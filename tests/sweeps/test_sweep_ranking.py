"""Pruning, ranks, margins and importance, over planted results."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from scipy.stats import tukey_hsd

from aifx.config.best_by import BestBy
from aifx.core.parsing import parse_toml
from aifx.core.project import Project
from aifx.sweeps.page import report_page
from aifx.sweeps.ranking import SweepReport, explained, margin_between, report
from aifx.sweeps.record import Design, End, Sweep, Trial
from aifx.sweeps.running import LEAST_OTHERS, Pruning, judge
from aifx.sweeps.space import Choices, Range, Space

LOSS, ACCURACY = BestBy("loss", "min"), BestBy("accuracy", "max")
OTHERS = [[(4, 1.0 + n), (8, 0.5 + n)] for n in range(LEAST_OTHERS)]  # best values at 8: 0.5, 1.5, 2.5, 3.5, 4.5


def test_a_trial_worse_than_the_median_at_the_same_step_is_pruned() -> None:
    assert judge([(4, 2.0), (8, 2.6)], OTHERS, LOSS, 12) is None  # by its best value so far
    assert judge([(4, 9.0), (8, 2.6)], OTHERS, LOSS, 12) == Pruning(4, 9.0, 3.0)
    assert judge([(8, 2.6)], OTHERS, LOSS, 12) == Pruning(8, 2.6, 2.5)
    assert judge([(8, 2.5)], OTHERS, LOSS, 12) is None
    assert judge([(8, 2.4)], OTHERS, ACCURACY, 12) is not None
    assert judge([(8, 9.9)], OTHERS, ACCURACY, 12) is None


def test_a_trial_is_not_judged_early_or_late_or_by_few() -> None:
    assert judge([(4, 9.0)], OTHERS, LOSS, 17) is None  # within the first quarter of its steps
    assert judge([(8, 9.0)], OTHERS, LOSS, 8) is None  # it has done all of them
    assert judge([(4, 9.0)], OTHERS[1:], LOSS, 12) is None
    assert judge([(8, 9.0)], [*OTHERS[1:], [(4, 1.0)], []], LOSS, 12) is None  # one has not come so far


def sweep_of(results: dict[float, list[float]], *, best_by: str = "min loss", status: End = "completed") -> Sweep:
    """A sweep over learning rates with these values per seed."""
    seeds = tuple(range(max(map(len, results.values()))))
    space = Space({"optimizer.learning_rate": Choices(tuple(results))}, seeds, {"train.num_steps": 12})
    sweep = Sweep(Design(space, "grid", 0, best_by, None, {}), 0, True)
    for rate, values in results.items():
        for seed, value in enumerate(values):
            number = len(sweep.trials) + 1
            given = {"optimizer.learning_rate": rate, "train.seed": seed}
            sweep.trials[number] = Trial(number, f"s-{number:03}", given, status, value, 12)
    sweep.num_trials = len(sweep.trials)
    return sweep


def reported(sweep: Sweep, tmp_path: Path) -> SweepReport:
    return report(Project(tmp_path), "s", sweep)


def rates(found: SweepReport) -> list[float]:
    return [one.values["optimizer.learning_rate"] for one in found.settings]


def test_settings_are_ranked_by_their_mean_over_seeds(tmp_path: Path) -> None:
    results = {0.1: [3.0, 1.0], 0.2: [1.9, 1.9], 0.3: [5.0, 5.0]}
    found = reported(sweep_of(results), tmp_path)
    assert rates(found) == [0.2, 0.1, 0.3]
    assert [one.rank for one in found.settings] == [1, 2, 3]
    assert [one.difference for one in found.settings] == pytest.approx([0.0, 0.1, 3.1])
    assert [one.std for one in found.settings] == pytest.approx([0.0, 2**0.5, 0.0])
    assert rates(reported(sweep_of(results, best_by="max accuracy"), tmp_path)) == [0.3, 0.1, 0.2]
    assert (found.num_trials, found.num_ended) == (6, 6)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_a_lead_is_undecided_as_by_the_test_of_games_and_howell(tmp_path: Path, seed: int) -> None:
    """Three settings, of which the second varies little with the seed and the third a lot."""
    draw = random.Random(seed)
    shapes = ((0.1, 0.0, 0.5), (0.2, 1.5, 0.2), (0.3, 3.0, 2.0))
    results = {rate: [draw.gauss(mean, spread) for _ in range(5)] for rate, mean, spread in shapes}
    found = reported(sweep_of(results), tmp_path)
    groups = [results[one.values["optimizer.learning_rate"]] for one in found.settings]
    test = tukey_hsd(*groups, equal_var=False)
    verdicts = ["worse" if p < 0.05 else "undecided" for p in test.pvalue[0, 1:]]
    assert [one.verdict for one in found.settings] == ["best", *verdicts]
    interval = test.confidence_interval(0.95)
    for at in (1, 2):
        half, margin = (interval.high[0, at] - interval.low[0, at]) / 2, found.settings[at].margin
        assert margin is not None
        assert half * 0.999 <= margin <= half * 1.07  # degrees of freedom are rounded down


def test_margins_at_the_edges() -> None:
    assert margin_between([1.0], [2.0, 2.1], 2) is None
    assert margin_between([1.0, 1.0], [2.0, 2.0], 2) == 0.0
    few, many = (margin_between([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], count) for count in (2, 20))
    assert few is not None
    assert many is not None
    assert few < many


def test_without_seeds_no_lead_can_be_judged(tmp_path: Path) -> None:
    found = reported(sweep_of({0.1: [1.0], 0.2: [2.0]}), tmp_path)
    assert [one.verdict for one in found.settings] == ["best", "unknown"]
    assert [one.margin for one in found.settings] == [None, None]


def test_a_setting_that_diverged_or_failed_has_no_rank(tmp_path: Path) -> None:
    sweep = sweep_of({0.1: [1.0, 1.1], 0.2: [0.5, 0.5], 0.3: [2.0, 2.2]})
    broken = sweep.trials[4]
    sweep.trials[4] = Trial(broken.number, broken.run, broken.values, "diverged", 0.5, 4)
    found = reported(sweep, tmp_path)
    assert rates(found) == [0.1, 0.3, 0.2]
    assert [one.rank for one in found.settings] == [1, 2, None]
    assert found.settings[2].verdict is None


def test_a_pruned_trial_counts_with_what_it_had_but_not_for_the_spread(tmp_path: Path) -> None:
    sweep = sweep_of({0.1: [1.0, 1.2, 1.1], 0.2: [3.0, 3.2, 8.8]})
    cut = sweep.trials[6]
    sweep.trials[6] = Trial(cut.number, cut.run, cut.values, "pruned", 8.8, 4)
    found = reported(sweep, tmp_path)
    assert found.settings[1].value == 5.0
    assert found.settings[1].std == pytest.approx(0.02**0.5)
    assert found.settings[1].verdict == "worse"


def test_trials_that_have_not_ended_are_listed_and_do_not_count(tmp_path: Path) -> None:
    sweep = sweep_of({0.1: [1.0], 0.2: [2.0]})
    sweep.trials[2] = Trial(2, "s-002", {"optimizer.learning_rate": 0.2, "train.seed": 0})
    found = reported(sweep, tmp_path)
    assert [one.rank for one in found.settings] == [1, None]
    assert found.settings[1].trials[0].status == "killed"  # its run has written nothing
    assert (found.num_trials, found.num_ended) == (2, 1)


def test_the_best_setting_can_be_put_into_the_configuration(tmp_path: Path) -> None:
    best = reported(sweep_of({0.1: [2.0], 0.2: [1.0]}), tmp_path).best
    assert best is not None
    assert parse_toml(best) == {"optimizer": {"learning_rate": 0.2}, "train": {"num_steps": 12}}
    nothing = sweep_of({0.1: [2.0]}, status="failed")
    assert reported(nothing, tmp_path).best is None


def test_importance_is_the_variance_that_a_key_explains(tmp_path: Path) -> None:
    draw = random.Random(1)
    space = Space({"a": Range(1e-4, 1e-1, True), "b": Choices(("x", "y"))}, (0, 1), {})
    sweep = Sweep(Design(space, "random", 0, "min loss", None, {}), 60, True)
    for number in range(1, 61):
        a, b, seed = 10 ** draw.uniform(-4, -1), draw.choice("xy"), number % 2
        loss = 100.0 * a + (b == "y") * 2.0 + draw.gauss(0, 0.1)
        sweep.trials[number] = Trial(number, "", {"a": a, "b": b, "train.seed": seed}, "completed", loss, 1)
    found = {one.key: one.fraction for one in reported(sweep, tmp_path).importance}
    assert list(found) == ["a", "b", "train.seed"]
    assert found["a"] is not None
    assert found["a"] > 0.5
    assert found["train.seed"] == pytest.approx(0.0, abs=0.05)


def test_explained_variance() -> None:
    assert explained(["x", "x", "y", "y"], [1.0, 1.0, 2.0, 2.0]) == 1.0
    assert explained(["x", "y", "x", "y"], [1.0, 1.0, 2.0, 2.0]) == 0.0
    assert explained(["x", "y"], [1.0, 2.0]) is None
    assert explained(["x", "x", "y"], [1.0, 1.0, 1.0]) == 0.0
    # By ranks: one loss that is out of all proportion hides nothing.
    costs = [1.0, 2.0, 3.0, 4.0, 5.0, 1e9]
    assert explained(["x"] * 3 + ["y"] * 3, costs) == pytest.approx(1 - (4 / 4) / (17.5 / 5))


def test_a_page_shows_what_the_report_says(tmp_path: Path) -> None:
    sweep = sweep_of({1e-3: [1.0, 1.1, 1.2], 1e-2: [1.05, 1.2, 1.4], 1e-1: [9.0, 9.1, 9.2]})
    cut = sweep.trials[9]
    sweep.trials[9] = Trial(cut.number, cut.run, cut.values, "failed", None, None, "<b>out of memory</b>")
    found = reported(sweep, tmp_path)
    page = report_page(found)
    for words in ("Settings", "Importance", "optimizer.learning_rate", "undecided", "s-009 failed", "min loss"):
        assert words in page
    assert found.best is not None
    assert "learning_rate = 0.001" in page
    assert "&lt;b&gt;out of memory" in page
    assert page.count("<svg") == 3
    assert "<title>s-001: 1 at step 12, completed</title>" in page
    empty = sweep_of({1e-3: [1.0]}, status="failed")
    assert "<svg" not in report_page(reported(empty, tmp_path))
