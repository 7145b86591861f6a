"""Assets with which a run reads and writes chats: its tokenizer, its chat template, the names of special tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import tokenizers

from aifx.core.errors import DataError
from aifx.core.files import read_file, replace_file
from aifx.core.json_files import write_json
from aifx.core.parsing import parse_json
from aifx.core.project import Project
from aifx.data.chat.rendering import ChatRenderer, SpecialTokens
from aifx.data.chat.section import ChatSection
from aifx.data.chat.store import ChatCorpus
from aifx.data.chat.template import CHATML, PLAIN, ChatTemplate, load_template
from aifx.data.sections import OWN_TOKENIZERS, TokenSection
from aifx.data.text import TOKENIZER_FILE, VOCAB_SIZES, made_tokenizer
from aifx.data.tokenizer import END_OF_TEXT, KNOWN_ENDS, NUM_BYTES, Tokenizer

logger = logging.getLogger(__name__)

TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILE = "tokenizer_config.json"
GENERATION_FILE = "generation_config.json"

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
OWN_SPECIAL = (END_OF_TEXT, *CHATML_TOKENS)
"""The special tokens of a tokenizer that is trained on chats."""

CHAT_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eot|>")
"""Tokens that end an answer: of ChatML, Llama 3, Gemma, Phi 3, Llama 4."""


def own_vocab_size(section: ChatSection) -> int | None:
    """Tokens of a tokenizer that will be trained; None if only the data or a file knows."""
    sizes = {"bpe": VOCAB_SIZES["bpe"], "byte": NUM_BYTES + len(OWN_SPECIAL)}
    return section.vocab_size or sizes.get(section.tokenizer)


def open_renderer(
    section: ChatSection, project: Project | None, assets: Path, corpus: ChatCorpus | None
) -> ChatRenderer:
    """The renderer of a run. Missing assets are made from the project and written to the run. Raises DataError.

    Args:
        project: None for a trained run, whose assets are whole.
        corpus: whose conversations a tokenizer is trained on.
    """
    if project is not None and not (assets / TOKENIZER_FILE).exists():
        assert corpus is not None
        corpus.warn_of_duplicates()  # once, as the run begins
        assets.mkdir(parents=True, exist_ok=True)
        _make_assets(section, project, assets, corpus)
    tokenizer = chat_tokenizer(section, assets / TOKENIZER_FILE)
    today = date.fromisoformat(section.template_date) if section.template_date else None
    template = _template(assets / TEMPLATE_FILE)
    return make_renderer(tokenizer, template, assets, today)


def make_renderer(tokenizer: Tokenizer, template: ChatTemplate, assets: Path, today: date | None) -> ChatRenderer:
    """The renderer of a template with the special tokens that the folder `assets` names."""
    own = template.source in (CHATML, PLAIN)
    settings = {} if own else _settings(assets / SETTINGS_FILE)
    variables = {"eos_token": tokenizer.token(tokenizer.eos_id)}
    if tokenizer.begin_ids:
        variables["bos_token"] = tokenizer.token(tokenizer.begin_ids[0])
    for key, value in settings.items():
        if key.endswith("_token") and (text := _content(value)) is not None:
            variables[key] = text
    return ChatRenderer(SpecialTokens(tokenizer), template, variables, today, tokenizer=tokenizer)


def kept_template(assets: Path) -> ChatTemplate | None:
    """The chat template of a run with any kind of data; None if it has none. Raises DataError."""
    path = assets / TEMPLATE_FILE
    return _template(path) if path.exists() else None


def chat_tokenizer(section: TokenSection, path: Path) -> Tokenizer:
    """The tokenizer of a file with the tokens that end an answer. Raises DataError."""
    return Tokenizer.load(path, ends=section.end_tokens or _ends(path), begin=section.begin_token)


def _ends(path: Path) -> tuple[str, ...]:
    """The tokens of a tokenizer.json that end an answer: CHAT_ENDS, and those that the files beside it name."""
    try:
        added = {token["id"]: str(token["content"]) for token in parse_json(read_file(path)).get("added_tokens", ())}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return ()  # `Tokenizer.load` has the reason
    numbers = _settings(path.parent / GENERATION_FILE).get("eos_token_id")
    named = [added.get(number) for number in (numbers if isinstance(numbers, list) else [numbers])]
    found = [*(token for token in CHAT_ENDS if token in added.values()), *(token for token in named if token)]
    others = [_content(_settings(path.parent / SETTINGS_FILE).get("eos_token")), *KNOWN_ENDS]
    first_other = [token for token in others if token is not None and token in added.values()][:1]
    return tuple(dict.fromkeys(found or first_other))


def _make_assets(section: ChatSection, project: Project, assets: Path, corpus: ChatCorpus) -> None:
    """Write the assets of a run, the tokenizer last: a run that has it has all."""
    is_own = section.tokenizer in OWN_TOKENIZERS
    path = section.tokenizer_path(project)
    folder = path.parent
    data = made_tokenizer(section, _texts(corpus), OWN_SPECIAL) if is_own else chat_tokenizer(section, path).data
    template = _chosen_template(section, project, None if is_own else folder)
    if template is None:
        has_chatml = all(f'"{token}"' in data.decode("utf-8", "replace") for token in CHATML_TOKENS)
        template = ChatTemplate(CHATML if has_chatml else PLAIN, "aifx's chat template")
        if not is_own:
            logger.info(f"{folder} has no chat template: aifx renders conversations with its own (docs/chat.md)")
    replace_file(assets / TEMPLATE_FILE, template.source.encode())
    if not is_own:
        if (folder / SETTINGS_FILE).exists():
            replace_file(assets / SETTINGS_FILE, read_file(folder / SETTINGS_FILE))
        ends = section.end_tokens or _ends(path)
        numbers = [tokenizers.Tokenizer.from_buffer(data).token_to_id(token) for token in ends]
        write_json(assets / GENERATION_FILE, {**_settings(folder / GENERATION_FILE), "eos_token_id": numbers})
    replace_file(assets / TOKENIZER_FILE, data)


def _chosen_template(section: ChatSection, project: Project, beside: Path | None) -> ChatTemplate | None:
    """The template that the configuration names, otherwise the one beside the tokenizer, otherwise None."""
    if section.chat_template is not None:
        return _template(project.root / section.chat_template)
    if beside is None:
        return None
    if (beside / TEMPLATE_FILE).exists():
        return _template(beside / TEMPLATE_FILE)
    template = template_of_settings(_settings(beside / SETTINGS_FILE))
    return None if template is None else ChatTemplate(template, str(beside / SETTINGS_FILE))


def template_of_settings(settings: Mapping[str, Any]) -> str | None:
    """The chat template in a tokenizer_config.json, which may hold several: then the one called "default"."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = (one for one in template if isinstance(one, Mapping) and one.get("name") == "default")
        template = next(named, {}).get("template")
    return template if isinstance(template, str) else None


def _template(path: Path) -> ChatTemplate:
    try:
        return load_template(read_file(path), str(path))
    except OSError as error:
        hint = "set data.chat_template to the path of a template"
        raise DataError(f"{path} cannot be read", error.strerror or str(error), hint) from None


def _settings(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file of a model's folder; empty if there is no such file. Raises DataError."""
    if not path.exists():
        return {}
    try:
        found = parse_json(read_file(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read", str(error), f"restore {path}") from None
    return found if isinstance(found, Mapping) else {}


def _content(token: Any) -> str | None:
    """The text of a special token: some files hold an object with it as `content`."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _texts(corpus: ChatCorpus) -> Iterator[str]:
    """Those of the training split's messages."""
    logger.info(f"training the tokenizer on {corpus.names('train')}")
    for split, _, _, conversation in corpus.conversations():
        for message in conversation.messages if split == "train" else ():
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content or ""}]
            yield from (str(part["text"]) for part in parts)
