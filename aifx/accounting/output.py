"""KPIs as a page, and as comma-separated values."""

from __future__ import annotations

import csv
import io

from aifx.accounting.report import Kpis
from aifx.core.pages import date, render

SHOWN = ("runs", "accelerator_hours", "cpu_hours", "goodput", "money", "energy", "promotions", "refused_promotions")
"""KPIs of the table of groups."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that a spreadsheet would compute."""


def kpis_page(report: Kpis) -> str:
    """The page of a report."""
    return render(
        "aifx.accounting",
        "kpis.html",
        title="KPIs",
        command="aifx kpis --html",
        report=report,
        shown=SHOWN,
        date=date,
    )


def kpis_csv(report: Kpis) -> str:
    """A line per number, those of each group below those of all; an empty value is not known."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["by", "group", "name", "value", "unit", "basis", "missing"])
    for by, group, kpis in [("", "", report.kpis), *((report.by or "", one.name, one.kpis) for one in report.groups)]:
        for one in kpis:
            value = "" if one.value is None else repr(one.value)
            writer.writerow([by, _cell(group), one.name, value, one.unit, one.basis, _cell("; ".join(one.missing))])
    return text.getvalue()


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text
