"""The pictures of a bench, drawn by matplotlib: each from what a report has, none where it has nothing for it."""

from __future__ import annotations

from aifx.benchmarking.plots.canvas import Picture
from aifx.benchmarking.plots.hardware import bandwidth, collectives, copies, products
from aifx.benchmarking.plots.implementations import implementations
from aifx.benchmarking.plots.roofline import roofline
from aifx.benchmarking.plots.step import breakdown, growth
from aifx.benchmarking.results import Report

__all__ = ["Picture", "pictures"]


def pictures(report: Report) -> list[Picture]:
    drawn = (
        draw(report)
        for draw in (roofline, breakdown, implementations, bandwidth, products, growth, collectives, copies)
    )
    return [picture for picture in drawn if picture is not None]
