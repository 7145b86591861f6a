"""The files that a project's configuration names, as a version of a data set for as long as a command looks at its
rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aifx.config.sections import Section
from aifx.core.artifact import unfinished
from aifx.core.errors import AifxError
from aifx.core.project import Project, cache_path
from aifx.curation.add_plan import plan_add, run_add
from aifx.curation.step import Limits
from aifx.data.chat.section import ChatSection
from aifx.data.implicit import ROWS_FOLDER, find_implicit
from aifx.data.readers.base import ReadOptions
from aifx.data.readers.sources import list_sources
from aifx.data.sections import TextSection
from aifx.data.versions.catalog import Catalog, open_catalog


@contextmanager
def added_files(reference: str, section: Section, project: Project, limits: Limits) -> Iterator[tuple[str, Catalog]]:
    """The name and the catalog of a data set of the files that "data.train" or another key names; deleted at the end.

    Its rows have the ids that they get from `aifx data add` of these files.

    Raises UsageError if the key names no files, DataError, EnvironmentFault.
    """
    files = find_implicit(reference, section, project)
    if isinstance(section, TextSection):
        options = ReadOptions("text", section.text_field)
    else:
        options = ReadOptions("chat" if isinstance(section, ChatSection) else "table")
    listing = list_sources([file.location for file in files.files], project.root, follow_links=True)
    with unfinished(cache_path(ROWS_FOLDER) / files.key) as folder:
        catalog = open_catalog(str(folder))
        run_add(plan_add(catalog, files.key, listing, options, "unknown"), files.key, catalog, limits)
        try:
            yield files.key, catalog
        except AifxError as error:  # its hints name a version that will be gone
            error.hint = error.hint.replace(catalog.manifest(files.key).reference, files.key)
            raise
