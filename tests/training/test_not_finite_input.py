"""A loss that is not finite: the batch is looked at before the learning rate is blamed."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from aifx.core.project import RunDirectory
from aifx.data.base import Batch, not_finite_input
from aifx.training.hooks.guard import NotFinite, report_divergence


def batch_with(value: float, dtype: Any, *rows: int) -> Batch:
    values = np.ones((16, 3), dtype)
    for row in rows:
        values[row, 1] = value
    return {"x": np.zeros((16, 2), np.int32), "y": values}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_where_it_is(dtype: Any) -> None:
    assert not_finite_input(batch_with(1.0, dtype)) is None
    assert re.search("NaN.*'y', row 12$", not_finite_input(batch_with(np.nan, dtype, 12)) or "")
    assert re.search(r"infinity.*'y', row 3\b.*2 more", not_finite_input(batch_with(np.inf, dtype, 7, 3, 9)) or "")


@pytest.mark.parametrize(
    ("value", "hint"),
    [(np.nan, "aifx train --run main    (once the data is corrected)"), (1.0, "learning_rate=0.01")],
)
def test_what_is_blamed(tmp_path: Path, value: float, hint: str) -> None:
    config = SimpleNamespace(optimizer=SimpleNamespace(learning_rate=0.02))
    run = RunDirectory(tmp_path / "main")
    run.path.mkdir()
    info: Any = SimpleNamespace(run=run, config=config, num_steps=9, unit="rows", first_step=0)
    dispatcher: Any = SimpleNamespace(event=lambda *_, **__: None)
    result = report_divergence(NotFinite(1, np.nan, np.nan, batch_with(value, np.float32, 12)), info, [], dispatcher)
    assert result.error is not None
    assert ("'y', row 12" in result.error.why) == (value != 1.0)
    assert result.error.hint.endswith(hint)


def test_its_message_does_not_hold_the_batch() -> None:
    assert str(NotFinite(7, np.nan, np.nan, batch_with(np.nan, np.float32))) == "step 7"
