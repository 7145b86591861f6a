"""The pictures of a bench, drawn by matplotlib: each from what a report has, none where it has nothing for it."""

from __future__ import annotations

from aifx.benchmarking.plots.hardware import measured_by_size
from aifx.benchmarking.plots.implementations import implementations
from aifx.benchmarking.plots.roofline import roofline
from aifx.benchmarking.plots.step import breakdown, growth
from aifx.benchmarking.results import Report
from aifx.core.pages.canvas import Picture


def pictures(report: Report) -> list[Picture]:
    drawn = [
        roofline(report),
        breakdown(report),
        implementations(report),
        measured_by_size(report, "hardware.memory"),
        measured_by_size(report, "hardware.matmul"),
        growth(report),
        measured_by_size(report, "hardware.collective"),
        measured_by_size(report, "hardware.copy"),
    ]
    return [picture for picture in drawn if picture is not None]
