"""What a policy asks for, who may change it, and what its rules say of evidence."""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from aifx.commands.registry.group import app as registry_app
from aifx.config.sections import RegistrySection
from aifx.core.errors import ConfigError, DataError, UsageError
from aifx.core.project import Project
from aifx.core.stores import open_store
from aifx.registry.acts import Caller, approve
from aifx.registry.evidence import Attestation, Kind, attest, attestations_of, read_attestation, trusted_signer
from aifx.registry.judge import Case, Finding, judge
from aifx.registry.ledger import Entry, new_request
from aifx.registry.policy import FIRST, change_policy, parse_policy, read_policy
from aifx.registry.roots import Root
from aifx.registry.signing import (
    CURVES,
    TYPE,
    Envelope,
    Signature,
    parse_envelope,
    payload_of,
    read_private_key,
    sign,
    write_key,
)

V1, V2, CONFIG = "1" * 64, "2" * 64, "f" * 64
DATA, TEST = f"reviews@{'a' * 64}", f"held-out@{'b' * 64}"


@dataclass(frozen=True)
class Model:
    """A model with the versions v1, which "production" means, and v2, which ann pushed."""

    root: Root

    def attest(self, kind: Kind, content: Mapping[str, Any], who: str = "ann", key: Path | None = None) -> str:
        made = attest(self.root, kind, V2, who, content, key)
        entry = Entry("approve" if kind == "approval" else "attest", who, version=V2, evidence=(made.digest,))
        self.root.act("fraud", None, lambda _: entry, again=True)
        return made.digest

    def case(self, policy: str, now: datetime | None = None) -> Case:
        state = self.root.state("fraud")
        alias = state.aliases["production"].version
        attestations = attestations_of(self.root, state, V2)
        parsed = parse_policy(policy, "policy.toml")
        versions = state.versions
        return Case(
            state, versions[V2], "production", attestations, versions[alias], parsed, "p", now or datetime.now(UTC)
        )

    def judge(self, rule: str, now: datetime | None = None) -> Finding:
        """The finding of one rule of production."""
        (finding,) = judge(self.case(f"[aliases.production]\n{rule}", now))
        assert bool(finding.hint) is not finding.passed
        return finding


@pytest.fixture
def model(tmp_path: Path) -> Model:
    root = Root(open_store(str(tmp_path / "registry")))
    facts = {"data": [DATA], "licenses": ["CC0-1.0", "MIT"], "config_digest": CONFIG}
    for entry in (
        Entry("push", "eve", version=V1, facts=facts),
        Entry("promote", "eve", version=V1, alias="production"),
        Entry("push", "ann", version=V2, facts=facts),
    ):
        root.act("fraud", None, lambda _, entry=entry: entry, again=True)  # type: ignore[misc]
    return Model(root)


def report(passed: bool = True, **more: Any) -> dict[str, Any]:
    gates = [{"expr": "accuracy >= 0.8", "value": 0.9, "passed": passed}]
    return {"data": TEST, "metrics": {"accuracy": 0.9, "per_class": {"a": {"recall": 0.5}}}, "gates": gates, **more}


def test_an_evaluation_must_pass_on_the_data_that_is_named(model: Model) -> None:
    rule = 'eval = { data = "held-out@bbbb", gates = ["per_class.a.recall >= 0.5"] }'
    assert not model.judge(rule).passed
    model.attest("eval", report(data=DATA))
    assert not model.judge(rule).passed
    digest = model.attest("eval", report())
    assert model.judge(rule) == Finding("eval", True, "accuracy >= 0.8, per_class.a.recall >= 0.5", "", (digest,))
    assert not model.judge('eval = { split = "test" }').passed
    model.attest("eval", report(split="validation"))
    assert "no evaluation on the test split" in model.judge('eval = { split = "test" }').found
    model.attest("eval", report(split="test"))
    assert model.judge('eval = { split = "test" }').passed
    assert not model.judge('eval = { gates = ["per_class.a.recall >= 0.51"] }').passed
    assert "recall >= 0.1: the report has no such number" in model.judge('eval = { gates = ["recall >= 0.1"] }').found
    assert "accuracy >= 0.91: not met by 0.9" in model.judge('eval = { gates = ["accuracy >= 0.91"] }').found
    model.attest("eval", report(passed=False))  # the newest counts
    assert "accuracy >= 0.8" in model.judge(rule).found
    model.attest("eval", report(gates=[]))
    assert not model.judge("eval = {}").passed


