"""References of pairs of answers, which a run keeps among its assets."""

from __future__ import annotations

from aifx.core.digests import sha256_of
from aifx.core.files import replace_file
from aifx.core.project import RunDirectory
from aifx.data.chat.format import PreferenceData
from aifx.loading.references import with_references
from aifx.programs.build import Programs
from aifx.runs.binding import RunDigests
from aifx.specs import Params


def with_kept_references(programs: Programs, frozen: Params, run: RunDirectory, digests: RunDigests | None) -> Programs:
    """`with_references`. The process that has the run's digests keeps the file in the run, bound to its checkpoints."""
    programs = with_references(programs, frozen, run)
    dataset = programs.task.dataset
    if digests is not None and isinstance(dataset, PreferenceData):
        assert dataset.references is not None
        data = dataset.references.as_file()
        found = {run.reference.name: sha256_of(data)}
        if not found.items() <= digests.assets.items():
            replace_file(run.reference, data)
            digests.assets = {**digests.assets, **found}
            digests.write(run)
    return programs
