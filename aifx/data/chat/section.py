"""`[data]` of chat data. Imports no jax."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from aifx.config import Config
from aifx.config.sections import Conflict, Fraction, PositiveFloat
from aifx.core.errors import AifxError
from aifx.core.project import Project
from aifx.data.sections import DocumentSection, missing_file

if TYPE_CHECKING:
    from aifx.data.chat.rows import Conversation
    from aifx.data.readers.sources import SourceFile


class ChatSection(DocumentSection):
    """Conversations, how they are split, and how they become sequences."""

    version_kind = "chat"
    excluded = ("train", "validation", "test", "mix")

    train: tuple[str, ...] = Field(
        ("data/*.jsonl",),
        description="Files, globs or URLs (.jsonl or .parquet, also as .gz or .zst), relative to the project.",
        min_length=1,
    )
    mix: tuple[PositiveFloat, ...] = Field(
        (),
        description="Share of the training rows from each entry of `train`. If none: each conversation once per epoch.",
    )
    validation: tuple[str, ...] = Field((), description="Files for validation; if none, a part of `train` is held out.")
    test: tuple[str, ...] = Field((), description="Files for the test; if none, a part of `train` is held out.")
    validation_fraction: Fraction = Field(
        0.05, description="Share of conversations, by hash, held out for validation when `validation` is empty."
    )
    test_fraction: Fraction = Field(0.1, description="Share held out for the test when `test` is empty.")
    chat_template: str | None = Field(
        None,
        description="Path of a Jinja template. If not set: that beside data.tokenizer, otherwise one like ChatML.",
    )
    template_date: str | None = Field(None, description="Day that a template writes as the current one: 2026-11-27.")
    truncate: Literal["error", "drop", "left", "right"] = Field(
        "error",
        description="Conversations longer than seq_len. error: an error. drop: left out. left, right: cut there.",
    )
    packing: Literal["examples", "none"] = Field(
        "examples",
        description="examples: several conversations in a sequence, attention kept within each. none: one each.",
    )

    @field_validator("template_date", mode="before")
    @classmethod
    def _check_date(cls, value: object) -> object:
        """TOML also has a type for dates."""
        return None if value is None else date.fromisoformat(str(value)).isoformat()

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        yield from super().conflicts(config)
        if self.mix and len(self.mix) != len(self.train):
            yield Conflict(
                ("data.mix", "data.train"),
                f"data.mix has {len(self.mix)} shares, and data.train {len(self.train)} entries",
                "each entry of data.train needs one share",
            )

    def read(self, file: SourceFile) -> Iterator[Conversation]:
        from aifx.data.chat.rows import read_conversations

        return read_conversations(file)

    def check_files(self, project: Project) -> Iterator[tuple[str, AifxError]]:
        yield from super().check_files(project)
        if self.chat_template is not None:
            yield from missing_file(project, "data.chat_template", self.chat_template)


class PreferenceSection(ChatSection):
    """Pairs of answers, one of which is preferred. A row holds both."""

    truncate: Literal["error", "drop"] = Field(
        "error", description="Pairs longer than seq_len. error: an error. drop: left out."
    )
    packing: Literal["none"] = Field("none", description="none: one pair in a row.")

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        yield from super().conflicts(config)
        if config.finetune.base is None:
            yield Conflict(
                ("data.kind", "finetune.base"),
                "training on preferences needs finetune.base",
                "the loss compares log-probabilities with those of its model",
            )

    def read(self, file: SourceFile) -> Iterator[Conversation]:
        from aifx.data.chat.rows import read_pairs

        return read_pairs(file)
