"""`[data]` of the kinds of data that come with aifx. Imports no jax."""

from __future__ import annotations

import glob
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from aifx.config import Config
from aifx.config.sections import (
    INT_MAX,
    RESUME_SAFE,
    Conflict,
    DataSection,
    Fraction,
    NonNegativeInt,
    PositiveInt,
    TrainSection,
    setting,
)
from aifx.core.errors import AifxError, ConfigError, DataError, EnvironmentFault, UsageError
from aifx.core.project import CONFIG_NAME, Project
from aifx.data.spec import ColumnKind
from aifx.data.splits import SPLITS, Split

if TYPE_CHECKING:
    from aifx.data.names import Kind
    from aifx.data.readers.documents import Piece
    from aifx.data.readers.sources import SourceFile
    from aifx.data.versions.catalog import DatasetPart


MOST_FILES = 64  # files of a project's data that are opened to check them: the first megabyte of each
OWN_TOKENIZERS = ("bpe", "char", "byte")  # values of `data.tokenizer` that are no paths


class DatasetSection(DataSection):
    """Base of data that is a version of a data set, or files that its kind checks and reads."""

    version_kind: ClassVar[Kind] = "table"
    """The kind of the version."""

    excluded: ClassVar[tuple[str, ...]] = ("path",)
    """Keys that name files, which cannot be set beside `dataset`."""

    dataset: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Version of a data set to train on, such as `corpus@3f2a`, in place of files: `aifx data ls`. "
        "A name alone is the latest version when the run starts.",
    )

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        yield from super().conflicts(config)
        for key in self.excluded if self.dataset is not None else ():
            if config.precedence(f"data.{key}"):
                problem = f"data.dataset and data.{key} cannot be used together"
                yield Conflict((f"data.{key}", "data.dataset"), problem, "each names the data to train on")
        yield from held_out_conflicts(config.train, *self.shares)

    if TYPE_CHECKING:  # each kind has these fields, in an order that is part of the digest of a run's data
        validation_fraction: float
        test_fraction: float

    @property
    def shares(self) -> tuple[float | None, float]:
        """Shares of the training data for validation, None if that has data of its own, and for the test."""
        return self.validation_fraction, self.test_fraction

    def open_parts(self, project: Project) -> tuple[DatasetPart, ...]:
        """The version that `dataset` names, or the parts of a mix; none if the data is files. Reads manifests alone.

        Raises UsageError if there is no such version, DataError if it is damaged or of another kind.
        """
        from aifx.data.versions.catalog import open_parts

        return () if self.dataset is None else open_parts(self.dataset, project, self.version_kind)

    def open_part(self, project: Project) -> DatasetPart | None:
        """The version that `dataset` names; None if the data is files. Raises as `open_parts`, also for a mix."""
        parts = self.open_parts(project)
        if len(parts) > 1:
            why = f"training on {self.version_kind} reads one data set"
            raise DataError(f"{self.dataset} is a mix of {len(parts)} data sets", why, f"aifx data ls {self.dataset}")
        return next(iter(parts), None)

    def check_files(self, project: Project) -> Iterator[tuple[str, AifxError]]:
        from aifx.data.versions.licenses import check_licenses

        try:
            if parts := self.open_parts(project):
                check_licenses([part.manifest for part in parts], parts[0].catalog, project, str(self.dataset))
        except (ConfigError, UsageError, DataError) as error:
            yield "data.dataset", error
        else:
            yield from () if parts else self.check_own_files(project)

    def read_beginnings(self, project: Project) -> int:
        parts = self.open_parts(project)
        return sum(len(part.manifest.shards) for part in parts) if parts else self.read_own_beginnings(project)

    @abstractmethod
    def check_own_files(self, project: Project) -> Iterator[tuple[str, AifxError]]:
        """`check_files` of data that is files."""

    @abstractmethod
    def read_own_beginnings(self, project: Project) -> int:
        """`read_beginnings` of data that is files."""


