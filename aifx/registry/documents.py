"""Evidence from what other commands wrote: reports of a run, and documents of `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from aifx.checkpoint.manifest import read_manifest
from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.core.files import read_file
from aifx.core.parsing import fault_in, parse_json
from aifx.core.project import Project
from aifx.registry.evidence import Kind, check_content
from aifx.registry.roots import Root
from aifx.runs.binding import weights_of

NEEDED: Mapping[str, tuple[str, ...]] = {
    "eval": ("metrics", "gates"),
    "comparison": ("metric", "verdict", "against", "data_digest", "look", "alpha"),
    "contamination": ("reference", "overlapping"),
    "bench": (),
    "drill": ("passed",),
}
"""The keys that the document of each kind must have: the policy's rules read them."""


def parse_evidence(data: bytes, kind: str, place: str) -> tuple[Kind, dict[str, Any]]:
    """The document of a command, as evidence of a kind. Raises DataError naming what it lacks, UsageError."""
    if kind not in NEEDED:
        raise UsageError(f"{kind!r} is no kind of evidence", did_you_mean(kind, NEEDED), "aifx registry attest --help")
    try:
        doc = parse_json(data)
    except ValueError as e:
        raise DataError(f"{place} is no JSON document", fault_in(e), "give what a command prints with --json") from e
    if kind == "comparison" and isinstance(doc, dict) and isinstance(doc.get("comparison"), dict):
        doc = doc["comparison"]  # of `aifx eval --shadow`
    lacking = [key for key in NEEDED[kind] if not isinstance(doc, dict) or key not in doc]
    known = cast(Kind, kind)
    try:
        if lacking or not isinstance(doc, dict) or "error" in doc or doc.get("failure"):
            raise ValueError(f"it has no {', '.join(lacking)}" if lacking else "it is no object, or reports a failure")
        check_content(known, doc)
    except ValueError as e:
        hint = f"give what a command prints with --json whose evidence is {kind!r}"
        raise DataError(f"{place} is no evidence of the kind {kind!r}", str(e), hint) from e
    return known, doc


def report_of_run(root: Root, reference: str, kind: str, project: Project | None) -> tuple[Kind, dict[str, Any]]:
    """The newest evaluation or comparison of the checkpoint that a version was pushed from, as its run keeps it.

    Args:
        kind: "eval" or "comparison".

    Raises UsageError if the run or its report is not there, DataError if the checkpoint is not that of the version.
    """
    state, version = root.find(reference)
    name, step = version.pushed.facts.get("run"), version.pushed.facts.get("step")
    hint = f"aifx eval --run {name} --step {step}" + (" --against MODEL" if kind == "comparison" else "")
    what = f"no {'evaluation' if kind == 'eval' else kind} of {state.name}@{version.label} is found"
    if project is None or not name or not (run := project.run(str(name))).exists():
        why = f"it was pushed from run {name}, which is not in this project"
        raise UsageError(what, why, f"aifx registry attest {reference} REPORT.json --{kind}")
    try:
        doc = parse_json(read_file(run.eval / f"{step}.json"))
    except FileNotFoundError:
        raise UsageError(what, f"{run.eval} has no {step}.json", hint) from None
    artifact = root.artifact(state, version.digest)
    arrays = weights_of(read_manifest(run.checkpoints / str(step)))
    own = {key: (one.dtype, one.shape, one.digest) for key, one in arrays.items()}
    there = (artifact.content.get("levels") or [{"arrays": {}}])[0]["arrays"] if artifact else {}
    if own != {key: (one["dtype"], tuple(one["shape"]), one["digest"]) for key, one in there.items()}:
        why = f"the checkpoint of step {step} has other weights: the run was trained again"
        raise DataError(
            f"run {name} is not what {state.name}@{version.label} was pushed from", why, "aifx registry push"
        )
    if kind == "comparison":
        if not doc["comparisons"]:
            raise UsageError(what, f"{run.eval / f'{step}.json'} has none", hint)
        return "comparison", doc["comparisons"][-1]
    splits = {split: report for split, report in doc["splits"].items() if split in ("test", "validation")}
    if not splits:
        raise UsageError(what, f"{run.eval / f'{step}.json'} has none of a split", hint)
    split = max(splits, key=lambda one: splits[one]["measured_at"])
    return "eval", {"run": name, "step": step, "split": split, **splits[split]}
