"""The base of what verbs return."""

from __future__ import annotations

from typing import Any

from aifx.core.errors import ExitCode
from aifx.core.json_values import plain

SCHEMA_VERSION = 1
"""Version of all documents that commands print."""


class Result:
    """The result of a verb: a frozen dataclass, whose fields are the document that its command prints with --json."""

    __slots__ = ()

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the command: VERDICT if the result is bad."""
        return ExitCode.OK

    def document(self) -> dict[str, Any]:
        """The result as JSON can hold it; docs/schemas/ describes it. A number that is not finite becomes null."""
        return {"schema_version": SCHEMA_VERSION, **plain(self)}
