"""The verdict of a policy on a version: one finding for each rule, from evidence that is there. Nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from aifx.config.gates import parse_gate
from aifx.config.toml import literal
from aifx.core.artifact import short_reference
from aifx.core.json_values import number
from aifx.core.plurals import counted
from aifx.registry.evidence import Attestation, Kind
from aifx.registry.policy import (
    AliasRules,
    ApprovalRule,
    BenchRule,
    BetterRule,
    ContaminationRule,
    DrillRule,
    EvalRule,
    FileRule,
    LicencesRule,
    MeasuredRule,
    Policy,
    SignatureRule,
    SlicesRule,
)
from aifx.registry.roots import LEAST_DIGITS
from aifx.registry.state import ModelState, NumberedVersion

GOOD_VERDICTS = ("better", "not worse")


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: its key in the policy.
        found: the values that decided.
        hint: the command that makes the evidence; empty if the rule passed.
        evidence: digests of the attestations that decided.
    """

    rule: str
    passed: bool
    found: str
    hint: str = ""
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """What is judged.

    Attributes:
        alias: that the version is to get.
        attestations: about the version, in the order of the ledger.
        incumbent: the version that the alias means; None if it means none.
        policy_digest: of the policy's text.
        now: in UTC.
        policy_entry: digest of the entry that made it the policy: another root has another one, whatever the text.
    """

    state: ModelState
    version: NumberedVersion
    alias: str
    attestations: Sequence[Attestation]
    incumbent: NumberedVersion | None
    policy: Policy
    policy_digest: str
    now: datetime
    policy_entry: str = ""

    @property
    def reference(self) -> str:
        return f"{self.state.name}@{self.version.label}"

    @cached_property
    def evidence(self) -> tuple[str, ...]:
        """Digests of what an approval is about: all attestations but approvals."""
        return tuple(sorted(one.digest for one in self.attestations if one.kind != "approval"))

    @cached_property
    def signed_authors(self) -> frozenset[str]:
        """The people whose keys signed a push of the version."""
        pushes = (one for one in self.attestations if one.kind == "author")
        return frozenset(person for one in pushes for person in one.envelope.signers(self.policy.keys))

    @property
    def authors(self) -> frozenset[str]:
        """Who may not approve the version: the name that pushed it, too."""
        return self.signed_authors | set(self.version.pushers)

    def newest(self, kind: Kind, fits: Callable[[Attestation], bool] = lambda _: True) -> Attestation | None:
        return next((one for one in reversed(self.attestations) if one.kind == kind and fits(one)), None)

    def approval(self) -> dict[str, Any]:
        """The content of an approval now: what it binds."""
        incumbent = self.incumbent.digest if self.incumbent else ""
        facts = {"model": self.state.name, "alias": self.alias, "evidence": list(self.evidence)}
        return {**facts, "incumbent": incumbent, "policy": self.policy_entry}


def judge(case: Case) -> tuple[Finding, ...]:
    """A finding for each rule of the alias, in the order of the policy's documentation."""
    rules: AliasRules = case.policy.rules_of(case.alias)
    given = ((name, getattr(rules, name)) for name in AliasRules.model_fields)
    return tuple(_JUDGES[name](case, rule) for name, rule in given if rule is not None)


def _eval(case: Case, rule: EvalRule) -> Finding:
    evaluate = _measure(case, _of_split(rule))

    def fits(one: Attestation) -> bool:
        return _is_measured_on(one, rule)

    report = case.newest("eval", lambda one: fits(one) and not _other_settings(rule, one.content.get("settings")))
    if report is None and (other := case.newest("eval", fits)) is not None:
        return _measured_otherwise("eval", case, rule, other, other.content.get("settings"))
    if report is None:
        where = " of ".join(filter(None, [rule.split and f"the {rule.split} split", rule.data]))
        return Finding("eval", False, f"no evaluation{where and f' on {where}'} is attested", evaluate)
    own = [(gate["expr"], number(gate.get("value")), bool(gate["passed"])) for gate in report.content.get("gates", ())]
    results = [*own, *_gates(rule.gates, report.content.get("metrics", {}))]
    if failed := _failed(results):
        return Finding("eval", False, failed, _another_run(case), (report.digest,))
    if not results:
        hint = _measure(case, f'{_of_split(rule)} --gate "METRIC >= NUMBER"')
        return Finding("eval", False, "the evaluation has no gate, and the rule has none", hint, (report.digest,))
    return Finding("eval", True, ", ".join(expr for expr, *_ in results), evidence=(report.digest,))


