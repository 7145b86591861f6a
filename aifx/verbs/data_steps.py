"""Steps that make a version of a data set from one of its versions, or from other data sets."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from aifx.core.errors import ExitCode, UsageError
from aifx.core.licensing import LicenseConflict
from aifx.core.plurals import counted
from aifx.curation.execution import MadeVersion, made_version
from aifx.verbs.arguments import StrPath, check_number
from aifx.verbs.catalogs import StepOptions, StepPlace, licensing_project, open_place, project_around

if TYPE_CHECKING:
    from aifx.core.project import Project
    from aifx.curation.audit import Audit
    from aifx.curation.decontaminate import Contamination, Reference
    from aifx.curation.duplicates import Dedupe
    from aifx.curation.pii.reports import PiiReport
    from aifx.data.versions.manifest import Version

log = logging.getLogger(__name__)

DEFAULT_NEAR = 0.8


def data_clean(
    name: str,
    *,
    rules: Sequence[str] = ("gopher",),
    languages: Sequence[str] | None = (),
    unicode: Literal["NFC", "NFKC", "none"] = "NFC",
    repair: bool = True,
    max_dropped: float = 0.5,
    **options: Unpack[StepOptions],
) -> MadeVersion:
    """Repair texts, and drop rows by language, length and repetition.

    If more rows are dropped than allowed, the result is not accepted, and the name still means the version before.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        rules: sets of rules to apply: "gopher", "c4", "fineweb", or paths to .toml files.
        languages: keep rows in these languages, such as "en"; by default in all. None identifies no language.
        unicode: Unicode form of the texts.
        repair: repair wrongly decoded text, and remove control characters.
        max_dropped: most rows that may be dropped, as a share. It is no setting of the version, so that a larger share
            accepts the one that is there.

    Example:
        >>> cleaned = aifx.data_clean("corpus", rules=[], languages=["en"])
        >>> cleaned.reference.startswith("corpus@"), cleaned.is_accepted
        (True, True)
    """
    from aifx.curation.cleaning import Clean, check_text, dropped_share
    from aifx.curation.rules import load_rules

    check_number("--max-dropped", max_dropped, 1)
    kept = None if languages is None else _known_languages(languages)
    chosen = load_rules(rules, Path.cwd())
    place = open_place(**options)
    parent = place.open(name)
    check_text(parent.manifest)
    if kept is None and (bound := [rule.id for rule in chosen if rule.languages]):
        log.info("--languages none: %s judges no row, because it is for some languages", ", ".join(bound))
    step = Clean((parent,), chosen, kept, unicode, repair)
    made = place.execute(step, parent.manifest.name, lambda manifest: dropped_share(manifest) <= max_dropped)
    if not made.is_accepted:
        share, what = dropped_share(made.version.manifest), parent.manifest.name
        more = f"{share:.1%} of the rows are dropped, more than --max-dropped {max_dropped:g}"
        log.info("%s: %s still means the version before", more, what)
    return made_version(made)


def _known_languages(codes: Sequence[str]) -> tuple[str, ...]:
    """Check codes of languages. Raises UsageError for an unknown one."""
    if not codes:
        return ()
    from aifx.curation.languages import known_languages, language_code

    known = known_languages()
    for code in codes:
        if code not in known:
            meant = language_code(code)
            why = f"did you mean {meant!r}?" if meant in known else "languages have codes of ISO 639, such as en, de"
            raise UsageError(f"--languages: no language {code!r}", why, "--languages en,de")
    return tuple(dict.fromkeys(codes))


def data_dedupe(
    name: str,
    *,
    near: float | None = None,
    semantic: float | None = None,
    embedder: str | None = None,
    images: bool = False,
    distance: int | None = None,
    mark: bool = False,
    rebuild_sketches: bool = False,
    **options: Unpack[StepOptions],
) -> MadeVersion:
    """Drop duplicates: rows that are copies of another, texts that are nearly the same, pictures that look the same.

    If files were added to a data set that was deduplicated with the same arguments, rows that were kept stay.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        near: least Jaccard similarity of near duplicates, such as 0.8; by default only exact copies.
        semantic: also drop texts whose vectors have at least this cosine, such as 0.92.
        embedder: of these texts, as `data_index` takes it; by default "ngrams".
        images: also drop pictures that look the same, such as one in two sizes.
        distance: most bits of 64 in which the perceptual hashes of such pictures differ; by default 8.
        mark: keep all rows, and only write the cluster of each to the column "_cluster".
        rebuild_sketches: delete the sketches that the data set keeps, and make others.

    Example:
        >>> aifx.data_dedupe("corpus").dropped
        1
    """
    from aifx.curation.duplicates import Dedupe

    _check_similarity(near)
    ways = {"--near": near is not None, "--semantic": semantic is not None, "--images": images}
    if len(given := [option for option, is_given in ways.items() if is_given]) > 1:
        why = "a version has the clusters of one of them"
        raise UsageError(f"{' and '.join(given)} cannot be used together", why, "one after the other")
    for option, value, needs in (("--distance", distance, "--images"), ("--embedder", embedder, "--semantic")):
        if value is not None and not ways[needs]:
            raise UsageError(f"{option} can only be used with {needs}", f"it is a setting of {needs}", needs)
    place = open_place(**options)
    version = place.open(name)
    step = Dedupe((version,), near, mark)
    if images:
        step = _of_pictures(version, distance, mark)
    if semantic is not None:
        project = place.project or project_around(options.get("project", "."))
        step = _of_meanings(version, semantic, embedder or "ngrams", mark, project)
    if rebuild_sketches:
        _delete_sketches(place, version)
    return made_version(place.execute(step, version.manifest.name))


def _of_meanings(version: Version, cosine: float, embedder: str, mark: bool, project: Project | None) -> Dedupe:
    from aifx.search.opening import open_embedder
    from aifx.search.semantic import SemanticDedupe, check_texts

    if not 0 < cosine <= 1:
        why = "it is the cosine of the angle between two vectors"
        raise UsageError(f"--semantic {cosine:g} is not above 0 and at most 1", why, "--semantic 0.92")
    check_texts(version)
    return SemanticDedupe((version,), mark=mark, cosine=cosine, embedder=open_embedder(embedder, None, project))


def _of_pictures(version: Version, distance: int | None, mark: bool) -> Dedupe:
    from aifx.curation.pictures import DISTANCE, MOST_DISTANCE, PictureDedupe, check_pictures

    check_pictures(version)
    distance = DISTANCE if distance is None else distance
    if not 0 <= distance <= MOST_DISTANCE:
        why = f"hashes have 64 bits, and those of different pictures differ in about 32: {MOST_DISTANCE} is the most"
        raise UsageError(f"--distance {distance} is not between 0 and {MOST_DISTANCE}", why, f"--distance {DISTANCE}")
    return PictureDedupe((version,), mark=mark, distance=distance)


def data_dedupe_audit(
    name: str,
    *,
    near: float = DEFAULT_NEAR,
    pairs: int = 1000,
    min_recall: float = 0.98,
    seed: int = 0,
    rebuild_sketches: bool = False,
    **options: Unpack[StepOptions],
) -> Audit:
    """Plant edited copies of rows, and report which of them `data_dedupe` finds. Makes no version.

    The audit fails if it finds too few, or joins a pair wrongly.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        near: least Jaccard similarity of near duplicates.
        pairs: copies to plant.
        min_recall: least share of the copies to find.
        seed: of the copies.
        rebuild_sketches: delete the sketches that the data set keeps, and make others.

    Example:
        >>> aifx.data_dedupe_audit("corpus", pairs=20).wrong_merges
        0
    """
    from aifx.curation.audit import audit

    if (on := options.get("on", "local")) != "local":
        why = "no version is made: the audit runs in this process"
        raise UsageError(f"--on {on} cannot be used with --audit", why, "leave it out")
    _check_similarity(near)
    place = open_place(**options)
    version = place.open(name)
    if rebuild_sketches:
        _delete_sketches(place, version)
    with tempfile.TemporaryDirectory() as folder:
        return audit(version, near, pairs, min_recall, seed, Path(folder), place.limits)


def _delete_sketches(place: StepPlace, version: Version) -> None:
    from aifx.curation.work_folders import SKETCHES, holding_dataset, steps_folder

    name = version.manifest.name
    with holding_dataset(name, place.catalog, "deletes its sketches"):
        shutil.rmtree(steps_folder(name, place.catalog) / SKETCHES, ignore_errors=True)


def _check_similarity(near: float | None) -> None:
    """Check a Jaccard similarity to search for. Raises UsageError."""
    if near is not None and not 0.2 <= near <= 1:
        why = "a Jaccard similarity below 0.2 makes almost every row a candidate, and none exceeds 1"
        raise UsageError(f"--near {near:g} is not between 0.2 and 1", why, f"--near {DEFAULT_NEAR}")


def data_split(
    name: str,
    *,
    validation: float = 0.05,
    test: float = 0.1,
    near: float | None = None,
    seed: int = 0,
    **options: Unpack[StepOptions],
) -> MadeVersion:
    """Send each row to training, validation or test, so that near duplicates are in one split.

    The column "_split" holds the split. It depends on the row's duplicate cluster and the seed. If files were added to
    a data set that was split with the same arguments, earlier rows keep their split and decide for new ones.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        validation: share of the clusters for validation.
        test: share of the clusters for the test.
        near: least Jaccard similarity of texts that stay together; by default 0.8 for text, otherwise copies do.
        seed: of the hash that chooses the split.

    Example:
        >>> splits = aifx.data_split("poems", validation=0.2, test=0.2).facts
        >>> splits["train"] + splits["validation"] + splits["test"]
        40
    """
    from aifx.curation.duplicates import Split

    _check_similarity(near)
    for split, share in (("validation", validation), ("test", test)):
        if not 0 <= share < 1:
            raise UsageError(f"--{split} {share:g} is no share", "it is at least 0 and below 1", f"--{split} 0.1")
    if validation + test >= 1:
        why = f"--validation {validation:g} and --test {test:g} leave nothing for training"
        raise UsageError("the shares are too large", why, f"aifx data split {name} --validation 0.05 --test 0.1")
    place = open_place(**options)
    version = place.open(name)
    if near is None and version.manifest.kind == "text":
        near = DEFAULT_NEAR
    return made_version(place.execute(Split((version,), validation, test, near, seed), version.manifest.name))


def data_decontaminate(
    name: str, *, against: Sequence[StrPath] = (), text_field: str = "text", **options: Unpack[StepOptions]
) -> MadeVersion:
    """Make a version without the rows that share 13 words in a row with the texts of a test.

    Of a table or pictures, it is without the rows that have the same values, or the same picture, as a row of the test.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        against: data sets or files whose rows must not be in it; by default its own validation and test rows,
            and the validation and test splits of the project.
        text_field: field with the text in these files.

    Example:
        >>> aifx.data_decontaminate("corpus", against=["benchmark.jsonl"]).dropped
        1
    """
    from aifx.curation.copies import DropCopied
    from aifx.curation.decontaminate import Decontaminate

    place = open_place(**options)
    version = place.open(name)
    with tempfile.TemporaryDirectory() as folder:
        references = _references(place, version, against, text_field, Path(folder))
        step = (Decontaminate if version.manifest.kind == "text" else DropCopied)((version,), references)
        return made_version(place.execute(step, version.manifest.name))


def data_contamination(
    name: str,
    *,
    against: Sequence[StrPath] = (),
    text_field: str = "text",
    show: int = 20,
    **options: Unpack[StepOptions],
) -> Contamination:
    """Find the rows that `data_decontaminate` drops. The verdict is bad if there is one.

    Args:
        show: number of these rows to list.

    The other arguments are those of `data_decontaminate`.

    Example:
        >>> aifx.data_contamination("corpus", against=["benchmark.jsonl"]).overlapping
        1
    """
    from aifx.curation.copies import find_copied
    from aifx.curation.decontaminate import find_contamination

    place = open_place(**options)
    version = place.open(name)
    with tempfile.TemporaryDirectory() as folder:
        references = _references(place, version, against, text_field, Path(folder))
        if version.manifest.kind != "text":
            return find_copied(version, references, place.limits, show)
        work = Path(folder, "index")
        work.mkdir()
        return find_contamination(version, references, work, place.limits, show)


def _references(
    place: StepPlace, version: Version, against: Sequence[StrPath], text_field: str, folder: Path
) -> tuple[Reference, ...]:
    """The rows to compare with; those of files are written into a folder. Raises UsageError, DataError."""
    from aifx.curation.references import ReferenceFiles, held_out_references, open_references
    from aifx.kinds import load_config

    kind = version.manifest.kind
    if kind == "chat":
        what = "decontaminate is for texts, tables and pictures"
        raise UsageError(what, f"{version.reference} holds {kind}", "aifx data ls")
    files = ReferenceFiles(place.project.root if place.project else Path.cwd(), folder / "texts", place.limits, kind)
    if against:
        return open_references([os.fspath(each) for each in against], place.catalog, files, text_field, version)
    section = load_config(place.project).data if place.project is not None else None
    return held_out_references(version, section, place.project, files)


def data_pii(
    name: str,
    *,
    mask: bool = False,
    drop: bool = False,
    kinds: Sequence[str] | None = None,
    region: Sequence[str] = ("US",),
    spans: int = 10,
    output: StrPath | None = None,
    **options: Unpack[StepOptions],
) -> PiiReport:
    """Find personal data and secrets in texts; mask them, or drop their rows.

    The verdict is bad if something is found and neither masked nor dropped. The report never has the data itself.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        mask: make a version with "[EMAIL]" and so on instead.
        drop: make a version without the rows that have any.
        kinds: to look for: "email", "phone", "credit_card", "iban", "national_id", "ip_address", "mac_address",
            "api_key", "private_key", "jwt", "crypto_wallet", and "name" with the extra pii-names. By default all
            except "name".
        region: countries whose telephone numbers are found without "+".
        spans: number of places to list.
        output: file for all places, as lines of JSON.

    Example:
        >>> [(kind.kind, kind.rows) for kind in aifx.data_pii("corpus", mask=True).kinds]
        [('email', 1)]
    """
    from aifx.curation.pii.finders import KINDS, make_detector
    from aifx.curation.pii.reports import report_made, search
    from aifx.curation.pii.steps import FindPii, RemovePii, text_columns

    if mask and drop:
        why = "a dropped row has no mask"
        raise UsageError("--mask and --drop cannot be used together", why, "leave one of them out")
    if output is not None and (mask or drop):
        why = "places are those of the version that is searched"
        raise UsageError("--output cannot be used with --mask or --drop", why, "run it first without them")
    if options.get("on", "local") != "local" and not (mask or drop):
        raise UsageError("--on slurm requires --mask or --drop", "without them no version is made", "leave it out")
    if kinds is not None and not kinds:
        raise UsageError("--kinds names no kind", "nothing would be found", "--kinds email,phone, or leave it out")
    detector = make_detector(KINDS if kinds is None else kinds, region)
    place = open_place(**options)
    version = place.open(name)
    text_columns(version.manifest)
    if mask or drop:
        step = RemovePii((version,), detector, "mask" if mask else "drop")
        return report_made(version, place.execute(step, version.manifest.name))
    report = search(FindPii((version,), detector), place.limits, spans, None if output is None else Path(output))
    if report.exit_code == ExitCode.VERDICT:
        rows = counted(report.rows, "row")
        log.info("%s of %s have personal data: --mask or --drop removes it", f"{report.rows_found:,}", rows)
    return report


@dataclass(frozen=True)
class CombinedVersion(MadeVersion):
    """The document of a command that makes a version from more than one.

    Attributes:
        license_conflicts: among the sources of its parents.
    """

    license_conflicts: tuple[LicenseConflict, ...]


def data_join(
    name: str,
    features: str,
    *,
    key: Sequence[str],
    asof: str,
    columns: Sequence[str] | None = None,
    tolerance: str | None = None,
    strictly_before: bool = False,
    prefix: str | None = None,
    **options: Unpack[StepOptions],
) -> CombinedVersion:
    """Join each row of a data set with the newest row of another one that is not later.

    So no column of the result was known only after the row's time. All rows stay; where no row is found, the new
    columns are null. They are the features' id, their time and the chosen columns. A name that the data set has already
    gets the name of the features before it. Of rows with one time, the last of the features counts.

    Args:
        name: data set of the events: "NAME" for its latest version, or "NAME@VERSION".
        features: data set whose rows are looked up, in the same way.
        key: columns of both that must be equal; none for one series of features.
        asof: column with the times of both, or "EVENT_TIME:FEATURE_TIME". They are times that both have a zone or none,
            dates, numbers, or texts of ISO 8601.
        columns: of the features; by default all but those that aifx adds.
        tolerance: largest age of a row, such as "7d" or "90m"; of numbers, a number. By default any.
        strictly_before: leave out rows of the event's own time.
        prefix: of the names of all new columns.

    Example:
        >>> joined = aifx.data_join("orders", "prices", key=["product"], asof="time")
        >>> joined.facts["matched"], joined.facts["unmatched"]
        (2, 1)
    """
    from aifx.curation.joining import Join, parse_asof, parse_tolerance
    from aifx.data.versions.catalog import check_own_rows
    from aifx.data.versions.licenses import check_licenses

    if tolerance is not None:
        parse_tolerance(tolerance)
    place = open_place(**options)
    parents = (place.open(name), place.catalog.open(features))
    for parent in parents:
        check_own_rows(parent.manifest, "aifx data join")
    chosen = None if columns is None else tuple(columns)
    step = Join(parents, tuple(key), *parse_asof(asof, *parents), chosen, tolerance, strictly_before, prefix)
    if (own := step.own_features) is None:
        step.check()
    else:
        step = replace(step, parents=(parents[0], place.catalog.open(own)))
    project = licensing_project(place.project, options.get("project", "."))
    manifests = [parent.manifest for parent in step.parents]
    use = f"{manifests[0].reference} with {manifests[1].reference}"
    conflicts = check_licenses(manifests, place.catalog, project, use)
    made = made_version(place.execute(step, manifests[0].name))
    return CombinedVersion(**vars(made), license_conflicts=conflicts)


def data_compact(name: str, **options: Unpack[StepOptions]) -> MadeVersion:
    """Write the rows of a version again, into whole shards of its own.

    A version with a few new rows refers to the shards of versions before it, and each addition makes a small one. The
    new version has the same rows in the same order. The earlier ones stay.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".

    Example:
        >>> aifx.data_compact("corpus").is_new  # one shard of its own
        False
    """
    from aifx.curation.compact import Compact, is_compact
    from aifx.curation.execution import Made

    place = open_place(**options)
    version = place.open(name)
    if is_compact(version):
        return made_version(Made(version, is_new=False))
    return made_version(place.execute(Compact((version,)), version.manifest.name))


@dataclass(frozen=True)
class MixedVersion:
    """A version in a mix.

    Attributes:
        share: of the training tokens.
        epochs: most times that training reads each row; None without a bound.
    """

    reference: str
    share: float
    epochs: float | None
    rows: int
    size_bytes: int


@dataclass(frozen=True)
class MadeMix(CombinedVersion):
    """The document of `aifx data mix --json`.

    Attributes:
        reference: "name@version".
        parents: versions that it was made from.
        rows, size_bytes: those of its parents.
        dropped: rows that the step left out: none.
        dropped_by: the same by rule.
        facts: what the step found.
        is_new: False if the same version was there already.
        is_accepted: whether the name alone means this version: always.
        license_conflicts: among the sources of its parents.
        mixed: the versions in the mix.
    """

    mixed: tuple[MixedVersion, ...]


def data_mix(name: str, *sets: str, epochs: Sequence[str] = (), **options: Unpack[StepOptions]) -> MadeMix:
    """Mix data sets of text into one, which training streams without a copy of their rows.

    When training has read a set as often as `epochs` allows, it reads the others in proportion to their weights.

    Args:
        name: data set to make.
        sets: "SET:WEIGHT" each: data sets with their shares of the training tokens, which need not sum to 1.
        epochs: "SET:N", or "N" for all sets: most times that training reads each row; by default without a bound.

    Example:
        >>> blend = aifx.data_mix("blend", "corpus:3", "letters:1", epochs=["letters:2"])
        >>> [round(one.share, 2) for one in blend.mixed]
        [0.75, 0.25]
    """
    from aifx.curation.mix import mix_of, parse_sets
    from aifx.data.versions.licenses import check_licenses

    asked = parse_sets(sets, epochs)
    place = open_place(**options)
    step = mix_of(asked, place.catalog)
    project = licensing_project(place.project, options.get("project", "."))
    manifests = [parent.manifest for parent in step.parents]
    conflicts = check_licenses(manifests, place.catalog, project, f"the mix {name}")
    made = made_version(place.execute(step, name))
    whole = sum(step.weights)
    mixed = tuple(
        MixedVersion(parent.reference, weight / whole, epochs, parent.manifest.rows, parent.manifest.bytes)
        for parent, weight, epochs in zip(step.parents, step.weights, step.epochs, strict=True)
    )
    return MadeMix(**vars(made), license_conflicts=conflicts, mixed=mixed)
