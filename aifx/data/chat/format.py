"""A project's conversations as batches of sequences."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aifx.core.digests import sha256_of_values
from aifx.core.errors import DataError
from aifx.core.project import Project
from aifx.data.base import TEXT_BYTES, Batch
from aifx.data.chat.assets import chat_tokenizer, open_renderer, own_vocab_size
from aifx.data.chat.rendering import ChatRenderer
from aifx.data.chat.rows import Preference, find_chats, parse_row
from aifx.data.chat.section import ChatSection
from aifx.data.chat.sequences import ChatRows, Mix, Truncation, empty_chats, fit
from aifx.data.chat.store import ChatFiles, ChatTokens, files_of_split, open_files, tokenize, tokens_digest
from aifx.data.readers.rows import Row
from aifx.data.readers.sources import local_file
from aifx.data.sections import OWN_TOKENIZERS
from aifx.data.spec import DataSpec, Field
from aifx.data.splits import SPLITS, Split
from aifx.data.text import TOKENIZER_FILE, TokenFormat, check_vocab_size
from aifx.data.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChatSource:
    """Batches {"inputs", "targets", "writers", "segment_ids", "positions": int32, "weights": float32}, all
    `[rows, seq_len]`.

    A weight is 1 on each token of a conversation but its first, and 0 on padding. `writers` says who wrote the target
    (`rendering.OTHERS`, `EARLIER` or `COMPLETION`).
    Segments are 1, 2, ... by conversation and 0 on padding; positions count within each.
    """

    entries: Sequence[ChatRows]
    mix: Mix
    seed: int | None
    batch_size: int
    seq_len: int
    eos_id: int

    @property
    def num_batches(self) -> int | None:
        return -(-sum(self.mix.sizes) // self.batch_size) if self.seed is None else None

    def read(self, step: int, rows: slice) -> Batch:
        places = range(step * self.batch_size, (step + 1) * self.batch_size)[rows]
        batch = empty_chats(len(places), self.seq_len, self.eos_id)
        for row, place in enumerate(places):
            if (found := self.find(place)) is not None:
                found[0].write(found[1], batch, row)
        return batch

    def find(self, place: int) -> tuple[ChatRows, int] | None:
        """The row at a place; without a seed they are in order, and there is none after the last."""
        if self.seed is not None:
            entry, index = self.mix(place, self.seed)
            return self.entries[entry], index
        for rows in self.entries:
            if place < len(rows):
                return rows, place
            place -= len(rows)
        return None


@dataclass(frozen=True)
class ChatData:
    """A data set of conversations.

    Attributes:
        splits: the rows of each split by entry of `data.train`.
        truncation: of all splits.
    """

    spec: DataSpec
    digest: str
    tokenizer: Tokenizer
    section: ChatSection
    files: ChatFiles
    splits: Mapping[Split, Sequence[ChatRows]]
    truncation: Truncation

    def source(self, split: Split, batch_size: int, *, seed: int | None) -> ChatSource:
        """Without a seed, each conversation once."""
        entries = self.splits[split]
        if not any(map(len, entries)):
            raise DataError(f"{self.files.names('train')}: no {split} split", *self.files.why_missing(split))
        sizes = [len(entry) for entry in entries]
        shares = self.section.mix if split == "train" and seed is not None else ()
        mix = Mix(sizes, shares if len(shares) == len(sizes) else ())
        if any(share and not size for size, share in zip(sizes, mix.shares, strict=False)):
            what = f"{self.files.names('train')}: an entry of data.train has no conversation for training"
            raise DataError(what, "data.mix gives it a share", "change data.train and data.mix")
        return ChatSource(entries, mix, seed, batch_size, self.section.seq_len, self.tokenizer.eos_id)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Tokens of conversations, trained or not."""
        return {"tokens": int(np.count_nonzero(batch["weights"]))}

    def place(self, rows: ChatRows, member: int) -> str:
        """The file and line of a conversation in `rows.fitted`."""
        return self.files.place(rows.tokens, int(rows.fitted.numbers[member]))


