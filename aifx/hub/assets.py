"""What a model of text needs beside its arrays: its tokenizer, the tokens around a text, how it is sampled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from aifx.config.sections import DataSection
from aifx.core.errors import DataError
from aifx.data.chat.assets import template_of_settings
from aifx.data.chat.template import ChatTemplate, load_template
from aifx.data.sections import TextSection
from aifx.data.spec import DataSpec
from aifx.data.text import text_spec
from aifx.data.tokenizer import Tokenizer
from aifx.hub.folder import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    ModelFolder,
)
from aifx.models.hub import HubConfig

logger = logging.getLogger(__name__)

SEQ_LEN = 1024
"""`data.seq_len` of an imported model, unless its context is shorter."""


@dataclass(frozen=True)
class HubAssets:
    """What a run keeps beside its arrays.

    Attributes:
        files: in its assets, by name.
        sections: values of its configuration, by section and key.
        data_spec: what its model must know of its data, from that `[data]`.
    """

    files: Mapping[str, bytes]
    sections: Mapping[str, Mapping[str, Any]]
    data_spec: Callable[[DataSection], DataSpec]


def read_text_assets(folder: ModelFolder, config: HubConfig, model: Mapping[str, Any]) -> HubAssets:
    """`model`: the values of `[model]`. Raises DataError for a tokenizer that cannot be used."""
    if not folder.has(TOKENIZER):
        what = f"{folder.place(TOKENIZER).parent} has no {TOKENIZER}"
        why = "aifx reads tokenizers in the format of Hugging Face's tokenizers"
        script = f"from transformers import AutoTokenizer as T; T.from_pretrained('{folder.source}').save_pretrained"
        raise DataError(what, why, f"python -c \"{script}('{folder.source}')\"")
    content = folder.read(TOKENIZER)
    settings, generation = folder.optional(TOKENIZER_CONFIG), folder.optional(GENERATION_CONFIG)
    ends = _end_tokens(content, folder, {GENERATION_CONFIG: generation, CONFIG: config.values}, settings)
    begin = begin_token(content)
    tokenizer = Tokenizer(content, str(folder.place(TOKENIZER)), ends=ends, begin=begin)
    files = {name: folder.read(name) for name in (TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG) if folder.has(name)}
    if (template := _chat_template(folder, settings)) is not None:
        files[CHAT_TEMPLATE] = template
    data = {
        "tokenizer": TOKENIZER,
        # Gemma 3's tokenizer has a token for images, without a row of the embedding.
        "vocab_size": model["vocab_size"] if model["vocab_size"] < tokenizer.vocab_size else None,
        "end_tokens": list(ends),
        "begin_token": begin,
        "seq_len": min(SEQ_LEN, model["max_seq_len"]),
    }

    def data_spec(section: DataSection) -> DataSpec:
        assert isinstance(section, TextSection)
        return text_spec(section, tokenizer)

    return HubAssets(files, {"data": data, "generate": _sampling(generation)}, data_spec)


def _end_tokens(
    data: bytes, folder: ModelFolder, numbered: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> tuple[str, ...]:
    """The tokens that end a text: the first `eos_token_id` of the documents `numbered`, otherwise `eos_token`."""
    names = _names(data, folder)
    for place, document in numbered.items():
        ids = document.get("eos_token_id")
        found = [i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)]
        if lacking := [i for i in found if i not in names]:
            logger.warning(f"{folder.place(place)}: eos_token_id {lacking} are not in {TOKENIZER}")
        if ends := tuple(names[i] for i in found if i in names):
            return ends
    token = settings.get("eos_token")
    text = token.get("content") if isinstance(token, Mapping) else token
    return (text,) if isinstance(text, str) and text in names.values() else ()


def _names(data: bytes, folder: ModelFolder) -> dict[int, str]:
    try:
        vocabulary = tokenizers.Tokenizer.from_buffer(data).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises bare Exception
        why = str(error).splitlines()[0]
        raise DataError(f"{folder.place(TOKENIZER)}: not a tokenizer", why, "download the model again") from None
    return {index: token for token, index in vocabulary.items()}


def begin_token(data: bytes) -> str | None:
    """The token that a tokenizer.json itself puts before a text."""
    tokenizer = tokenizers.Tokenizer.from_buffer(data)
    plain, full = (tokenizer.encode("a", add_special_tokens=adds).tokens for adds in (False, True))
    return full[0] if full[:1] != plain[:1] else None


def _chat_template(folder: ModelFolder, settings: Mapping[str, Any]) -> bytes | None:
    """The folder's template. Raises DataError for one that aifx would not run."""
    if folder.has(CHAT_TEMPLATE):
        return load_template(folder.read(CHAT_TEMPLATE), str(folder.place(CHAT_TEMPLATE))).source.encode()
    template = template_of_settings(settings)
    return None if template is None else ChatTemplate(template, str(folder.place(TOKENIZER_CONFIG))).source.encode()


def _sampling(generation: Mapping[str, Any]) -> dict[str, float | int]:
    """What the makers of the model recommend, as far as [generate] has it."""
    if not generation.get("do_sample"):
        return {}
    found: dict[str, float | int] = {}
    temperature, top_k, top_p = (generation.get(key) for key in ("temperature", "top_k", "top_p"))
    if isinstance(temperature, int | float) and temperature >= 0:
        found["temperature"] = float(temperature)
    if isinstance(top_k, int) and top_k >= 0:
        found["top_k"] = top_k
    if isinstance(top_p, int | float) and 0 < top_p <= 1:
        found["top_p"] = float(top_p)
    return found
