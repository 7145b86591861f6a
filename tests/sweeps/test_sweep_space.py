"""The meaning of `--set` of a sweep, and the settings that follow from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.sweeps.space import (
    RANDOM_FIRST,
    Choices,
    Outcome,
    Range,
    Space,
    check_optuna,
    grid_size,
    overrides,
    parse_space,
    sample,
    value_of,
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "aifx.toml").write_text("")
    return Project(tmp_path)


def space(project: Project, *texts: str) -> Space:
    return parse_space(project, texts, None)


def test_lists_ranges_seeds_and_values_that_all_trials_share(project: Project) -> None:
    found = space(
        project,
        "optimizer.kind=adamw,muon",
        "optimizer.learning_rate=1e-4..1e-2:log",
        "model.num_layers=2..4",
        'lora.targets=["attention"],["attention", "mlp"]',
        "train.seed=0,1,2",
        "train.num_steps=50",
        'project.name="a,b"',
    )
    assert found.swept == {
        "optimizer.kind": Choices(("adamw", "muon")),
        "optimizer.learning_rate": Range(1e-4, 1e-2, is_log=True),
        "model.num_layers": Range(2, 4, is_log=False),
        "lora.targets": Choices((["attention"], ["attention", "mlp"])),
    }
    assert found.seeds == (0, 1, 2)
    assert found.fixed == {"train.num_steps": 50, "project.name": "a,b"}
    assert found.keys == [*found.swept, "train.seed"]


def test_each_value_comes_back_as_it_was_given(project: Project) -> None:
    values = {"optimizer.learning_rate": 3e-4, "project.name": 'a "b", c', "train.seed": 7}
    config = load_config(project, overrides(values))
    assert {key: value_of(config, key) for key in values} == values


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["train.seed=1"], "there is nothing to sweep"),
        (["train.seeds=1,2"], "did you mean 'seed'"),
        (["optimizer.learning_rate=1e-3,fast"], 'optimizer.learning_rate = "fast"'),
        (["optimizer.learning_rate=1e-2..1e-3"], "is empty"),
        (["optimizer.weight_decay=0..1:log"], "has no logarithm"),
        (["optimizer.kind=1..2"], "optimizer.kind"),
        (["optimizer.learning_rate"], "has no value"),
        (["optimizer.learning_rate=1e-3,0.001"], "lists 0.001 twice"),
        (["train.seed=1,2", "train.seed=3,4"], "is given twice"),
        (["train.seed=0..3"], "is a range"),
        (["checkpoint.best_by=min loss,max accuracy"], "cannot be swept"),
    ],
)
def test_what_cannot_be_swept(project: Project, texts: list[str], says: str) -> None:
    with pytest.raises(AifxError) as refused:
        space(project, *texts)
    assert says in str(refused.value)
    assert refused.value.hint


def test_a_grid_has_each_combination_once(project: Project) -> None:
    grid = space(project, "optimizer.kind=adamw,muon", "train.gradient_accumulation=1,2,4")
    assert grid_size(grid) == 6
    points = [tuple(sample(grid, "grid", 0, index, [], "min").values()) for index in range(6)]
    assert points == [(kind, n) for kind in ("adamw", "muon") for n in (1, 2, 4)]
    assert grid_size(space(project, "optimizer.learning_rate=0.1..1")) is None


def test_a_random_setting_depends_on_the_seed_and_its_number_alone(project: Project) -> None:
    drawn = space(
        project, "optimizer.learning_rate=1e-4..1e-1:log", "model.num_layers=1..3", "optimizer.kind=adamw,muon"
    )
    points = [sample(drawn, "random", 5, index, [], "min") for index in range(300)]
    assert points[7] == sample(drawn, "random", 5, 7, [], "max")
    assert points[7] != sample(drawn, "random", 6, 7, [], "min")
    rates = sorted(point["optimizer.learning_rate"] for point in points)
    assert 1e-4 <= rates[0] < rates[-1] <= 1e-1
    assert rates[150] == pytest.approx(10**-2.5, rel=0.6)  # the middle of the logarithms
    assert {point["model.num_layers"] for point in points} == {1, 2, 3}
    assert {point["optimizer.kind"] for point in points} == {"adamw", "muon"}


def outcomes(drawn: Space, count: int) -> list[Outcome]:
    """Settings whose loss is least at a learning rate of 0.01 with muon: the first at random, the others by TPE."""
    found: list[Outcome] = []
    for index in range(count):
        values = sample(drawn, "tpe", 0, index, found, "min")
        distance = abs(values["optimizer.learning_rate"] / 0.01 - 1) + (values["optimizer.kind"] != "muon")
        found.append(Outcome(values, distance, 10, is_cut=index % 7 == 3, is_running=index == count - 1))
    return found


def test_tpe_goes_by_the_results_and_by_nothing_else(project: Project) -> None:
    drawn = space(project, "optimizer.learning_rate=1e-4..1:log", "optimizer.kind=adamw,muon")
    found = outcomes(drawn, 40)
    assert found == outcomes(drawn, 40)
    assert [one.values for one in found[:RANDOM_FIRST]] == [
        sample(drawn, "random", 0, index, [], "min") for index in range(RANDOM_FIRST)
    ]
    late = [one.values for one in found[-15:]]
    assert sum(0.002 < values["optimizer.learning_rate"] < 0.05 for values in late) >= 10  # of 15; a third by chance
    assert sum(values["optimizer.kind"] == "muon" for values in late) >= 10
    worst_first = sample(drawn, "tpe", 0, 40, found, "max")
    assert worst_first != sample(drawn, "tpe", 0, 40, found, "min")


def test_tpe_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(EnvironmentFault) as refused:
        check_optuna()
    assert refused.value.hint == "pip install 'optuna>=5.0'"
