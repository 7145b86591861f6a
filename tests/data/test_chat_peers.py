"""Chat templates as transformers renders them: stored tokens and masks (`make test-peers` makes them again)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peer_chats
import pytest

from aifx.data.chat.assets import chat_tokenizer, make_renderer
from aifx.data.chat.rows import Conversation
from aifx.data.chat.section import ChatSection
from aifx.data.chat.template import ChatTemplate

STORED = json.loads(peer_chats.STORED.read_text())


@pytest.mark.parametrize("case", STORED["cases"], ids=lambda case: f"{case['template']}-{case['conversation']}")
def test_tokens_prompts_and_masks_are_those_of_transformers(tmp_path: Path, case: dict[str, Any]) -> None:
    peer_chats.main("tokenizer", str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<|im_end|>"}))
    tokenizer = chat_tokenizer(ChatSection(), tmp_path / "tokenizer.json")
    template = ChatTemplate(peer_chats.TEMPLATES[case["template"]], "stored")
    renderer = make_renderer(tokenizer, template, tmp_path, None)
    messages = peer_chats.messages(case["conversation"])
    example = renderer.example(Conversation(tuple(messages), len(messages) - 1, "stored"))
    assert STORED["origin"].startswith("transformers ")
    assert example.ids.tolist() == case["ids"]
    assert renderer.prompt(messages[:-1]) == case["prompt"]
    if case["mask"] is not None:
        assert (example.writers > 0).astype(int).tolist() == case["mask"]
    last = example.ids[example.writers == 2].tolist()
    assert case["ids"][len(case["prompt"]) :][: len(last)] == last
