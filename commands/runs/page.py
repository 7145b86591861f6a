"""Output of `aifx runs show` and `aifx runs compare` for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aifx.commands.console.chart import bar, line_chart
from aifx.commands.console.format import age, best, count, date, figure, literal, rate, signed
from aifx.commands.console.output import Output
from aifx.core.artifact import short_reference
from aifx.core.json_files import readable_bytes
from aifx.core.json_values import number

if TYPE_CHECKING:
    from aifx.verbs.runs import CheckpointInfo, Comparison, Evaluation, Pair, Prediction, RunDetails


CHART_WIDTH = 76
CHART_HEIGHT = 8
SHOWN = {"step_time_s": "step time", "units_per_s": "speed", "mfu": "MFU", "memory_bytes": "peak memory"}


def print_run(out: Output, run: RunDetails, records: Sequence[Mapping[str, Any]]) -> None:
    process = f", process {run.pid}" if run.pid else ""
    out.print(f"run {run.run}: {run.status} at step {count(run.step)} of {count(run.num_steps)}{process}")
    out.print(f"begun {date(run.started) or '?'}, written {age(run.updated) or '?'}")
    if run.tags:
        out.print(f"tags: {', '.join(run.tags)}")
    if run.refused:
        out.print(f"no checkpoint can be saved {run.refused}")
    if run.damage:
        out.print(f"damaged: {run.damage}")
    _print_metrics(out, run, records)
    _print_predictions(out, run)
    print_bill(out, run)
    if run.config:
        out.print("")
        out.table(["setting", "value", "from"], [(s.key, literal(s.value), s.origin) for s in run.config])
    if run.checkpoints:
        out.print("")
        print_checkpoints(out, run.checkpoints)
    _print_evaluations(out, run.evaluations)
    if run.provenance:
        out.print("")
        _print_provenance(out, run.provenance)


def print_checkpoints(out: Output, checkpoints: Sequence[CheckpointInfo]) -> None:
    """A table of checkpoints; also what `aifx ckpt ls` prints."""
    metric = next((c.score.metric for c in checkpoints if c.score and c.score.metric != "loss"), None)
    rows = [
        (
            c.step,
            age(c.saved_at),
            figure(c.validation_loss),
            *((figure(c.score.value if c.score else None),) if metric else ()),
            None if c.damaged else f"{c.num_parameters:,}",
            None if c.damaged else readable_bytes(c.size_bytes),
            f"damaged: {c.damaged}" if c.damaged else "best" if c.is_best else "",
        )
        for c in checkpoints
    ]
    columns = ["checkpoint", "saved", "validation", *([metric] if metric else []), "parameters", "size", ""]
    out.table(columns, rows, right=columns[:1] + columns[2:-1])


def _print_metrics(out: Output, run: RunDetails, records: Sequence[Mapping[str, Any]]) -> None:
    if not records:
        out.print("no step has a record yet")
        return
    ascii_only = not out.out.encoding.lower().startswith("utf")
    losses = [number(r.get("loss")) for r in records]
    chart = line_chart(losses, CHART_WIDTH, CHART_HEIGHT, ascii_only=ascii_only)
    out.print("\n".join(["", *chart, ""]))
    values = {
        "loss": figure(run.loss),
        "validation": figure(run.validation_loss),
        "best": best(run.best_by, run.best_value, run.best_step, run.best_over),
        "speed": rate(run.units_per_s, run.unit),
        "MFU": run.utilization.removeprefix("MFU ") or None,
    }
    out.print("   ".join(f"{name} {value}" for name, value in values.items() if value is not None))


def _print_predictions(out: Output, run: RunDetails) -> None:
    if not run.predictions:
        return
    rows = [(SHOWN[one.quantity], _predicted(run, one), _quantity(run, one, one.measured)) for one in run.predictions]
    out.print("")
    out.table(["", "predicted", "measured"], rows, right=["predicted", "measured"])
    if all(one.predicted is None for one in run.predictions):
        out.print(f"for the predicted values: aifx plan --run {run.run}")


def _predicted(run: RunDetails, one: Prediction) -> str | None:
    """The interval if the plan has one, otherwise the value."""
    if one.low is None or one.high is None:
        return _quantity(run, one, one.predicted)
    return f"{_quantity(run, one, one.low)} to {_quantity(run, one, one.high)}"


def _quantity(run: RunDetails, one: Prediction, value: float | None) -> str | None:
    if value is None:
        return None
    match one.quantity:
        case "step_time_s":
            return f"{value:.3g} s"
        case "units_per_s":
            return rate(value, run.unit)
        case "mfu":
            return f"{value:.1%}"
    return readable_bytes(int(value))


def _print_evaluations(out: Output, evaluations: Sequence[Evaluation]) -> None:
    for e in evaluations:
        out.print("")
        numbers = {name: value for name, value in e.metrics.items() if number(value) is not None}
        texts = {name: f"{v:,}" if isinstance(v, int) else figure(v) for name, v in numbers.items()}
        figures = ", ".join(f"{name} {text}" for name, text in texts.items())
        out.print(f"evaluation of step {e.step} on {e.split}: {figures}")
        for gate in e.gates:
            verdict = "passed" if gate.get("passed") else "FAILED"
            out.print(f"  gate {gate.get('expr')}: {figure(number(gate.get('value')))}, {verdict}")


def _print_provenance(out: Output, provenance: Mapping[str, Any]) -> None:
    hardware, git = provenance.get("hardware") or {}, provenance.get("git") or {}
    versions = provenance.get("versions") or {}
    names = ("aifx", "python", "jax", "jaxlib", "optax", "orbax-checkpoint")
    changed = ", with changes" if git.get("dirty") else ""
    rows = [
        ("command", " ".join(map(str, provenance.get("command") or ())) or None),
        ("code", f"{str(git.get('commit'))[:12]}{changed}" if git.get("commit") else None),
        ("data set", short_reference((provenance.get("dataset") or {}).get("reference") or "") or None),
        ("begun with", _base(provenance.get("finetuned_from") or {})),
        ("data", str(provenance.get("data_digest") or "")[:12] or None),
        ("devices", f"{hardware.get('num_devices')} x {hardware.get('device_kind')} on {hardware.get('host')}"),
        ("cpu", f"{hardware.get('cpu')}, {hardware.get('cores')} cores"),
        ("versions", ", ".join(f"{n} {versions[n]}" for n in names if n in versions)),
        *(provenance.get("environment") or {}).items(),
    ]
    out.table(["where it came from", ""], [row for row in rows if row[1]])


def _base(base: Mapping[str, Any]) -> str | None:
    """The checkpoint or the model version that a run began with."""
    if not (name := str(base.get("run") or "")):
        return None
    return f"model {short_reference(name)}" if "@" in name else f"run {name}, step {base.get('step')}"


def print_comparison(out: Output, c: Comparison) -> None:
    """The tables of two runs side by side."""
    first, second = (status.run for status in c.runs)
    if c.config:
        out.table(["setting", first, second], [(pair.key, *map(literal, pair.values)) for pair in c.config])
    else:
        out.print("the two have the same configuration")
    out.print("")
    out.table(["", first, second, "change"], _summary(c), right=[first, second, "change"])
    if c.rows:
        out.print("")
        columns = ["step", f"loss {first}", f"loss {second}", "change"]
        columns += [f"valid. {first}", f"valid. {second}", "change "]
        rows = [(row.step, *_compared(row.smoothed_loss), *_compared(row.validation_loss)) for row in c.rows]
        out.table(columns, rows, right=columns)
        out.print(f"loss: mean of the last {c.smoothing_steps:,} steps")
    if c.evaluations:
        out.print("")
        table = [(pair.split, pair.metric, *_compared(pair.values)) for pair in c.evaluations]
        out.table(["split", "metric", first, second, "change"], table, right=[first, second, "change"])


def _summary(c: Comparison) -> Iterator[tuple[str | None, ...]]:
    yield "steps", *map(count, c.steps), None
    until = f" at step {c.common_steps:,}" if c.steps[0] != c.steps[1] else ""
    yield f"loss{until}", *_compared(c.smoothed_loss)
    for name, pair in c.last_validation.items():
        if name != "loss" and pair[0] == pair[1]:
            continue  # counts of the data, mostly
        yield f"last validation {name}", *_compared(pair)
    if c.best_validation_loss != (None, None):
        yield "best validation loss", *_compared(c.best_validation_loss)
        yield "  at step", *(None if step is None else f"{step:,}" for step in c.best_step), None
    if until and c.best_common_validation_loss != (None, None):
        yield f"best validation loss to step {c.common_steps:,}", *_compared(c.best_common_validation_loss)


def _compared(pair: Pair) -> tuple[str | None, str | None, str | None]:
    return figure(pair[0]), figure(pair[1]), signed(*pair)


BAR_WIDTH = 24


def print_bill(out: Output, run: RunDetails) -> None:
    if run.bill is None or (words := run.bill_in_words()) is None:
        return
    headline, spent, remarks = words
    has_cost = run.bill.cost is not None
    out.print("")
    out.print(headline)
    ascii_only = not out.out.encoding.lower().startswith("utf")
    rows = [
        (
            one.label,
            one.time,
            f"{one.share:.1%}",
            *((one.cost,) if has_cost else ()),
            bar(one.share, BAR_WIDTH, ascii_only=ascii_only),
        )
        for one in spent
    ]
    columns = ["where the time went", "time", "share", *(["cost"] if has_cost else []), ""]
    out.table(columns, rows, right=columns[1:-1])
    for line in remarks:
        out.print(line)
