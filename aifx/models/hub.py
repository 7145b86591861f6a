"""Maps between a family and an architecture of Hugging Face: its `config.json`, and its tensors by name.

A family that has maps names them in `Family.hub`. docs/import.md has the list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from aifx.core.errors import ConfigError
from aifx.specs import ArraySpec

Array: TypeAlias = np.ndarray[Any, Any]
T = TypeVar("T")

# fmt: off
_NO_EFFECT = frozenset({
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "tokenizer_class", "auto_map",
    "use_cache", "cache_implementation", "initializer_range", "pretraining_tp", "attn_implementation", "torchscript",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id",
    "attention_dropout", "hidden_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop",
    "id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "return_dict", "output_attentions",
    "output_hidden_states", "chunk_size_feed_forward", "is_llama_config", "transformers.js_config", "unsloth_fixed",
    "unsloth_version", "do_sample", "temperature", "top_k", "top_p", "typical_p", "num_beams", "num_beam_groups",
    "num_return_sequences", "max_length", "min_length", "max_new_tokens", "repetition_penalty", "length_penalty",
    "diversity_penalty", "hidden_dropout_prob", "attention_probs_dropout_prob",
})
# fmt: on
"""Keys that do not change what a model computes. Dropout acts in training alone, where aifx has its own."""


class HubConfig:
    """A `config.json`, each key of which is read, known to change nothing, or refused."""

    def __init__(self, values: Mapping[str, Any], place: str, hint: str, ignored: tuple[str, ...] = ()) -> None:
        """`place`: what messages call it. `hint`: how to ignore a key, to which its name is appended."""
        self.values, self.place, self.hint, self.ignored = values, place, hint, ignored
        self._seen = {*_NO_EFFECT, *ignored}

    def read(self, key: str, kind: type[T], default: T | None = None, *, optional: bool = False) -> Any:
        """The value of a key; `default` if it is absent or null.

        Raises ConfigError for one of another type, or that is absent without a default unless it is `optional`.
        """
        self._seen.add(key)
        value = self.values.get(key)
        if value is None:
            if default is None and not optional:
                raise self.refused(key, "it is not set")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise self.refused(key, "it is not finite")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.refused(key, f"it is no {kind.__name__}")
        return value

    def read_or_null(self, key: str, kind: type[T], default: T | None) -> Any:
        """As `read`, for a key that means something if it is null: then None."""
        if key in self.values and self.values[key] is None:
            return self.read(key, kind, optional=True)
        return self.read(key, kind, default, optional=True)

    def expect(self, key: str, wanted: Any, reason: str = "") -> None:
        """Raise ConfigError if a key is set to anything but `wanted`: it would change what the model computes."""
        self._seen.add(key)
        value = self.values.get(key)
        if value is not None and value != wanted:
            raise self.refused(key, reason or f"aifx's model computes what {wanted!r} means")

    def inner(self, key: str) -> HubConfig | None:
        """The object that a key holds; None if it is absent or null."""
        values = self.read(key, dict, optional=True)
        return None if not values else HubConfig(values, f"{self.place}: {key}", self.hint)

    def pass_over(self, *keys: str) -> None:
        """These keys change nothing, given what was read."""
        self._seen.update(keys)

    def finish(self) -> None:
        """Raise ConfigError for a key that was not read and is set to more than false, 0 or nothing."""
        for key, value in self.values.items():
            if value and key not in self._seen and not key.startswith("_"):
                way_out = f"{self.hint} {key}    (if it changes nothing)"
                raise self.refused(key, "aifx does not know whether it changes what the model computes", way_out)

    def refused(self, key: str, why: str, hint: str = "docs/import.md lists what aifx imports") -> ConfigError:
        value = repr(self.values[key])[:80] if key in self.values else "(not set)"
        return ConfigError(f"{self.place}: {key} = {value}", why, hint)


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: one array of a model, or several whose columns stand side by side.

    Attributes:
        key: its name in the file.
        arrays: their names in the model, such as "layers/0/attention/query".
        is_transposed: whether the file has `[outputs, inputs]`, as PyTorch's linear layers do.
        kernel: height and width of a convolution's kernel, which the file has as `[outputs, inputs, height, width]`.
        leading: dimensions of 1 that the file has before the others.
    """

    key: str
    arrays: tuple[str, ...]
    is_transposed: bool = False
    kernel: tuple[int, int] | None = None
    leading: int = 0

    def shape(self, specs: Mapping[str, ArraySpec]) -> tuple[int, ...]:
        """The tensor's shape in the file."""
        shapes = [plain_shape(specs[name]) for name in self.arrays]
        joined = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        if self.kernel is not None:
            inputs, outputs = joined
            return outputs, inputs // math.prod(self.kernel), *self.kernel
        return (1,) * self.leading + (joined[::-1] if self.is_transposed else joined)

    def divide(self, value: Array, specs: Mapping[str, ArraySpec]) -> Iterator[tuple[str, Array]]:
        """The arrays of the model, by name, in the tensor `value`."""
        if self.kernel is not None:
            value = value.transpose(2, 3, 1, 0).reshape(-1, len(value))
        value = value.reshape(value.shape[self.leading :])
        plain, start = value.T if self.is_transposed else value, 0
        for name in self.arrays:
            stop = start + plain_shape(specs[name])[-1]
            yield name, np.ascontiguousarray(plain[..., start:stop]).reshape(specs[name].shape)
            start = stop

    def join(self, arrays: Mapping[str, Array], specs: Mapping[str, ArraySpec]) -> Array:
        """The tensor that `divide` divides."""
        assert self.kernel is None
        assert not self.leading
        parts = [arrays[name].reshape(plain_shape(specs[name])) for name in self.arrays]
        joined = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        return np.ascontiguousarray(joined.T if self.is_transposed else joined)


def plain_shape(spec: ArraySpec) -> tuple[int, ...]:
    """The shape of an unrolled array as a matrix `[inputs, outputs]`, or as a vector."""
    if spec.matrix is not None:
        return spec.matrix_shape
    return spec.shape if spec.decay else (spec.size,)  # tables decay, norms and biases do not


@dataclass(frozen=True)
class Architecture:
    """One architecture of Hugging Face and the family that computes it.

    Attributes:
        name: in `architectures` of `config.json`.
        model_type: in `config.json`.
        read: values of `[model]` from a `config.json`. Raises ConfigError for one that it cannot express.
        write: `config.json`, without what is common to all, from a `[model]`. It may lose what it cannot express. None
            if aifx does not export the architecture.
        tensors: of a model with this `[model]`.
        prefix: of all keys but those of the head. Files of the model without its head lack it.
        buffers: regular expression of keys, without prefix, that the file may hold and the model computes.
        embedding_key: key of the embedding; None if no other tensor can be the same.
        tied_key: key that a file may also hold of the output projection if it is the embedding.
        task: `task.kind` of what it was trained for.
        maxtext: the same in MaxText's layout, with `is_scanned` for layers along one axis; None if aifx knows none.
    """

    name: str
    model_type: str
    read: Callable[[HubConfig], dict[str, Any]]
    write: Callable[[Any], dict[str, Any]] | None
    tensors: Callable[[Any], Iterator[Tensor]]
    prefix: str
    buffers: str
    embedding_key: str | None
    tied_key: str = "lm_head.weight"
    task: Literal["language", "vision", "embedding"] = "language"
    maxtext: Callable[..., Iterator[Tensor]] | None = None
