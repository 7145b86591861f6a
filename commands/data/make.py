"""`aifx data make`."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.console.options import RequestOption, option_group
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import StepOptions


@option_group
def make(
    given: StepOptions,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME…]", help="Data sets of the recipe to make. By default all.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="FILE", help="File with the steps. By default recipe.toml of the project."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print which steps would run, and why; write nothing.")
    ] = False,
    request: RequestOption = None,
) -> None:
    """Make data sets as a recipe says: do the steps that are missing, and nothing else.

    Examples:
        aifx data make
        aifx data make corpus --dry-run
        aifx data make --recipe web.toml --memory 8GB --json

    A name gets its new meaning once, after the last step. Exits 1 if a step breaks a limit, such as max_dropped: then
    no step after it runs, and the name still means the version before.
    """
    with terminal(given.json) as out:
        from aifx.verbs.recipes import data_make, data_make_plan

        if dry_run:
            plan = data_make_plan(*(names or ()), recipe=recipe, **given.of_step())
            out.result(plan)
            for planned in plan.data_sets:
                rows = [(step.step, step.reference or "to do", step.why) for step in planned.steps]
                out.print(f"{planned.name}:")
                out.table(["step", "version", "why"], rows)
            return
        made = data_make(*(names or ()), recipe=recipe, request=request, **given.of_step())
        out.result(made)
        for data_set in made.data_sets:
            done = sum(step.is_new for step in data_set.steps)
            what = f"{done} of {len(data_set.steps)} steps done" if done else "was there already"
            if data_set.is_repeated:
                what = "as an earlier call with this request id reported"
            if not data_set.is_accepted:
                what = f"as before: {data_set.steps[-1].reference} is not accepted"
            out.print(f"{data_set.name}: {data_set.reference or 'no version'}, {what}")