@dataclass(frozen=True)
class ChatFormat(TokenFormat):
    """Conversations of files, a tokenizer with a chat template, sequences of `data.seq_len` tokens."""

    section: ChatSection
    spec: DataSpec
    tokenizer: Tokenizer
    renderer: ChatRenderer

    @classmethod
    def describe(cls, section: ChatSection, project: Project) -> DataSpec:
        if (size := own_vocab_size(section)) is not None:
            return chat_spec(section, size)
        if section.tokenizer in OWN_TOKENIZERS:
            return chat_spec(section, None)
        return chat_spec(section, chat_tokenizer(section, section.tokenizer_path(project)).vocab_size)

    @classmethod
    def open(cls, section: ChatSection, project: Project, assets: Path) -> tuple[ChatFormat, ChatData]:
        """Reuses what was tokenized before, unless its files have changed."""
        files = open_files(section, project)
        if files.part is not None and not (assets / TOKENIZER_FILE).exists():  # once, as the run begins
            files.part.warn_of_duplicates(*files.fractions.values())
        form = cls._with(section, open_renderer(section, project, assets, files))
        data = form._open(files)
        for split in filter(files.has, SPLITS):
            data.source(split, 1, seed=None)
        return form, data

    @classmethod
    def load(cls, section: ChatSection, spec: DataSpec, assets: Path) -> ChatFormat:
        return cls._with(section, open_renderer(section, None, assets, None))

    @classmethod
    def _with(cls, section: ChatSection, renderer: ChatRenderer) -> ChatFormat:
        tokenizer = renderer.tokenizer
        size = section.vocab_size or tokenizer.vocab_size
        check_vocab_size(size, tokenizer)
        return cls(section, chat_spec(section, size), tokenizer, renderer)

    def open_file(self, path: Path) -> ChatData:
        return self._open(files_of_split([local_file(path)], "test"))

    def open_split(self, split: Split, project: Project) -> ChatData | None:
        patterns = () if split == "train" or self.section.dataset is not None else getattr(self.section, split)
        files = find_chats(patterns, project, f"data.{split}")
        return self._open(files_of_split(files, split)) if files else None

    def places(self, dataset: Any, split: Split, rows: Sequence[int]) -> list[str]:
        source = dataset.source(split, 1, seed=None)
        found = [source.find(row) for row in rows]
        # Both answers of a pair are on one line.
        return [", ".join({dataset.place(of, m): None for m in of.members(at)}) for of, at in filter(None, found)]

    def sample_prompt(self, text: str) -> list[int]:
        """The text is a user's message, which the model answers."""
        return self.renderer.prompt([{"role": "user", "content": text}], "log.sample")

    def encode(self, row: Mapping[str, Any]) -> Batch:
        """A conversation as one sequence, with the number of its bytes."""
        conversation = parse_row(Row("rows", 1, "the row", row))
        if isinstance(conversation, Preference):
            raise ValueError("the row has two answers: predict messages, or prompt and completion")
        try:
            example = self.renderer.example(conversation)
        except DataError as error:
            raise ValueError(f"{error.what}: {error.why}") from None
        if len(example.ids) - 1 > self.section.seq_len:
            raise ValueError(f"it has {len(example.ids)} tokens, and data.seq_len is {self.section.seq_len}")
        starts = np.array([0, len(example.ids)])
        zeros = np.zeros(1, np.int64)
        tokens = ChatTokens(example.ids, example.writers, starts, zeros, zeros, zeros, zeros)
        fitted, _ = fit(tokens, zeros, self.section.seq_len, "error")
        batch = empty_chats(1, self.section.seq_len, self.tokenizer.eos_id)
        ChatRows.make(tokens, fitted, self.section.seq_len, is_packed=False).write(0, batch, 0)
        num_bytes = sum(len(str(message.get("content") or "").encode()) for message in conversation.messages)
        return {**batch, TEXT_BYTES: np.array([num_bytes], np.int32)}

    def _open(self, files: ChatFiles) -> ChatData:
        section, renderer = self.section, self.renderer
        digest = tokens_digest(files, renderer)
        tokens = tokenize(files, renderer, digest)
        self._check_lengths(tokens, files)
        make = partial(ChatRows.make, tokens, seq_len=section.seq_len, is_packed=section.packing == "examples")
        splits: dict[Split, list[ChatRows]] = {}
        truncation = Truncation()
        for split in SPLITS:
            splits[split] = []
            for entry, (of, _) in enumerate(files.entries):
                if of not in (split, "train"):
                    continue
                fitted, cut = fit(tokens, tokens.numbers(split, entry), section.seq_len, section.truncate)
                truncation += cut
                splits[split].append(make(fitted))
        _report(truncation, section)
        how = (section.seq_len, section.packing, section.truncate, section.mix)
        whole = sha256_of_values("chat", digest, *how)
        return ChatData(self.spec, whole, self.tokenizer, section, files, splits, truncation)

    def _check_lengths(self, tokens: ChatTokens, files: ChatFiles) -> None:
        """Raises DataError for a conversation that is too long, if that is to be an error."""
        lengths = np.diff(tokens.starts) - 1
        too_long = np.flatnonzero(lengths > self.section.seq_len)
        if self.section.truncate != "error" or not len(too_long):
            return
        first = int(too_long[0])
        place = files.place(tokens, first)
        what = f"{place}: the conversation has {lengths[first]:,} tokens, and data.seq_len is {self.section.seq_len:,}"
        why = f"{len(too_long):,} of {len(lengths):,} are too long; the longest has {lengths.max():,}"
        raise DataError(what, why, f"aifx train --set data.seq_len={lengths.max()}    (or data.truncate: docs/chat.md)")


def chat_spec(section: ChatSection, vocab_size: int | None) -> DataSpec:
    """The fields of the batches, and the size of the vocabulary."""
    names = ("inputs", "targets", "writers", "segment_ids", "positions")
    fields = {name: Field((section.seq_len,), "int32", ("seq",)) for name in names}
    fields["weights"] = Field((section.seq_len,), "float32", ("seq",))
    return DataSpec(fields, section.vocab_size or vocab_size)


def _report(truncation: Truncation, section: ChatSection) -> None:
    if not truncation.truncated:
        return
    done = {"drop": "left out", "left": "cut on the left", "right": "cut on the right"}[section.truncate]
    lost = f"; {truncation.without_end:,} of them lose the token that ends the last answer"
    logger.warning(
        f"{truncation.truncated:,} of {truncation.examples:,} conversations have more than data.seq_len = "
        f"{section.seq_len:,} tokens: {done}{lost if truncation.without_end else ''}"
    )