class PathSection(DatasetSection):
    """Base of data whose files one path names."""

    path: str

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that the file must have."""
        return ()

    def named_files(self, project: Project) -> Mapping[str, Sequence[SourceFile]]:
        return {} if self.dataset is not None else {"data.path": self.find(project)}

    def find(self, project: Project) -> list[SourceFile]:
        """The file that the path names, or all files of pictures that it does. Raises DataError, UsageError."""
        return [self.file(project)]

    def file(self, project: Project) -> SourceFile:
        """The file that the path names. Raises UsageError for a URL that names none, or several."""
        from aifx.data.readers.sources import named_file

        return named_file(self.path, project.root)

    def check_own_files(self, project: Project) -> Iterator[tuple[str, AifxError]]:
        if "://" not in self.path:
            yield from missing_file(project, "data.path", self.path)
            return
        try:
            self.file(project)
        except AifxError as error:
            yield "data.path", error

    def read_own_beginnings(self, project: Project) -> int:
        """Read the first row of the file."""
        from aifx.data.readers.rows import field, read_rows

        for row in islice(read_rows(self.file(project)), 1):
            for name in self.needed:
                field(row.values, name)
        return 1


class TokenSection(DataSection):
    """Base of data of tokens: a tokenizer, and the length of sequences."""

    tokenizer: str = Field(
        "bpe",
        description="`bpe` or `char` (pairs of bytes, or characters, of the training split), `byte`, "
        "or a path of a tokenizer.json.",
    )
    end_tokens: tuple[str, ...] = Field(
        (),
        description="Tokens that end a text that a model writes; the first also ends documents. "
        "If none: a known one of the tokenizer, such as `<|endoftext|>`.",
    )
    begin_token: str | None = Field(None, description="Token before each text that a model continues or measures.")
    vocab_size: Annotated[int, Field(ge=257, le=INT_MAX)] | None = Field(
        None,
        description="Most tokens of a trained tokenizer, and the rows of the embedding. "
        "If not set: 1024 for bpe, otherwise the size of the tokenizer.",
    )
    seq_len: Annotated[int, Field(ge=2, le=INT_MAX)] = Field(256, description="Tokens of a sequence.")

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        yield from super().conflicts(config)
        if self.tokenizer in OWN_TOKENIZERS and (self.end_tokens or self.begin_token is not None):
            key = "data.end_tokens" if self.end_tokens else "data.begin_token"
            problem = f'{key} is set, and data.tokenizer = "{self.tokenizer}" has a token of its own'
            yield Conflict((key, "data.tokenizer"), problem, "it names tokens of a tokenizer.json")

    def tokenizer_path(self, project: Project) -> Path:
        """The file of a tokenizer that is not one of OWN_TOKENIZERS. Raises UsageError if it is of a run to be made."""
        path, parts = project.root / self.tokenizer, Path(self.tokenizer).parts
        if len(parts) > 2 and parts[0] == project.runs_path.name and not path.exists():
            project.base_run(parts[1])
        return path


class DocumentSection(DatasetSection, TokenSection):
    """Base of text and chats: files by split, or a part of the training files held out."""

    excluded: ClassVar[tuple[str, ...]] = ("train", "validation", "test")

    if TYPE_CHECKING:  # fields as in `DatasetSection`
        train: tuple[str, ...]
        validation: tuple[str, ...]
        test: tuple[str, ...]

    @property
    def shares(self) -> tuple[float | None, float]:
        return None if self.validation else self.validation_fraction, 0.0 if self.test else self.test_fraction

    def find(self, split: Split, project: Project, patterns: Sequence[str] | None = None) -> list[SourceFile]:
        """The files that it names for a split, or that `patterns` of it name; none of a data set. Raises DataError."""
        from aifx.data.readers.documents import find_files

        named = getattr(self, split) if patterns is None else patterns
        return find_files(named, project, f"data.{split}", self.version_kind) if self.dataset is None else []

    def named_files(self, project: Project) -> Mapping[str, Sequence[SourceFile]]:
        found = {f"data.{split}": self.find(split, project) for split in SPLITS}
        return {key: files for key, files in found.items() if files}

    def check(self, file: SourceFile) -> SourceFile:
        """The file, which a command line names. Raises DataError if its kind of data does not take its format."""
        from aifx.data.readers.documents import without_reader
        from aifx.data.readers.formats import KINDS

        if file.format not in KINDS[self.version_kind]:
            raise without_reader(file.name, self.version_kind, "--data", "aifx eval --data FILE.jsonl")
        return file

    @abstractmethod
    def read(self, file: SourceFile) -> Iterator[Any]:
        """The documents of a file in order, or parts of them. Raises DataError."""

    def check_files(self, project: Project) -> Iterator[tuple[str, AifxError]]:
        yield from super().check_files(project)
        if self.tokenizer not in OWN_TOKENIZERS:
            for key, missing in missing_file(project, "data.tokenizer", self.tokenizer):
                missing.why += '; it may also be "bpe", "char" or "byte"'
                yield key, missing

    def check_own_files(self, project: Project) -> Iterator[tuple[str, AifxError]]:
        from aifx.data.readers.formats import PAGES

        for split in SPLITS:
            try:
                if any(file.format in PAGES for file in self.find(split, project)):
                    from aifx.data.readers.web import check_installed

                    check_installed()
            except (DataError, EnvironmentFault) as error:
                yield f"data.{split}", error

    def read_own_beginnings(self, project: Project) -> int:
        files = [file for split in SPLITS for file in self.find(split, project)]
        for file in files[:MOST_FILES]:
            next(self.read(file), None)
        return len(files)


class TextSection(DocumentSection):
    """Text, how it is split, and how it becomes sequences."""

    version_kind = "text"

    train: tuple[str, ...] = Field(
        ("data/*.txt",),
        description="Files, globs or URLs (.txt, .md, .jsonl, .csv, .tsv, .parquet, .html, .warc; also as .gz or "
        ".zst), relative to the project.",
        min_length=1,
    )
    validation: tuple[str, ...] = Field((), description="Files for validation; if none, a part of `train` is held out.")
    test: tuple[str, ...] = Field((), description="Files for the test; if none, a part of `train` is held out.")
    text_field: str = Field("text", description="Field of .jsonl, .csv and .parquet rows that holds the text.")
    errors: Literal["strict", "replace", "skip"] = Field(
        "strict",
        description="Bytes that are not UTF-8. strict: an error. replace: U+FFFD instead. skip: left out.",
    )
    split: Literal["block", "document"] = Field(
        "block",
        description="block: contiguous parts, the test last. document: whole documents, by hash; the default with "
        "`dataset`.",
    )
    validation_fraction: Fraction = Field(0.05, description="Share held out for validation when `validation` is empty.")
    test_fraction: Fraction = Field(0.1, description="Share held out for the test when `test` is empty.")
    packing: Literal["stream", "documents"] = Field(
        "stream",
        description="stream: cut from the joined text. documents: whole documents packed, attention kept within.",
    )
    eval_stride: NonNegativeInt = Field(
        0,
        description="Evaluation: tokens that each window scores, the rest being context; 0 scores whole windows.",
    )

    @model_validator(mode="after")
    def _split_of_dataset(self) -> Self:
        """The default of `split` for a data set, whose rows are whole documents."""
        if self.dataset is not None and "split" not in self.model_fields_set:
            self.__dict__["split"] = "document"  # the section is frozen for everybody else
        return self

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        yield from super().conflicts(config)
        # Sequences cut short for a trial are read with the stride cut to them.
        is_asked = config.precedence("data.eval_stride") >= config.precedence("data.seq_len")
        if self.eval_stride > self.seq_len and is_asked:
            problem = f"data.eval_stride = {self.eval_stride} is more than data.seq_len = {self.seq_len}"
            reason = "windows would step over tokens that none of them scores"
            yield Conflict(("data.eval_stride", "data.seq_len"), problem, reason)

    def read(self, file: SourceFile, *, whole: bool = False) -> Iterator[Piece]:
        from aifx.data.readers.documents import read_documents

        return read_documents(file, self.text_field, errors=self.errors, whole=whole)


class ImagesSection(PathSection):
    """Images with labels or numbers: a folder, a list, or a NumPy archive."""

    version_kind = "images"

    path: str = Field(
        "data/images.npz",
        description="Folder of pictures with a folder for each class; .csv file with the columns file and label, "
        "labels or value; or .npz with train_images, train_labels, test_images, test_labels.",
    )
    classes: tuple[str, ...] = Field(
        (), description="Names of the labels, in order. When empty: those that are found; numbers for an .npz."
    )
    channels: PositiveInt | None = Field(
        None,
        description="Channels of an image. If not set: those of an .npz; of pictures 1 if all are grey, otherwise 3.",
    )
    image_size: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="Height and width of each image. If not set: those of an .npz; for pictures 224 x 224."
    )
    fit: Literal["stretch", "crop"] = Field(
        "stretch",
        description="How pictures get that size. stretch: all of each. crop: in proportion, cut off at both ends.",
    )
    validation_fraction: Fraction = Field(0.1, description="Share of the training images held out for validation.")
    test_fraction: Fraction = Field(
        0.1, description="Share of the training pictures held out for the test, if no other picture is for it."
    )
    split_seed: NonNegativeInt = Field(0, description="Seed of the choice of the pictures that are held out.")
    errors: Literal["strict", "skip"] = Field(
        "strict", description="Pictures that cannot be used. strict: an error. skip: left out, counted and listed."
    )
    sampling: Literal["shuffled", "balanced"] = Field(
        "shuffled", description="Training order. shuffled: each image once per epoch. balanced: each class as often."
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="Weights of training images. balanced: each class counts as much in all."
    )
    workers: NonNegativeInt | None = setting(
        None, "Processes that decode pictures, by default one for each core; 0 for none.", RESUME_SAFE
    )

    @property
    def is_archive(self) -> bool:
        return self.dataset is None and self.path.endswith(".npz")

    @property
    def shares(self) -> tuple[float | None, float]:
        return self.validation_fraction, 0.0 if self.is_archive else self.test_fraction

    def find(self, project: Project) -> list[SourceFile]:
        from aifx.data.picture_lists import list_pictures, picture_files

        if self.is_archive:
            return [self.file(project)]
        path = project.root / self.path
        pictures = picture_files(list_pictures(path, self.path, self.classes, has_all=False), project.root)
        return pictures if path.is_dir() else [self.file(project), *pictures]

    def check_own_files(self, project: Project) -> Iterator[tuple[str, AifxError]]:
        if self.is_archive or not (project.root / self.path).is_dir():
            yield from super().check_own_files(project)

    def read_own_beginnings(self, project: Project) -> int:
        """Read the archive's directory, or the headers of pictures; the rest is read when training begins."""
        from aifx.data.picture_lists import list_pictures
        from aifx.data.readers.archives import check_archive
        from aifx.data.readers.pictures import open_picture

        if self.is_archive:
            check_archive(self.file(project))
            return 1
        pictures = list_pictures(project.root / self.path, self.path, self.classes).examples
        for picture in pictures[: MOST_FILES if self.errors == "strict" else 0]:
            try:
                with open_picture(picture.path):
                    pass
            except ValueError as error:
                raise DataError(f"{picture.name} cannot be used", str(error), f"file {picture.name}") from None
        return len(pictures)