def _better(case: Case, rule: BetterRule) -> Finding:
    incumbent = case.incumbent
    if incumbent is None or incumbent.digest == case.version.digest:
        means = "means no version yet" if incumbent is None else "means this version"
        return Finding("better", True, f"{case.alias} {means}")
    against = f"{case.state.name}@{incumbent.label}"
    margin = "" if rule.margin is None else f" --margin {rule.margin:g}"
    direction, name = rule.of_metric
    metric = f' --metric "{direction or ("min" if name == "loss" else "max")} {name}"' if name else ""
    options = f" --against {against}{_of_split(rule)}{metric}{margin}"
    looks = [one for one in case.attestations if one.kind == "comparison" and _is_measured_on(one, rule)]
    known = {incumbent.digest, incumbent.checkpoint} - {None}
    of_metric = (one for one in reversed(looks) if name in ("", one.content.get("metric")))
    directed = (one for one in of_metric if direction in ("", one.content.get("direction")))
    fitting = [one for one in directed if one.content.get("against") in known]
    compared = next((one for one in fitting if not any(_other_settings(rule, own) for own in _of_sides(one))), None)
    if compared is None and fitting:
        wrong = next(own for own in _of_sides(fitting[0]) if _other_settings(rule, own))
        return _measured_otherwise("better", case, rule, fitting[0], wrong, options)
    if compared is None:
        by = f"{f' on the {rule.split} split' if rule.split else ''}{f' by {rule.metric}' if rule.metric else ''}"
        return Finding("better", False, f"no comparison with {against}{by} is attested", _compare(case, options))
    content, hint = compared.content, _compare(case, options)
    verdict, wanted = str(content.get("verdict")), GOOD_VERDICTS if rule.margin is not None else GOOD_VERDICTS[:1]
    found = f"{content.get('metric')}: {verdict}, compared with {against}"
    if changed := content.get("different_settings"):
        found += f" under another {', '.join(changed)}"
    if verdict == "not worse" and (number(content.get("margin")) or 0) > (rule.margin or 0):
        return Finding("better", False, f"not worse by a margin of {content.get('margin')}", hint, (compared.digest,))
    if verdict not in wanted:
        return Finding(
            "better", False, f"{found}; {content.get('explanation', '')}".rstrip("; "), hint, (compared.digest,)
        )
    return Finding("better", True, found, evidence=(compared.digest,))


def _contamination(case: Case, rule: ContaminationRule) -> Finding:
    needed = {reference for version in (case.version, case.incumbent) if version for reference in version.data}
    report = f"aifx registry attest {case.reference} report.json --contamination"
    clean: dict[str, str] = {}
    for one in (report for report in case.attestations if report.kind == "contamination"):
        against = [str(rows.get("name")) for rows in one.content.get("against", ())]
        if not any(not rule.data or _matches(name, rule.data) for name in against):
            continue
        for reference in _named_by(str(one.content["reference"]), needed):
            if rows := one.content["overlapping"]:
                found = f"{counted(int(rows), 'row')} of {short_reference(reference)} overlap with {', '.join(against)}"
                drop = f"aifx data decontaminate {short_reference(reference)} --drop"
                hint = _another_run(case, f"{drop}, and: aifx train")
                return Finding("contamination", False, found, hint, (one.digest,))
            clean[reference] = one.digest
    if not case.version.data:
        hint = _another_run(case, "aifx train --set data.dataset=NAME")
        return Finding("contamination", False, "it is not known what the version was trained on", hint)
    if missing := sorted(map(short_reference, needed - clean.keys())):
        tests = f" --against {rule.data}" if rule.data else ""
        hint = f"aifx data decontaminate {missing[0]}{tests} --json > report.json, and: {report}"
        return Finding("contamination", False, f"not compared: {', '.join(missing)}", hint)
    used = tuple(clean[reference] for reference in sorted(needed))
    return Finding("contamination", True, f"no overlap with {counted(len(needed), 'version')} of data", evidence=used)


