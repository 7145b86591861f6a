"""The drawn surfaces of benchmarks/inspection.py: a function of the seed, and defects that can be seen."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SOURCE = Path(__file__).parents[2] / "benchmarks/inspection.py"


def module() -> Any:
    spec = importlib.util.spec_from_file_location("inspection_surfaces", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.slow
def test_the_drawn_folder_is_what_its_list_says(tmp_path: Path) -> None:
    inspection = module()
    for folder in ("once", "again"):
        inspection.draw_all(tmp_path / folder, count=40, seed=3)
    with open(tmp_path / "once/surfaces.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows].count("defect") == 10
    assert [row["split"] for row in rows].count("train") == 28
    assert {row["lighting"] for row in rows} == set(inspection.LIGHTS)
    for row in rows:
        path = tmp_path / "once" / row["file"]
        assert path.parent.parts[-2:] == (row["split"], row["label"])
        assert (row["defect"] in inspection.DEFECTS) == (row["label"] == "defect")
        assert path.read_bytes() == (tmp_path / "again" / row["file"]).read_bytes()
        assert Image.open(path).size == (384, 256)


@pytest.mark.slow
def test_defects_are_seen_and_differ_in_strength() -> None:
    inspection = module()
    found = [inspection.surface(0, number, is_defective=True)[1] for number in range(60)]
    assert {one["defect"] for one in found} == set(inspection.DEFECTS)
    strengths = np.array([float(one["strength"]) for one in found])
    assert strengths.min() < 0.15 < 0.85 < strengths.max()
    for mask in (inspection.scratch, inspection.spot, inspection.crack):
        covered = [np.abs(mask(np.random.default_rng(seed))) > 0.5 for seed in range(10)]
        assert all(8 < place.sum() < 3000 for place in covered)
