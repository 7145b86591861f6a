"""The project of the working directory: its configuration, data, space for checkpoints, and required memory."""

from __future__ import annotations

from typing import Any

from aifx.core.errors import AifxError
from aifx.core.facts import Absent, from_document
from aifx.core.project import UntrustedProject, find_project
from aifx.health.host import Host
from aifx.health.probes.cgroups import entry, table
from aifx.health.probes.memory import MEMINFO
from aifx.health.probing import probe
from aifx.health.project_probe import IMPORT_TASK

LIMIT_S = 15.0


@probe("project", limit_s=LIMIT_S + 2)
def collect(host: Host) -> Any:
    if host.is_live:
        try:
            find_project()
        except UntrustedProject as error:
            return Absent(f"{error.what}: {error.why}; to check it, {error.hint}")
        except AifxError:
            return Absent("the working directory is not in a project: cd to one to check it")
    arguments = [IMPORT_TASK] if host.imports_project else []
    answer = from_document(host.ask("aifx.health.project_probe", *arguments, name="project", limit_s=LIMIT_S))
    if not isinstance(answer, dict):
        return answer
    # What the kernel can give to a program without swapping.
    available = entry(table(host, MEMINFO, 1024), "MemAvailable", MEMINFO)
    return {**answer, "host_memory_bytes": available}
