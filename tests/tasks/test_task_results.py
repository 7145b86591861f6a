"""What a project's own task returns: used, or refused by name with its place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aifx.config import load_config
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.objectives.checks import WrongResult, check_metrics, check_sums
from aifx.tasks.registry import create_task

PAIR = (jnp.float32(1.0), jnp.float32(2.0))


@pytest.mark.parametrize(
    ("sums", "words"),
    [
        ({"los": PAIR}, ['no "loss"', "'los'"]),
        (PAIR, ["type tuple", "dict"]),
        ({"loss": PAIR[0]}, ["'loss'", "(total, weight)"]),
        ({"loss": (jnp.ones(3), PAIR[1])}, ["total", "shape [3]", "scalar"]),
        ({"loss": (PAIR[0], jnp.ones((2, 1)))}, ["weight", "shape [2, 1]"]),
    ],
)
def test_sums_that_cannot_be_used(sums: Any, words: list[str]) -> None:
    with pytest.raises(WrongResult) as caught:
        jax.eval_shape(lambda: check_sums(sums))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"accuracy": 1.0}, ['no "loss"', "'accuracy'"]),
        ({"loss": "low"}, ["'loss'", "type str", "number"]),
        ({"loss": 1.0, "f1": np.ones(3)}, ["'f1'", "ndarray of shape [3]"]),
        ({"loss": 1.0, "by": {"class": {1, 2}}}, ["'by.class'", "type set"]),
        ({"loss": 1.0, "list": [1, object()]}, ["'list[1]'", "type object"]),
        ([1.0], ["type list", "dict"]),
    ],
)
def test_metrics_that_cannot_be_used(metrics: Any, words: list[str]) -> None:
    with pytest.raises(WrongResult) as caught:
        check_metrics(metrics)
    for word in words:
        assert word in str(caught.value)


def test_scalars_of_numpy_and_jax_are_metrics() -> None:
    given = {"loss": np.float32(0.5), "n": np.int64(3), "z": np.array(2.0), "j": jnp.bfloat16(1.5), "b": np.bool_(True)}
    found = check_metrics({**given, "by": {"class": (np.float64(1.0), None, "a")}})
    assert found == {"loss": 0.5, "n": 3, "z": 2.0, "j": 1.5, "b": True, "by": {"class": [1.0, None, "a"]}}
    kinds = {name: type(value) for name, value in found.items()}
    assert kinds == {"loss": float, "n": int, "z": float, "j": float, "b": bool, "by": dict}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    modules, path = set(sys.modules), list(sys.path)
    (tmp_path / "aifx.toml").write_text('[task]\nkind = "tiny_again:TinyTask"\n')
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name == "tiny_again":
            del sys.modules[name]


def task_of(root: Path, old: str, new: str) -> Any:
    code = (Path(__file__).parents[1] / "training" / "tiny.py").read_text()
    assert old in code
    (root / "tiny_again.py").write_text(code.replace(old, new))
    project = Project(root)
    return create_task(load_config(project, [], {}), project, root / "assets")


def test_a_wrong_result_is_named_with_its_place(root: Path) -> None:
    task = task_of(root, 'return {"loss": float(total) / float(weight)}', 'return {"lost": 1.0}')
    with pytest.raises(ConfigError) as caught:
        task.metrics({"loss": (1.0, 1.0)})
    line = (root / "tiny_again.py").read_text().splitlines().index("    def metrics(self, totals):") + 1
    assert "TinyTask.metrics failed" in caught.value.what
    assert f"(tiny_again.py:{line})" in caught.value.why


def test_a_model_without_flops_is_not_whole(root: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        task_of(root, "def flops(", "def flop(")
    assert "lacks model.flops" in caught.value.why


def test_an_exit_of_a_task_is_an_error_with_its_message(root: Path) -> None:
    task = task_of(root, '        return {"loss": float(total) / float(weight)}', '        raise SystemExit("no GPU")')
    with pytest.raises(ConfigError) as caught:
        task.metrics({"loss": (1.0, 1.0)})
    assert "SystemExit: no GPU" in caught.value.why
    assert "tiny_again.py:" in caught.value.why


def test_a_file_that_a_task_misses_is_the_tasks_mistake(root: Path) -> None:
    old = '        return {"loss": float(total) / float(weight)}'
    task = task_of(root, old, '        return {"loss": float(open("weights.csv").read())}')
    with pytest.raises(ConfigError) as caught:
        task.metrics({"loss": (1.0, 1.0)})
    assert "'weights.csv'" in caught.value.why
    assert "tiny_again.py:" in caught.value.why


def test_a_disk_that_refuses_is_not_the_tasks_mistake(root: Path) -> None:
    old = '        return {"loss": float(total) / float(weight)}'
    task = task_of(root, old, '        raise OSError(5, "Input/output error")')
    with pytest.raises(OSError, match="Input/output"):
        task.metrics({"loss": (1.0, 1.0)})
