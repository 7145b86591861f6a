"""Options and exit codes that all commands of the doctor share."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from aifx.core.errors import AifxError


class StressLevel(Enum):
    """How long to load the devices."""

    QUICK = "quick"
    FULL = "full"


OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="ID", help="Evaluate only this rule or family. Can be repeated.", show_default=False
    ),
]
SkipOption = Annotated[
    list[str] | None,
    typer.Option("--skip", metavar="ID", help="Skip this rule or family. Can be repeated.", show_default=False),
]
SiteOption = Annotated[
    Path | None,
    typer.Option(
        "--site",
        metavar="FILE",
        help="Read the site's rules, skips and expected values from FILE. Default: ~/.config/aifx/health.toml, "
        "otherwise /etc/aifx/health.toml.",
        show_default=False,
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="Check the copy of a machine's files in DIR.", show_default=False),
]
ReplayOption = Annotated[
    Path | None,
    typer.Option(
        "--replay", metavar="FILE", help="Evaluate FILE, which --record wrote, and read nothing else.",
        show_default=False,
    ),
]  # fmt: skip
RecordOption = Annotated[
    Path | None,
    typer.Option("--record", metavar="FILE", help="Also save all that was read to FILE.", show_default=False),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Also write the report to FILE as one web page.", show_default=False),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Also exit 1 for warnings.")]
SampleOption = Annotated[
    float,
    typer.Option(
        "--sample", metavar="SECONDS", min=0, max=600, help="Take two readings SECONDS apart to compute rates."
    ),
]
StressOption = Annotated[
    StressLevel | None,
    typer.Option(
        "--stress",
        help="Also load every device: quick takes about a minute, full several. Use it only if no job runs.",
        show_default=False,
    ),
]
HostsOption = Annotated[
    Path | None,
    typer.Option(
        "--hosts",
        metavar="FILE",
        help="Reach the nodes listed in FILE over ssh: one per line, or n[001-128] for 128 nodes. `-` is stdin.",
        show_default=False,
    ),
]
SlurmOption = Annotated[bool, typer.Option("--slurm", help="Reach the nodes of this Slurm allocation with srun.")]
RemoteOption = Annotated[str, typer.Option("--remote", metavar="COMMAND", help="Run aifx on the nodes with COMMAND.")]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", help="Read the agents' token from FILE. Default: $AIFX_DOCTOR_TOKEN.",
        show_default=False,
    ),
]  # fmt: skip


def exit_code(status: str, strict: bool, faults: Sequence[AifxError] = ()) -> int:
    """Return the exit code of a report. A requested file that could not be written counts as unknown."""
    code = {"unhealthy": 1, "unknown": 2, "warning": int(strict)}.get(status, 0)
    return 1 if status == "unhealthy" else max(code, 2 * bool(faults))
