"""Next-token prediction."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from aifx.data.base import TEXT_BYTES
from aifx.data.spec import DataSpec
from aifx.models.base import Model
from aifx.nn.vocabulary import cross_entropies, cross_entropy_sum
from aifx.objectives.base import (
    DeviceBatch,
    Objective,
    Predictions,
    Ratio,
    RowSums,
    Sums,
    Totals,
    head_of,
    mean,
)
from aifx.objectives.checks import misfit
from aifx.parallel.context import ForwardContext
from aifx.specs import Params
from jax_kernels._ops.linear_cross_entropy import linear_cross_entropy

UNSCORED = -1
"""The label of a target of weight 0, which is only context or padding. All other targets have weight 1."""


class NextToken(Objective):
    """Cross-entropy of each next token. Reports loss in nats per token, perplexity and bits per byte."""

    unit: ClassVar[str] = "tokens"
    divides: ClassVar[tuple[str, ...]] = ("vocab", "tokens", "seq")

    def check_data(self, data: DataSpec) -> None:
        if data.vocab_size is None:
            raise misfit("next-token prediction needs data with a vocabulary", "its DataSpec has no vocab_size")

    def target_weights(self, batch: Any) -> Any:
        """The weight of each target of a batch, `[rows, seq]`, as an array of NumPy or JAX like those of the batch."""
        return batch["weights"]

    def sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Sums:
        """For "loss": the sum of nats over this device's targets of weight 1, and their number."""
        batch = {**batch, "weights": self.target_weights(batch)}
        weight = ctx.layout.own_tokens(batch["weights"].reshape(-1)).sum()
        return {"loss": (cross_entropy(model, params, batch, ctx, "sum"), weight)}

    def row_sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> RowSums:
        """For "loss": the nats of each target, and its weight, `[rows, seq]`."""
        batch, layout = {**batch, "weights": self.target_weights(batch)}, ctx.layout
        weights = batch["weights"]
        nats = layout.gather_tokens(cross_entropy(model, params, batch, ctx, "none")).reshape(weights.shape)
        return {"loss": (layout.gather_seq(nats), layout.gather_seq(weights))}

    def ratios(self, sums: RowSums, data: DataSpec) -> dict[str, Ratio]:
        """loss per token, and bits_per_byte if `sums` has the "bytes" of targets."""
        nats, weights = sums["loss"]
        found = {"loss": Ratio(nats, weights)}
        if "bytes" in sums:
            found["bits_per_byte"] = Ratio(nats / math.log(2.0), sums["bytes"][0])
        return found

    def metrics(self, totals: Totals, data: DataSpec) -> dict[str, Any]:
        """loss [nats per token], perplexity, and if bytes were counted bits_per_byte, tokens, bytes."""
        nats, tokens = map(float, totals["loss"])
        loss = mean(totals["loss"])
        perplexity = math.inf if loss > math.log(sys.float_info.max) else math.exp(loss)
        report: dict[str, Any] = {"loss": loss, "perplexity": perplexity}
        if "bytes" in totals:
            num_bytes = float(totals["bytes"][0])
            report["bits_per_byte"] = nats / math.log(2.0) / num_bytes if num_bytes else math.nan
            report |= {"tokens": round(tokens), "bytes": round(num_bytes)}
        return report

    def predictions(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Predictions:
        """For each window: "nats" of negative log-likelihood, "tokens" that were scored, "bytes" of their text."""
        batch = {**batch, "weights": self.target_weights(batch)}
        weights, layout = batch["weights"], ctx.layout
        nats = layout.gather_tokens(cross_entropy(model, params, batch, ctx, "none")).reshape(weights.shape)
        nats, tokens = layout.sum_seq(nats.sum(axis=-1)), layout.sum_seq(weights.sum(axis=-1))
        return {"nats": nats, "tokens": tokens, "bytes": batch[TEXT_BYTES]}

    def decode(self, predictions: Mapping[str, np.ndarray], data: DataSpec) -> dict[str, Any]:
        """The metrics of a text, as `metrics` reports them of a split."""
        nats, tokens, num_bytes = (predictions[name].sum(dtype=np.float64) for name in ("nats", "tokens", "bytes"))
        return self.metrics({"loss": (nats, tokens), "bytes": (num_bytes, 1)}, data)


def cross_entropy(
    model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext, reduction: Literal["none", "sum"]
) -> jax.Array:
    """Nats of this device's tokens, 0 for those of weight 0: `[tokens]`, or with "sum" a scalar."""
    hidden, head = model.hidden(params, batch, ctx), head_of(model, params, ctx)
    targets, weights = (ctx.layout.own_tokens(batch[name].reshape(-1)) for name in ("targets", "weights"))
    if hidden.shape[0] != targets.size:
        why = f"the hidden vectors are {list(hidden.shape)}, the targets {list(batch['targets'].shape)}"
        raise misfit("next-token prediction needs one hidden vector of the model per token", why)
    if head.bias is not None:
        why = "its loss never stores all logits, and is computed without a bias"
        raise misfit("next-token prediction needs a model whose head has no bias", why)
    labels = jnp.where(weights > 0.0, targets, UNSCORED)
    if head.axes:
        sharded = cross_entropy_sum if reduction == "sum" else cross_entropies
        return sharded(hidden, head.weight, labels, head.axes, head.logit_softcap)
    return linear_cross_entropy(
        hidden, head.weight, labels, ignore_label=UNSCORED, logit_softcap=head.logit_softcap, reduction=reduction
    )
