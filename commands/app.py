"""The tree of commands. A command's module is imported when the command is called, not before."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aifx.commands.console.typer_internals import Entry, LazyGroup, invoke
from aifx.commands.console.writing import is_colored, to_json
from aifx.core.errors import UsageError
from aifx.core.version import __version__

START = "Start a project"
TRAIN = "Train and use a model"
LOOK = "Look at runs and checkpoints"
HEALTH = "Look after machines"
SETUP = "Set up"

COMMANDS: dict[str, Entry] = {
    "init": Entry("init.command", "init", "Start a project from a template.", START),
    "import": Entry("import_.command", "import_", "Make a run of an open model from Hugging Face's ecosystem.", START),
    "plan": Entry("plan.command", "plan", "Predict memory, time, energy and cost of a run before it starts.", TRAIN),
    "train": Entry("train.command", "train", "Train the project's model, or resume a training that stopped.", TRAIN),
    "sweep": Entry("sweep.group", "app", "Train with different settings, and rank them.", TRAIN, default="start"),
    "line": Entry("line.group", "app", "Run stations by themselves, in their order, as data and models change.", TRAIN),
    "launch": Entry("launch.group", "app", "Start a command as several processes.", TRAIN),
    "eval": Entry(
        "eval.command", "eval_", "Measure a checkpoint on held-out data and compare it with its gates.", TRAIN
    ),
    "predict": Entry(
        "predict.command", "predict", "Predict labels, probabilities or values for new rows, texts or images.", TRAIN
    ),
    "score": Entry(
        "score.command", "score", "Predict for new rows of a source, each once, into files or a table.", TRAIN
    ),
    "monitor": Entry("monitor.command", "monitor", "Compare rows of now with those of the training.", TRAIN),
    "generate": Entry("generate.command", "generate", "Write text with a trained model.", TRAIN),
    "serve": Entry("serve.group", "app", "Serve a trained model over HTTP, with OpenAI's API.", TRAIN, default="start"),
    "export": Entry("export.command", "export", "Write a run's model for Hugging Face's ecosystem.", TRAIN),
    "runs": Entry("runs.group", "app", "List, show, compare, watch, tag, rename and delete runs.", LOOK),
    "kpis": Entry("kpis.command", "kpis", "Add up what projects used: time, money, energy, promotions.", LOOK),
    "ckpt": Entry("ckpt.group", "app", "List, verify, compare, delete and average checkpoints.", LOOK),
    "registry": Entry(
        "registry.group", "app", "Name models, and decide on evidence which version an alias means.", LOOK
    ),
    "notify": Entry("notify.group", "app", "Send events to business systems: promotions, failures.", LOOK),
    "doctor": Entry(
        "doctor.group", "app", "Check the health of machines, and say what to do next.", HEALTH, default="node"
    ),
    "data": Entry("data.group", "app", "Collect, clean, label and version data, and show what a model reads.", LOOK),
    "drill": Entry(
        "drill.command", "drill", "Inject faults into short runs, and check that they recover as promised.", HEALTH
    ),
    "bench": Entry("bench.group", "app", "Measure this machine and project, and find regressions.", HEALTH),
    "kernels": Entry("kernels.group", "app", "Show, measure and list the implementations of ops.", SETUP),
    "config": Entry("config.group", "app", "Show, check and describe the configuration.", SETUP),
}


class Root(LazyGroup):
    """`aifx` itself."""

    table = COMMANDS
    package = "aifx.commands"


app = typer.Typer(
    name="aifx",
    cls=Root,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)


@app.callback()
def aifx_(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks. Works after any command; also AIFX_DEBUG=1.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> None:
    """Train and evaluate models, check machines, and measure their speed.

    Examples:
        aifx init my-model            start a project
        aifx train                    train its model; the same command resumes
        aifx eval                     measure the model and compare it with its gates
        aifx generate --prompt "Call me"
        aifx runs ls                  list the project's runs
        aifx doctor                   check the health of this machine
    """
    if version:
        typer.echo(to_json({"schema_version": 1, "version": __version__}) if json else f"aifx {__version__}")
        raise typer.Exit
    if json:
        command = ctx.invoked_subcommand or "COMMAND"
        raise UsageError("--json must follow the command", "it is an option of each command", f"aifx {command} --json")


def run(args: list[str]) -> int:
    """Run the command that `args` name and return its exit code; raises what the command raises."""
    return invoke(app, args, is_colored=is_colored(sys.stdout))