class SeriesSection(PathSection):
    """One or many series of numbers over time."""

    path: str = Field(
        "data/series.csv",
        description=".csv, .tsv, .jsonl or .parquet, or a URL of one, with a row per time of each series.",
    )
    time: str | tuple[str, ...] = Field(
        "time", description="Column of the times (ISO 8601), or columns of the year, the month and further parts."
    )
    value: str = Field("value", description="Column of the numbers to forecast; empty if one is missing.")
    series: str | None = Field(None, description="Column that names the series of a row; one series if not set.")
    known: tuple[str, ...] = Field((), description="Columns of numbers that are known ahead, such as a price.")
    past: tuple[str, ...] = Field((), description="Columns of numbers that are known up to now, such as the weather.")
    context: PositiveInt = Field(64, description="Steps that the model reads.")
    horizon: PositiveInt = Field(1, description="Steps that it forecasts.")
    stride: PositiveInt = Field(1, description="Steps between the starts of training windows.")
    split: Literal["date", "last"] = Field(
        "date",
        description="date: validation and test begin at one time for all series. last: the test is the last steps of "
        "each series, and validation the steps before, whatever their times.",
    )
    validation_fraction: Fraction = Field(0.1, description="Share of the time held out for validation.")
    test_fraction: Fraction = Field(0.1, description="Share of the time held out for the test, the last.")
    validation_steps: PositiveInt | None = Field(
        None, description='Steps for validation, in place of the fraction; `horizon` by default if split = "last".'
    )
    test_steps: PositiveInt | None = Field(
        None, description='Steps for the test, in place of the fraction; `horizon` by default if split = "last".'
    )

    @property
    def shares(self) -> tuple[float | None, float]:
        validation = None if self.validation_steps else self.validation_fraction
        return validation, 0.0 if self.test_steps else self.test_fraction

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        yield from super().conflicts(config)
        for key in ("validation_fraction", "test_fraction") if self.split == "last" else ():
            if getattr(self, key) and config.precedence(f"data.{key}"):
                steps = key.replace("fraction", "steps")
                problem = f"data.{key} is a share of the time, and data.split = 'last' counts the steps of each series"
                yield Conflict((f"data.{key}", "data.split"), problem, f"data.{steps} is their number")
        if self.value in (*self.known, *self.past):
            key = "known" if self.value in self.known else "past"
            problem = f"data.{key} names the column {self.value!r}, which is data.value"
            yield Conflict((f"data.{key}", "data.value"), problem, "the model reads the past values of it anyway")

    @property
    def needed(self) -> tuple[str, ...]:
        times = (self.time,) if isinstance(self.time, str) else self.time
        return (*times, self.value, *([self.series] if self.series else []), *self.known, *self.past)


