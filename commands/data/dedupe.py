"""`aifx data dedupe` and `split`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, StepOptions, print_made
from aifx.core.errors import UsageError
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.verbs.data_steps import Audit

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
        from aifx.verbs.data_steps import data_dedupe, data_dedupe_audit

        of_audit: dict[str, Any] = {"pairs": pairs, "min_recall": min_recall, "seed": seed}
        asked = {option: value for option, value in of_audit.items() if value is not None}
        if not audit:
            if asked:
                why, hint = "it is a setting of the audit", f"aifx data dedupe {name} --audit"
                option = next(iter(asked)).replace("_", "-")
                raise UsageError(f"--{option} can only be used with --audit", why, hint)
            made = data_dedupe(name, near=near, mark=mark, rebuild_sketches=rebuild_sketches, **given.of_step())
            print_made(out, made)
            return
        if mark:
            why = "--audit makes no version"
            raise UsageError("--audit and --mark cannot be used together", why, "leave one of them out")
        if near is not None:
            asked["near"] = near
        found = data_dedupe_audit(name, rebuild_sketches=rebuild_sketches, **asked, **given.of_step())
        out.result(found)
        _print_audit(out, found)


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
        from aifx.verbs.data_steps import data_split

        made = data_split(name, validation=validation, test=test, near=near, seed=seed, **given.of_step())
        print_made(out, made)
        splits = ("train", "validation", "test")
        out.print(", ".join(f"{split} {counted(made.facts.get(split, 0), 'row')}" for split in splits))
