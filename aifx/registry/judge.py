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
    """

    state: ModelState
    version: NumberedVersion
    alias: str
    attestations: Sequence[Attestation]
    incumbent: NumberedVersion | None
    policy: Policy
    policy_digest: str
    now: datetime

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
        return self.signed_authors | {self.version.pushed.actor}

    def newest(self, kind: Kind, fits: Callable[[Attestation], bool] = lambda _: True) -> Attestation | None:
        return next((one for one in reversed(self.attestations) if one.kind == kind and fits(one)), None)

    def approval(self) -> dict[str, Any]:
        """The content of an approval now: what it binds."""
        incumbent = self.incumbent.digest if self.incumbent else ""
        facts = {"alias": self.alias, "evidence": list(self.evidence), "incumbent": incumbent}
        return {**facts, "policy": self.policy_digest}


def judge(case: Case) -> tuple[Finding, ...]:
    """A finding for each rule of the alias, in the order of the policy's documentation."""
    rules: AliasRules = case.policy.rules_of(case.alias)
    given = ((name, getattr(rules, name)) for name in AliasRules.model_fields)
    return tuple(_JUDGES[name](case, rule) for name, rule in given if rule is not None)


def _eval(case: Case, rule: EvalRule) -> Finding:
    hint = f"aifx registry attest {case.reference} --eval"

    def fits(one: Attestation) -> bool:
        return _is_of_data(one, rule.data) and rule.split in ("", one.content.get("split"))

    report = case.newest("eval", lambda one: fits(one) and not _other_settings(rule, one.content.get("settings")))
    if report is None and (other := case.newest("eval", fits)) is not None:
        return _measured_otherwise("eval", case, rule, other, other.content.get("settings"))
    if report is None:
        where = " on ".join(["", *filter(None, [rule.split and f"the {rule.split} split", rule.data])])
        return Finding("eval", False, f"no evaluation{where} is attested", hint)
    own = [(gate["expr"], bool(gate["passed"])) for gate in report.content.get("gates", ())]
    results = [*own, *_gates(rule.gates, report.content.get("metrics", {}))]
    failed = [expr for expr, passed in results if not passed]
    if failed or not results:
        found = f"{', '.join(failed)}: not met" if failed else "the evaluation has no gate, and the rule has none"
        return Finding("eval", False, found, hint, (report.digest,))
    return Finding("eval", True, ", ".join(expr for expr, _ in results), evidence=(report.digest,))


def _better(case: Case, rule: BetterRule) -> Finding:
    incumbent = case.incumbent
    if incumbent is None or incumbent.digest == case.version.digest:
        means = "means no version yet" if incumbent is None else "means this version"
        return Finding("better", True, f"{case.alias} {means}")
    against = f"{case.state.name}@{incumbent.label}"
    margin = "" if rule.margin is None else f" --margin {rule.margin:g}"
    metric = f" --metric {rule.metric}" if rule.metric else ""
    compare = f"aifx eval --model {case.reference} --against {against}{metric}{margin} --json > report.json"
    hint = f"{compare}, and: aifx registry attest {case.reference} report.json --comparison"
    looks = [one for one in case.attestations if one.kind == "comparison" and _is_of_data(one, rule.data)]
    known = {incumbent.digest, incumbent.checkpoint} - {None}
    of_metric = (one for one in reversed(looks) if rule.metric in ("", one.content.get("metric")))
    fitting = [one for one in of_metric if one.content.get("against") in known]
    compared = next((one for one in fitting if not any(_other_settings(rule, own) for own in _of_sides(one))), None)
    if compared is None and fitting:
        wrong = next(own for own in _of_sides(fitting[0]) if _other_settings(rule, own))
        return _measured_otherwise("better", case, rule, fitting[0], wrong, f" --against {against}{metric}{margin}")
    if compared is None:
        by = f" by {rule.metric}" if rule.metric else ""
        return Finding("better", False, f"no comparison with {against}{by} is attested", hint)
    content = compared.content
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
    for one in case.attestations:
        against = [str(texts.get("name")) for texts in one.content.get("against", ())]
        if one.kind != "contamination" or not any(not rule.data or _matches(name, rule.data) for name in against):
            continue
        for reference in _named_by(str(one.content["reference"]), needed):
            if rows := one.content["overlapping"]:
                found = f"{counted(int(rows), 'row')} of {short_reference(reference)} overlap with {', '.join(against)}"
                hint = f"aifx data decontaminate {short_reference(reference)} --drop, and train again"
                return Finding("contamination", False, found, hint, (one.digest,))
            clean[reference] = one.digest
    if not case.version.data:
        hint = f"train on a version of a data set, and: aifx registry push RUN {case.state.name}"
        return Finding("contamination", False, "it is not known what the version was trained on", hint)
    if missing := sorted(map(short_reference, needed - clean.keys())):
        hint = f"aifx data decontaminate {missing[0]} --against EVALUATION --json > report.json, and: {report}"
        return Finding("contamination", False, f"not compared: {', '.join(missing)}", hint)
    used = tuple(clean[reference] for reference in sorted(needed))
    return Finding("contamination", True, f"no overlap with {counted(len(needed), 'version')} of data", evidence=used)