def _named_by(reference: str, known: Iterable[str]) -> list[str]:
    """Whole references among those known that a shorter one, "name@<12 digits>", names."""
    return [one for one in sorted(known) if _matches(reference, one)]


def _licences(case: Case, rule: LicencesRule) -> Finding:
    found = tuple(case.version.pushed.facts.get("licenses") or ("unknown",))
    if others := sorted(set(found) - set(rule.allow)):
        data = next(iter(case.version.data), "")
        hint = f"aifx data lineage {data}" if data else _another_run(case, "aifx train --set data.dataset=NAME")
        return Finding("licences", False, f"{', '.join(others)}: allowed are {', '.join(rule.allow)}", hint)
    return Finding("licences", True, ", ".join(found))


def _slices(case: Case, rule: SlicesRule) -> Finding:
    columns = ", ".join(rule.columns)
    listed = ", ".join(f'"{column}"' for column in rule.columns)
    hint = _measure(case, f" --set 'eval.slices=[{listed}]'")

    def fits(one: Attestation) -> bool:
        return set(rule.columns) <= set(one.content.get("slices") or {})

    report = case.newest("eval", lambda one: fits(one) and not _other_settings(rule, one.content.get("settings")))
    if report is None and (other := case.newest("eval", fits)) is not None:
        return _measured_otherwise("slices", case, rule, other, other.content.get("settings"))
    if report is None:
        return Finding("slices", False, f"no evaluation with slices of {columns} is attested", hint)
    metrics = {**report.content.get("metrics", {}), "slices": report.content["slices"]}
    if failed := _failed(_gates(rule.gates, metrics)):
        return Finding("slices", False, failed, _another_run(case), (report.digest,))
    return Finding("slices", True, ", ".join([columns, *rule.gates]), evidence=(report.digest,))


def _approval(case: Case, rule: ApprovalRule) -> Finding:
    hint = f"aifx registry approve {case.reference} {case.alias}{' --key KEY.pem' if case.policy.keys else ''}"
    role = f" with the role {rule.role!r}" if rule.role else ""
    if rule.author == "key" and not case.signed_authors:
        run = case.version.pushed.facts.get("run") or "RUN"
        sign = f"aifx registry push {run} {case.state.name} --key KEY.pem"
        return Finding("approval", False, "no key of the policy signed the push, so that its author is not known", sign)
    wanted, valid, stale = case.approval(), dict[str, str](), list[str]()
    keys = case.policy.keys_of(rule.role) if rule.role else case.policy.keys
    for one in case.attestations:
        if one.kind != "approval" or one.content.get("alias") != case.alias:
            continue
        if case.policy.keys:  # names are claims; keys are proofs
            people = one.envelope.signers(keys)
        else:
            people = [one.made_by] if not rule.role or one.made_by in case.policy.roles.get(rule.role, ()) else []
        for person in people:
            if person in case.authors:
                continue  # of one's own work
            if one.content != wanted:
                stale.append(person)
            else:
                valid[person] = one.digest
    found = f"{len(valid)} of {counted(rule.people, 'approval')}{role}"
    if old := sorted(set(stale) - set(valid)):
        found += f"; {', '.join(old)} approved before the evidence, the policy or {case.alias} changed"
    if len(valid) < rule.people:
        return Finding("approval", False, found, hint)
    return Finding("approval", True, f"{found}: {', '.join(sorted(valid))}", evidence=tuple(valid.values()))


