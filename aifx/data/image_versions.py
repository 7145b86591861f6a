"""Which pictures `[data]` names: those of a version of a data set, or of files."""

from __future__ import annotations

import logging

from aifx.core.errors import DataError
from aifx.core.plurals import counted
from aifx.core.project import Project
from aifx.data.image_files import Example, Listing, find_classes, list_pictures
from aifx.data.names import CLUSTER, ROW, SPLIT
from aifx.data.sections import ImagesSection
from aifx.data.versions.parts import DatasetPart, open_single

logger = logging.getLogger(__name__)


def list_version(part: DatasetPart, classes: tuple[str, ...] = ()) -> Listing:
    """The pictures of a version of a data set. Rows without a label are left out, with a warning. Raises DataError."""
    columns = ["label", *(name for name in (ROW, SPLIT, CLUSTER) if part.has_column(name))]
    examples, unlabelled, path, row = [], [], None, 0
    for shard, batch in part.batches(columns):
        row = row if shard == path else 0
        path = shard
        for values in batch.to_pylist():
            name = f"{part.reference}: row {values.get(ROW, row)}"
            if values["label"] is None:
                unlabelled.append(name)
            else:
                split = part.split_of(values[SPLIT]) if SPLIT in values else None
                examples.append(Example(shard, name, values["label"], split, row=row, cluster=values.get(CLUSTER)))
            row += 1
    if unlabelled:
        logger.warning(f"left out {counted(len(unlabelled), 'row')} without a label, such as {unlabelled[0]}")
    if not examples:
        raise DataError(f"{part.reference} has no pictures with a label", "", f"aifx data profile {part.reference}")
    return Listing(part.reference, examples, "label", find_classes(part.reference, examples, classes, True))


def list_images(section: ImagesSection, project: Project) -> Listing:
    """The pictures that `[data]` names. Raises UsageError, DataError."""
    if section.dataset is not None:
        return list_version(open_single(section.dataset, project, "images"), section.classes)
    return list_pictures(project.root / section.path, section.path, section.classes)
