"""`aifx data index` and `search`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, RootOption, WorkersOption
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted
from aifx.core.sanitize import shorten
from aifx.verbs.catalogs import DEFAULT_MEMORY

if TYPE_CHECKING:
    from aifx.verbs.data_search import BuiltIndex, SearchResult

SHOWN = 100
"""Characters of a text in the table of a search."""


def index(
    name: DatasetArgument,
    column: Annotated[str, typer.Option("--column", metavar="NAME", help="Column with the texts.")] = "text",
    embedder: Annotated[
        str,
        typer.Option(
            "--embedder",
            metavar="ngrams|RUN|FOLDER",
            help="Embedder of the texts: hashed n-grams, a run of this project, or a local sentence encoder.",
        ),
    ] = "ngrams",
    dims: Annotated[
        int | None,
        typer.Option("--dims", metavar="N", min=16, max=65536, help="Numbers of a vector of n-grams. By default 512."),
    ] = None,
    kind: Annotated[
        Literal["exact", "hnsw", "ivf"],
        typer.Option("--kind", metavar="exact|hnsw|ivf", help="Exact, or one of faiss's approximate indexes."),
    ] = "exact",
    min_recall: Annotated[
        float | None,
        typer.Option(
            "--min-recall",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Least share of the 10 nearest rows that an approximate index must find. By default 0.95.",
        ),
    ] = None,
    effort: Annotated[
        int | None,
        typer.Option(
            "--effort",
            metavar="N",
            min=1,
            help="How much a search looks at: candidates of hnsw, clusters of ivf. By default the least that reaches "
            "--min-recall.",
        ),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make the index again, in place of the one there.")
    ] = False,
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="Most memory to use, such as 4GB. All vectors must fit in.")
    ] = DEFAULT_MEMORY,
    workers: WorkersOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Embed the texts of a version into an index for aifx data search.

    Examples:
        aifx data index corpus
        aifx data index articles --column title --dims 256
        aifx data index corpus --embedder main
        aifx data index corpus --embedder ./all-MiniLM-L6-v2
        aifx data index corpus --kind hnsw --min-recall 0.99

    The index belongs to this version. Exits 1 if an approximate index finds less than --min-recall.
    """
    with terminal(json) as out:
        from aifx.verbs.data_search import data_index

        found = data_index(
            name,
            column=column,
            embedder=embedder,
            dims=dims,
            kind=kind,
            min_recall=min_recall,
            effort=effort,
            rebuild=rebuild,
            memory=memory,
            workers=workers,
            root=root,
        )
        out.result(found)
        _print_index(out, found)


def _print_index(out: Output, found: BuiltIndex) -> None:
    made = found.index
    there = "" if found.is_new else ", which was there already"
    out.print(
        f"{made.reference}: {made.kind} index {made.name} of {counted(made.file.rows, 'vector')} of "
        f"{made.embedder.dims} numbers, {readable_bytes(found.size_bytes)}{there}"
    )
    if made.skipped:
        out.print(f"left out, because they have no text with words: {counted(made.skipped, 'row')}")
    if made.recall is not None:
        out.print(
            f"{'passed' if found.is_accepted else 'failed'}: recall {made.recall.share:.2%} (at least "
            f"{made.recall.least:.2%}) of the {made.recall.neighbours} nearest rows of "
            f"{counted(made.recall.queries, 'row')}, at effort {made.effort}"
        )
    if not found.is_accepted:
        out.log("a search does not take it by itself: a larger --effort or --kind exact finds more")


def search(
    name: DatasetArgument,
    query: Annotated[str | None, typer.Argument(metavar="[QUERY]", help="Text to search for.")] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", metavar="FILE", help="Search for each line of a .txt file, or each text of another (- for stdin)."
        ),
    ] = None,
    text_field: Annotated[
        str, typer.Option("--text-field", metavar="NAME", help="Field with the query in the rows of --file.")
    ] = "text",
    like: Annotated[
        str | None, typer.Option("--like", metavar="ROW", help="Search for the rows nearest to this row, by its id.")
    ] = None,
    top: Annotated[
        int, typer.Option("--top", metavar="N", min=1, max=10_000, help="Rows to find for each query.")
    ] = 10,
    index: Annotated[
        str | None,
        typer.Option(
            "--index", metavar="NAME", help="Index to use, by the beginning of its name. By default the one made last."
        ),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option("--embedder", metavar="NAME", help="Embedder of the query. By default that of the index."),
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Find the rows whose texts are nearest to a query.

    Examples:
        aifx data search corpus "white whale"
        aifx data search corpus --like 3f2a91c07be4-12 --top 5
        aifx data search corpus --file queries.jsonl --json

    The score is the cosine of the angle between the vectors of the query and the row, at most 1.
    """
    with terminal(json) as out:
        from aifx.verbs.data_search import data_search

        found = data_search(
            name,
            query,
            file=file,
            text_field=text_field,
            like=like,
            top=top,
            index=index,
            embedder=embedder,
            root=root,
        )
        out.result(found)
        _print_hits(out, found)


def _print_hits(out: Output, found: SearchResult) -> None:
    for one in found.queries:
        if len(found.queries) > 1:
            out.print(("" if one is found.queries[0] else "\n") + _start(one.query))
        rows = [(f"{hit.score:.4f}", hit.row, _start(hit.text)) for hit in one.hits]
        out.table(["score", "row", "text"], rows, right=["score"])
    if not found.is_exact:
        out.log("the index is approximate: rows may be missing")


def _start(text: str) -> str:
    return shorten(" ".join(text.split()), SHOWN)
