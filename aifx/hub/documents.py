"""What `aifx import --json` and `aifx export --json` print."""

from __future__ import annotations

from dataclasses import dataclass

from aifx.core.errors import ExitCode
from aifx.core.results import Result
from aifx.hub.comparison import LogitComparison
from aifx.hub.importing import ImportedRun
from aifx.hub.starting import STARTS


@dataclass(frozen=True)
class ImportDocument(Result):
    """What `aifx import --json` prints.

    Attributes:
        started_project: the `aifx.toml` that it wrote, outside of a project.
        check: with --check, otherwise null.
    """

    imported: ImportedRun
    started_project: str | None
    check: LogitComparison | None

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.check is None or self.check.passed else ExitCode.VERDICT

    def next_steps(self) -> tuple[str, str]:
        """The data that fine-tunes the model, in words, and a command that uses the run."""
        start = STARTS[self.imported.task]
        return start.data, start.use.format(run=self.imported.run)
