"""Sentence encoders in folders as sentence-transformers writes them: a model, its tokenizer, and how tokens are pooled.

Source: `modules.json` and the modules Transformer, Pooling and Normalize of sentence-transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp

from aifx.checkpoint.naming import nest
from aifx.config.parts import resolve
from aifx.config.sections import ModelSection
from aifx.core.digests import sha256_of
from aifx.core.errors import DataError
from aifx.core.parsing import parse_json
from aifx.data.spec import DataSpec
from aifx.data.tokenizer import Tokenizer
from aifx.hub.architectures import architecture_of, check_keys, map_tensors, read_arrays
from aifx.hub.folder import CONFIG, TOKENIZER, TOKENIZER_CONFIG, ModelFolder
from aifx.hub.weights import StoredWeights
from aifx.models.bert.model import Bert
from aifx.models.hub import HubConfig
from aifx.specs import Params

SENTENCES, MODULES, PROMPTS = "sentence_bert_config.json", "modules.json", "config_sentence_transformers.json"
POOLING_FOLDER = "1_Pooling"
POOLING = f"{POOLING_FOLDER}/config.json"
_MODULES = ("Transformer", "Pooling", "Normalize")
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
_AGAIN = "docs/data-search.md lists the encoders that aifx takes"

Pooling: TypeAlias = Literal["mean", "first"]


@dataclass(frozen=True)
class SentenceEncoder:
    """A model of sentences, ready to use.

    Attributes:
        max_tokens: of a text, with the two around it; the rest is cut.
        is_lowered: whether texts are put into lower case before the tokenizer.
        pooling: a text's vector is the mean of its tokens' vectors, or the first of them.
        sha256: of all files that a vector depends on.
    """

    model: Bert
    params: Params
    tokenizer: Tokenizer
    max_tokens: int
    is_lowered: bool
    pooling: Pooling
    sha256: str

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, with those that begin and end it."""
        given = [text.lower() for text in texts] if self.is_lowered else texts
        begin, end, most = self.tokenizer.begin_ids, self.tokenizer.eos_id, self.max_tokens
        return [[*begin, *found.ids[: most - 2], end] for found in self.tokenizer.encode_batch(given)]


def load_encoder(folder: ModelFolder) -> SentenceEncoder:
    """The encoder in a folder. Raises DataError, ConfigError for one that aifx does not compute as its authors do."""
    document = folder.document(CONFIG)
    family, architecture = architecture_of(folder, document)
    if architecture.task != "embedding":
        why = f"{architecture.name} is a model of the task {architecture.task}"
        raise DataError(f"{folder.path} is no sentence encoder", why, f"aifx import {folder.source}")
    config = HubConfig(document, str(folder.path / CONFIG), _AGAIN + ":")
    section = family.section(**architecture.read(config))
    assert isinstance(section, ModelSection)
    config.finish()
    _check_modules(folder)
    pooling, sentences = _pooling(folder), folder.optional(SENTENCES)
    tokenizer = _tokenizer(folder)
    weights = StoredWeights(folder)
    check_keys(weights, architecture, section)
    model = resolve(family.make)(section, DataSpec({}))
    tensors = map_tensors(weights, architecture, section, model.specs())
    arrays = {name: jnp.asarray(array, jnp.float32) for name, array, _ in read_arrays(weights, tensors)}
    known = model.section.max_seq_len
    max_tokens = sentences.get("max_seq_length") or known
    if not isinstance(max_tokens, int) or not 3 <= max_tokens <= known:
        why = f"the model has {known} positions"
        raise DataError(f"{folder.path / SENTENCES}: max_seq_length = {max_tokens!r}", why, _AGAIN)
    return SentenceEncoder(
        model,
        nest(arrays),
        tokenizer,
        max_tokens,
        bool(sentences.get("do_lower_case")),
        pooling,
        _digest(folder, weights),
    )


def _check_modules(folder: ModelFolder) -> None:
    """Raise DataError for steps that aifx does not have, such as a dense layer or a prompt before each text."""
    path = folder.path / MODULES
    if folder.has(MODULES):
        for module in _modules(folder):
            kind = str(module.get("type") if isinstance(module, Mapping) else module).rpartition(".")[2]
            if kind not in _MODULES:
                raise DataError(f"{path}: module {kind}", f"aifx has {', '.join(_MODULES)}", _AGAIN)
    if name := folder.optional(PROMPTS).get("default_prompt_name"):
        what = f"{folder.path / PROMPTS}: default_prompt_name = {name!r}"
        raise DataError(what, "aifx puts no prompt before a text", _AGAIN)


def _modules(folder: ModelFolder) -> list[Any]:
    try:
        found = parse_json(folder.read(MODULES))
    except ValueError as e:
        raise DataError(f"{folder.path / MODULES} is not JSON", str(e), _AGAIN) from None
    if not isinstance(found, list):
        raise DataError(f"{folder.path / MODULES} cannot be used", "it is no list of modules", _AGAIN)
    return found


def _pooling(folder: ModelFolder) -> Pooling:
    path = folder.path / POOLING
    document = folder.document(POOLING)
    modes = [key for key, value in document.items() if key.startswith("pooling_mode") and value]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise DataError(f"{path}: {', '.join(modes) or 'no mode'}", f"aifx has one of {', '.join(_MODES)}", _AGAIN)
    found: Pooling = _MODES[modes[0]]  # type: ignore[assignment]
    return found


def _tokenizer(folder: ModelFolder) -> Tokenizer:
    settings = folder.optional(TOKENIZER_CONFIG)
    names = [_token(settings.get(key), default) for key, default in (("cls_token", "[CLS]"), ("sep_token", "[SEP]"))]
    return Tokenizer(folder.read(TOKENIZER), str(folder.path / TOKENIZER), ends=names[1:], begin=names[0])


def _token(value: Any, default: str) -> str:
    """A token of `tokenizer_config.json`: a text, or an object with it."""
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else default


def _digest(folder: ModelFolder, weights: StoredWeights) -> str:
    """SHA-256 over the files' names and digests."""
    names = (CONFIG, SENTENCES, MODULES, POOLING, TOKENIZER, TOKENIZER_CONFIG)
    files = {name: sha256_of(folder.read(name)) for name in names if folder.has(name)}
    files |= {name: digest for name, _, digest in weights.file_digests()}
    return sha256_of("".join(f"{files[name]}  {name}\n" for name in sorted(files)))
