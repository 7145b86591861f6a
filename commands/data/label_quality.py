"""`aifx data label agreement` and `suspects`: how good labels are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.label_options import ColumnOption
from aifx.commands.data.options import DatasetArgument, RootOption
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.verbs.data_labels import Agreement

SHOWN_DISAGREEMENTS = 10
SHOWN_SUSPECTS = 20


def agreement(
    name: DatasetArgument,
    min_agreement: Annotated[
        float | None,
        typer.Option("--min-agreement", metavar="ALPHA", max=1.0, help="Exit 1 if alpha is below this bound."),
    ] = None,
    column: ColumnOption = "label",
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Measure how far labellers agree: Krippendorff's alpha, and the rows on which they differ.

    Examples:
        aifx data label agreement reviews
        aifx data label agreement reviews --min-agreement 0.8

    Alpha is 1 if all agree and 0 if they agree as often as chance would. It counts rows with labels of two labellers
    or more.
    """
    with terminal(json) as out:
        from aifx.verbs.data_labels import data_label_agreement

        found = data_label_agreement(name, min_agreement=min_agreement, column=column, root=root)
        out.result(found)
        _print_agreement(out, found)


def suspects(
    name: DatasetArgument,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            metavar="FILE",
            help="Probabilities of a model that was not trained on these labels, from aifx predict.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the suspects to FILE (.jsonl).")
    ] = None,
    column: ColumnOption = "label",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the folds.")] = 0,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Find labels that are probably wrong, by confident learning (cleanlab).

    Examples:
        aifx data label suspects pictures
        aifx data label suspects pictures --predictions predictions.jsonl --output suspects.jsonl
        aifx data label serve pictures --labels bag,shirt --uncertain suspects.jsonl --relabel

    Without --predictions, a logistic regression on words or pixels judges each row in cross-validation.
    """
    with terminal(json) as out:
        from aifx.verbs.data_labels import data_label_suspects

        found = data_label_suspects(name, predictions=predictions, output=output, column=column, seed=seed, root=root)
        out.result(found)
        where = f", in {output}" if output is not None else ""
        out.print(f"suspects: {len(found.suspects):,} of {counted(found.rows, 'label')}{where}")
        if found.unjudged:
            out.log(
                f"not judged: {counted(found.unjudged, 'label')}, which too few rows have or which have no prediction"
            )
        rows = [(one.row, one.label, one.likelier, f"{one.probability:.3f}") for one in found.suspects[:SHOWN_SUSPECTS]]
        out.table(["row", "label", "likelier", "probability"], rows, right=["probability"])
        if len(found.suspects) > len(rows):
            out.print(f"and {len(found.suspects) - len(rows):,} more")


def _print_agreement(out: Output, found: Agreement) -> None:
    name = found.reference.partition("@")[0]
    if not found.rows:
        out.log(f"column {found.column} of {name} has no labels yet: aifx data label serve {name}")
    elif not found.shared:
        out.log("no row has labels of two labellers: aifx data label serve --overlap 2")
    elif found.alpha is None:
        out.log("all labels are the same, so that alpha is not defined")
    alpha = "not defined" if found.alpha is None else f"{found.alpha:.3f}"
    bound = f", {'below' if not found.accepted else 'at least'} {found.min_agreement:g}" if found.min_agreement else ""
    out.print(
        f"alpha {alpha}{bound}: {found.shared:,} of {counted(found.rows, 'row')} have labels of two labellers or more"
    )
    if found.pairs:
        rows = [(*one.labellers, f"{one.rows:,}", f"{one.same:.1%}") for one in found.pairs]
        out.table(["labeller", "labeller", "rows", "same"], rows, right=["rows", "same"])
    if found.different:
        out.print("")
        disagreements = found.disagreements[:SHOWN_DISAGREEMENTS]
        texts = ["; ".join(f"{label}: {', '.join(who)}" for label, who in one.labels.items()) for one in disagreements]
        out.table(["row", "labels"], [(one.row, text) for one, text in zip(disagreements, texts, strict=True)])
        if found.different > len(disagreements):
            out.print(f"and {found.different - len(disagreements):,} more rows")
