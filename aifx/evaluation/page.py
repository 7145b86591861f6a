"""A report of `aifx eval` as a page, with the worst errors of the split: as pictures if its examples are images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from aifx.core.pages import render
from aifx.core.pages.canvas import FAINT, Picture, canvas, ticks
from aifx.data.base import BatchSource
from aifx.data.readers.pictures import MODES
from aifx.data.spec import DataSpec
from aifx.evaluation.dataset import DatasetReports
from aifx.evaluation.held_out import Part, Report
from aifx.tasks.base import dataset_of, evaluation_source

MOST_ERRORS = 48
RELIABILITY_HEIGHT = 320
ZOOM = 0.5
"""Probability above which all dots may be for the picture to show that part alone."""

MOST_CONFUSED = 40
"""Classes up to which the confusion matrix is shown."""


@dataclass(frozen=True)
class WorstErrorRow:
    """An example with what was predicted for it."""

    name: str  # "example 7", or the file that it is from
    facts: Mapping[str, str]
    picture: str | None  # an URI that holds it; None if the example is no image


def report_page(report: Report | DatasetReports, parts: Sequence[Part]) -> str:
    """The page of a report: verdict, and for each part metrics, classes, confusion, and the largest errors."""
    is_run = report.model is None
    which = f"{'run' if is_run else 'model'} {report.run}, step {report.step}"
    split = f" --split {report.split}" if isinstance(report, Report) else ""
    return render(
        "aifx.evaluation",
        "eval.html",
        title=f"{which}, {parts[0].data}" if len(parts) == 1 else which,
        command=f"aifx eval {f'--run {report.run} --step {report.step}' if is_run else f'--model {report.run}'}{split}",
        status=("passed" if report.passed else "failed") if any(part.gates for part in parts) else "",
        quantize=report.quantize,
        parts=[_page_part(part) for part in parts],
        number=number,
    )


def _page_part(part: Part) -> dict[str, Any]:
    name = f"reliability {part.data}"
    classes, confusion = part.metrics.get("per_class") or {}, part.metrics.get("confusion") or []
    return {
        "name": part.data,
        "gates": part.gates,
        "numbers": {name: value for name, value in part.metrics.items() if isinstance(value, (int, float))},
        "baselines": part.baselines,
        "classes": classes,
        "columns": list(next(iter(classes.values()), {})),
        "slices": part.slices,
        "reliability": [_reliability(name, bins)] if (bins := part.metrics.get("calibration")) else [],
        "confusion": list(zip(classes, confusion, strict=True)) if 0 < len(confusion) <= MOST_CONFUSED else [],
        "errors": _worst_errors(part),
    }


def _worst_errors(part: Part) -> list[WorstErrorRow]:
    programs, task = part.programs, part.programs.task
    errors = programs.objective.worst_errors(part.totals, task.data, MOST_ERRORS)
    rows = [error.row for error in errors]
    found = task.format.places(dataset_of(task), part.split, rows) if task.format and rows else []
    source = evaluation_source(task, programs.config, part.split)
    return [
        WorstErrorRow(name, _texts(error.facts), _picture(source, error.row, task.data))
        for name, error in zip(found or [f"example {row + 1}" for row in rows], errors, strict=True)
    ]


def _reliability(name: str, bins: Sequence[Mapping[str, float]]) -> Picture:
    """The share of right predictions over their mean probability, a dot for each bin.

    A reliability diagram as in Guo et al., On calibration of modern neural networks, ICML 2017. Bins have equal mass,
    so no dot is more certain than the others.
    """
    with canvas(name, height=RELIABILITY_HEIGHT) as on:
        sure, right = ([one[key] for one in bins] for key in ("confidence", "accuracy"))
        low = max(min(*sure, *right, 0.9) - 0.03, 0.0) if min(*sure, *right) > ZOOM else 0.0
        on.axes.plot([low, 1], [low, 1], color=FAINT, lw=1, ls="--")
        for one in bins:
            on.axes.plot([one["confidence"]] * 2, [one["confidence"], one["accuracy"]], color="C1", lw=2)
            words = f"probability {one['confidence']:.1%}, right {one['accuracy']:.1%} of {one['weight']:,.0f}"
            on.dot(one["confidence"], one["accuracy"], words, "C0")
        room = (1 - low) * 0.03
        on.axes.set(xlim=(low - room, 1 + room), ylim=(low - room, 1 + room), xlabel="mean probability")
        on.unit("right")
        for axis in (on.axes.xaxis, on.axes.yaxis):
            ticks(axis, MaxNLocator(5), lambda value: f"{value:.0%}" if low == 0 else f"{value:.1%}")
        on.key("a bin of predictions", 0)
        on.key("its distance from the truth", 1)
        on.key("calibrated", is_dashed=True)
        return on.picture("Reliability", "below the dashed line, the model is too sure")


def number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _texts(facts: Mapping[str, Any]) -> dict[str, str]:
    def text(value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(map(text, value)) or "none"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return {name: text(value) for name, value in facts.items()}


def _picture(source: BatchSource, row: int, data: DataSpec) -> str | None:
    """The example of this number as an URI, if it is an image."""
    field = data.fields.get("inputs")
    if field is None or field.axes[:2] != ("height", "width") or field.dtype != "uint8":
        return None
    step, place = divmod(row, source.batch_size)
    (image,) = source.read(step, slice(place, place + 1))["inputs"]
    return None if image.shape[2] not in MODES else f"data:image/png;base64,{_png(image)}"


def _png(image: np.ndarray) -> str:
    """An image uint8 `[height, width, channels]` as PNG in base64."""
    stream = io.BytesIO()
    mode = MODES[image.shape[2]]
    Image.frombytes(mode, image.shape[1::-1], np.ascontiguousarray(image).tobytes()).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
