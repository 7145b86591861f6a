"""Conversations as tokens, kept in the cache: an artefact (`aifx.core.artifact`) in a folder that is named by a digest
of all that its content depends on. Each array of `ChatTokens` is a file of it; a block of those with an element per
token is verified when it is first read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from aifx.core.digests import Hash64, Sha256, sha256_of, sha256_of_file, sha256_of_values
from aifx.core.errors import DataError
from aifx.core.progress import report_progress
from aifx.core.project import Project, cache_path
from aifx.data.chat.rendering import ChatRenderer
from aifx.data.chat.rows import Conversation, check_chat_file, find_chats, read_conversations
from aifx.data.chat.section import ChatSection
from aifx.data.names import SPLIT
from aifx.data.readers.sources import SourceFile, check_regular, local_file, reading
from aifx.data.row_cache import SUFFIX, BlockArray, cached_arrays, write_array
from aifx.data.splits import SPLITS, Split, split_of
from aifx.data.versions.parts import DatasetPart, open_single

logger = logging.getLogger(__name__)

KIND, VERSION = "chat store", 1
"""The artefact's kind, and the version of its content: a part of the folder's name."""

TOKENS_VERSION = 1
"""Version of the tokens in it: a part of the digest of a run's data, which a resume compares."""

ReadChats: TypeAlias = Callable[[SourceFile], Iterator[Conversation]]

Entries: TypeAlias = Sequence[tuple[Split, Sequence[SourceFile]]]
"""The files of each split; those of `data.train` separately for each of its entries."""


@dataclass(frozen=True)
class ChatFiles:
    """The files of a project or of a version of a data set, and what is held out of those for training.

    Attributes:
        digest: SHA-256 over the content of the files and how they are divided.
        part: the version that the files are of, if they are.
    """

    entries: Entries
    fractions: Mapping[Split, float]
    digest: str
    part: DatasetPart | None = None

    @property
    def files(self) -> list[SourceFile]:
        return [file for _, files in self.entries for file in files]

    def names(self, split: Split) -> str:
        """The files that a split comes from, for messages."""
        files = [file.name for of, found in self.entries for file in found if of == split]
        files = files or [file.name for file in self.files]
        return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")

    def why_missing(self, split: Split) -> tuple[str, str]:
        """Why there is no conversation in a split, and a command that gives it some."""
        if self.part is not None and self.part.has_column(SPLIT):
            return f"the column {SPLIT} names no row for it", f"aifx data split {self.part.manifest.name}"
        names_files = "" if self.part is not None else f"data.{split} names no files, and "
        why = f"{names_files}data.{split}_fraction holds no conversation out"
        return why, f"aifx train --set data.{split}_fraction=0.1"

    def has(self, split: Split) -> bool:
        """Whether the project asks for this split at all."""
        return self.fractions[split] > 0 or any(of == split for of, _ in self.entries)

    def place(self, tokens: ChatTokens, number: int) -> str:
        """The file and line of a conversation, for messages."""
        file, row = self.files[int(tokens.files[number])], int(tokens.rows[number])
        return f"{file.name}: row {row}" if file.format == "parquet" else f"{file.name}:{row}"

    def split_of(self, conversation: Conversation, split: Split) -> Split:
        """Where a conversation of a file goes; equal ones of the training files stay together."""
        if split != "train":
            return split
        if self.part is not None and self.part.has_column(SPLIT):
            return self.part.split_of(conversation.split)
        in_cluster = self.part is not None and conversation.cluster is not None
        group = str(conversation.cluster).encode() if in_cluster else conversation.key
        return split_of(Hash64(group).digest(), self.fractions)


@dataclass(frozen=True)
class ChatTokens:
    """All conversations as tokens, one after another.

    Attributes:
        ids: int32 [tokens].
        writers: int8 [tokens], who wrote each: see `rendering`.
        starts: int64 [conversations + 1], where each begins, and the end of the last.
        splits: int8 [conversations], indices into SPLITS.
        entries: int32 [conversations], indices into `ChatFiles.entries`.
        files: int32 [conversations], indices into `ChatFiles.files`.
        rows: int64 [conversations], the line or row in the file, from 1.
    """

    ids: np.ndarray | BlockArray
    writers: np.ndarray | BlockArray
    starts: np.ndarray
    splits: np.ndarray
    entries: np.ndarray
    files: np.ndarray
    rows: np.ndarray

    def numbers(self, split: Split, entry: int) -> np.ndarray:
        """int64, the conversations of an entry that are in a split."""
        return np.flatnonzero((self.entries == entry) & (self.splits == SPLITS.index(split)))


def open_files(section: ChatSection, project: Project) -> ChatFiles:
    """The project's files. Raises DataError for what is missing, in two splits, or no .jsonl or .parquet."""
    if section.dataset is not None:
        return _files_of_version(section.dataset, section, project)
    entries: list[tuple[Split, list[SourceFile]]] = []
    seen: set[Path] = set()
    for pattern in section.train:
        found = find_chats((pattern,), project, "data.train")
        entries.append(("train", [file for file in found if file.path.resolve() not in seen]))
        seen |= {file.path.resolve() for file in found}
    held_out = {"validation": section.validation_fraction, "test": section.test_fraction}
    fractions: dict[Split, float] = {"train": 0.0}
    for split in SPLITS[1:]:
        files = find_chats(getattr(section, split), project, f"data.{split}")
        fractions[split] = 0.0 if files else held_out[split]
        if files:
            entries.append((split, files))
    return _with_digest(entries, fractions)


