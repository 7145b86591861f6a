"""The JSON Schemas in docs/schemas, from the types of what aifx prints and writes.

`python -m aifx.verbs.schemas` writes them. Needs Python 3.12 or newer.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from aifx.core.errors import ErrorDocument
from aifx.core.licensing import LicenseErrorDocument
from aifx.core.results import SCHEMA_VERSION


class FailedCommand(TypedDict):
    """A command that could not run or finish."""

    error: ErrorDocument


class RefusedLicenses(TypedDict):
    """A command that refuses the licences of its data."""

    error: LicenseErrorDocument


class Version(TypedDict):
    version: str


def command_types() -> dict[str, Any]:
    """The type of what each command prints with --json, without `schema_version`.

    "bench" is that of all suites, "doctor" that of `aifx doctor node`.
    """
    from aifx.accounting.report import Kpis
    from aifx.benchmarking import compare, history, results
    from aifx.checkpoint import inspection
    from aifx.checkpoint.copying import CopiedCheckpoint
    from aifx.checkpoint.orbax import OrbaxCheckpoint
    from aifx.checkpoint.verification import CheckpointDifference
    from aifx.cluster.launched import LaunchList
    from aifx.config.schema import SettingList
    from aifx.curation import query
    from aifx.curation.add_plan import AddedFiles, ListedFiles
    from aifx.curation.audit import Audit
    from aifx.curation.contract_history import ContractHistory
    from aifx.curation.databases.push import Pushed
    from aifx.curation.dataset_report import DatasetReport
    from aifx.curation.decontaminate import Contamination
    from aifx.curation.erasure import Erasure
    from aifx.curation.execution import MadeVersion
    from aifx.curation.history import Lineage, VersionDifference
    from aifx.curation.labels.agreement import Agreement
    from aifx.curation.labels.files import ExportedLabels, ImportedLabels
    from aifx.curation.labels.suspects import Suspects
    from aifx.curation.leftovers import CollectedGarbage
    from aifx.curation.pii.reports import PiiReport
    from aifx.curation.profile import VersionProfile
    from aifx.curation.reports import Verification, VersionList, VersionPage
    from aifx.curation.row_history import Explanation
    from aifx.drills.guarantees import DrillReport
    from aifx.evaluation import against, dataset, held_out, shadow
    from aifx.feedback.monitoring import Monitored
    from aifx.feedback.scoring.scoring import Scored
    from aifx.health import documents as health
    from aifx.health.diff import Difference
    from aifx.hub.exported import ExportedModel
    from aifx.hub.starting import ImportDocument
    from aifx.kernels import report as kernels
    from aifx.lines import delivery
    from aifx.lines.checks import CheckedLine
    from aifx.lines.graph import LineGraph
    from aifx.planning.hardware import HardwareList
    from aifx.planning.planner import PlanList
    from aifx.registry import reports as registry
    from aifx.registry.acts import Act
    from aifx.registry.signing import NewKey
    from aifx.runs import comparison, status
    from aifx.runs.averaging import AveragedRun
    from aifx.runs.checkpoints import PrunedCheckpoints
    from aifx.scaffold import projects
    from aifx.search.building import BuiltIndex
    from aifx.search.searching import SearchResult
    from aifx.serving.generate import GeneratedText
    from aifx.serving.record import ReplayReport
    from aifx.sweeps.ranking import SweepReport
    from aifx.sweeps.starting import PlannedSweep
    from aifx.tasks.row_views import ShownBatch, ShownData
    from aifx.training.records import TrainDocument
    from aifx.verbs import configuration, runs
    from aifx.verbs.data_expect import ExpectedVersion, InferredContract
    from aifx.verbs.data_feedback import FeedbackVersion
    from aifx.verbs.data_labels import LabelServerStarted
    from aifx.verbs.data_steps import CombinedVersion, MadeMix
    from aifx.verbs.line_decisions import LineDecision, LineHistory, StationLogs
    from aifx.verbs.line_ticks import Backfill, LineStatus, LineTick
    from aifx.verbs.prediction import Predictions
    from aifx.verbs.recipe_writing import WrittenRecipe
    from aifx.verbs.recipes import MadeRecipes, PlannedRecipes
    from aifx.verbs.serving import Listening

    return {
        "version": Version,
        "init": projects.Scaffolded | projects.TemplateList,
        "import": ImportDocument,
        "plan": PlanList | HardwareList,
        "train": TrainDocument | RefusedLicenses,
        "sweep": SweepReport | PlannedSweep,
        "sweep-show": SweepReport,
        "launch-ls": LaunchList,
        "line-check": CheckedLine,
        "line-run": LineTick,
        "line-status": LineStatus,
        "line-graph": LineGraph,
        "line-history": LineHistory,
        "line-logs": StationLogs,
        "line-backfill": Backfill,
        **{f"line-{name}": LineDecision for name in ("retry", "skip", "approve", "pause", "resume")},
        "eval": (
            held_out.Report | dataset.DatasetReports | against.Comparison | against.FirstModel | shadow.ShadowReport
        ),
        "predict": Predictions,
        "score": Scored,
        "monitor": Monitored,
        "kpis": Kpis,
        "generate": GeneratedText,
        "serve": Listening,
        "serve-replay": ReplayReport,
        "export": ExportedModel | RefusedLicenses,
        "runs-ls": status.RunList,
        "runs-show": runs.RunDetails,
        "runs-compare": comparison.Comparison,
        "runs-watch": status.RunStatus,
        "runs-rm": runs.RemovedRuns,
        "runs-rename": runs.RenamedRun,
        "runs-tag": runs.TaggedRun,
        "ckpt-ls": inspection.CheckpointList,
        "ckpt-show": inspection.ShownCheckpoint | OrbaxCheckpoint,
        "ckpt-verify": inspection.VerifiedCheckpoint | inspection.VerifiedCheckpoints,
        "ckpt-diff": CheckpointDifference,
        "ckpt-prune": PrunedCheckpoints,
        "ckpt-average": AveragedRun,
        "ckpt-cp": CopiedCheckpoint,
        "data-show": ShownData | ShownBatch | VersionPage,
        "data-dedupe": MadeVersion | Audit,
        "data-split": MadeVersion,
        "data-join": CombinedVersion | RefusedLicenses,
        "data-classify": MadeVersion,
        "data-feedback": FeedbackVersion | RefusedLicenses,
        "data-compact": MadeVersion,
        "data-decontaminate": Contamination | MadeVersion,
        "data-add": AddedFiles | ListedFiles | RefusedLicenses,
        "data-ls": VersionList,
        "data-clean": MadeVersion,
        "data-expect": ExpectedVersion | InferredContract | ContractHistory,
        "data-mix": MadeMix | RefusedLicenses,
        "data-make": MadeRecipes | PlannedRecipes | RefusedLicenses,
        "data-recipe": WrittenRecipe,
        "data-pii": PiiReport,
        "data-verify": Verification,
        "data-profile": VersionProfile,
        "data-index": BuiltIndex,
        "data-search": SearchResult,
        "data-diff": VersionDifference,
        "data-lineage": Lineage,
        "data-why": Explanation,
        "data-query": query.QueryResult | query.QueryFile,
        "data-push": Pushed | RefusedLicenses,
        "data-erase": Erasure,
        "data-gc": CollectedGarbage,
        "data-label-serve": LabelServerStarted,
        "data-label-suspects": Suspects,
        "data-label-export": ExportedLabels,
        "data-label-import": ImportedLabels,
        "data-label-agreement": Agreement,
        "data-label-apply": MadeVersion,
        "data-report": DatasetReport,
        "registry-ls": registry.ModelList,
        "registry-show": registry.ModelPage | registry.VersionPage,
        "registry-search": registry.FoundVersions,
        "registry-diff": registry.ComparedVersions,
        "registry-pull": registry.PulledVersion,
        "registry-history": registry.ModelHistory,
        "registry-at": registry.AliasMeaning,
        "registry-head": registry.Heads,
        "registry-verify": registry.VerifiedRegistry,
        "registry-init": registry.PolicyPage,
        "registry-policy": registry.PolicyPage,
        "registry-keygen": NewKey,
        **{
            f"registry-{name}": Act
            for name in ("push", "tag", "attest", "approve", "promote", "rollback", "copy", "rm")
        },
        "notify-run": delivery.Deliveries,
        "notify-ls": delivery.TargetList,
        "notify-replay": delivery.Deliveries,
        "notify-test": delivery.TargetTest,
        "config-show": configuration.ShownConfig,
        "config-check": configuration.CheckedConfig,
        "config-keys": SettingList,
        "kernels-explain": kernels.ExplainedKernels,
        "kernels-tune": kernels.TunedKernels,
        "kernels-ls": kernels.MeasuredKernels,
        "kernels-clear": kernels.ClearedKernels,
        "bench": results.Report,
        "bench-compare": compare.ComparedReports,
        "bench-gate": compare.GatedReports,
        "bench-ls": history.BaselineList,
        "bench-history": history.History,
        "drill": DrillReport,
        "doctor": health.NodeReport,
        "doctor-fleet": health.FleetDocument,
        "doctor-bisect": health.BisectDocument,
        "doctor-diff": Difference,
        "doctor-rules": health.RuleList,
    }


def file_types() -> dict[str, Any]:
    """The type of each file that other programs may read."""
    from aifx.curation.profile import Profile
    from aifx.data.versions.manifest import VersionFile
    from aifx.health import documents as health
    from aifx.hub.exported import ExportContent
    from aifx.hub.importing import ImportFile
    from aifx.machine.measured_peaks import Ceilings
    from aifx.planning.planner import PlanFile
    from aifx.runs import formats
    from aifx.runs.lock import Holder
    from aifx.search.indexes import IndexFile
    from aifx.sweeps.record import SweepLine

    return {
        "metrics": formats.MetricsRecord,
        "events": formats.Event,
        "provenance": formats.Provenance,
        "kernels": formats.KernelsFile,
        "digests": formats.DigestsFile,
        "tags": formats.TagsFile,
        "import": ImportFile,
        "export": ExportContent,
        "lock": Holder,
        "sweep": SweepLine,
        "eval": formats.EvaluationFile,
        "plan": PlanFile,
        "manifest": formats.CheckpointFile,
        "measured-peaks": Ceilings,
        "dataset-manifest": VersionFile,
        "dataset-profile": Profile,
        "dataset-index": IndexFile,
        "snapshot": health.SnapshotDocument,
        "fleet-record": health.FleetRecordLine,
    }


class _Exact(GenerateJsonSchema):
    """Objects have every field of their type; only `NotRequired` ones may be absent."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        return bool(field.get("required", total)) if field["type"] == "typed-dict-field" else True


