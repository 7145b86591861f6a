"""Options and exit codes that all commands of the doctor share."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from aifx.core.errors import AifxError


class StressLevel(Enum):
    """How long to load the devices."""

    QUICK = "quick"
    FULL = "full"


def value_option(name: str, metavar: str, help: str) -> Any:
    """Return an option with a value. Its help text names the default, if it has one."""
    return typer.Option(name, metavar=metavar, help=help, show_default=False)


SITE = (
    "Read the site's rules, skips and expected values from FILE. Default: ~/.config/aifx/health.toml, otherwise "
    "/etc/aifx/health.toml."
)
HOSTS = "Reach the nodes listed in FILE over ssh: one per line, or n[001-128] for 128 nodes. `-` is stdin."
SAMPLE = "Take two readings SECONDS apart to compute rates."
STRESS = "Also load every device: quick takes about a minute, full several. Use it only if no job runs."

OnlyOption = Annotated[
    list[str] | None, value_option("--only", "ID", "Evaluate only this rule or family. Can be repeated.")
]
SkipOption = Annotated[list[str] | None, value_option("--skip", "ID", "Skip this rule or family. Can be repeated.")]
SiteOption = Annotated[Path | None, value_option("--site", "FILE", SITE)]
RootOption = Annotated[Path | None, value_option("--root", "DIR", "Check the copy of a machine's files in DIR.")]
ReplayOption = Annotated[
    Path | None, value_option("--replay", "FILE", "Evaluate FILE, which --record wrote, and read nothing else.")
]
RecordOption = Annotated[Path | None, value_option("--record", "FILE", "Also save all that was read to FILE.")]
HtmlOption = Annotated[Path | None, value_option("--html", "FILE", "Also write the report to FILE as one web page.")]
HostsOption = Annotated[Path | None, value_option("--hosts", "FILE", HOSTS)]
TokenFileOption = Annotated[
    Path | None, value_option("--token-file", "FILE", "Read the agents' token from FILE. Default: $AIFX_DOCTOR_TOKEN.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Also exit 1 for warnings.")]
SampleOption = Annotated[float, typer.Option("--sample", metavar="SECONDS", min=0, max=600, help=SAMPLE)]
StressOption = Annotated[StressLevel | None, typer.Option("--stress", help=STRESS, show_default=False)]
SlurmOption = Annotated[bool, typer.Option("--slurm", help="Reach the nodes of this Slurm allocation with srun.")]
RemoteOption = Annotated[str, typer.Option("--remote", metavar="COMMAND", help="Run aifx on the nodes with COMMAND.")]


def exit_code(status: str, strict: bool, faults: Sequence[AifxError] = ()) -> int:
    """Return the exit code of a report. A requested file that could not be written counts as unknown."""
    code = {"unhealthy": 1, "unknown": 2, "warning": int(strict)}.get(status, 0)
    return 1 if status == "unhealthy" else max(code, 2 * bool(faults))
