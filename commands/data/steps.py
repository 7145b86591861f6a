"""Steps of `aifx data`: clean, pii, decontaminate, dedupe, split, join, compact and mix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aifx.commands.console.options import JsonOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, MaxDroppedOption, RootOption, StepOptions, names_of, print_made
from aifx.core.errors import UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.verbs.data_steps import Audit, Contamination, PiiReport


@option_group
def clean(
    name: DatasetArgument,
    given: StepOptions,
    rules: Annotated[
        str,
        typer.Option(
            "--rules",
            metavar="SET,…",
            help="Rules to apply: gopher, c4, fineweb, paths to .toml files, or none.",
        ),
    ] = "gopher",
    languages: Annotated[
        str,
        typer.Option(
            "--languages",
            metavar="CODE,…|all|none",
            help="Keep rows in these languages, such as en,de. 'none' does not identify languages.",
        ),
    ] = "all",
    unicode: Annotated[
        Literal["NFC", "NFKC", "none"],
        typer.Option("--unicode", metavar="NFC|NFKC|none", help="Unicode form of the texts."),
    ] = "NFC",
    repair: Annotated[
        bool,
        typer.Option("--repair/--no-repair", help="Repair wrongly decoded text, remove control characters."),
    ] = True,
    max_dropped: MaxDroppedOption = 0.5,
) -> None:
    """Repair texts, and drop rows by language, length and repetition.

    Examples:
        aifx data clean corpus
        aifx data clean corpus --languages en,de --rules gopher,fineweb
        aifx data clean corpus@3f2a --rules none --languages none
        aifx data clean corpus --rules gopher,rules.toml --max-dropped 0.2 --json

    Makes a new version. Exits 1 if more than --max-dropped is dropped: then NAME still means the version before.
    """
    with terminal(given.json) as out:
        from aifx.verbs.data_steps import data_clean

        made = data_clean(
            name,
            rules=[] if rules == "none" else names_of(rules, "--rules", "--rules none"),
            languages=_languages(languages),
            unicode=unicode,
            repair=repair,
            max_dropped=max_dropped,
            **given.of_step(),
        )
        print_made(out, made)
        if changed := made.facts["rows_changed"]:
            out.print(f"{changed:,} of its rows have another text than before")


def _languages(text: str) -> list[str] | None:
    """The languages to keep: all if empty, None to identify none."""
    if text in ("all", "none"):
        return [] if text == "all" else None
    return names_of(text, "--languages", "--languages none")


KINDS_HELP = (
    "Kinds to look for: email, phone, credit_card, iban, national_id, ip_address, mac_address, api_key, private_key, "
    "jwt, crypto_wallet, and name with the extra pii-names. By default all except name."
)


@option_group
def pii(
    name: DatasetArgument,
    given: StepOptions,
    mask: Annotated[bool, typer.Option("--mask", help="Make a version with [EMAIL] and so on instead.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Make a version without the rows that have any.")] = False,
    kinds: Annotated[str | None, typer.Option("--kinds", metavar="KIND,…", help=KINDS_HELP)] = None,
    region: Annotated[
        str,
        typer.Option("--region", metavar="CODE,…", help="Countries whose telephone numbers are found without '+'."),
    ] = "US",
    spans: Annotated[int, typer.Option("--spans", metavar="N", min=0, help="List the first N places.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write all places to FILE, as lines of JSON.")
    ] = None,
) -> None:
    """Find personal data and secrets in texts; mask them, or drop their rows.

    Examples:
        aifx data pii corpus
        aifx data pii corpus --kinds email,phone --region US,DE --output places.jsonl
        aifx data pii corpus --mask
        aifx data pii corpus --drop --json

    Exits 1 if something is found and neither --mask nor --drop is given. The data itself is never printed or written.
    """
    with terminal(given.json) as out:
        from aifx.verbs.data_steps import data_pii

        report = data_pii(
            name,
            mask=mask,
            drop=drop,
            kinds=names_of(kinds, "--kinds", "leave it out") if kinds is not None else None,
            region=names_of(region, "--region", "leave it out"),
            spans=spans,
            output=output,
            **given.of_step(),
        )
        out.result(report)
        _print_pii(out, report, drop)


def _print_pii(out: Output, report: PiiReport, is_drop: bool) -> None:
    for column in report.unsearched:
        out.log(f"the column {column!r} is not searched: it does not hold plain texts")
    if report.made is not None:
        done = "dropped" if is_drop else "masked"
        out.print(f"{report.made.reference}: {counted(report.made.rows, 'row')}, {report.rows_found:,} {done}")
    if not report.kinds:
        out.print(f"{report.reference}: nothing found in {counted(report.rows, 'row')}")
        return
    rows = [
        (
            kind.kind,
            f"{kind.spans:,}",
            f"{kind.rows:,}",
            ", ".join(f"{check} {count:,}" for check, count in kind.checks.items()),
            "  ".join(kind.shapes),
        )
        for kind in report.kinds
    ]
    out.table(["kind", "places", "rows", "checks", "shapes"], rows, right=["places", "rows"])
    for span in report.spans:
        out.print(f"{span.row} {span.column} {span.start}-{span.end}: {span.kind} ({span.check})")


@option_group
def decontaminate(
    name: DatasetArgument,
    given: StepOptions,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="TEST",
            help="Data set or file with rows that must not be in NAME. Can be repeated. By default the validation "
            "and test rows of NAME, and the validation and test splits of the project.",
        ),
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Make a version without the rows that overlap.")] = False,
    text_field: Annotated[
        str, typer.Option("--text-field", metavar="FIELD", help="Field with the text in the files of --against.")
    ] = "text",
    show: Annotated[int, typer.Option("--show", metavar="N", min=0, help="List N rows that overlap.")] = 20,
) -> None:
    """Find rows that share 13 words in a row with the texts of a test, and drop them with --drop.

    Rows of tables and pictures are found if the test has the same values or the same picture.

    Examples:
        aifx data decontaminate corpus
        aifx data decontaminate corpus --against benchmark.jsonl --text-field question
        aifx data decontaminate corpus --against benchmarks@3f2a --drop

    Exits 1 if a row overlaps, unless --drop makes a version without it.
    """
    with terminal(given.json) as out:
        from aifx.verbs.data_steps import data_contamination, data_decontaminate

        if drop:
            made = data_decontaminate(name, against=against or (), text_field=text_field, **given.of_step())
            print_made(out, made)
            return
        found = data_contamination(name, against=against or (), text_field=text_field, show=show, **given.of_step())
        out.result(found)
        _print_decontaminate(out, found)


def _print_decontaminate(out: Output, found: Contamination) -> None:
    for reference in found.against:
        short = f", {reference.too_short:,} of them shorter than 13 words" if reference.too_short else ""
        out.log(f"compared with {counted(reference.texts, 'row')} of {reference.name}{short}")
    for overlap in found.overlaps:
        shared = f"{overlap.words:,} words" if overlap.words else "a copy"
        out.print(f"{overlap.row} of {overlap.source}: {shared} of {overlap.place}")
        if overlap.text:
            out.print(f"  {' '.join(overlap.text.split())}", soft_wrap=True)
    if found.overlapping > len(found.overlaps):
        out.print(f"and {found.overlapping - len(found.overlaps):,} more rows")
    if found.overlapping:
        out.print(
            f"{found.overlapping:,} of {counted(found.rows, 'row')} of {found.reference} overlap: "
            "--drop leaves them out"
        )
    else:
        out.print(f"no row of {found.reference} overlaps")


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
    semantic: Annotated[
        float | None,
        typer.Option("--semantic", metavar="COSINE", help="Also drop texts of about the same meaning, such as 0.92."),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            "--embedder",
            metavar="ngrams|RUN|FOLDER",
            help="Vectors of --semantic: hashed n-grams (default), a run of the project, or a local sentence encoder.",
        ),
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Also drop pictures that look the same, such as one in two sizes.")
    ] = False,
    distance: Annotated[
        int | None,
        typer.Option(
            "--distance",
            metavar="BITS",
            help="Most bits of 64 in which the perceptual hashes of such pictures differ. By default 8.",
        ),
    ] = None,
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
    """Drop duplicates: rows that are copies of another, texts that are nearly the same, pictures that look the same.

    Examples:
        aifx data dedupe corpus
        aifx data dedupe corpus --near 0.8 --memory 4GB
        aifx data dedupe corpus --semantic 0.92 --embedder models/encoder
        aifx data dedupe photos --images
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
            made = data_dedupe(
                name,
                near=near,
                semantic=semantic,
                embedder=embedder,
                images=images,
                distance=distance,
                mark=mark,
                rebuild_sketches=rebuild_sketches,
                **given.of_step(),
            )
            print_made(out, made)
            return
        others = {"--mark": mark, "--semantic": semantic is not None, "--images": images}
        if other := next((option for option, value in others.items() if value), None):
            why = "the audit plants texts, and makes no version"
            raise UsageError(f"--audit and {other} cannot be used together", why, "leave one of them out")
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

    The column _split holds the split. Earlier rows keep theirs, and new rows follow those that they resemble.
    """
    with terminal(given.json) as out:
        from aifx.verbs.data_steps import data_split

        made = data_split(name, validation=validation, test=test, near=near, seed=seed, **given.of_step())
        print_made(out, made)
        splits = ("train", "validation", "test")
        out.print(", ".join(f"{split} {counted(made.facts.get(split, 0), 'row')}" for split in splits))


@option_group
def join(
    name: DatasetArgument,
    features: Annotated[
        str, typer.Argument(metavar="FEATURES", help="Data set whose rows are looked up: NAME or NAME@VERSION.")
    ],
    given: StepOptions,
    key: Annotated[
        str,
        typer.Option("--key", metavar="COLUMN,…|none", help="Columns of both that must be equal, or none."),
    ],
    asof: Annotated[
        str,
        typer.Option(
            "--asof",
            metavar="TIME[:TIME]",
            help="Column with the times of both, or that of NAME and that of FEATURES.",
        ),
    ],
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="COLUMN,…", help="Columns of FEATURES to join. By default all."),
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(
            "--tolerance",
            metavar="AGE",
            help="Largest age of a row, such as 7d, 12h, 90m or 30s; of numbers, a number. By default any.",
        ),
    ] = None,
    strictly_before: Annotated[
        bool, typer.Option("--strictly-before", help="Leave out rows of the very time of the row of NAME.")
    ] = False,
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix",
            metavar="TEXT",
            help="Put TEXT before the names of all new columns. By default FEATURES_ before those that NAME has.",
        ),
    ] = None,
) -> None:
    """Join each row of NAME with the newest row of FEATURES that is not later, so that nothing leaks from the future.

    Examples:
        aifx data join orders prices --key product --asof time
        aifx data join orders prices --key product,shop --asof ordered_at:known_at --tolerance 7d
        aifx data join trades rates --key none --asof time --columns rate --strictly-before

    Makes a new version of NAME with all of its rows. Where no row is found, the new columns are null.
    """
    with terminal(given.json) as out:
        from aifx.verbs.data_steps import data_join

        made = data_join(
            name,
            features,
            key=[] if key == "none" else names_of(key, "--key", "--key none"),
            asof=asof,
            columns=None if columns is None else names_of(columns, "--columns", "leave it out"),
            tolerance=tolerance,
            strictly_before=strictly_before,
            prefix=prefix,
            **given.of_step(),
        )
        print_made(out, made)
        out.print(f"{counted(made.facts['matched'], 'row')} joined, {made.facts['unmatched']:,} without a row in time")


@option_group
def compact(name: DatasetArgument, given: StepOptions) -> None:
    """Write the rows of a version again, into whole shards of its own.

    Examples:
        aifx data compact corpus
        aifx data compact corpus@3f2a --json

    Makes a new version with the same rows in the same order. Earlier versions stay.
    """
    with terminal(given.json) as out:
        from aifx.verbs.data_steps import data_compact

        print_made(out, data_compact(name, **given.of_step()))


def mix(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set to make.")],
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="SET:WEIGHT…", help="Data sets, each with its share of the training tokens; they need not sum to 1."
        ),
    ],
    epochs: Annotated[
        list[str] | None,
        typer.Option(
            "--epochs",
            metavar="[SET:]N",
            help="Most times that training reads each row of SET, or of all sets. Repeatable. By default no bound.",
        ),
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Mix data sets of text into one, which training streams without a copy of their rows.

    Examples:
        aifx data mix blend web:0.7 books:0.3
        aifx data mix blend web@3f2a:7 books:3 --epochs books:4
        aifx train --set data.dataset=blend

    When training has read a set as often as --epochs allows, it reads the others in proportion to their weights.
    """
    with terminal(json) as out:
        from aifx.verbs.data_steps import data_mix

        made = data_mix(name, *sets, epochs=epochs or (), root=root)
        out.result(made)
        there = "" if made.is_new else ", which was there already"
        size = readable_bytes(made.size_bytes)
        out.print(f"{made.reference}: {counted(made.rows, 'row')}, {size}, not copied{there}")
        rows = [
            (
                one.reference,
                f"{one.share:.1%}",
                "-" if one.epochs is None else f"{one.epochs:g}",
                f"{one.rows:,}",
                readable_bytes(one.size_bytes),
            )
            for one in made.mixed
        ]
        out.table(["mixed", "share", "epochs", "rows", "size"], rows, right=["share", "epochs", "rows", "size"])
