"""A model's logits compared with transformers' (if installed), or with its own before adapters were merged."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aifx.core.errors import EnvironmentFault
from aifx.hub.folder import PREPROCESSOR, ModelFolder, open_folder
from aifx.loading.restore import RestoredRun
from aifx.models.adapted import plain_model
from aifx.models.base import Decodes, Model
from aifx.nn.precision import cast_floating
from aifx.nn.stacking import has_stacked_layers, stack_layers
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import local_layout
from aifx.specs import Params, merge_frozen

TOKENS, PICTURES = 64, 4
"""Numbers of random tokens and pictures whose logits are compared."""

BOUND = 1e-4
"""Share of the largest logit that the two may differ by: float32 sums in another order differ by 1e-6 to 1e-5 of it."""

ROUNDINGS = 8
"""With rounded weights, the bound is this multiple of the type's epsilon, if that is more than BOUND."""


@dataclass(frozen=True)
class LogitComparison:
    """Two computations' logits of the same random tokens or pictures, in float32.

    Attributes:
        inputs: how many tokens or pictures.
        largest_difference: between the two, without its sign.
        largest_logit: of the reference (transformers, or the model with its adapters), without its sign.
        bound: what the largest difference may be.
    """

    inputs: int
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
    """Compare the logits of random tokens or pictures. Code in the model's folder does not run."""
    model, folder = trained.task.model, open_folder(source)
    if isinstance(model, Decodes):
        inputs = _tokens(model)
        theirs = _transformers_logits(folder, "AutoModelForCausalLM", inputs)
    else:
        shape = trained.task.data.fields["inputs"].shape
        inputs = np.random.default_rng(0).integers(0, 256, (PICTURES, *shape), np.uint8)
        theirs = _transformers_logits(folder, "AutoModelForImageClassification", _pixels(folder, inputs))
    return _comparison(_logits(model, trained.params, inputs), theirs, BOUND)


def compare_merged(trained: RestoredRun, merged: Params, dtype: np.dtype[Any]) -> LogitComparison:
    """Compare the logits of weights into which adapters were merged with those of the run that trained them.

    Args:
        merged: the weights by unrolled names.
        dtype: type that they were rounded to. A narrow type moves logits by a few of its roundings.
    """
    model = trained.task.model
    tokens = _tokens(plain_model(model))
    reference = _logits(model, merge_frozen(trained.params, trained.frozen), tokens)
    specs = plain_model(model).specs()
    found = _logits(plain_model(model), stack_layers(merged) if has_stacked_layers(specs) else merged, tokens)
    return _comparison(found, reference, max(BOUND, ROUNDINGS * float(jnp.finfo(dtype).eps)))


def _tokens(model: Any) -> Any:
    assert isinstance(model, Decodes)
    return np.random.default_rng(0).integers(0, model.vocab_size, (1, min(TOKENS, model.max_seq_len)))


def _pixels(folder: ModelFolder, images: Any) -> Any:
    """Images `[rows, channels, height, width]` as by transformers' image processor, which needs torchvision."""
    file = folder.document(PREPROCESSOR)
    factor = file.get("rescale_factor", 1 / 255) if file.get("do_rescale", True) else 1.0
    x = np.float32(factor) * images
    if file.get("do_normalize", True):
        x = (x - np.array(file["image_mean"], np.float32)) / np.array(file["image_std"], np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32)


def _logits(model: Model, params: Params, inputs: Any) -> Any:
    """`[1, tokens, vocab]` or `[1, pictures, classes]`, in float32."""
    layout = local_layout(1)
    params = cast_floating(jax.device_put(params, layout.devices[0]), jnp.float32)
    ctx = ForwardContext(layout)
    hidden = model.hidden(params, {"inputs": jnp.asarray(inputs)}, ctx)
    logits = np.asarray(model.head(params, ctx)(hidden))
    return logits.reshape(1, -1, logits.shape[-1])


def _comparison(found: Any, reference: Any, share: float) -> LogitComparison:
    """Compare logits `[1, tokens, vocab]`. The bound is this share of the reference's largest logit."""
    difference, largest = float(np.abs(found - reference).max()), float(np.abs(reference).max())
    bound = share * max(largest, 1.0)
    return LogitComparison(found.shape[1], difference, largest, bound, difference <= bound)


def _transformers_logits(folder: ModelFolder, name: str, inputs: Any) -> Any:
    """The same as `_logits`, by a class of transformers."""
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    options = {"trust_remote_code": False, "local_files_only": True, "attn_implementation": "eager"}
    model = getattr(transformers, name).from_pretrained(str(folder.path), dtype=torch.float32, **options)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(inputs)).logits.numpy()
    return logits.reshape(1, -1, logits.shape[-1])
