"""The reading before, which rates are formed against."""

from dataclasses import replace

import pytest
from health_trees import NOW, changed, machines, report_of, snapshot_of

from aifx.health.check import _since_last
from aifx.health.probes import all_probes

CORRECTED = {"sys/devices/system/edac/mc/mc0/ce_count": "90000\n"}


@pytest.mark.parametrize(("seconds", "found"), [(1.0, False), (600.0, True)])
def test_a_rate_wants_a_window(seconds, found, tmp_path, monkeypatch):
    """Prologs come a second apart; an error between two of them is not sixty a minute, and is not forgotten either."""
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    probes, tree = all_probes(), machines()["server"]()
    assert _since_last(snapshot_of(tree, tmp_path / "tree", NOW - seconds), probes).before is None
    storm = snapshot_of(changed(tree, CORRECTED), tmp_path / "tree")
    assert ("memory.ecc.storm" in {f.id for f in report_of(_since_last(storm, probes)).findings}) == found
    later = replace(storm, time=NOW + 120)
    assert ("memory.ecc.storm" in {f.id for f in report_of(_since_last(later, probes)).findings}) != found


def test_each_set_of_probes_has_a_reading_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    snapshot = snapshot_of(machines()["server"](), tmp_path / "tree")
    _since_last(snapshot, all_probes())
    assert _since_last(replace(snapshot, time=NOW + 600), all_probes()[:1]).before is None
    assert _since_last(replace(snapshot, time=NOW + 600), all_probes()).before is not None
