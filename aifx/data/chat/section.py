"""`[data]` of chat data. Imports no jax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from aifx.config import Config
from aifx.config.sections import Conflict, Fraction, PositiveFloat
from aifx.core.errors import AifxError
from aifx.core.project import Project
from aifx.data.sections import (
    DatasetSection,
    TokenSection,
    held_out_conflicts,
    missing_dataset,
    missing_file,
    num_shards,
)

if TYPE_CHECKING:
    from aifx.data.readers.sources import SourceFile


class ChatSection(DatasetSection, TokenSection):
    """Conversations, how they are split, and how they become sequences."""

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
        validation = None if self.validation else self.validation_fraction
        yield from held_out_conflicts(config.train, validation, 0.0 if self.test else self.test_fraction)
        if self.mix and len(self.mix) != len(self.train):
            yield Conflict(
                ("data.mix", "data.train"),
                f"data.mix has {len(self.mix)} shares, and data.train {len(self.train)} entries",
                "each entry of data.train needs one share",
            )

    def check_files(self, project: Project) -> Iterator[tuple[str, AifxError]]:
        if self.dataset is not None:
            yield from missing_dataset(self.dataset, project, "chat")
            yield from self.check_tokenizer(project)
        else:
            yield from super().check_files(project)
        if self.chat_template is not None:
            yield from missing_file(project, "data.chat_template", self.chat_template)

    def read_beginnings(self, project: Project) -> int:
        from aifx.data.chat.rows import read_chats

        return self._read_first_rows(project, read_chats)

    def _read_first_rows(self, project: Project, read: Callable[[SourceFile], Iterator[object]]) -> int:
        """Read a row of each file, and return the number of files. Raises DataError."""
        from aifx.data.chat.rows import find_chats

        if self.dataset is not None:
            return num_shards(self.dataset, project, "chat")
        keys = ("train", "validation", "test")
        files = [file for key in keys for file in find_chats(getattr(self, key), project, f"data.{key}")]
        for file in files:
            next(read(file), None)
        return len(files)


class PreferenceSection(ChatSection):
    """Pairs of answers, one of which is preferred. A row holds both."""

    truncate: Literal["error", "drop"] = Field(
        "error", description="Pairs longer than seq_len. error: an error. drop: left out."
    )
    packing: Literal["none"] = Field("none", description="none: one pair in a row.")

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        yield from super().conflicts(config)
        if config.finetune.base_run is None:
            yield Conflict(
                ("data.kind", "finetune.base_run"),
                "training on preferences needs finetune.base_run",
                "the loss compares log-probabilities with those of that run's model",
            )

    def read_beginnings(self, project: Project) -> int:
        from aifx.data.chat.rows import read_pairs

        return self._read_first_rows(project, read_pairs)