def _signature(case: Case, rule: SignatureRule) -> Finding:
    keys = case.policy.keys_of(rule.role)
    for one in case.attestations:
        if one.kind == "signature" and (people := one.envelope.signers(keys)):
            return Finding("signature", True, f"signed by {', '.join(people)}", evidence=(one.digest,))
    hint = f"aifx registry attest {case.reference} --sign --key KEY.pem"
    return Finding("signature", False, f"no signature by a key of the role {rule.role!r}", hint)


def _bench(case: Case, rule: BenchRule) -> Finding:
    measure = f"aifx serve --model {case.reference}, and: aifx bench serve http://127.0.0.1:8000 --json > bench.json"
    hint = f"{measure}, and: aifx registry attest {case.reference} bench.json --bench"
    report = case.newest("bench")
    if report is None:
        return Finding("bench", False, "no benchmark is attested", hint)
    if why := _not_about(case, report, "model"):
        return Finding("bench", False, why, hint, (report.digest,))
    if rule.days is not None:
        began = number(report.content.get("time"))
        if began is None:
            return Finding("bench", False, "the report does not say when it was made", hint, (report.digest,))
        days = (case.now.timestamp() - began) / 86400
        if not 0 <= days <= rule.days:
            found = f"made {days:.1f} days ago; at most {rule.days:g} are allowed"
            return Finding("bench", False, found, hint, (report.digest,))
    gates = [one for expr in rule.gates for one in _bench_gate(expr, report.content.get("results", ()))]
    if failed := _failed(gates):
        return Finding("bench", False, failed, hint, (report.digest,))
    return Finding("bench", True, ", ".join(rule.gates) or "attested", evidence=(report.digest,))


def _drill(case: Case, rule: DrillRule) -> Finding:
    hint = f"aifx drill all --json > drill.json, and: aifx registry attest {case.reference} drill.json --drill"
    report = case.newest("drill")
    if report is None:
        return Finding("drill", False, "no drill is attested", hint)
    if why := _not_about(case, report, "config_digest"):
        return Finding("drill", False, why, hint, (report.digest,))
    if not report.content.get("passed"):
        return Finding("drill", False, "the last drill did not pass", hint, (report.digest,))
    try:
        days = (case.now - datetime.fromisoformat(str(report.content.get("ended")))).total_seconds() / 86400
    except (ValueError, TypeError):  # no time, or one without a zone
        return Finding("drill", False, "the report does not say when the drill ended", hint, (report.digest,))
    found = f"passed {days:.1f} days ago; at most {rule.days:g} are allowed"
    is_recent = 0 <= days <= rule.days
    return Finding("drill", is_recent, found, "" if is_recent else hint, (report.digest,))


def _file(case: Case, rule: FileRule) -> Finding:
    files = {str(one.content.get("name")): one.digest for one in case.attestations if one.kind == "file"}
    if missing := [name for name in rule.names if name not in files]:
        hint = f"write {missing[0]}, and: aifx registry attest {case.reference} {missing[0]}"
        return Finding("file", False, f"not attested: {', '.join(missing)}", hint)
    return Finding("file", True, ", ".join(rule.names), evidence=tuple(files[name] for name in rule.names))


_JUDGES: Mapping[str, Callable[[Case, Any], Finding]] = {
    "eval": _eval,
    "better": _better,
    "contamination": _contamination,
    "licences": _licences,
    "slices": _slices,
    "approval": _approval,
    "signature": _signature,
    "bench": _bench,
    "drill": _drill,
    "file": _file,
}


def _not_about(case: Case, report: Attestation, key: str) -> str:
    """Why a report is not known to be about the version; empty if its `key` names the version's."""
    if not report.content.get(key):
        return "the report does not name the model that it measured"
    return "" if case.version.is_subject_of(report.content) else "the report is of another model"


