"""`aifx data dedupe` and `split`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, StepOptions, find_catalog, print_made
from aifx.core.errors import ExitCode, UsageError
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.curation.audit import Audit
    from aifx.curation.step import Limits
    from aifx.data.versions.manifest import Version

DEFAULT_NEAR = 0.8

NearOption = Annotated[
    float | None,
    typer.Option(
        "--near",
        metavar="SIMILARITY",
        help="Least Jaccard similarity of near duplicates, such as 0.8. By default only exact copies.",
    ),
]


@option_group
def dedupe(
    name: DatasetArgument,
    given: StepOptions,
    near: NearOption = None,
    mark: Annotated[
        bool, typer.Option("--mark", help="Keep all rows, and only write the cluster of each to _cluster.")
    ] = False,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit", help="Plant edited copies of rows and report which of them are found. Makes no version."
        ),
    ] = False,
    pairs: Annotated[
        int | None, typer.Option("--pairs", metavar="N", min=1, help="Copies that --audit plants. By default 1000.")
    ] = None,
    min_recall: Annotated[
        float | None,
        typer.Option(
            "--min-recall", metavar="SHARE", min=0.0, max=1.0, help="Least share to find with --audit. By default 0.98."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Seed of the copies of --audit. By default 0.")
    ] = None,
    rebuild_sketches: Annotated[
        bool, typer.Option("--rebuild-sketches", help="Delete the sketches that the data set keeps, and make others.")
    ] = False,
) -> None:
    """Drop duplicates: rows that are copies of another, and texts that are nearly the same.

    Examples:
        aifx data dedupe corpus
        aifx data dedupe corpus --near 0.8 --memory 4GB
        aifx data dedupe corpus --near 0.8 --mark
        aifx data dedupe corpus --near 0.8 --audit --min-recall 0.99

    Exits 1 if --audit finds less than --min-recall, or a pair that was joined wrongly.
    """
    with terminal(given.json) as out:
        from aifx.curation.dedupe import Dedupe, sketches_of
        from aifx.curation.execution import execute

        check_similarity(near)
        for option, value in (("--pairs", pairs), ("--min-recall", min_recall), ("--seed", seed)):
            if value is not None and not audit:
                why = "it is a setting of the audit"
                raise UsageError(f"{option} can only be used with --audit", why, f"aifx data dedupe {name} --audit")
        catalog, _ = find_catalog(given.root)
        version = catalog.open(name)
        limits = given.limits
        if rebuild_sketches:
            shutil.rmtree(sketches_of(catalog, version.manifest.name), ignore_errors=True)
        if audit:
            if mark:
                why = "--audit makes no version"
                raise UsageError("--audit and --mark cannot be used together", why, "leave one of them out")
            recall = 0.98 if min_recall is None else min_recall
            _audit(out, version, DEFAULT_NEAR if near is None else near, pairs or 1000, recall, seed or 0, limits)
            return
        step = Dedupe((version,), near, mark)
        print_made(out, execute(step, version.manifest.name, catalog, limits, given.runner(catalog)))


def _audit(
    out: Output, version: Version, near: float, pairs: int, min_recall: float, seed: int, limits: Limits
) -> None:
    from aifx.curation.audit import audit

    with tempfile.TemporaryDirectory() as folder:
        found = audit(version, near, pairs, min_recall, seed, Path(folder), limits)
    out.document(found)
    _print_audit(out, found)
    if not found.is_passed:
        raise SystemExit(ExitCode.VERDICT)


def _print_audit(out: Output, found: Audit) -> None:
    rows = [
        (
            f"{bucket.least:.1f}–{bucket.below:.1f}",
            f"{bucket.pairs:,}",
            f"{bucket.joined:,}",
            f"{bucket.share:.2%}" if bucket.pairs else "-",
        )
        for bucket in found.buckets
    ]
    out.table(["similarity", "planted", "joined", "share"], rows, right=["planted", "joined", "share"])
    verdict = "passed" if found.is_passed else "failed"
    out.print(
        f"{verdict}: recall {found.recall:.2%} at {found.near:g} and above (at least {found.min_recall:.2%}), "
        f"{found.wrong_merges:,} wrong merges"
    )


@option_group
def split(
    name: DatasetArgument,
    given: StepOptions,
    validation: Annotated[
        float,
        typer.Option("--validation", metavar="SHARE", min=0.0, max=1.0, help="Share of the clusters for validation."),
    ] = 0.05,
    test: Annotated[
        float, typer.Option("--test", metavar="SHARE", min=0.0, max=1.0, help="Share of the clusters for the test.")
    ] = 0.1,
    near: Annotated[
        float | None,
        typer.Option(
            "--near",
            metavar="SIMILARITY",
            help="Least Jaccard similarity of texts that stay together. By default 0.8 for text; otherwise copies do.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the hash that chooses the split.")] = 0,
) -> None:
    """Send each row to training, validation or test, so that near duplicates are in one split.

    Examples:
        aifx data split corpus --validation 0.05 --test 0.1
        aifx data split corpus --near 0.6 --seed 7

    The column _split holds the split. It depends on the row's duplicate cluster and the seed alone.
    """
    with terminal(given.json) as out:
        from aifx.curation.execution import execute
        from aifx.curation.split import Split

        check_similarity(near)
        if validation + test >= 1:
            why = f"--validation {validation:g} and --test {test:g} leave nothing for training"
            raise UsageError("the shares are too large", why, f"aifx data split {name} --validation 0.05 --test 0.1")
        catalog, _ = find_catalog(given.root)
        version = catalog.open(name)
        if near is None and version.manifest.kind == "text":
            near = DEFAULT_NEAR
        made = execute(
            Split((version,), validation, test, near, seed),
            version.manifest.name,
            catalog,
            given.limits,
            given.runner(catalog),
        )
        print_made(out, made)
        counts = made.version.manifest.facts
        out.print(
            ", ".join(f"{split} {counted(counts.get(split, 0), 'row')}" for split in ("train", "validation", "test"))
        )


def check_similarity(near: float | None) -> None:
    """Raises UsageError if it is no Jaccard similarity that can be searched for."""
    if near is not None and not 0.2 <= near <= 1:
        why = "a Jaccard similarity below 0.2 makes almost every row a candidate, and none exceeds 1"
        raise UsageError(f"--near {near:g} is not between 0.2 and 1", why, f"--near {DEFAULT_NEAR}")