class TableSection(PathSection):
    """Rows of a table: a column to predict from the others."""

    can_train_on_validation = True

    path: str = Field(
        "data/table.csv",
        description="Table (.csv, .tsv, .parquet, .jsonl; also as .gz or .zst), relative to the project, or its URL.",
    )
    target: str = Field("target", description="Column to predict.")
    columns: dict[str, ColumnKind] = Field(
        {},
        description="Kinds of columns (numeric, categorical, boolean, date) instead of those that the training rows "
        "have, the target's among them: a categorical one has classes, a numeric one is a regression's.",
    )
    ignore: tuple[str, ...] = Field((), description="Columns that are not read.")
    group_column: str | None = Field(None, description="Rows with the same value in this column are in one split.")
    time_column: str | None = Field(
        None, description="Dates or numbers that order the rows: the test split is last, validation before it."
    )
    validation_fraction: Fraction = Field(0.1, description="Share of the rows held out for validation.")
    test_fraction: Fraction = Field(0.2, description="Share of the rows held out for the test.")
    bins: PositiveInt = Field(32, description="Most bins of a numeric column, at quantiles of the training rows.")

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        yield from super().conflicts(config)
        if self.group_column is not None and self.time_column is not None:
            reason = "a group would be in several parts of the time"
            problem = "data.group_column and data.time_column cannot be used together"
            yield Conflict(("data.group_column", "data.time_column"), problem, reason)
        columns = {"group_column": [self.group_column], "time_column": [self.time_column]}
        for key, names in {"target": [self.target], "columns": self.columns, **columns}.items():
            for name in set(self.ignore).intersection(names):
                problem = f"data.ignore leaves out {name!r}, which data.{key} names"
                yield Conflict(("data.ignore", f"data.{key}"), problem, "an ignored column is not read")

    @property
    def needed(self) -> tuple[str, ...]:
        return (self.target,)