def test_a_rule_takes_evidence_that_was_measured_as_it_states(model: Model) -> None:
    rules = ("eval = {%s}", "better = {%s}", 'slices = { columns = ["country"], %s }')
    stated, spelled = "settings = { data.seq_len = 64 }", 'settings = { "data.seq_len" = 64 }'
    sliced = {"slices": {"country": {"worst": 0.8}}}
    content = {"metric": "accuracy", "verdict": "better", "data": TEST, "against": V1}

    def measure(*settings: dict[str, Any]) -> None:
        model.attest("eval", report(**sliced, settings=settings[0]))
        sides = dict(zip(("subject", "incumbent"), ({"settings": one} for one in settings), strict=True))
        model.attest("comparison", {**content, **sides})

    for settings in (({}, {}), ({"data.seq_len": 16}, {"data.seq_len": 16})):
        measure(*settings)
        for rule in rules:
            assert model.judge(rule % "").passed
            found = model.judge(rule % stated)
            assert found.found == f"measured with {'data.seq_len = 16' if settings[0] else 'no data.seq_len'}"
            assert "--set data.seq_len=64 --json > report.json" in found.hint
    measure({"data.seq_len": 64}, {"data.seq_len": 16})  # one side alone
    assert not model.judge(rules[1] % stated).passed
    measure({"data.seq_len": 64, "eval.quantize": "none"}, {"data.seq_len": 64})
    measure({"data.seq_len": 16}, {"data.seq_len": 16})  # evidence under other settings takes nothing back
    assert all(model.judge(rule % text).passed for rule in rules for text in (stated, spelled))


@pytest.mark.parametrize(
    ("verdict", "margin", "rule", "passes"),
    [
        ("better", 0.0, "{}", True),
        ("better", 0.0, '{ metric = "accuracy" }', True),
        ("better", 0.0, '{ metric = "max accuracy" }', True),
        ("better", 0.0, '{ metric = "min accuracy" }', False),
        ("better", 0.0, '{ metric = "recall" }', False),
        ("better", 0.0, '{ split = "test" }', True),
        ("better", 0.0, '{ split = "validation" }', False),
        ("not worse", 0.01, "{}", False),
        ("not worse", 0.01, "{ margin = 0.01 }", True),
        ("not worse", 0.02, "{ margin = 0.01 }", False),
        ("inconclusive", 0.01, "{ margin = 0.01 }", False),
        ("worse", 0.01, "{ margin = 0.01 }", False),
    ],
)
def test_a_version_must_be_better_than_what_the_alias_means(
    model: Model, verdict: str, margin: float, rule: str, passes: bool
) -> None:
    content = {"metric": "accuracy", "direction": "max", "verdict": verdict, "margin": margin, "data": TEST}
    content["split"] = "test"
    model.attest("comparison", {**content, "verdict": "better", "against": "3" * 64})
    assert not model.judge(f"better = {rule}").passed
    model.attest("comparison", {**content, "against": V1})
    assert model.judge(f"better = {rule}").passed is passes


