"""A project's conversations as batches of sequences."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
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
from aifx.data.chat.rows import Preference, parse_row
from aifx.data.chat.section import ChatSection
from aifx.data.chat.sequences import ChatRows, Mix, Truncation, empty_chats, fit
from aifx.data.chat.store import ChatCorpus, ChatTokens, chats_of, open_chats, tokenize, tokens_digest
from aifx.data.implicit import ImplicitVersion
from aifx.data.readers.rows import Row
from aifx.data.readers.sources import SourceFile
from aifx.data.sections import OWN_TOKENIZERS
from aifx.data.sequences import best_fit
from aifx.data.spec import DataSpec, Field
from aifx.data.splits import SPLITS, Split
from aifx.data.text import TokenFormat, check_vocab_size
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
    corpus: ChatCorpus
    splits: Mapping[Split, Sequence[ChatRows]]
    truncation: Truncation

    @property
    def file_versions(self) -> Mapping[str, ImplicitVersion]:
        """The files that it was made of, by the key that names them."""
        return self.corpus.file_versions

    def source(self, split: Split, batch_size: int, *, seed: int | None) -> ChatSource:
        """Without a seed, each conversation once."""
        entries = self.splits[split]
        if not any(map(len, entries)):
            raise self.corpus.no_split(split)
        sizes = [len(entry) for entry in entries]
        shares = self.section.mix if split == "train" and seed is not None else ()
        mix = Mix(sizes, shares if len(shares) == len(sizes) else ())
        if any(share and not size for size, share in zip(sizes, mix.shares, strict=False)):
            what = f"{self.corpus.names('train')}: an entry of data.train has no conversation for training"
            raise DataError(what, "data.mix gives it a share", "change data.train and data.mix")
        return ChatSource(entries, mix, seed, batch_size, self.section.seq_len, self.tokenizer.eos_id)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Tokens of conversations, trained or not."""
        return {"tokens": int(np.count_nonzero(batch["weights"]))}


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
        corpus = open_chats(section, project)
        form = cls._with(section, open_renderer(section, project, assets, corpus))
        data = form._open(corpus)
        for split in filter(corpus.has, SPLITS):
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

    def _open_files(self, files: Mapping[Split, Sequence[SourceFile]], project: Project | None) -> ChatData:
        return self._open(chats_of(list(files.items()), self.section, project))

    def places(self, dataset: Any, split: Split, rows: Sequence[int]) -> list[str]:
        source = dataset.source(split, 1, seed=None)
        found, place = [source.find(row) for row in rows], dataset.corpus.place
        # Both answers of a pair are on one line.
        return [", ".join({place(of.tokens, n): None for n in of.members(at)}) for of, at in filter(None, found)]

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
        ChatRows.make(tokens, fitted, zeros).write(0, batch, 0)
        num_bytes = sum(len(str(message.get("content") or "").encode()) for message in conversation.messages)
        return {**batch, TEXT_BYTES: np.array([num_bytes], np.int32)}

    def _open(self, corpus: ChatCorpus) -> ChatData:
        section, digest = self.section, tokens_digest(corpus, self.renderer)
        tokens = tokenize(corpus, self.renderer, digest)
        check_lengths(np.diff(tokens.starts) - 1, section, "conversation", partial(corpus.place, tokens))
        cuts: list[Truncation] = []

        def rows_of(numbers: np.ndarray) -> ChatRows:
            fitted, cut = fit(tokens, numbers, section.seq_len, section.truncate)
            cuts.append(cut)
            if section.packing == "examples":
                return ChatRows.make(tokens, fitted, best_fit(fitted.lengths, section.seq_len))
            return ChatRows.make(tokens, fitted, np.arange(len(fitted.lengths)))

        splits = corpus.by_split(tokens, rows_of)
        truncation = Truncation(*map(sum, zip(*cuts, strict=True)))
        _report(truncation, section)
        how = (section.seq_len, section.packing, section.truncate, section.mix)
        whole = sha256_of_values("chat", digest, *how)
        return ChatData(self.spec, whole, self.tokenizer, section, corpus, splits, truncation)


def chat_spec(section: ChatSection, vocab_size: int | None) -> DataSpec:
    """The fields of the batches, and the size of the vocabulary."""
    names = ("inputs", "targets", "writers", "segment_ids", "positions")
    fields = {name: Field((section.seq_len,), "int32", ("seq",)) for name in names}
    fields["weights"] = Field((section.seq_len,), "float32", ("seq",))
    return DataSpec(fields, section.vocab_size or vocab_size)


def check_lengths(lengths: np.ndarray, section: ChatSection, what: str, place: Callable[[int], str]) -> None:
    """Raise DataError for an example that is too long, if that is to be an error.

    Args:
        lengths: targets of each example.
        what: an example is, such as "conversation".
        place: of an example by its number, for the message.
    """
    too_long = np.flatnonzero(lengths > section.seq_len)
    if section.truncate != "error" or not len(too_long):
        return
    first = int(too_long[0])
    problem = f"{place(first)}: the {what} has {lengths[first]:,} tokens, and data.seq_len is {section.seq_len:,}"
    why = f"{len(too_long):,} of {len(lengths):,} are too long; the longest has {lengths.max():,}"
    raise DataError(problem, why, f"aifx train --set data.seq_len={lengths.max()}    (or data.truncate: docs/chat.md)")


def _report(truncation: Truncation, section: ChatSection) -> None:
    if not truncation.truncated:
        return
    done = {"drop": "left out", "left": "cut on the left", "right": "cut on the right"}[section.truncate]
    lost = f"; {truncation.without_end:,} of them lose the token that ends the last answer"
    logger.warning(
        f"{truncation.truncated:,} of {truncation.examples:,} conversations have more than data.seq_len = "
        f"{section.seq_len:,} tokens: {done}{lost if truncation.without_end else ''}"
    )