def _closed(schema: Any) -> Any:
    """`schema` without titles, and closed where it lists properties; descriptions of attributes go to their keys."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    # A title repeats a name, and a field that is always there needs no default. Mappings are keys of these names.
    keywords = {
        key: value for key, value in schema.items() if key not in ("title", "default") or isinstance(value, Mapping)
    }
    kept = {key: _closed(value) for key, value in keywords.items()}
    if isinstance(kept.get("anyOf"), list) and all(form.keys() == {"type"} for form in kept["anyOf"]):
        kept["type"] = [form["type"] for form in kept.pop("anyOf")]
    if isinstance(schema.get("description"), str):
        text, _, attributes = schema["description"].partition("Attributes:")
        kept["description"] = " ".join(text.split())
        for names, meaning in _ATTRIBUTE.findall(attributes):
            for name in names.split(", "):
                kept["properties"][name]["description"] = " ".join(meaning.split())
    if "properties" in schema and schema.get("type") == "object":
        kept.setdefault("additionalProperties", False)
    return kept


_ATTRIBUTE = re.compile(r"^ {4}([a-z_, ]+): (.+(?:\n {8}.+)*)", re.MULTILINE)


def schema_of(kind: Any, title: str, *, versioned: bool) -> dict[str, Any]:
    """The schema of a document. One that is `versioned` also has `schema_version`, and can be the command's failure."""
    forms = kind | FailedCommand if versioned else kind
    schema = _closed(TypeAdapter(forms).json_schema(schema_generator=_Exact, mode="serialization"))
    if versioned:
        text = json.dumps(schema)
        for form in schema.get("anyOf", [schema]):
            body = form
            if "$ref" in form:
                body = schema["$defs"][form["$ref"].rsplit("/", 1)[-1]]
                if text.count(json.dumps(form["$ref"])) > 1:  # it is also a part of another form, without a version
                    form.pop("$ref")
                    form.update(body)
                    body = form
            body["properties"] = {"schema_version": {"const": SCHEMA_VERSION}, **body["properties"]}
            body["required"] = list(dict.fromkeys(["schema_version", *body["required"]]))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **schema}


def schemas() -> dict[str, dict[str, Any]]:
    """Every schema by its path in docs/schemas."""
    commands = {
        f"commands/{name}.json": schema_of(kind, f"aifx {name.replace('-', ' ')} --json", versioned=True)
        for name, kind in command_types().items()
    }
    files = {f"files/{name}.json": schema_of(kind, name, versioned=False) for name, kind in file_types().items()}
    return {
        "failure.json": schema_of(FailedCommand | RefusedLicenses, "a failure", versioned=True),
        **commands,
        **files,
    }


def main() -> None:
    folder = Path(__file__).resolve().parents[2] / "docs" / "schemas"  # of a checkout
    shutil.rmtree(folder)
    for name, schema in schemas().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(schema, indent=2) + "\n")


if __name__ == "__main__":
    main()
