"""The goodput section of `aifx runs show`: where the time went, what it cost, and how often to save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aifx.commands.console.chart import bar
from aifx.commands.console.output import Output

if TYPE_CHECKING:
    from aifx.runs.bill import Bill

BAR_WIDTH = 24


def print_bill(out: Output, bill: Bill) -> None:
    from aifx.runs.bill_words import headline, remarks, spent

    out.print("")
    out.print(headline(bill))
    ascii_only = not out.out.encoding.lower().startswith("utf")
    rows = [
        (
            one.label,
            one.time,
            f"{one.share:.1%}",
            *(() if bill.cost is None else (one.cost,)),
            bar(one.share, BAR_WIDTH, ascii_only=ascii_only),
        )
        for one in spent(bill)
    ]
    columns = ["where the time went", "time", "share", *([] if bill.cost is None else ["cost"]), ""]
    out.table(columns, rows, right=columns[1:-1])
    for line in remarks(bill):
        out.print(line)
