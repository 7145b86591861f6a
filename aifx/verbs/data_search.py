"""Indexes of the texts of a version, and searches in them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from aifx.core.errors import UsageError
from aifx.verbs.arguments import StrPath
from aifx.verbs.catalogs import DEFAULT_MEMORY, find_catalog, limits_of, project_around

if TYPE_CHECKING:
    from aifx.search.building import BuiltIndex
    from aifx.search.searching import SearchResult


def data_index(
    name: str,
    *,
    column: str = "text",
    embedder: str = "ngrams",
    dims: int | None = None,
    kind: Literal["exact", "hnsw", "ivf"] = "exact",
    min_recall: float | None = None,
    effort: int | None = None,
    rebuild: bool = False,
    memory: str = DEFAULT_MEMORY,
    workers: int | None = None,
    root: str | None = None,
    project: StrPath = ".",
) -> BuiltIndex:
    """Embed the texts of a version into an index for `data_search`.

    The index belongs to this version. The verdict is bad if an approximate index finds less than the least recall.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        column: with the texts.
        embedder: of the texts: "ngrams" for hashed n-grams, a run of the project, or a local sentence encoder.
        dims: numbers of a vector of n-grams; by default 512.
        kind: exact, or one of faiss's approximate indexes.
        min_recall: least share of the 10 nearest rows that an approximate index must find; by default 0.95.
        effort: how much a search looks at: candidates of hnsw, clusters of ivf; by default the least that reaches
            `min_recall`.
        rebuild: make the index again, in place of the one there.
        memory: most memory to use, such as "4GB". All vectors must fit in.
        workers: number of processes; by default one per core.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets and runs are meant.

    Example:
        >>> aifx.data_index("corpus", dims=64).index.kind
        'exact'
    """
    from aifx.search.building import build_index
    from aifx.search.indexes import IndexSettings
    from aifx.search.opening import open_embedder

    for option, value in (("--min-recall", min_recall), ("--effort", effort)):
        if value is not None and kind == "exact":
            why, hint = "an exact index finds the nearest rows", f"{option} {value} --kind hnsw"
            raise UsageError(f"{option} can only be used with --kind hnsw or ivf", why, hint)
    limits = limits_of(memory, workers)
    catalog, found = find_catalog(root, project)
    version = catalog.open(name)
    opened = open_embedder(embedder, dims, found or project_around(project))
    settings = IndexSettings(column, opened.record, kind, effort, 0.95 if min_recall is None else min_recall)
    return build_index(version, settings, opened, catalog, limits, rebuild=rebuild)


def data_search(
    name: str,
    query: str | None = None,
    *,
    file: StrPath | None = None,
    text_field: str = "text",
    like: str | None = None,
    top: int = 10,
    index: str | None = None,
    embedder: str | None = None,
    root: str | None = None,
    project: StrPath = ".",
) -> SearchResult:
    """Find the rows whose texts are nearest to a query.

    The score is the cosine of the angle between the vectors of the query and the row, at most 1.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        query: text to search for.
        file: search for each line of a .txt file, or each text of another file, instead.
        text_field: field with the query in the rows of the file.
        like: search for the rows nearest to this row, by its id, instead.
        top: rows to find for each query.
        index: by the beginning of its name; by default the one made last.
        embedder: of the query; by default that of the index.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets and runs are meant.

    Example:
        >>> (found,) = aifx.data_search("corpus", "call me Ishmael", top=1).queries
        >>> found.hits[0].text[:16]
        'Call me Ishmael.'
    """
    from aifx.search import searching
    from aifx.search.indexes import find_index
    from aifx.search.opening import open_embedder

    given = [option for option, value in (("QUERY", query), ("--file", file), ("--like", like)) if value is not None]
    if len(given) != 1:
        what = f"{' and '.join(given)} cannot be used together" if given else "there is nothing to search for"
        why, hint = "a search takes a QUERY, a --file or a row --like it", f"aifx data search {name} 'whale'"
        raise UsageError(what, why, hint)
    catalog, found = find_catalog(root, project)
    version = catalog.open(name)
    chosen = find_index(catalog, version.manifest, index)
    record = chosen.manifest.embedder
    opened = open_embedder(embedder or record.name, record.dims, found or project_around(project))
    searching.check_embedder(chosen, opened)
    if like is not None:
        return searching.search_like(version, chosen, opened, like, top)
    queries = searching.read_queries(os.fspath(file), text_field) if file is not None else [query or ""]
    return searching.search(version, chosen, opened, queries, top)
