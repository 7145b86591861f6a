"""A decoder for data."""

from __future__ import annotations

from aifx.core.errors import ConfigError
from aifx.data.spec import DataSpec
from aifx.models.decoder.model import Decoder
from aifx.models.decoder.section import DecoderSection


def make(section: DecoderSection, data: DataSpec) -> Decoder:
    """The decoder for sequences as `data` describes them. Raises ConfigError for an unknown or too small vocabulary."""
    inputs = data.fields.get("inputs")
    if inputs is None or len(inputs.shape) != 1 or not inputs.dtype.startswith("int"):
        found = "no such field" if inputs is None else f"{inputs.dtype} {list(inputs.shape)}"
        why = f"it reads the tokens of a sequence, and the field inputs of this data is {found}"
        raise ConfigError("a decoder cannot be trained on this data", why, "aifx config keys model    (other families)")
    vocab_size = section.vocab_size or data.vocab_size
    if vocab_size is None:
        why = "neither it nor the data says how many tokens there are"
        raise ConfigError("model.vocab_size is not set", why, "vocab_size = 50257 below [model]")
    if data.vocab_size is not None and vocab_size < data.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {vocab_size} is less than the vocabulary of the data, {data.vocab_size}",
            "every token needs a row of the embedding",
            f"aifx train --set model.vocab_size={data.vocab_size}",
        )
    return Decoder(section, vocab_size=vocab_size, seq_len=inputs.shape[0])
