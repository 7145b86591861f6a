"""The rows that `aifx data decontaminate` compares with: those of tests, and by default of a project's splits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aifx.config.sections import Section
from aifx.core.digests import sha256_of
from aifx.core.errors import DataError, UsageError
from aifx.core.json_values import encode_json
from aifx.core.project import Project
from aifx.curation.add_plan import check_options, first_quarantined, plan_add, refusal, run_add
from aifx.curation.decontaminate import Reference
from aifx.curation.held_out import HELD_OUT
from aifx.curation.step import Limits
from aifx.data.corpus import Corpus, open_corpora, version_corpus
from aifx.data.names import SPLIT, Kind
from aifx.data.readers.base import ReadOptions
from aifx.data.readers.documents import find_files
from aifx.data.readers.sources import list_sources, name_of, without_secrets
from aifx.data.sections import DatasetSection, TextSection
from aifx.data.splits import Split
from aifx.data.versions.catalog import DATASET_NAME, Catalog, check_shards, open_catalog
from aifx.data.versions.manifest import Version


@dataclass(frozen=True)
class ReferenceFiles:
    """Collects the rows of files as `aifx data add` does.

    Attributes:
        base: the folder to which names of files are relative.
        work: an empty folder for the rows.
        kind: of the rows.
    """

    base: Path
    work: Path
    limits: Limits
    kind: Kind = "text"

    def read(self, path: str, text_field: str) -> Reference:
        """The rows of a file, folder, glob or URL. Raises UsageError, DataError."""
        name = self._name(path)
        listing = list_sources([path], self.base, follow_links=True)  # a part of a test that is left out finds nothing
        if not listing.files:
            why, hint = "aifx has no reader for it", "aifx data add --help lists what can be read"
            raise UsageError(f"{name} cannot be compared with", why, hint)
        self.work.mkdir(exist_ok=True)
        catalog = open_catalog(str(self.work / str(len(list(self.work.iterdir())))))
        options = ReadOptions(self.kind, text_field)
        check_options(options)
        plan = plan_add(catalog, "reference", listing, options, "unknown")
        version = run_add(plan, "reference", catalog, self.limits).version
        if problem := refusal(version.manifest, 0.01, allows_damaged=False):
            bad = first_quarantined(version)
            why = f"{bad[0]['source']}: {bad[0]['reason']}" if bad else problem
            raise DataError(f"--against {name} cannot be read as a test", why, "repair the file, or name another")
        contents = sorted([source.sha256, source.reading] for source in version.manifest.sources)
        digest = sha256_of(encode_json(contents))
        return Reference(name, version, digest, is_held_out=False, has_ids=False)

    def held_out(self, corpus: Corpus, splits: Sequence[Split], name: str) -> Reference:
        """The texts of some splits of a corpus."""
        self.work.mkdir(exist_ok=True)
        path = self.work / "held-out.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for split, piece in corpus.pieces(whole=True):
                if split in splits:
                    file.write(json.dumps({"text": piece.text}) + "\n")
        return replace(replace(self, base=self.work).read(str(path), "text"), name=name)

    def _name(self, path: str) -> str:
        """The path of a file from the base, or its last part if it is not below: the same on every machine."""
        if "://" in path:
            return without_secrets(path)
        name = name_of(os.path.abspath(os.path.expanduser(path)), self.base)
        return os.path.basename(name) if os.path.isabs(name) else name


def open_references(
    against: Sequence[str], catalog: Catalog, files: ReferenceFiles, text_field: str, own: Version
) -> tuple[Reference, ...]:
    """The rows of data sets, and of files as `aifx data add` takes them.

    Args:
        own: the version that is compared, which the catalog need not have.

    Raises UsageError for a data set of another kind.
    """
    references = []
    for each in against:
        name = each.partition("@")[0]
        is_name = DATASET_NAME.fullmatch(name)
        if each == own.manifest.whole_reference:
            references.append(_of_itself(own))
        elif is_name and (catalog.latest(name) or ("@" in each and catalog.versions(name))):
            version = catalog.open(each)
            is_own = version.manifest.sha256 == own.manifest.sha256
            references.append(_of_itself(version) if is_own else _of_version(version))
        else:
            references.append(files.read(each, text_field))
    for reference in references:
        kind, wanted = reference.version.manifest.kind, own.manifest.kind
        if kind != wanted:
            why = f"it holds {kind}, and {own.reference} holds {wanted}"
            raise UsageError(f"{reference.name} cannot be compared with", why, "aifx data ls")
    return tuple(references)


def held_out_references(
    version: Version, section: Section | None, project: Project | None, files: ReferenceFiles
) -> tuple[Reference, ...]:
    """The validation and test rows of the version, if it has a column `_split`, and of the project.

    Args:
        section: `[data]` of the project's configuration.

    Raises UsageError if there are none, or if training would hold out some of the rows of the version itself.
    """
    is_split = SPLIT in version.manifest.columns
    references = [_of_itself(version)] if is_split else []
    if project is not None and section is not None:
        if isinstance(section, DatasetSection) and section.dataset is not None:
            references += _of_dataset(version, section, project, files)
        else:
            field = getattr(section, "text_field", "text")
            named = [file for split in HELD_OUT for file in getattr(section, split, ())]
            references += [files.read(file if "://" in file else str(project.root / file), field) for file in named]
            if isinstance(section, TextSection) and not is_split:
                references += _of_training_files(version, section, project, files)
    if not references:
        why = f"it has no column {SPLIT}, and no validation or test split of a project is known"
        raise _nothing_to_compare(version, why, f"aifx data decontaminate {version.manifest.name} --against FILE")
    return tuple(references)


def _of_dataset(
    version: Version, section: DatasetSection, project: Project, files: ReferenceFiles
) -> Iterator[Reference]:
    """The rows that training on `data.dataset` holds out, if they are of the version's kind."""
    for part in section.open_parts(project) if section.version_kind == version.manifest.kind else ():
        manifest = part.manifest
        if manifest.name == version.manifest.name:
            if SPLIT not in version.manifest.columns:
                why = f"data.dataset names it, and training holds out a share of its rows: it has no column {SPLIT}"
                raise _nothing_to_compare(version, why, f"aifx data split {manifest.name}")
        elif SPLIT in manifest.columns:
            yield _of_version(part.version)
        elif not isinstance(section, TextSection):
            why = f"data.dataset names {manifest.reference}, which has no column {SPLIT}: its test is not known"
            raise _nothing_to_compare(version, why, f"aifx data split {manifest.name}")
        elif splits := [split for split in HELD_OUT if (corpus := version_corpus(part, section)).has(split)]:
            yield files.held_out(corpus, splits, f"{' and '.join(splits)} share of {manifest.reference}")


