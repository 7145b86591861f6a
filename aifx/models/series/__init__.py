"""A small network for series over time: N-HiTS over what the calendar leaves."""

from aifx.models import Family
from aifx.models.series.section import SeriesModelSection

FAMILY = Family("series", SeriesModelSection, "aifx.models.series.model:make")