def test_the_training_data_of_both_versions_is_compared(model: Model) -> None:
    rule = 'contamination = { data = "held-out@bbbb" }'

    def compare(against: str, overlapping: int, reference: str = DATA[:20]) -> None:
        content = {"reference": reference, "against": [{"name": against}], "overlapping": overlapping}
        model.attest("contamination", content)

    model.attest("comparison", {"metric": "accuracy", "verdict": "better", "against": V1})  # one that is no list
    assert DATA[:20] in model.judge(rule).found
    for against in ("others@bbbbbbbbbbbb", "held-out", "held-out@", "held-out@cccccccccccc"):  # a name is no version
        compare(against, 0)
        assert not model.judge(rule).passed
    for reference in ("reviews", "reviews@", "reviews@cccccccccccc"):
        compare(TEST[:21], 0, reference)
        assert not model.judge(rule).passed
    compare(TEST[:21], 0)
    assert model.judge(rule).passed
    compare(TEST[:21], 2)
    assert "2 rows" in model.judge(rule).found


def test_what_is_not_known_does_not_pass(model: Model) -> None:
    unknown = Entry("push", "ann", version="3" * 64, facts={"data": [], "licenses": []})
    model.root.act("fraud", None, lambda _: unknown, again=True)
    case = model.case("[aliases.production]\ncontamination = {}\nlicences = { allow = ['MIT'] }")
    findings = judge(replace(case, version=model.root.state("fraud").versions["3" * 64]))
    assert [finding.passed for finding in findings] == [False, False]


def test_each_licence_must_be_allowed(model: Model) -> None:
    assert model.judge('licences = { allow = ["CC0-1.0", "MIT"] }').passed
    assert model.judge('licences = { allow = ["MIT"] }').found.startswith("CC0-1.0:")


def test_slices_benchmarks_drills_and_files(model: Model) -> None:
    now = datetime.now(UTC)
    slices = 'slices = { columns = ["country"], gates = ["slices.country.worst >= 0.8"] }'
    bench, drill, card = (
        'bench = { gates = ["serve.throughput.units_per_s >= 100", "serve.ttft.median_s < 1"] }',
        "drill = { days = 7 }",
        'file = { names = ["CARD.md"] }',
    )
    assert not any(model.judge(rule).passed for rule in (slices, bench, drill, card))
    model.attest("eval", report(slices={"country": {"worst": 0.79}}))
    first_token = {"name": "serve.ttft", "median_s": 0.5}
    slow, quick = ({"name": "serve.throughput", "figures": {"units_per_s": rate}} for rate in (99, 100))
    for results in ([first_token], [first_token, quick, slow]):  # each load must pass
        model.attest("bench", {"model": V2, "results": results})
        assert not model.judge(bench).passed
    model.attest("drill", {"config_digest": CONFIG, "passed": False})
    assert not any(model.judge(rule).passed for rule in (slices, bench, drill, card))
    model.attest("eval", report(slices={"country": {"worst": 0.8}}))
    model.attest("bench", {"model": V2, "results": [first_token, quick]})
    old = (now - timedelta(days=8)).isoformat()  # it is attested today
    model.attest("drill", {"config_digest": CONFIG, "passed": True, "ended": old})
    assert not model.judge(drill).passed
    for ended in ({}, {"ended": "2026-12-01"}):
        model.attest("drill", {"config_digest": CONFIG, "passed": True, **ended})
        assert "does not say when" in model.judge(drill).found
    model.attest("drill", {"config_digest": CONFIG, "passed": True, "ended": now.isoformat()})
    model.attest("file", {"name": "CARD.md", "sha256": "c" * 64})
    assert all(model.judge(rule).passed for rule in (slices, bench, drill, card))
    assert not model.judge(drill, now + timedelta(days=8)).passed


def test_the_age_of_a_benchmark_is_that_of_its_report(model: Model) -> None:
    now, rule = datetime.now(UTC), "bench = { days = 7 }"
    model.attest("bench", {"model": V2})
    assert "does not say when" in model.judge(rule).found
    assert model.judge("bench = {}").passed
    for age, passes in ((6, True), (8, False), (-1, False)):  # each is attested today
        model.attest("bench", {"model": V2, "time": (now - timedelta(days=age)).timestamp()})
        assert model.judge(rule).passed is passes


