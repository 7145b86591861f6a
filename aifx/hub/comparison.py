"""A model's logits beside those of transformers, if that is installed, or of its own before adapters were merged."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aifx.core.errors import EnvironmentFault
from aifx.hub.folder import open_folder
from aifx.loading.restore import RestoredRun
from aifx.models.adapted import plain_model
from aifx.models.base import Decodes, Model
from aifx.nn.precision import cast_floating
from aifx.nn.stacking import has_stacked_layers, stack_layers
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import local_layout
from aifx.specs import Params, merge_frozen

TOKENS = 64

BOUND = 1e-4
"""Share of the largest logit that the two may differ by: float32 sums in another order differ by 1e-6 to 1e-5 of it."""

ROUNDINGS = 8
"""So many distances of the type that weights are rounded to, if that is more."""


@dataclass(frozen=True)
class LogitComparison:
    """Two computations' logits of the same random tokens, in float32.

    Attributes:
        largest_difference: between the two, without its sign.
        largest_logit: of the one that is right (transformers, or the model with its adapters), without its sign.
        bound: what the largest difference may be.
    """

    tokens: int
    largest_difference: float
    largest_logit: float
    bound: float
    passed: bool


def need_transformers() -> None:
    """Raise EnvironmentFault if transformers or torch is not installed."""
    for name in ("transformers", "torch"):
        if importlib.util.find_spec(name) is None:
            why = f"{name} is not installed, and the model's logits are compared with its"
            raise EnvironmentFault("--check cannot run", why, "pip install transformers torch")


def compare_logits(source: str, trained: RestoredRun) -> LogitComparison:
    """Compare the logits of TOKENS random tokens. Code in the model's folder does not run."""
    tokens = _tokens(trained.task.model)
    theirs = _transformers_logits(str(open_folder(source).path), tokens)
    return _comparison(_logits(trained.task.model, trained.params, tokens), theirs, BOUND)


def compare_merged(trained: RestoredRun, merged: Params, dtype: np.dtype[Any]) -> LogitComparison:
    """Compare the logits of weights into which adapters were merged with those of the run that trained them.

    Args:
        merged: the weights by unrolled names.
        dtype: to which they were rounded. That of a narrow type moves logits by a few of its smallest steps.
    """
    model = trained.task.model
    tokens = _tokens(plain_model(model))
    ours = _logits(model, merge_frozen(trained.params, trained.frozen), tokens)
    specs = plain_model(model).specs()
    theirs = _logits(plain_model(model), stack_layers(merged) if has_stacked_layers(specs) else merged, tokens)
    return _comparison(theirs, ours, max(BOUND, ROUNDINGS * float(jnp.finfo(dtype).eps)))


def _tokens(model: Any) -> Any:
    assert isinstance(model, Decodes)
    return np.random.default_rng(0).integers(0, model.vocab_size, (1, min(TOKENS, model.max_seq_len)))


def _logits(model: Model, params: Params, tokens: Any) -> Any:
    """`[1, tokens, vocab]`, in float32."""
    layout = local_layout(1)
    params = cast_floating(jax.device_put(params, layout.devices[0]), jnp.float32)
    ctx = ForwardContext(layout)
    hidden = model.hidden(params, {"inputs": jnp.asarray(tokens, jnp.int32)}, ctx)
    return np.asarray(model.head(params, ctx)(hidden)).reshape(*tokens.shape, -1)


def _comparison(ours: Any, theirs: Any, share: float) -> LogitComparison:
    difference, largest = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    bound = share * max(largest, 1.0)
    return LogitComparison(ours.shape[1], difference, largest, bound, difference <= bound)


def _transformers_logits(path: str, tokens: Any) -> Any:
    """`[1, tokens, vocab]`, in float32."""
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    options = {"trust_remote_code": False, "local_files_only": True, "attn_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens)).logits.numpy()
