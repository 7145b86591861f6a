"""Options and output that the commands of `aifx data` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.core.errors import UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted
from aifx.verbs.catalogs import DEFAULT_MEMORY

if TYPE_CHECKING:
    from aifx.verbs.catalogs import StepOptions as VerbOptions
    from aifx.verbs.data_steps import MadeVersion

DatasetArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Data set: NAME for its latest version, or NAME@VERSION.")
]

FILES_HELP = "Also data.train, data.validation, data.test or data.path: the files that aifx.toml names."

RootOption = Annotated[
    str | None,
    typer.Option(
        "--root",
        metavar="FOLDER|URL",
        help="Where the data sets are. By default datasets.root of aifx.toml.",
    ),
]

MemoryOption = Annotated[
    str, typer.Option("--memory", metavar="SIZE", help="Most memory to use, such as 4GB. What exceeds it goes to disk.")
]

WorkersOption = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=1, help="Number of processes. By default one per core.")
]

MaxDroppedOption = Annotated[
    float,
    typer.Option(
        "--max-dropped", metavar="SHARE", min=0.0, max=1.0, help="Exit 1 if a larger share of the rows is dropped."
    ),
]


@dataclass(frozen=True)
class StepOptions:
    """Options of the commands that run a step: where the data sets are, what the step may use, and where it runs."""

    root: RootOption = None
    memory: MemoryOption = DEFAULT_MEMORY
    workers: WorkersOption = None
    on: Annotated[
        Literal["local", "slurm", "ray"],
        typer.Option(
            "--on", metavar="local|slurm|ray", help="Run tasks in local processes, as a job of Slurm, or by Ray."
        ),
    ] = "local"
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="N", min=1, help="Elements of Slurm's array job. By default one per 256 MB."),
    ] = None
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="HOST:PORT|auto",
            help="Running cluster of Ray. By default RAY_ADDRESS; without it, Ray starts on this machine.",
        ),
    ] = None
    json: JsonOption = False

    def of_step(self) -> VerbOptions:
        """The same as arguments of a verb."""
        return {name: value for name, value in vars(self).items() if name != "json"}  # type: ignore[return-value]


def names_of(text: str, option: str, hint: str) -> list[str]:
    """The names of a list with commas between. Raises UsageError if there are none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{option} {text!r} names nothing", "it takes names with commas between", hint)
    return names


def print_made(out: Output, made: MadeVersion) -> None:
    """Print what a step made, and the document of --json."""
    out.result(made)
    there = "" if made.is_new else ", which was there already"
    out.print(f"{made.reference}: {counted(made.rows, 'row')}, {readable_bytes(made.size_bytes)}{there}")
    if made.dropped:
        counts = [(rule, f"{count:,}") for rule, count in made.dropped_by.items()]
        out.table(["dropped by", "rows"], counts, right=["rows"])
    if earlier := made.facts.get("continues"):
        from aifx.core.artifact import short_reference

        out.log(f"earlier rows are as in {short_reference(earlier)}")
