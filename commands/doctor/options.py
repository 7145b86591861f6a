"""Options that commands of the doctor share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class StressLevel(Enum):
    """Levels of a stress test, by its duration."""

    QUICK = "quick"
    FULL = "full"


def value_option(name: str, help: str, metavar: str = "FILE") -> Any:
    """Return an option with a value. Its help text names the default, if it has one."""
    return typer.Option(name, metavar=metavar, help=help, show_default=False)


SITE = (
    "Read the site's rules, skips and expected values from FILE. Default: ~/.config/aifx/health.toml, otherwise "
    "/etc/aifx/health.toml."
)
HOSTS = "Reach the nodes listed in FILE over ssh: one per line, or n[001-128] for 128 nodes. `-` is stdin."

OnlyOption = Annotated[
    list[str] | None, value_option("--only", "Evaluate only this rule or family. Can be repeated.", "ID")
]
SkipOption = Annotated[list[str] | None, value_option("--skip", "Skip this rule or family. Can be repeated.", "ID")]
SiteOption = Annotated[Path | None, value_option("--site", SITE)]
RootOption = Annotated[Path | None, value_option("--root", "Check the copy of a machine's files in DIR.", "DIR")]
ReplayOption = Annotated[
    Path | None, value_option("--replay", "Evaluate FILE, which --record wrote, and read nothing else.")
]
HostsOption = Annotated[Path | None, value_option("--hosts", HOSTS)]
TokenFileOption = Annotated[
    Path | None, value_option("--token-file", "Read the agents' token from FILE. Default: $AIFX_DOCTOR_TOKEN.")
]
SlurmOption = Annotated[bool, typer.Option("--slurm", help="Reach the nodes of this Slurm allocation with srun.")]
RemoteOption = Annotated[str, typer.Option("--remote", metavar="COMMAND", help="Run aifx on the nodes with COMMAND.")]


@dataclass(frozen=True)
class CheckOptions:
    """Options of a check of one machine and of many: what is evaluated, how it is read, and where the report goes."""

    only: OnlyOption = None
    skip: SkipOption = None
    site: SiteOption = None
    strict: Annotated[bool, typer.Option("--strict", help="Also exit 1 for warnings.")] = False
    sample: Annotated[
        float,
        typer.Option(
            "--sample", metavar="SECONDS", min=0, max=600, help="Take two readings SECONDS apart to compute rates."
        ),
    ] = 0.0
    stress: Annotated[
        StressLevel | None,
        typer.Option(
            "--stress",
            help="Also load every device: quick takes about a minute, full several. Use it only if no job runs.",
            show_default=False,
        ),
    ] = None
    record: Annotated[Path | None, value_option("--record", "Also save all that was read to FILE.")] = None
    replay: ReplayOption = None
    html: Annotated[Path | None, value_option("--html", "Also write the report to FILE as one web page.")] = None