def _named_by(reference: str, known: Iterable[str]) -> list[str]:
    """Whole references among those known that a shorter one, "name@<12 digits>", names."""
    return [one for one in sorted(known) if _matches(reference, one)]


def _licences(case: Case, rule: LicencesRule) -> Finding:
    found = tuple(case.version.pushed.facts.get("licenses") or ("unknown",))
    if others := sorted(set(found) - set(rule.allow)):
        hint = f"aifx data lineage {next(iter(case.version.data), 'NAME')}"
        return Finding("licences", False, f"{', '.join(others)}: allowed are {', '.join(rule.allow)}", hint)
    return Finding("licences", True, ", ".join(found))


def _slices(case: Case, rule: SlicesRule) -> Finding:
    columns = ", ".join(rule.columns)
    listed = ", ".join(f'"{column}"' for column in rule.columns)
    hint = f"aifx eval --set 'eval.slices=[{listed}]', and: aifx registry attest {case.reference} --eval"

    def fits(one: Attestation) -> bool:
        return set(rule.columns) <= set(one.content.get("slices") or {})

    report = case.newest("eval", lambda one: fits(one) and not _other_settings(rule, one.content.get("settings")))
    if report is None and (other := case.newest("eval", fits)) is not None:
        return _measured_otherwise("slices", case, rule, other, other.content.get("settings"))
    if report is None:
        return Finding("slices", False, f"no evaluation with slices of {columns} is attested", hint)
    metrics = {**report.content.get("metrics", {}), "slices": report.content["slices"]}
    results = _gates(rule.gates, metrics)
    if failed := [expr for expr, passed in results if not passed]:
        return Finding("slices", False, f"{', '.join(failed)}: not met", hint, (report.digest,))
    return Finding("slices", True, ", ".join([columns, *rule.gates]), evidence=(report.digest,))


def _approval(case: Case, rule: ApprovalRule) -> Finding:
    hint = f"aifx registry approve {case.reference} {case.alias}"
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
    found = f"{counted(len(valid), 'approval')}{role} of {rule.people}"
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
    hint = f"aifx bench serve --json > bench.json, and: aifx registry attest {case.reference} bench.json --bench"
    report = case.newest("bench")
    if report is None:
        return Finding("bench", False, "no benchmark is attested", hint)
    if rule.days is not None:
        began = number(report.content.get("time"))
        if began is None:
            return Finding("bench", False, "the report does not say when it was made", hint, (report.digest,))
        days = (case.now.timestamp() - began) / 86400
        if not 0 <= days <= rule.days:
            found = f"made {days:.1f} days ago; at most {rule.days:g} are allowed"
            return Finding("bench", False, found, hint, (report.digest,))
    results = _gates(rule.gates, report.content)
    if failed := [expr for expr, passed in results if not passed]:
        return Finding("bench", False, f"{', '.join(failed)}: not met", hint, (report.digest,))
    return Finding("bench", True, ", ".join(rule.gates) or "attested", evidence=(report.digest,))


def _drill(case: Case, rule: DrillRule) -> Finding:
    hint = f"aifx drill --json > drill.json, and: aifx registry attest {case.reference} drill.json --drill"
    report = case.newest("drill")
    if report is None:
        return Finding("drill", False, "no drill is attested", hint)
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
        hint = f"aifx registry attest {case.reference} {missing[0]}"
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
    kind = "--comparison" if one.kind == "comparison" else "--eval"
    evaluate = f"aifx eval --model {case.reference}{how} {stated} --json > report.json"
    hint = f"{evaluate}, and: aifx registry attest {case.reference} report.json {kind}"
    found = f"measured with {', '.join(_other_settings(rule, settings))}"
    return Finding(name, False, found, hint, (one.digest,))


def _is_of_data(attested: Attestation, reference: str) -> bool:
    """Whether evidence is about a version of a data set, "NAME@DIGITS", or about any if that is empty."""
    return not reference or _matches(str(attested.content.get("data") or ""), reference)


def _matches(found: str, wanted: str) -> bool:
    """Whether both "NAME@DIGITS" name the same version of a data set. A name alone, also of a file, names none."""
    name, _, digits = found.partition("@")
    own, _, beginning = wanted.partition("@")
    return (
        name == own and len(digits) >= LEAST_DIGITS and (digits.startswith(beginning) or beginning.startswith(digits))
    )


def _gates(gates: Sequence[str], values: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Each gate, and whether the number at its path passes; a number that is not there does not."""
    results = []
    for expr in gates:
        gate = parse_gate(expr)
        value: Any = values
        for part in gate.name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        found = number(value)
        results.append((expr, found is not None and gate.passes(found)))
    return results
