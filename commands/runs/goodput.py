"""The goodput section of `aifx runs show`: where the time went, what it cost, and how often to save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aifx.commands.console.chart import bar
from aifx.commands.console.output import Output

if TYPE_CHECKING:
    from aifx.verbs.runs import RunDetails

BAR_WIDTH = 24


def print_bill(out: Output, run: RunDetails) -> None:
    if run.bill is None or (words := run.bill_in_words()) is None:
        return
    headline, spent, remarks = words
    has_cost = run.bill.cost is not None
    out.print("")
    out.print(headline)
    ascii_only = not out.out.encoding.lower().startswith("utf")
    rows = [
        (
            one.label,
            one.time,
            f"{one.share:.1%}",
            *((one.cost,) if has_cost else ()),
            bar(one.share, BAR_WIDTH, ascii_only=ascii_only),
        )
        for one in spent
    ]
    columns = ["where the time went", "time", "share", *(["cost"] if has_cost else []), ""]
    out.table(columns, rows, right=columns[1:-1])
    for line in remarks:
        out.print(line)
