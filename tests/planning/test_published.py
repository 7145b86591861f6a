"""Published rates, and the fit to them."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from effort import IS_LONG

from aifx.config.sections import Remat
from aifx.planning.figures import SHARES, published_chips, published_rates
from aifx.planning.hardware import find_hardware
from aifx.planning.step_time import SPREAD

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/plan_published.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_published", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["plan_published"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_row_says_where_it_was_read_and_what_ran() -> None:
    rates = published_rates()
    assert len(rates) >= 30
    assert len({rate.source for rate in rates}) >= 5
    for rate in rates:
        hardware = find_hardware(rate.hardware)
        assert rate.where.startswith("https://"), rate
        assert hardware.num_devices == math.prod(rate.mesh.values()), rate
        rows = rate.mesh.get("data", 1) * rate.mesh.get("fsdp", 1) * rate.micro_batches
        assert rate.batch % rows == 0, rate
        assert rate.remat in Remat.__args__  # type: ignore[attr-defined]
        assert rate.rate > 0
    assert {"NVIDIA A100 SXM 80GB", "NVIDIA H100 SXM", "TPU v5e", "TPU v6e"} <= published_chips()
    assert "NVIDIA L4" not in published_chips()


def test_the_shares_are_the_fit_to_all_rows(script: ModuleType) -> None:
    """And the interval is that of errors of sources that a fit did not see."""
    rates, counts = published_rates(), script.read_counts()
    assert len(counts) == len(rates)
    rows, every = script.Rows(rates, counts), np.arange(len(rates))
    shares, errors = rows.fit(every), rows.held_out(every)
    assert shares.products == pytest.approx(SHARES.products, abs=0.0051)
    assert (shares.memory, shares.overlap) == pytest.approx((SHARES.memory, SHARES.overlap), abs=0.0051)
    assert np.exp(rows.interval(errors, every)) == pytest.approx(SPREAD, abs=0.0051)
    assert np.median(abs(np.expm1(-errors))) <= 0.15


@pytest.mark.slow
def test_intervals_hold_four_of_five_rows_of_sources_that_they_do_not_know(script: ModuleType) -> None:
    rows = script.Rows(published_rates(), script.read_counts())
    judged = list(script.judge(rows))
    assert sum(one.rows for one in judged) == len(rows.sources)
    assert sum(one.inside * one.rows for one in judged) >= 0.8 * len(rows.sources)
    assert np.mean([one.inside for one in judged]) >= 0.8  # also if each source counts once


def of_each_source() -> list[int]:
    """The first row of each; all rows when long."""
    sources = [rate.source for rate in published_rates()]
    return [number for number, source in enumerate(sources) if IS_LONG or number == sources.index(source)]


@pytest.mark.slow
@pytest.mark.parametrize("number", of_each_source())
def test_a_row_is_counted_and_predicted_as_a_plan_is(script: ModuleType, number: int, tmp_path: Path) -> None:
    from aifx.core.project import Project
    from aifx.kinds import load_config
    from aifx.planning.plan import Plan
    from aifx.planning.planner import make_plans
    from aifx.planning.step_time import Assumptions

    rates, counts = published_rates(), script.read_counts()
    rate, hardware = rates[number], find_hardware(rates[number].hardware)
    (tmp_path / "aifx.toml").write_text(script.project_toml(rate, hardware))
    project = Project(tmp_path)
    config = load_config(project)
    (plan,) = make_plans(project, config, [hardware], Assumptions(), with_compiler=False).plans
    assert isinstance(plan, Plan)
    assert plan.time is not None
    rows = script.Rows(rates, counts)
    tolerance = 1e-3 if jax.__version_info__ >= (0, 12) else 0.05  # the counts are of JAX 0.12
    assert plan.time.step_s.value == pytest.approx(float(rows.predicted(SHARES, np.array([number]))[0]), rel=tolerance)
    assert plan.time.units_per_s.low == pytest.approx(SPREAD[0] * plan.time.units_per_s.value)
