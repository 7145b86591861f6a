"""`aifx sweep`: trainings with different settings, ranked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.format import figure, literal
from aifx.commands.console.options import DryRunOption, JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import AifxError
from aifx.core.lifecycle import collect_signals
from aifx.core.limits import check_limits
from aifx.verbs.completion import complete_setting, complete_sweep
from aifx.verbs.jobs import refuse_job

if TYPE_CHECKING:
    from aifx.verbs.sweeps import PlannedSweep, RankedSetting, SweepReport


NameOption = Annotated[
    str,
    typer.Option("--name", metavar="NAME", help="Sweep to start or continue.", autocompletion=complete_sweep),
]
SweptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=A,B,C",
        help="Values to try: a list, a range LOW..HIGH, or LOW..HIGH:log. One value holds for all trials. Can be "
        "repeated.",
        autocompletion=complete_setting,
    ),
]
TrialsOption = Annotated[
    int | None,
    typer.Option(
        "--trials", metavar="N", min=1, help="Number of trials. By default the whole grid.", show_default=False
    ),
]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="grid|random|tpe",
        help="How to choose settings. By default grid; tpe needs Optuna.",
        show_default=False,
    ),
]
ParallelOption = Annotated[
    int | None,
    typer.Option(
        "--parallel",
        metavar="N",
        min=1,
        help="Trials at a time. By default one per GPU, or one.",
        show_default=False,
    ),
]
PruneOption = Annotated[
    bool | None,
    typer.Option("--prune/--no-prune", help="Stop poor trials early. By default they are.", show_default=False),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", min=0, help="Seed of the sampler. By default 0.", show_default=False),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Configuration to read instead of the project's aifx.toml.", show_default=False
    ),
]
SweepArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]", help="Sweep to show. By default the one written last.", autocompletion=complete_sweep
    ),
]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write the report to FILE, as a page with plots.")
]


def start(
    set_: SweptOption = None,
    name: NameOption = "sweep",
    sampler: SamplerOption = None,
    trials: TrialsOption = None,
    parallel: ParallelOption = None,
    prune: PruneOption = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Train with different settings, each in a run of its own, and rank them.

    After a stop, a crash or a lost machine, run the command again: the sweep continues where it was.

    Examples:
        aifx sweep --set optimizer.learning_rate=1e-3,3e-3,1e-2
        aifx sweep --set model.embed_dim=128,256 --set train.seed=0,1,2
        aifx sweep --name lr --sampler random --trials 20 \\
            --set optimizer.learning_rate=1e-4..1e-1:log
        aifx sweep --name lr --trials 40             continue with more trials
        aifx sweep --set optimizer.kind=adamw,muon --dry-run
    """
    with terminal(json) as out:
        refuse_job("sweep")
        check_limits()
        from aifx.verbs.sweeps import sweep, sweep_plan

        settings = set_ or ()
        if dry_run:
            planned, keys = sweep_plan(
                name, settings, sampler=sampler, trials=trials, prune=prune, seed=seed, config=config
            )
            out.result(planned)
            _list(out, planned, keys)
            return
        with collect_signals() as came:
            swept = sweep(
                name,
                settings,
                sampler=sampler,
                trials=trials,
                parallel=parallel,
                prune=prune,
                seed=seed,
                config=config,
                stop=came,
            )
        out.result(swept)
        _show(out, swept.report)
        if swept.failed:
            hint = f"aifx sweep --name {name}    (once the cause is gone: it starts them again)"
            out.report([AifxError(f"{len(swept.failed)} of the trials failed", ", ".join(swept.failed), hint)])
        elif swept.exit_code:
            out.log(f"continue with: aifx sweep --name {name}")


def _list(out: Output, found: PlannedSweep, keys: list[str]) -> None:
    """Print the trials that there are and those to come, as far as they are known."""
    rows = [(t.run, *(literal(t.values[key]) for key in keys), t.status or "to do") for t in found.trials]
    out.table(["run", *keys, "status"], rows, right=keys)
    if left := found.num_trials - len(found.trials):
        out.print(f"{left} more follow from the results of these")


def show(name: SweepArgument = None, html: HtmlOption = None, json: JsonOption = False) -> None:
    """Rank the settings of a sweep, whether it has ended or not.

    Examples:
        aifx sweep show
        aifx sweep show lr --html lr.html
        aifx sweep show lr --json
    """
    with terminal(json) as out:
        from aifx.verbs.sweeps import sweep_show

        found = sweep_show(name, html=html)
        if html is not None:
            out.log(f"written to {html}")
        out.result(found)
        _show(out, found)


def _show(out: Output, found: SweepReport) -> None:
    """The report for people."""
    from aifx.verbs.sweeps import SEED

    out.print(f"sweep {found.sweep}: {found.num_ended} of {found.num_trials} trials have ended; by {found.best_by}")
    keys = list(dict.fromkeys(key for one in found.settings for key in one.values))
    columns = ["rank", *keys, "value", "std", "difference", "margin", "verdict", "trials"]
    if found.settings:
        out.table(columns, [_row(one, keys) for one in found.settings], right=columns[:-2])
    if any(one.verdict == "unknown" for one in found.settings):
        out.print(f"what a seed changes is not known: --set {SEED}=0,1,2 trains each setting three times")
    known = [one for one in found.importance if one.fraction is not None]
    if known:
        out.print("")
        out.table(["setting", "importance"], [(one.key, f"{one.fraction:.0%}") for one in known], right=["importance"])
    if found.best is not None:
        out.print(f"\nthe best setting, for aifx.toml:\n\n{found.best.rstrip()}")


def _row(one: RankedSetting, keys: list[str]) -> list[str | int | None]:
    numbers: dict[str, list[str]] = {}
    for trial in one.trials:
        numbers.setdefault(trial.status.replace("_", " "), []).append(trial.run.rpartition("-")[2])
    trials = "; ".join(f"{status} {' '.join(found)}" for status, found in numbers.items())
    difference = None if not one.difference else f"{one.difference:+.4g}"
    margin = None if one.margin is None else f"{one.margin:.4g}"
    values = [literal(one.values[key]) for key in keys]
    return [one.rank, *values, figure(one.value), figure(one.std), difference, margin, one.verdict, trials]


app = typer.Typer(
    help="""Train with different settings, and rank them.

    Without a command, `aifx sweep` runs `start`: see `aifx sweep start --help`.

    Examples:
        aifx sweep --set optimizer.learning_rate=1e-3,3e-3 --set train.seed=0,1,2
        aifx sweep --name lr --sampler tpe --trials 40 \\
            --set optimizer.learning_rate=1e-4..1e-1:log
        aifx sweep show                  rank the settings so far
    """
)
for command in (start, show):
    app.command()(command)
