"""Conversations as tokens, kept in a row cache (`aifx.data.row_cache`). Each array of `ChatTokens` is a file of it; a
block of those with an element per token is verified when it is first read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from aifx.core.digests import Sha256, sha256_of
from aifx.core.errors import DataError
from aifx.core.progress import report_progress
from aifx.core.project import Project, cache_path
from aifx.data.chat.rendering import ChatRenderer, Example
from aifx.data.chat.rows import Conversation
from aifx.data.corpus import NO_FILES, Sources, check_apart, file_versions_of, held_out, scans_by_split
from aifx.data.names import CLUSTER, SPLIT
from aifx.data.readers.sources import SourceFile, local_file
from aifx.data.row_cache import SUFFIX, BlockArray, cached_arrays, rows_key, write_array
from aifx.data.splits import SPLITS, Split

if TYPE_CHECKING:  # as in `aifx.data.corpus`
    from aifx.data.chat.section import ChatSection

logger = logging.getLogger(__name__)

Rows = TypeVar("Rows")

Entries: TypeAlias = Sequence[tuple[Split, Sequence[SourceFile]]]
"""The files of each split; those of `data.train` separately for each of its entries."""


@dataclass(frozen=True)
class ChatCorpus(Sources):
    """Conversations, or pairs of answers, in files or in the shards of a version.

    Attributes:
        entries: of the files or shards.
    """

    section: ChatSection
    entries: Entries = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the content of the files and how they are divided."""
        fractions = sorted(self.fractions.items())
        if self.part is not None:
            return sha256_of(f"version {self.part.manifest.sha256} {fractions}")
        digest = Sha256(repr(fractions).encode())
        for entry, (split, files) in enumerate(self.entries):
            for file in files:
                content = self.files[split][file].digest
                digest.update(f"{entry} {split} {file.suffix} {file.compression} {content}\n".encode())
        return digest.hexdigest()

    @property
    def all_files(self) -> list[SourceFile]:
        return [file for _, files in self.entries for file in files]

    def conversations(self) -> Iterator[tuple[Split, int, int, Conversation]]:
        """Each conversation with its split, the number of its entry, and that of its file in `all_files`."""
        entries = ((entry, of, file) for entry, (of, files) in enumerate(self.entries) for file in files)
        for number, (entry, of, file) in enumerate(entries):
            for found in self.section.read(file):
                row = {SPLIT: found.split, CLUSTER: found.cluster}
                yield self.split_of(found.key, row) if of == "train" else of, entry, number, found

    def by_split(self, tokens: ChatTokens, make: Callable[[np.ndarray], Rows]) -> dict[Split, list[Rows]]:
        """The results of `make` by split, for each entry, of the numbers of its conversations in `tokens`, int64."""

        def made(split: Split, entry: int) -> Rows:
            return make(np.flatnonzero((tokens.splits == SPLITS.index(split)) & (tokens.entries == entry)))

        kinds = [of for of, _ in self.entries]
        return {split: [made(split, n) for n, of in enumerate(kinds) if of in (split, "train")] for split in SPLITS}

    def place(self, tokens: ChatTokens, number: int) -> str:
        """The file and line of a conversation, for messages."""
        file, row = self.all_files[int(tokens.files[number])], int(tokens.rows[number])
        return f"{file.name}: row {row}" if file.format == "parquet" else f"{file.name}:{row}"


@dataclass(frozen=True)
class ChatTokens:
    """All conversations as tokens, one after another.

    Attributes:
        ids: int32 [tokens].
        writers: int8 [tokens], who wrote each: see `rendering`.
        starts: int64 [conversations + 1], where each begins, and the end of the last.
        splits: int8 [conversations], indices into SPLITS.
        entries: int32 [conversations], indices into `ChatCorpus.entries`.
        files: int32 [conversations], indices into `ChatCorpus.all_files`.
        rows: int64 [conversations], the line or row in the file, from 1.
    """

    ids: np.ndarray | BlockArray
    writers: np.ndarray | BlockArray
    starts: np.ndarray
    splits: np.ndarray
    entries: np.ndarray
    files: np.ndarray
    rows: np.ndarray


def open_chats(section: ChatSection, project: Project) -> ChatCorpus:
    """The project's conversations. Raises UsageError, DataError for what is missing, in two splits, or unreadable."""
    if (part := section.open_part(project)) is not None:
        shards = [local_file(path, f"{part.reference}/{path.name}") for path in part.version.shards]
        return ChatCorpus(NO_FILES, section, held_out(section, NO_FILES, part), part, entries=[("train", shards)])
    seen: set[Path] = set()
    entries: list[tuple[Split, list[SourceFile]]] = []
    for pattern in section.train:
        found = section.find("train", project, [pattern])
        entries.append(("train", [file for file in found if file.path.resolve() not in seen]))
        seen |= {file.path.resolve() for file in found}
    entries.extend((split, files) for split in SPLITS[1:] if (files := section.find(split, project)))
    return chats_of(entries, section, project)


def chats_of(entries: Entries, section: ChatSection, project: Project | None = None) -> ChatCorpus:
    """The conversations of these files. Raises DataError."""
    files = {of: [file for split, found in entries if split == of for file in found] for of in SPLITS}
    scans = scans_by_split(files, section, project)
    check_apart(scans)
    return ChatCorpus(scans, section, held_out(section, files), file_versions=file_versions_of(scans), entries=entries)


def tokenize(corpus: ChatCorpus, renderer: ChatRenderer, kind: str = "chat") -> tuple[str, ChatTokens]:
    """The conversations as tokens, from the cache if they are there, and a digest of them. Raises DataError.

    Args:
        kind: of what is read from the files.
    """

    def write(folder: Path) -> Mapping[str, Any]:
        made = _tokenize(corpus, renderer)
        corpus.check_unchanged()
        for name, values in vars(made).items():
            write_array(folder / f"{name}{SUFFIX}", values)
        return {}

    tokenizer, template = renderer.tokenizer, renderer.template
    how = (template.source, sorted(renderer.variables.items()), sorted(tokenizer.end_ids), str(renderer.today))
    key = rows_key(__name__, kind, corpus.digest, sha256_of(tokenizer.data), *how)
    artifact, arrays = cached_arrays(cache_path("chats") / key, "chat store", write)
    by_conversation = {name: array[:] for name, array in arrays.items() if name not in ("ids", "writers")}
    return artifact.digest, ChatTokens(arrays["ids"], arrays["writers"], **by_conversation)


def _tokenize(corpus: ChatCorpus, renderer: ChatRenderer) -> ChatTokens:
    examples: list[Example] = []
    places: list[tuple[int, int, int, int]] = []
    activity = f"tokenizing {corpus.names('train')}"
    logger.info(activity)
    with report_progress(activity, None, "conversations") as progress:
        for split, entry, file, conversation in corpus.conversations():
            examples.append(renderer.example(conversation))
            places.append((SPLITS.index(split), entry, file, conversation.number))
            progress.advance(1)
    if not examples:
        raise DataError(f"{corpus.names('train')}: no conversation", "the files are empty", "put rows into them")
    ids, writers = (np.concatenate(arrays) for arrays in zip(*examples, strict=True))
    starts = np.cumsum([0, *(len(example.ids) for example in examples)], dtype=np.int64)
    splits, entries, files, rows = np.array(places, np.int64).T
    columns = splits.astype(np.int8), entries.astype(np.int32), files.astype(np.int32), rows
    return ChatTokens(ids, writers, starts, *columns)