def test_a_benchmark_and_a_drill_name_their_model(model: Model) -> None:
    ended = datetime.now(UTC).isoformat()
    model.attest("bench", {"model": V2})
    model.attest("drill", {"config_digest": CONFIG, "passed": True, "ended": ended})
    assert model.judge("bench = {}").passed
    assert model.judge("drill = {}").passed
    for other, found in (("", "does not name"), (V1, "of another model")):
        model.attest("bench", {"model": other} if other else {})
        model.attest("drill", {"config_digest": other, "passed": True, "ended": ended})
        assert found in model.judge("bench = {}").found
        assert found in model.judge("drill = {}").found


def test_an_approval_is_of_others_and_ends_when_what_it_binds_changes(model: Model) -> None:
    rule = "approval = { people = 2 }"
    policy = f"[aliases.production]\n{rule}"
    for who in ("ann", "bob", "bob", "cid"):  # ann pushed it, and bob counts once
        assert not model.judge(rule).passed
        model.attest("approval", model.case(policy).approval(), who)
    assert model.judge(rule).passed
    model.attest("eval", report())
    assert "bob, cid approved before" in model.judge(rule).found
    for who in ("bob", "cid"):
        model.attest("approval", model.case(policy).approval(), who)
    assert model.judge(rule).passed
    model.root.act("fraud", None, lambda _: Entry("promote", "eve", version=V2, alias="production"), again=True)
    assert not model.judge(rule).passed


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.pem" for name in ("ann", "bob", "cid")}
    for path, curve in zip(paths.values(), CURVES, strict=True):
        write_key(path, curve)
    return paths


def policy_with(
    keys: Mapping[str, Path], rules: str = "", admin: str = "ann", reviewers: Sequence[str] = ("bob", "cid")
) -> str:
    lines = [f'{name} = """{path.with_name(path.name + ".pub").read_text()}"""' for name, path in keys.items()]
    roles = f'[roles]\nadmin = ["{admin}"]\nreviewer = {json.dumps(list(reviewers))}\n'
    return "\n".join(["[keys]", *lines, roles, "[aliases.production]", rules])


def test_approvals_and_signatures_are_proved_by_keys(model: Model, keys: dict[str, Path]) -> None:
    policy = policy_with(keys, 'approval = { role = "reviewer" }\nsignature = { role = "admin" }')

    def passed() -> dict[str, bool]:
        return {finding.rule: finding.passed for finding in judge(model.case(policy))}

    model.attest("approval", model.case(policy).approval(), "bob")  # anybody can write a name
    model.attest("approval", model.case(policy).approval(), "bob", keys["ann"])  # ann is no reviewer
    assert passed() == {"approval": False, "signature": False}
    model.attest("signature", {}, "x", keys["bob"])
    assert passed() == {"approval": False, "signature": False}
    model.attest("signature", {}, "x", keys["ann"])
    model.attest("approval", model.case(policy).approval(), "x", keys["cid"])
    assert passed() == {"approval": True, "signature": True}


@pytest.mark.parametrize("by", ["name", "key"])
def test_an_approval_is_of_somebody_with_the_role(by: str, model: Model, keys: dict[str, Path]) -> None:
    rule = 'approval = { role = "reviewer" }'
    policy = policy_with(keys, rule, reviewers=["cid"])
    if by == "name":
        policy = f'[roles]\nreviewer = ["cid"]\n[aliases.production]\n{rule}'
    for who, passed in (("bob", False), ("cid", True)):
        model.attest("approval", model.case(policy).approval(), who, keys[who] if by == "key" else None)
        assert [finding.passed for finding in judge(model.case(policy))] == [passed]