def _of_sides(comparison: Attestation) -> list[Any]:
    """The settings with which both models of a comparison were measured."""
    return [(comparison.content.get(side) or {}).get("settings") for side in ("subject", "incumbent")]


def _other_settings(rule: MeasuredRule, settings: Mapping[str, Any] | None) -> list[str]:
    """The settings of a measurement that are others than a rule states. A report may name none."""
    has = settings or {}
    others = [key for key, value in rule.settings.items() if has.get(key) != value]
    return [f"{key} = {has[key]!r}" if key in has else f"no {key}" for key in others]


def _measured_otherwise(
    name: str, case: Case, rule: MeasuredRule, one: Attestation, settings: Mapping[str, Any] | None, how: str = ""
) -> Finding:
    """The finding on evidence that was measured with other settings than the rule states."""
    stated = " ".join(f"--set {key}={literal(value)}" for key, value in rule.settings.items())
    hint = (_compare if one.kind == "comparison" else _measure)(case, f"{how} {stated}")
    found = f"measured with {', '.join(_other_settings(rule, settings))}"
    return Finding(name, False, found, hint, (one.digest,))


def _is_measured_on(attested: Attestation, rule: EvalRule | BetterRule) -> bool:
    """Whether evidence is about the version of a data set, "NAME@DIGITS", and the split that a rule names, if any."""
    is_of_data = not rule.data or _matches(str(attested.content.get("data") or ""), rule.data)
    return is_of_data and rule.split in ("", attested.content.get("split"))


def _of_split(rule: EvalRule | BetterRule) -> str:
    """The option that measures what a rule names."""
    return f" --split {rule.split}" if rule.split else ""


def _matches(found: str, wanted: str) -> bool:
    """Whether both "NAME@DIGITS" name the same version of a data set. A name alone, also of a file, names none."""
    name, _, digits = found.partition("@")
    own, _, beginning = wanted.partition("@")
    return (
        name == own and len(digits) >= LEAST_DIGITS and (digits.startswith(beginning) or beginning.startswith(digits))
    )


def _bench_gate(expr: str, results: Sequence[Mapping[str, Any]]) -> list[tuple[str, float | None, bool]]:
    """A gate on "NAME.FIGURE" for each result of that name in a benchmark, as `_gates`; it fails if there is none."""
    gate = parse_gate(expr)
    name, _, figure = gate.name.rpartition(".")
    own = [{**one.get("figures", {}), **one} for one in results if one.get("name") == name]
    values = [number(one.get(figure)) for one in own] or [None]
    return [(expr, value, value is not None and gate.passes(value)) for value in values]


def _gates(gates: Sequence[str], values: Mapping[str, Any]) -> list[tuple[str, float | None, bool]]:
    """Each gate, the number at its path, and whether it passes; a number that is not there does not."""
    results = []
    for expr in gates:
        gate = parse_gate(expr)
        value: Any = values
        for part in gate.name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        found = number(value)
        results.append((expr, found, found is not None and gate.passes(found)))
    return results


def _failed(results: Iterable[tuple[str, float | None, bool]]) -> str:
    """The gates that were not met, with what was measured; empty if all were."""
    failed = [
        f"{expr}: not met by {value:.6g}" if value is not None else f"{expr}: the report has no such number"
        for expr, value, passed in results
        if not passed
    ]
    return ", ".join(failed)


def _measure(case: Case, options: str) -> str:
    """The commands that make an evaluation of the version and attest it. They need its registry, and not its run."""
    evaluate = f"aifx eval --model {case.reference}{options} --json > report.json"
    return f"{evaluate}, and: aifx registry attest {case.reference} report.json --eval"


def _compare(case: Case, options: str) -> str:
    """The commands that make a comparison with the version and attest it."""
    return _measure(case, options).removesuffix("--eval") + "--comparison"


def _another_run(case: Case, train: str = "aifx train") -> str:
    """The way out if the evidence is about what the version is: another version."""
    return f"{train}, and: aifx registry push RUN {case.state.name}"
