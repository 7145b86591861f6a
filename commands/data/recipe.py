"""`aifx data recipe`."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, RootOption


def recipe(
    name: DatasetArgument,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write this new file. By default, print the recipe."),
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Write the recipe of a version: its steps, of which `aifx data make` makes the same rows.

    Examples:
        aifx data recipe corpus
        aifx data recipe corpus@3f2a91c07be4 --output recipe.toml

    Paths are relative to the folder of FILE, or to the project. A step that a recipe cannot say is an error.
    """
    with terminal(json) as out:
        from aifx.verbs.recipe_writing import data_recipe

        found = data_recipe(name, output=output, root=root)
        out.result(found)
        if found.file is None:
            out.print(found.recipe.rstrip())
        else:
            out.log(f"{found.file} has the recipe of {found.reference}: aifx data make --recipe {output}")
