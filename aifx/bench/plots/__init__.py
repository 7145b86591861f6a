"""The pictures of a bench, drawn by matplotlib: each from what a report has, none where it has nothing for it."""

from __future__ import annotations

from aifx.bench.plots.canvas import Picture
from aifx.bench.plots.hardware import bandwidth, collectives, copies, products
from aifx.bench.plots.implementations import implementations
from aifx.bench.plots.roofline import roofline
from aifx.bench.plots.step import breakdown, growth
from aifx.bench.results import Report

__all__ = ["Picture", "pictures"]


def pictures(report: Report) -> list[Picture]:
    drawn = (
        draw(report)
        for draw in (roofline, breakdown, implementations, bandwidth, products, growth, collectives, copies)
    )
    return [picture for picture in drawn if picture is not None]
