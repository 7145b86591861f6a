"""Huber's loss of one number per example."""

from __future__ import annotations

from typing import Any

import optax

from aifx.extend import DeviceBatch, ForwardContext, Model, Objective, Params, Predictions, Sums, outputs


class Huber(Objective):
    def __init__(self, section: Any) -> None:
        self.section = section

    def sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Sums:
        predicted, weights = outputs(model, params, batch, ctx)[:, 0], batch["weights"]
        losses: Any = optax.huber_loss(predicted, batch["targets"], delta=self.section.delta)
        return {"loss": ((losses * weights).sum(), weights.sum())}

    def predictions(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Predictions:
        return {"next": outputs(model, params, batch, ctx)[:, 0]}
