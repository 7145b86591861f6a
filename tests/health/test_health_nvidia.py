"""NVIDIA GPUs: states that look like faults and are none, and parts that cannot be read."""

import json

import pytest
from health_cases.nvidia import gpu, together
from health_machines.gpus import FABRIC_MANAGER, H100_BUSES, NVML, h100_sxm, machine_of, pci_device
from health_machines.nvml_documents import H100
from health_trees import changed, snapshot_of

from aifx.health.evaluate_rules import evaluate_rules
from aifx.health.report import folded
from aifx.health.rules import Rule, load_rules
from aifx.health.snapshot import Snapshot

RULES = [rule for rule in load_rules().values() if rule.family in ("nvidia", "gpus")]


@pytest.fixture
def report(tmp_path):
    """The findings of the GPUs' rules in a tree."""
    return lambda tree, *changes: evaluate_rules(
        RULES, snapshot_of(changed(tree, together(*changes)), tmp_path / "tree")
    )


def given(tree, count):
    """NVML shows the first GPUs alone."""
    document = json.loads(tree[NVML])
    document["gpus"] = document["gpus"][:count]
    tree[NVML] = json.dumps(document | {"count": count})


@pytest.mark.parametrize(
    "confined",
    [
        {".dockerenv": ""},
        {"proc/self/cgroup": "0::/system.slice/slurmstepd.scope/job_4242/step_0/user/task_0\n"},
        {"proc/self/cgroup": "0::/kubepods.slice/kubepods-burstable.slice/cri-containerd-1f.scope\n"},
    ],
    ids=["docker", "a job of Slurm", "Kubernetes"],
)
def test_a_container_that_was_given_some_gpus_misses_none(report, confined):
    """Nor does it see the processes of others, or the fabric manager."""
    tree = {path: text for path, text in h100_sxm().items() if path != FABRIC_MANAGER} | confined
    assert not report(tree, lambda tree: given(tree, 2), gpu(0, memory__used_mib=30_000)).findings


def test_one_module_alone_has_nobody_to_be_linked_with(report):
    tree = machine_of(H100, H100_BUSES[:1])
    down = {f"links__{number}__state": "inactive" for number in range(18)}
    assert not report(tree, gpu(0, **down)).findings
    assert [f.id for f in report(tree, gpu(0, links__3__state="inactive")).findings] == ["nvidia.nvlink.inactive"]


@pytest.mark.parametrize(
    "state", [{"$absent": "NVML says that it has no such link"}, "inactive"], ids=["absent", "down"]
)
def test_links_that_are_all_down_are_missed_however_nvml_says_so(report, state):
    """As a B200 of gpud#1085."""
    down = {f"links__{number}__state": state for number in range(18)}
    none = {"links": {"$absent": "there is no NVLink"}}
    for changes in (down, none):
        findings = report(h100_sxm(), gpu(2, **changes)).findings
        assert [(f.id, f.device.split()[0]) for f in findings] == [("nvidia.nvlink.inactive", "GPU2")]
        assert "0 of 18" in findings[0].summary


def test_a_module_with_fewer_links_is_compared_with_its_like(report):
    fewer = {f"links__{number}__state": "inactive" for number in range(8, 18)}
    changes = [gpu(index, name="NVIDIA H800", **fewer) for index in range(8)]
    assert not report(h100_sxm(), *changes).findings
    worse = report(h100_sxm(), *changes, gpu(5, links__7__state="inactive")).findings
    assert [f.device.split()[0] for f in worse] == ["GPU5"]


def test_gpus_that_are_lent_to_virtual_machines_are_none_of_ours(report):
    tree = {path: text for path, text in h100_sxm().items() if path != NVML}
    for address in H100_BUSES:
        tree |= pci_device(address, "0x030200", "vfio-pci")
    found = report(tree)
    assert not found.findings
    assert any("NVIDIA GPU" in skipped.why for skipped in found.skipped)


@pytest.mark.parametrize(
    "used",
    [
        {"processes": [{"pid": 77, "name": "python", "memory_mib": 30_000}]},
        {"mig__current": True, "mig__pending": True},
    ],
    ids=["a process", "an instance"],
)
def test_memory_that_somebody_holds_is_not_left_over(report, used):
    assert not report(h100_sxm(), gpu(0, memory__used_mib=30_000, **used)).findings


def test_a_link_at_rest_may_be_slow(report):
    assert not report(h100_sxm(), gpu(0, pcie__generation=1)).findings


def test_a_recovery_action_that_nobody_knows_is_reported_once(report):
    findings = report(h100_sxm(), gpu(4, recovery_action="8")).findings
    assert {(f.severity, f.device.split()[0]) for f in findings} == {("unknown", "GPU4")}
    ((told, rules),) = folded(findings)
    assert "recovery_action is '8'" in told.summary
    assert set(rules) == {rule.id for rule in RULES if rule.id.startswith("nvidia.recovery.")}


def test_what_nvml_did_not_answer_is_unknown(report):
    tree = h100_sxm() | {NVML: json.dumps({"$unknown": "nvml gave no answer in 8 s", "$remedy": "look at it"})}
    findings = report(tree).findings
    assert {f.severity for f in findings} == {"unknown"}
    assert {f.action for f in findings} == {"look at it"}
    assert "nvidia.gpu.lost" in {f.id for f in findings}


def test_a_lost_gpu_is_reported_once(report):
    """A part that a GPU cannot report is absent, and not also unknown."""

    def lose(tree):
        document = json.loads(tree[NVML])
        why = {"$absent": "the GPU is lost"}
        silent = lambda value: {n: silent(v) for n, v in value.items()} if isinstance(value, dict) else why  # noqa: E731
        document["gpus"][3] = {name: silent(value) for name, value in document["gpus"][3].items()}
        document["gpus"][3] |= {"index": 3, "state": "lost", "links": why, "processes": why, "fabric": why}
        tree[NVML] = json.dumps(document)

    assert [(f.id, f.device) for f in report(h100_sxm(), lose).findings] == [("nvidia.gpu.lost", "GPU3")]


def test_the_kernel_log_explains_what_has_the_same_address():
    rules = [
        Rule(id="nvidia.part.bad", for_each="gpus", signal="errors", fails_if={"above": 0}, severity="critical",
             summary="bad", action="fix", source="here"),
        Rule(id="xid.part.bad", for_each="log", signal="errors", fails_if={"above": 0}, severity="critical",
             summary="bad", action="fix", source="here", explains=("nvidia",)),
    ]  # fmt: skip
    gpus = [{"device": f"GPU{number} (0000:3{number}:00.0)", "errors": 1} for number in (3, 4)]
    log = [{"device": "0000:33:00.0", "errors": 1}]
    found = evaluate_rules(rules, Snapshot("n1", 0.0, {"gpus": gpus, "log": log})).findings
    assert [f.device for f in found] == ["GPU4 (0000:34:00.0)", "0000:33:00.0", "GPU3 (0000:33:00.0)"]
