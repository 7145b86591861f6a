"""The choice of a model and of data sets, as `aifx score` and `aifx monitor` take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from aifx.commands.console.options import JsonOption, SetOption, StepOption
from aifx.commands.data.options import RootOption
from aifx.verbs.arguments import StrPath

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Model version, such as fraud@production, or a run: RUN or RUN:STEP.")
]


@dataclass(frozen=True)
class ModelOptions:
    """Options beside MODEL, the last of the command."""

    step: StepOption = None
    trust_code: Annotated[
        str | None,
        typer.Option("--trust-code", metavar="DIGEST", help="Run the own code of the model version MODEL."),
    ] = None
    set_: SetOption = None
    root: RootOption = None
    json: JsonOption = False

    def resolve(self, model: str) -> tuple[StrPath, dict[str, Any]]:
        """The model that MODEL names, and the arguments of a verb by name."""
        from aifx.verbs.models import choose_other

        chosen, step = choose_other(model)
        named = {"step": self.step or step, "settings": self.set_, "trust_code": self.trust_code, "root": self.root}
        return chosen, named