def held_out_conflicts(train: TrainSection, validation: float | None, test: float) -> Iterator[Conflict]:
    """The conflicts of the shares that are held out, with each other and with early stopping.

    `validation` is None if it has files of its own.
    """
    if validation is not None and validation + test >= 1.0:
        problem = f"data.validation_fraction = {validation:g} and data.test_fraction = {test:g} leave no training data"
        yield Conflict(("data.validation_fraction", "data.test_fraction"), problem, "together they must be below 1")
    if train.early_stopping and validation == 0.0 and train.folds == 1:
        problem = f"train.early_stopping = {train.early_stopping} needs a validation split, "
        problem += "and data.validation_fraction = 0 holds nothing out"
        keys = ("train.early_stopping", "data.validation_fraction")
        yield Conflict(keys, problem, "early stopping watches the validation loss")


def missing_file(project: Project, key: str, name: str) -> Iterator[tuple[str, AifxError]]:
    """The error of a key that names a file that is not there."""
    path = Path(os.path.normpath(project.root / name))
    if path.is_file():
        return
    problem = f"{key} = {name!r} is not a file" if path.exists() else f"no file {name!r}, which {key} names"
    beside = sorted(p.name for p in path.parent.glob(f"*{glob.escape(path.suffix)}") if p.is_file())[:3]
    why = f"in {path.parent} there is {', '.join(beside)}" if beside else f"there is no {path}"
    yield key, DataError(problem, why, f"change {key} in {CONFIG_NAME}, or put the file there")