def _of_training_files(
    version: Version, section: TextSection, project: Project, files: ReferenceFiles
) -> Iterator[Reference]:
    """The shares of `data.train` that training holds out."""
    shares = {"validation": section.validation_fraction, "test": section.test_fraction}
    splits = [split for split in HELD_OUT if shares[split] > 0 and not getattr(section, split)]
    try:
        training = find_files(section.train, project, "data.train")
    except DataError:  # a project that is not trained on files
        return
    if not splits:
        return
    sources = {source.name for source in version.manifest.sources}
    if own := [file.name for file in training if file.name in sources]:
        keys = " and ".join(f"data.{split}_fraction" for split in splits)
        why = f"it has the rows of {own[0]}, of which {keys} hold out a share"
        hint = f"aifx data split {version.manifest.name}, and train on it: data.dataset"
        raise _nothing_to_compare(version, why, hint)
    name = f"{' and '.join(splits)} share of data.train"
    (corpus,) = open_corpora(section, project)
    yield files.held_out(corpus, splits, name)


def _of_version(version: Version) -> Reference:
    check_shards(version)
    is_split = SPLIT in version.manifest.columns
    return Reference(version.reference, version, version.manifest.sha256, is_split, has_ids=True)


def _of_itself(version: Version) -> Reference:
    """The held-out rows of the version that is compared, by the name of its data set: a chain makes no such version."""
    return replace(_of_version(version), name=version.manifest.name)


def _nothing_to_compare(version: Version, why: str, hint: str) -> UsageError:
    return UsageError(f"there is nothing to compare {version.reference} with", why, hint)