def _files_of_version(reference: str, section: ChatSection, project: Project) -> ChatFiles:
    """The shards of a version, each row of which is a conversation or a pair. Raises UsageError, DataError."""
    part = open_single(reference, project, "chat")
    shards = [local_file(path, f"{part.reference}/{path.name}") for path in part.version.shards]
    fractions: dict[Split, float] = dict.fromkeys(SPLITS, 0.0)
    if not part.has_column(SPLIT):
        fractions |= {"validation": section.validation_fraction, "test": section.test_fraction}
    how = f"{part.manifest.sha256} {sorted(fractions.items())}"
    digest = sha256_of(f"version {how}")
    return ChatFiles([("train", shards)], fractions, digest, part)


def files_of_split(files: Sequence[SourceFile], split: Split) -> ChatFiles:
    """Files that are one split. Raises DataError."""
    for file in files:
        check_regular(check_chat_file(file).path, file.name, "a data set is a file", "aifx eval --data FILE")
    return _with_digest([(split, list(files))], dict.fromkeys(SPLITS, 0.0))


def tokens_digest(files: ChatFiles, renderer: ChatRenderer, *kind: str) -> str:
    """SHA-256 over all that the tokens of files depend on.

    Args:
        kind: what else than conversations is read from the files.
    """
    tokenizer, template = renderer.tokenizer, renderer.template
    kept = [TOKENS_VERSION, *kind, files.digest, template.source, sorted(renderer.variables.items())]
    return sha256_of_values(*kept, tokenizer.data, sorted(tokenizer.end_ids), str(renderer.today))


def _with_digest(entries: Entries, fractions: Mapping[Split, float]) -> ChatFiles:
    digest = Sha256(repr(sorted(fractions.items())).encode())
    seen: dict[str, tuple[Split, SourceFile]] = {}
    for entry, (split, files) in enumerate(entries):
        for file in files:
            content = _digest_of(file)
            digest.update(f"{entry} {split} {file.suffix} {file.compression} {content}\n".encode())
            other, first = seen.setdefault(content, (split, file))
            if other != split:
                what = f"{first.name} of data.{other} and {file.name} of data.{split} are the same, byte for byte"
                why = "what is trained on must not be measured on"
                raise DataError(what, why, f"name the files of data.{other} so that they leave it out")
    return ChatFiles(entries, fractions, digest.hexdigest())


def _digest_of(file: SourceFile) -> str:
    if file.is_remote:
        with file.open() as stream:
            return sha256_of_file(stream)
    with reading(file):
        return sha256_of_file(file.path)


def tokenize(files: ChatFiles, renderer: ChatRenderer, digest: str, read: ReadChats = read_conversations) -> ChatTokens:
    """The conversations that `read` finds in the files as tokens, from the cache if `digest` is there.

    Raises DataError.
    """

    def write(folder: Path) -> Mapping[str, Any]:
        made = _tokenize(files, renderer, read)
        if files.part is None and files.digest != _with_digest(files.entries, files.fractions).digest:
            raise DataError(f"{files.names('train')} changed while it was read", "", "run it again when it is written")
        for name, values in vars(made).items():
            write_array(folder / f"{name}{SUFFIX}", values)
        return {}

    _, arrays = cached_arrays(cache_path("chats") / f"{digest}-{VERSION}", KIND, VERSION, write)
    by_conversation = {name: array[:] for name, array in arrays.items() if name not in ("ids", "writers")}
    return ChatTokens(arrays["ids"], arrays["writers"], **by_conversation)


def _tokenize(files: ChatFiles, renderer: ChatRenderer, read: ReadChats) -> ChatTokens:
    ids: list[np.ndarray] = []
    writers: list[np.ndarray] = []
    places: list[tuple[int, int, int, int]] = []
    number = 0
    activity = f"tokenizing {files.names('train')}"
    logger.info(activity)
    with report_progress(activity, None, "conversations") as progress:
        for entry, (split, of_entry) in enumerate(files.entries):
            for file in of_entry:
                for conversation in read(file):
                    example = renderer.example(conversation)
                    ids.append(example.ids)
                    writers.append(example.writers)
                    place = int(conversation.place.rpartition(":")[2].removeprefix(" row "))
                    places.append((SPLITS.index(files.split_of(conversation, split)), entry, number, place))
                    progress.advance(1)
                number += 1
    if not ids:
        raise DataError(f"{files.names('train')}: no conversation", "the files are empty", "put rows into them")
    columns = np.array(places, np.int64).T
    return ChatTokens(
        ids=np.concatenate(ids),
        writers=np.concatenate(writers),
        starts=np.cumsum([0, *map(len, ids)], dtype=np.int64),
        splits=columns[0].astype(np.int8),
        entries=columns[1].astype(np.int32),
        files=columns[2].astype(np.int32),
        rows=columns[3],
    )
