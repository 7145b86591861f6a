"""One run on a page: what `aifx runs show` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from aifx.commands.console.chart import line_chart
from aifx.commands.console.format import age, best, count, date, figure, literal, rate
from aifx.commands.console.terminal import Output
from aifx.core.json_files import readable_bytes
from aifx.machine.catalogue import utilization
from aifx.runs.status import number

if TYPE_CHECKING:
    from aifx.checkpoint.listing import CheckpointInfo
    from aifx.runs import RunStatus
    from aifx.runs.reading import Evaluation, Setting

CHART_WIDTH = 76
CHART_HEIGHT = 8


@dataclass(frozen=True)
class RunPage:
    """Everything that is told of one run."""

    status: RunStatus
    settings: Sequence[Setting]
    records: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[CheckpointInfo]
    evaluations: Sequence[Evaluation]
    provenance: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """JSON-ready; docs/runs.md documents it."""
        return {
            **self.status.document(),
            "config": [{"key": s.key, "value": s.value, "origin": s.origin} for s in self.settings],
            "last": self.records[-1] if self.records else None,
            "checkpoints": [asdict(c) for c in self.checkpoints],
            "evaluations": [asdict(e) for e in self.evaluations],
            "provenance": self.provenance,
        }


def print_run(out: Output, page: RunPage) -> None:
    status = page.status
    process = f", process {status.pid}" if status.pid else ""
    out.print(f"run {status.name}: {status.status} at step {count(status.step)} of {count(status.num_steps)}{process}")
    out.print(f"begun {date(status.started) or '?'}, written {age(status.updated) or '?'}")
    if status.tags:
        out.print(f"tags: {', '.join(status.tags)}")
    if status.damage:
        out.print(f"damaged: {status.damage}")
    _print_metrics(out, page)
    if page.settings:
        out.print("")
        out.table(["setting", "value", "from"], [(s.key, literal(s.value), s.origin) for s in page.settings])
    if page.checkpoints:
        out.print("")
        print_checkpoints(out, page.checkpoints)
    _print_evaluations(out, page.evaluations)
    if page.provenance:
        out.print("")
        _print_provenance(out, page.provenance)


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


def _print_metrics(out: Output, page: RunPage) -> None:
    if not page.records:
        out.print("no step has a record yet")
        return
    last, status = page.records[-1], page.status
    ascii_only = not out.out.encoding.lower().startswith("utf")
    out.print("")
    losses = [number(r.get("loss")) for r in page.records]
    out.print("\n".join(line_chart(losses, CHART_WIDTH, CHART_HEIGHT, ascii_only=ascii_only)))
    out.print("")
    used = utilization(number(last.get("mfu")), number(last.get("ceiling_fraction")))
    told = {
        "loss": figure(status.loss),
        "validation": figure(status.validation_loss),
        "best": best(status.best_by, status.best_value, status.best_step),
        "speed": rate(status.units_per_s, status.unit),
        "MFU": used.removeprefix("MFU ") or None,
    }
    out.print("   ".join(f"{name} {value}" for name, value in told.items() if value is not None))


def _print_evaluations(out: Output, evaluations: Sequence[Evaluation]) -> None:
    for e in evaluations:
        out.print("")
        numbers = {name: value for name, v in e.metrics.items() if (value := number(v)) is not None}
        told = ", ".join(f"{name} {figure(value)}" for name, value in numbers.items())
        out.print(f"evaluation of step {e.step} on {e.split}: {told}")
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
        ("data", str(provenance.get("data_digest") or "")[:12] or None),
        ("devices", f"{hardware.get('num_devices')} x {hardware.get('device_kind')} on {hardware.get('host')}"),
        ("cpu", f"{hardware.get('cpu')}, {hardware.get('cores')} cores"),
        ("versions", ", ".join(f"{n} {versions[n]}" for n in names if n in versions)),
        *(provenance.get("environment") or {}).items(),
    ]
    out.table(["where it came from", ""], [row for row in rows if row[1]])
