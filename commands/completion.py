"""What a shell offers when Tab is pressed. A completion that fails offers nothing."""

from __future__ import annotations

from contextlib import suppress

from aifx.errors import AifxError


def complete_run(incomplete: str) -> list[str]:
    """Names of runs in the project around the working directory."""
    from aifx.project import RUN_NAME, find_project

    with suppress(AifxError, OSError):
        names = sorted(run.name for run in find_project().runs() if run.name.startswith(incomplete))
        return [name for name in names if RUN_NAME.fullmatch(name)]  # a shell would run a folder called `a;touch X`
    return []


def complete_setting(incomplete: str) -> list[tuple[str, str]]:
    """Keys of the configuration as `--set` takes them."""
    from aifx.config.schema import settings

    found = {f"{s.section}.{s.key}=": s.description for s in settings()}
    return [(name, description) for name, description in found.items() if name.startswith(incomplete)]
