"""The toy model: one layer over flattened inputs, with a fixed scale and a dropout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from aifx.extend import ArraySpec, DataSpec, ForwardContext, Head, Model, Params, Specs, dropout, normal, zeros


class Toy(Model):
    def __init__(self, section: Any, data: DataSpec) -> None:
        self.section = section
        self.inputs = math.prod(data.fields["inputs"].shape)
        self.outputs = len(data.classes) or data.target_size

    def specs(self) -> Specs:
        width, init = self.section.width, normal(self.inputs**-0.5)
        return {
            "first": ArraySpec((self.inputs, width), (None, "mlp"), init, matrix=((0,), (1,)), decay=True),
            "scale": ArraySpec((width,), ("mlp",), normal(1.0), kind="frozen"),
            "output": ArraySpec((width, self.outputs), ("mlp", None), zeros, decay=True),
            "bias": ArraySpec((self.outputs,), (None,), zeros),
        }

    def hidden(self, params: Params, batch: Mapping[str, jax.Array], ctx: ForwardContext) -> jax.Array:
        x = batch["inputs"].reshape(-1, self.inputs).astype(params["first"].dtype)
        return dropout(jnp.tanh(x @ params["first"]) * params["scale"], self.section.dropout, ctx)

    def head(self, params: Params, ctx: ForwardContext) -> Head:
        return Head(params["output"], params["bias"])

    def flops(self, rows: int) -> int:
        return 6 * rows * (self.inputs + self.outputs) * self.section.width
