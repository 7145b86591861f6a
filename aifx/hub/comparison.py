"""An imported model's logits beside those of transformers, if that is installed."""

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
from aifx.models.base import Decodes
from aifx.nn.precision import cast_floating
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import local_layout

TOKENS = 64

BOUND = 1e-4
"""Share of the largest logit that the two may differ by: float32 sums in another order differ by 1e-6 to 1e-5 of it."""


@dataclass(frozen=True)
class LogitComparison:
    """aifx's and transformers' logits of the same random tokens, in float32.

    Attributes:
        largest_difference: between the two, without its sign.
        largest_logit: of transformers, without its sign.
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
    model, layout = trained.task.model, local_layout(1)
    assert isinstance(model, Decodes)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (1, min(TOKENS, model.max_seq_len)))
    theirs = _transformers_logits(str(open_folder(source).path), tokens)
    params = cast_floating(jax.device_put(trained.params, layout.devices[0]), jnp.float32)
    ctx = ForwardContext(layout)
    hidden = model.hidden(params, {"inputs": jnp.asarray(tokens, jnp.int32)}, ctx)
    ours = np.asarray(model.head(params, ctx)(hidden)).reshape(theirs.shape)
    difference, largest = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    bound = BOUND * max(largest, 1.0)
    return LogitComparison(tokens.size, difference, largest, bound, difference <= bound)


def _transformers_logits(path: str, tokens: Any) -> Any:
    """`[1, tokens, vocab]`, in float32."""
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    options = {"trust_remote_code": False, "local_files_only": True, "attn_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens)).logits.numpy()
