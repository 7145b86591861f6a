"""Error rates of the gate, on recorded launches of a real training step (benchmarks/gate_trials.py)."""

import json
import runpy
from pathlib import Path

import pytest

TRIALS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "gate_trials.py"))
RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.json"))
ASKED = {"bound": 0.05, "slower": 0.10, "trials": 200}


@pytest.mark.slow
@pytest.mark.parametrize("recording", RECORDED, ids=lambda path: path.stem)
def test_of_200_trials_1_percent_or_fewer_are_false_alarms_and_95_or_more_find_10_percent(recording):
    """Launches interleaved in time; on an idle machine, whether its baseline would have been refused or not."""
    rates = TRIALS["trials"](TRIALS["read"](recording), TRIALS["interleaved"], **ASKED)
    assert rates.alarms <= 0.01
    assert rates.found is None or rates.found >= 0.95
    if not json.loads(recording.read_text())["busy"]:
        assert rates.found_of_all >= 0.95
        assert rates.refused <= 0.05


@pytest.mark.slow
def test_a_noisy_recording_makes_baselines_that_are_refused():
    random = TRIALS["np"].random.default_rng(0)
    wild = [[0.01 * random.uniform(0.6, 1.6)] * 3 for _ in range(60)]
    assert TRIALS["trials"](wild, TRIALS["apart"], **ASKED | {"trials": 20}).refused >= 0.9
