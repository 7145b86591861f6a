"""Supervised fine-tuning: next-token prediction over the tokens of some writers of a chat."""

from __future__ import annotations

from typing import Any

from aifx.data.chat.rendering import COMPLETION, EARLIER
from aifx.data.spec import DataSpec
from aifx.objectives.base import Totals
from aifx.objectives.checks import misfit
from aifx.objectives.next_token import NextToken
from aifx.objectives.sections import SftSection

LEAST_WRITER = {"all": 0, "assistant": EARLIER, "completion": COMPLETION}
"""By `objective.loss_on`: tokens of this writer and of higher ones are trained."""


class SupervisedFineTuning(NextToken):
    """Cross-entropy of each token that `objective.loss_on` names. Reports loss in nats per such token, perplexity."""

    def __init__(self, section: SftSection) -> None:
        self.loss_on = section.loss_on

    def check_data(self, data: DataSpec) -> None:
        super().check_data(data)
        if "writers" not in data.fields:
            why = "its DataSpec has no field 'writers', the writer of each target"
            raise misfit('supervised fine-tuning needs data of conversations: data.kind = "chat"', why)

    def target_weights(self, batch: Any) -> Any:
        return batch["weights"] * (batch["writers"] >= LEAST_WRITER[self.loss_on])

    def metrics(self, totals: Totals, data: DataSpec) -> dict[str, Any]:
        """loss [nats per trained token], perplexity, and how many tokens were scored."""
        tokens = round(float(totals["loss"][1]))
        return {**super().metrics({"loss": totals["loss"]}, data), "tokens": tokens}