def test_an_approval_that_no_rule_would_count_is_refused(model: Model, keys: dict[str, Path]) -> None:
    rule = 'approval = { role = "reviewer" }'
    change_policy(model.root, policy_with(keys, rule, reviewers=["cid"]), "policy.toml", "ann", None, None)
    before = model.root.state("fraud").entries
    for key, why in ((None, "must be signed"), (keys["bob"], "of nobody who may approve")):
        with pytest.raises(UsageError, match=why):
            approve(model.root, "fraud@v2", "production", key, Caller("bob"))
    assert model.root.state("fraud").entries == before
    model.attest("approval", {**model.case(FIRST).approval(), "alias": "canary"}, "cid")
    assert model.judge("approval = {}").found == "0 of 1 approval"  # and none of this alias that had been one


def test_a_policy_with_keys_that_everyone_may_change_is_warned_of(
    model: Model, keys: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    ann = keys["ann"].with_name("ann.pem.pub").read_text()
    change_policy(model.root, f'[keys]\nann = """{ann}"""', "policy.toml", "ann", None, None)
    assert "everyone may change the policy" in caplog.text


def test_who_releases_a_version_is_not_its_author(model: Model, keys: dict[str, Path]) -> None:
    policy = policy_with(keys, 'approval = { role = "reviewer" }')
    model.attest("signature", {}, "x", keys["bob"])
    model.attest("approval", model.case(policy).approval(), "x", keys["bob"])
    assert [finding.passed for finding in judge(model.case(policy))] == [True]


def test_a_person_of_a_role_has_a_key_of_their_own(keys: dict[str, Path]) -> None:
    ann = keys["ann"].with_name("ann.pem.pub")
    twice = {"ann": keys["ann"], "bob": keys["ann"]}
    for text, why in (
        (policy_with(twice, reviewers=["bob"]), "two people have the same key"),
        (policy_with({"ann": keys["ann"]}, reviewers=["bob"]), "no key of 'bob'"),
    ):
        assert ann.read_text() in text
        with pytest.raises(ConfigError) as refused:
            parse_policy(text, "policy.toml")
        assert why in refused.value.why


def test_an_author_is_a_key_if_the_policy_says_so(model: Model, keys: dict[str, Path]) -> None:
    rules = 'approval = { author = "key" }'
    change_policy(model.root, policy_with(keys, rules), "policy.toml", "ann", None, None)

    def finding() -> Finding:
        (found,) = judge(model.case(policy_with(keys, rules)))
        return found

    model.attest("approval", model.case(policy_with(keys, rules)).approval(), "x", keys["cid"])
    assert "its author is not known" in finding().found
    assert "push RUN fraud --key" in finding().hint
    model.attest("author", {}, "another-name", keys["bob"])
    with pytest.raises(UsageError, match="author"):  # under whatever name
        approve(model.root, "fraud@v2", "production", keys["bob"], Caller("somebody"))
    model.attest("approval", model.case(policy_with(keys, rules)).approval(), "x", keys["bob"])
    assert not finding().passed
    model.attest("approval", model.case(policy_with(keys, rules)).approval(), "x", keys["cid"])
    assert finding().passed
    with pytest.raises(ConfigError):
        parse_policy(f"[aliases.production]\n{rules}", "policy.toml")


def test_an_envelope_shows_who_signed_its_bytes(keys: dict[str, Path]) -> None:
    public = {name: path.with_name(f"{name}.pem.pub").read_text() for name, path in keys.items()}
    for name, path in keys.items():
        envelope = sign({"a": 1}, path)
        assert parse_envelope(envelope.encode(), "it") == envelope
        assert envelope.signers(public) == [name]
        assert replace(envelope, content={"a": 2}).signers(public) == []
    assert Envelope({"a": 1}).signers(public) == []
    for sig in ("\xe9", "a", ""):  # no base64, no signature
        forged = Envelope({"a": 1}, (Signature("", sig), *sign({"a": 1}, keys["ann"]).signatures))
        assert parse_envelope(forged.encode(), "it").signers(public) == ["ann"]
    with pytest.raises(UsageError):
        write_key(keys["ann"], "P-256")
    assert keys["ann"].stat().st_mode & 0o077 == 0


def test_a_signature_is_of_these_bytes_as_this_type(keys: dict[str, Path]) -> None:
    public = {name: path.with_name(f"{name}.pem.pub").read_text() for name, path in keys.items()}
    payload = payload_of({"a": 1})

    def signers(signed: bytes, who: str = "ann", digest: Any = hashes.SHA256, after: str = "") -> list[str]:
        sig = read_private_key(keys[who]).sign(signed, ec.ECDSA(digest()))
        return Envelope({"a": 1}, (Signature("", base64.b64encode(sig).decode() + after),)).signers(public)

    encoded = b"DSSEv1 %d %s %d %s" % (len(TYPE), TYPE.encode(), len(payload), payload)
    kinds = (("ann", hashes.SHA256), ("bob", hashes.SHA384), ("cid", hashes.SHA512))  # as strong as P-256, -384, -521
    for who, digest in kinds:
        assert signers(encoded, who, digest) == [who]
    assert signers(encoded, "bob", hashes.SHA256) == []
    assert signers(encoded, after="!") == []
    assert signers(payload) == []
    assert signers(b"DSSEv1 6 text/x %d %s" % (len(payload), payload)) == []
    doc = json.loads(sign({"a": 1}, keys["ann"]).encode())
    for changed, why in (({"payloadType": "text/x"}, "type is 'text/x'"), ({"payload": doc["payload"] + "\n"}, "")):
        with pytest.raises(DataError) as refused:
            parse_envelope(json.dumps(doc | changed).encode(), "it")
        assert why in refused.value.why
    with pytest.raises(DataError, match="no evidence"):  # the same values in other bytes would have another digest
        parse_envelope(json.dumps(doc, indent=1).encode(), "it")


@pytest.mark.parametrize("kind", ["rsa", "secp256k1", "password", "text"])
def test_a_key_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    private = rsa.generate_private_key(65537, 1024) if kind == "rsa" else ec.generate_private_key(ec.SECP256K1())
    hidden = serialization.BestAvailableEncryption(b"a") if kind == "password" else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    (tmp_path / "key.pem").write_bytes(
        b"a" if kind == "text" else private.private_bytes(serialization.Encoding.PEM, form, hidden)
    )
    with pytest.raises(UsageError) as refused:
        sign({}, tmp_path / "key.pem")
    assert "aifx registry keygen" in refused.value.hint
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(ConfigError, match="is no policy"):
        parse_policy(f'[keys]\nann = """{public.decode() if kind != "text" else "a"}"""', "policy.toml")


def test_a_key_that_the_project_trusts_vouches_for_a_version(
    model: Model, keys: dict[str, Path], tmp_path: Path
) -> None:
    project = Project(tmp_path, trusted_keys=("ann.pem.pub", "bob.pem.pub"))

    def signer() -> str | None:
        return trusted_signer(model.root, model.root.state("fraud"), V2, project)

    model.attest("trust-code", {}, "ann", keys["cid"])
    model.attest("signature", {}, "bob", keys["bob"])  # a release, by somebody who did not read the code
    model.attest("file", {"name": "x", "sha256": "c" * 64}, "ann", keys["ann"])  # which vouches for the file alone
    assert signer() is None
    model.attest("trust-code", {}, "x", keys["bob"])
    (release,) = judge(model.case(policy_with({"cid": keys["cid"]}, 'signature = { role = "admin" }', "cid", ["cid"])))
    assert not release.passed  # cid trusts the code, and has released nothing
    assert signer() == "bob.pem.pub"


def test_only_an_admin_changes_the_policy(model: Model, keys: dict[str, Path]) -> None:
    root = model.root
    change_policy(root, FIRST, "policy.toml", "ann", None, None)
    closed = policy_with(keys)
    first = change_policy(root, closed, "policy.toml", "ann", None, "r1")
    assert change_policy(root, closed, "policy.toml", "ann", None, "r1") == first
    other = policy_with(keys, "eval = {}")
    for key in (None, keys["bob"]):
        with pytest.raises(UsageError, match="role 'admin': ann"):
            change_policy(root, other, "policy.toml", "bob", key, None)
    change_policy(root, other, "policy.toml", "ann", keys["ann"], None)
    assert read_policy(root).text == other
    # A writer that leaves the checks out, with the signature of the change before.
    entries = root.policy.entries()
    forged = Entry("policy", "bob", evidence=entries[-1].evidence, facts={"policy": root.put(FIRST.encode())})
    root.policy.append(entries, forged)
    with pytest.raises(DataError, match="without a signature"):
        read_policy(root)


@pytest.mark.parametrize("damage", ["unsigned", "by a reviewer", "of another text", "of another entry"])
def test_a_change_that_no_admin_signed_is_no_policy(damage: str, model: Model, keys: dict[str, Path]) -> None:
    """A writer who leaves out the checks of `change_policy` writes straight into the ledger of policies."""
    root = model.root
    change_policy(root, policy_with(keys), "policy.toml", "ann", None, None)
    entries, wanted = root.policy.entries(), root.put(FIRST.encode())
    statement = {"policy": wanted, "previous": entries[-1].digest}
    statement |= {"of another text": {"policy": "0" * 64}, "of another entry": {"previous": ""}}.get(damage, {})
    signed = root.put(sign(statement, keys["bob" if damage == "by a reviewer" else "ann"]).encode())
    evidence = (wanted,) if damage == "unsigned" else (wanted, signed)
    root.policy.append(entries, Entry("policy", "bob", new_request(), evidence=evidence, facts={"policy": wanted}))
    with pytest.raises(DataError, match=r"without a signature|is no evidence"):
        read_policy(root)
    with pytest.raises(DataError):
        approve(root, "fraud@v2", "production", None, Caller("bob"))


def test_settings_cannot_touch_the_policy() -> None:
    """It is in the root, and no option or section of a project has a part of it."""
    assert set(RegistrySection.model_fields) == {"root", "trusted_keys"}
    for command in registry_app.registered_commands:
        assert command.callback is not None
        assert not {"settings", "set"} & set(inspect.signature(command.callback).parameters)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[aliases.production]\nevl = {}", "aliases.production.evl: did you mean 'eval'?"),
        ('[aliases.production]\neval = { gate = ["a > 1"] }', "aliases.production.eval.gate: did you mean 'gates'?"),
        ('[aliases.production]\neval = { gates = ["a"] }', "aliases.production.eval.gates: 'a' is not a gate"),
        ("[aliases.production]\nbetter = { margin = -1 }", "aliases.production.better.margin: "),
        ('[aliases.production]\neval = { data = "held-out" }', "aliases.production.eval.data: 'held-out' names no v"),
        ('[aliases.production]\nsignature = { role = "x" }', "aliases.production: no role 'x'"),
        ('[keys]\nann = "x"', "the key of ann is no public key"),
        ("[aliases.3]\neval = {}", "'3' cannot be an alias"),
        ("aliases = 3", "aliases: "),
        ("[", ""),
    ],
)
def test_a_text_that_is_no_policy_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_policy(text, "policy.toml")
    assert error.value.what == "policy.toml is no policy"
    assert error.value.why.startswith(why)


def test_damaged_evidence_is_found(model: Model) -> None:
    digest = model.attest("file", {"name": "x"})
    assert model.root.store.folder is not None
    path = model.root.store.folder / "objects" / digest
    made: Attestation = read_attestation(model.root, digest)
    assert (made.kind, made.subject) == ("file", V2)
    path.write_bytes(path.read_bytes().replace(b"payload", b"Payload"))
    with pytest.raises(DataError, match="is damaged"):
        read_attestation(model.root, digest)
