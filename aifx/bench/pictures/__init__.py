"""The pictures of a bench, drawn by matplotlib: each from what a report has, none where it has nothing for it."""

from __future__ import annotations

from aifx.bench.pictures.canvas import Picture
from aifx.bench.pictures.forms import forms
from aifx.bench.pictures.hardware import bandwidth, collectives, copies, products
from aifx.bench.pictures.roofline import roofline
from aifx.bench.pictures.step import breakdown, growth
from aifx.bench.results import Report

__all__ = ["Picture", "pictures"]


def pictures(report: Report) -> list[Picture]:
    drawn = (draw(report) for draw in (roofline, breakdown, forms, bandwidth, products, growth, collectives, copies))
    return [picture for picture in drawn if picture is not None]
