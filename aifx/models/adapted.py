"""A model whose own arrays are frozen, with adapters that are trained: `finetune.adapter`."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax

from aifx.config.sections import FinetuneSection, LoraSection
from aifx.core.errors import ConfigError, did_you_mean
from aifx.models.base import Head, Model
from aifx.nn.adapters import adapted_specs, target_names, with_adapters
from aifx.parallel.context import ForwardContext
from aifx.specs import Params, Specs, count_parameters, map_specs, select

_OF_PEFT = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "output",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "all-linear": "attention and mlp",
}
"""Names of matrices that PEFT's `target_modules` has, and ours."""


class AdaptedModel(Model):
    """`model` with the adapters of `[lora]`. Raises ConfigError if it has no matrices that `lora.targets` names."""

    def __init__(self, model: Model, section: LoraSection, *, is_quantized: bool) -> None:
        self.model, self.section, self.is_quantized = model, section, is_quantized
        self.gathers, self.divides, self.adapts = model.gathers, model.divides, model.adapts
        name = type(model).__name__
        if not self.adapts:
            why = f"{name} names no matrices that can have adapters"
            raise ConfigError('finetune.adapter = "lora" cannot be used', why, "aifx train --set finetune.adapter=none")
        if set(jax.tree.leaves(map_specs(lambda spec: spec.kind, model.specs()))) != {"weight"}:
            why = f"{name} has arrays that are not trained, and a base run does not hold all of them"
            raise ConfigError('finetune.adapter = "lora" cannot be used', why, "aifx train --set finetune.adapter=none")
        known = target_names(model.specs(), self.adapts)
        if unknown := [target for target in self.section.targets if target not in known]:
            near = did_you_mean(unknown[0], known)
            if (ours := _OF_PEFT.get(unknown[0])) is not None:
                near = f"did you mean {ours!r}?"
            hint = f"targets = {list(self.adapts)}    (below [lora])".replace("'", '"')
            raise ConfigError(f"lora.targets has {unknown[0]!r}, which {name} does not have", near, hint)

    @functools.cached_property
    def _specs(self) -> Specs:
        return adapted_specs(self.model.specs(), self.section, self.adapts, is_quantized=self.is_quantized)

    def specs(self) -> Specs:
        return self._specs

    def hidden(self, params: Params, batch: Mapping[str, jax.Array], ctx: ForwardContext) -> jax.Array:
        return self.model.hidden(with_adapters(params, self._specs, self.section, ctx.layout), batch, ctx)

    def head(self, params: Params, ctx: ForwardContext) -> Head:
        return self.model.head(with_adapters(params, self._specs, self.section, ctx.layout), ctx)

    def flops(self, rows: int) -> int:
        """The backward pass forms gradients of what the frozen matrices read, not of themselves: 4 of 6 operations."""
        flops, whole = self.model.flops(rows), count_parameters(self.model.specs())
        own = count_parameters(select(self._specs, self._specs, lambda spec: spec.kind == "weight"))
        return round(flops * (2 / 3 + own / whole))


def adapted_model(model: Model, finetune: FinetuneSection, lora: LoraSection) -> Model:
    """The model, with adapters if `finetune.adapter` is "lora". Raises ConfigError as `AdaptedModel` does."""
    if finetune.adapter != "lora":
        return model
    return AdaptedModel(model, lora, is_quantized=finetune.base_quantize == "int8")


def plain_model(model: Model) -> Model:
    """The model without adapters."""
    return model.model if isinstance(model, AdaptedModel) else model
