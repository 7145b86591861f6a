"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from aifx.data.chat.format import CHOSEN, REJECTED
from aifx.data.chat.rendering import COMPLETION
from aifx.data.spec import DataSpec
from aifx.models.base import Model
from aifx.objectives.base import DeviceBatch, Objective, Predictions, Sums, Totals, mean
from aifx.objectives.checks import misfit
from aifx.objectives.next_token import cross_entropy
from aifx.objectives.sections import DpoSection
from aifx.parallel.context import ForwardContext
from aifx.specs import Params


class DirectPreference(Objective):
    """-log sigmoid of the margin, which is the reward of the chosen answer minus that of the rejected one (equation 7).

    The reward of an answer is `beta` times the rise of its log-probability since the reference.
    """

    unit: ClassVar[str] = "tokens"
    divides: ClassVar[tuple[str, ...]] = ("vocab", "tokens", "seq")

    def __init__(self, section: DpoSection) -> None:
        self.beta, self.is_normalized = section.beta, section.length_normalize

    def check_data(self, data: DataSpec) -> None:
        if "reference" not in data.fields or data.vocab_size is None:
            why = "its DataSpec has no field 'reference', the log-probabilities of answers before training"
            raise misfit('preference optimization needs pairs of answers: data.kind = "preferences"', why)

    def target_weights(self, batch: Any) -> Any:
        """The weight of each target of a batch, `[rows, seq]`: 1 in the last answer of both conversations."""
        return batch["weights"] * (batch["writers"] >= COMPLETION)

    def reference(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Predictions:
        """ "reference": the log-probability of the chosen and the rejected answer of each row, `[rows, 2]`."""
        return {"reference": self._answers(model, params, batch, ctx)[0]}

    def sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Sums:
        """ "loss", "accuracy", "margin" and the rewards "chosen" and "rejected", over pairs."""
        found, counts = self._answers(model, params, batch, ctx)
        risen = found - batch["reference"]
        if self.is_normalized:
            risen = risen / jnp.maximum(counts, 1.0)
        rewards = self.beta * risen
        margin = rewards[:, 0] - rewards[:, 1]
        # Devices that share a row's tokens all have its sums, and the sums of all devices are added.
        layout = ctx.layout
        share = 1.0 / (layout.count("tokens") * layout.count("seq"))
        weights = share * (counts.min(axis=1) > 0)
        values = {
            "loss": jax.nn.softplus(-margin),
            "accuracy": (margin > 0).astype(jnp.float32),
            "margin": margin,
            "chosen": rewards[:, 0],
            "rejected": rewards[:, 1],
        }
        return {name: ((value * weights).sum(), weights.sum()) for name, value in values.items()}

    def metrics(self, totals: Totals, data: DataSpec) -> dict[str, Any]:
        """The means over pairs, and the number of pairs."""
        names = ("loss", "accuracy", "margin", "chosen", "rejected")
        return {**{name: mean(totals[name]) for name in names}, "pairs": round(float(totals["loss"][1]))}

    def _answers(
        self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext
    ) -> tuple[jax.Array, jax.Array]:
        """The log-probabilities of the two answers of each row, and their numbers of tokens, `[rows, 2]` each."""
        layout, scored = ctx.layout, self.target_weights(batch)
        nats = cross_entropy(model, params, {**batch, "weights": scored}, ctx, "none")
        nats = layout.gather_tokens(nats).reshape(scored.shape)
        of_answer = scored[..., None] * (batch["segment_ids"][..., None] == jnp.array([CHOSEN, REJECTED]))
        return layout.sum_seq((-nats[..., None] * of_answer).sum(1)), layout.sum_seq(of_answer.sum(1))
