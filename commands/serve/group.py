"""The commands below `aifx serve`. `start` runs if the command line names none (`aifx.commands.app.COMMANDS`)."""

from __future__ import annotations

import typer

from aifx.commands.serve.command import start
from aifx.commands.serve.replay import replay

app = typer.Typer(
    help="""Serve a trained model over HTTP: text with OpenAI's API, or predictions.

    Without a command, `aifx serve` runs `start`: see `aifx serve start --help`.

    Examples:
        aifx serve                               serve the run that was written last
        aifx serve --run main --port 8080        a run, at a port
        aifx serve --watch --canary FILE         take over checkpoints that pass
        aifx serve replay runs/main/serve.jsonl  prove that answers come again
    """
)
for command in (start, replay):
    app.command()(command)
