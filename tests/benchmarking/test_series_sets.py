"""benchmarks/series_sets.py: the files that it writes of a competition's series, and the measures of competitions."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "series_sets.py"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    series = {
        "Q10": {"period": ["QUARTERLY"], "x": [1, 2, 3, 4, 5, 6], "xx": [5, 6]},
        "Q1": {"period": ["QUARTERLY"], "x": [4, 4, 4, 4, 4], "xx": [4, 0]},
        "Y1": {"period": ["YEARLY"], "x": [1, 2], "xx": [3]},
    }
    (tmp_path / "tcomp_data.json").write_text(json.dumps(series))
    return tmp_path


def test_a_file_ends_where_forecasts_begin(sets: dict[str, Any], data: Path) -> None:
    series = sets["read_set"](data, "tourism", "quarterly")
    assert [one.name for one in series] == ["Q1", "Q10"]
    sets["write_series"](data / "history.csv", series, "quarterly", is_whole=False)
    sets["write_series"](data / "series.csv", series, "quarterly", is_whole=True)
    history, whole = ((data / name).read_text().split() for name in ("history.csv", "series.csv"))
    assert history[5:7] == ["Q1,1951-01,4.0", "Q10,1950-01,1.0"]
    assert set(whole) - set(history) == {"Q1,1951-04,4.0", "Q1,1951-07,0.0", "Q10,1951-07,5.0", "Q10,1951-10,6.0"}


def test_measures_of_competitions(sets: dict[str, Any], data: Path) -> None:
    series = sets["read_set"](data, "tourism", "quarterly")
    naive = sets["seasonal_naive"](series, 4)
    np.testing.assert_array_equal(naive, [[4, 4], [3, 4]])
    # Off by 0 and 4 of (4, 0), and by 2 and 2 of (5, 6).
    assert sets["smape"](series, naive) == pytest.approx((0 + 200 + 200 * 2 / 8 + 200 * 2 / 10) / 4)
    # Q1 never changes, so it has no scale; a season changes Q10 by 4.
    assert sets["mase"](series, naive, 4) == pytest.approx(2 / 4)
    assert sets["smape"](series, np.array([[4, 0], [5, 6]])) == 0
