"""`[datasets]`."""

from __future__ import annotations

from aifx.config.sections import RESUME_SAFE, Section, setting


class DatasetsSection(Section):
    """Where the versions of data sets are: `aifx data`."""

    root: str = setting(
        "datasets", "Folder relative to the project, or a URL that fsspec knows, such as s3://bucket/data.", RESUME_SAFE
    )
