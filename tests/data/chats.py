"""Tokenizers, templates and conversations for tests of chat data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aifx.data.chat.assets import OWN_SPECIAL, chat_tokenizer, make_renderer
from aifx.data.chat.rendering import ChatRenderer
from aifx.data.chat.rows import Conversation
from aifx.data.chat.section import ChatSection
from aifx.data.chat.template import CHATML, ChatTemplate
from aifx.data.tokenizer import NUM_BYTES, train_tokenizer

# As Qwen 3's: no {% generation %}, and a thought is shown in the last answer alone.
THINKING = """\
{%- for message in messages %}
{%- set content = message.content %}
{%- if '</think>' in content and not loop.last %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{%- if message.role == 'assistant' and loop.last and '</think>' not in content %}
{%- set content = '<think>\\n\\n</think>\\n\\n' + content %}{% endif %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""


def renderer_of(folder: Path, template: str = CHATML, ends: tuple[str, ...] = (), **added: Any) -> ChatRenderer:
    """A renderer with a tokenizer of bytes. `added`: what the description of each special token also says."""
    description = json.loads(train_tokenizer((), NUM_BYTES + len(OWN_SPECIAL), OWN_SPECIAL))
    for token in description["added_tokens"]:
        token |= added
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(description))
    tokenizer = chat_tokenizer(ChatSection(end_tokens=ends), folder / "tokenizer.json")
    return make_renderer(tokenizer, ChatTemplate(template, "a template"), folder, None)


def conversation(*texts: str, system: str | None = None) -> Conversation:
    """A user and an assistant who take turns."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    for turn, text in enumerate(texts):
        messages.append({"role": "assistant" if turn % 2 else "user", "content": text})
    return Conversation(tuple(messages), len(messages) - 1, "chats.jsonl:7")


def trained(renderer: ChatRenderer, of: Conversation, least: int = 1) -> list[str]:
    """The texts of the tokens that the assistant wrote, joined where they adjoin."""
    example, parts, before = renderer.example(of), [], -2
    for place in [int(place) for place in (example.writers >= least).nonzero()[0]]:
        if place == before + 1:
            parts[-1].append(int(example.ids[place]))
        else:
            parts.append([int(example.ids[place])])
        before = place
    return [renderer.tokenizer.decode(ids) for ids in parts]
