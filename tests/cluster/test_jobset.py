"""`aifx launch k8s` renders what the API server takes, what it promises, and nothing that a setting could inject."""

from __future__ import annotations

import copy
import json
import re
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes_schema import JOB, JOBSET, POD, faults, schema_at

from aifx.cluster.kubernetes import render_jobset, to_yaml
from aifx.config.launch_section import KubernetesSection
from aifx.core.errors import AifxError, ConfigError, UsageError
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.parallel.processes import detect

ROOT = Path(__file__).parents[2]
BASE = ["launch.image=registry.example/team/project:1", "k8s.runs_claim=runs"]
CASES = {
    "one pod": [],
    "GPUs": [
        *("launch.nodes=4", "launch.gpus_per_node=8", "k8s.cpu=32", "k8s.memory=512Gi", "k8s.shm=64Gi"),
        *("k8s.namespace=team-a", "k8s.queue=research", "k8s.service_account=trainer", "k8s.cache_claim=cache"),
        'k8s.tolerations=["team=a:NoSchedule", "spot", "x.example/y=:NoExecute"]',
        'k8s.secrets={WANDB_API_KEY = "wandb/api-key", HF_TOKEN = "hub.tokens/token"}',
        'k8s.node_selector={"example.com/pool" = "a100"}',
        'k8s.resources={"rdma/hca" = "1"}',
        'k8s.image_pull_secrets=["registry"]',
        'launch.environment=["NCCL_DEBUG=INFO", "HOME_OF=$(HOME)"]',
    ],
    "another vendor": ["launch.gpus_per_node=8", "k8s.gpu_resource=amd.com/gpu", "k8s.user=0"],
    "a TPU slice": ["k8s.tpu=tpu-v6e-slice", "k8s.tpu_topology=4x4"],
    "TPU slices": ["k8s.tpu=tpu-v5p-slice", "k8s.tpu_topology=2x2x4", "k8s.tpu_slices=3", "launch.doctor=false"],
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "aifx.toml").touch()
    return Project(tmp_path)


def rendered(project: Project, *overrides: str, name: str = "wide", words: tuple[str, ...] = ("train",)) -> Any:
    return render_jobset(load_config(project, [*BASE, *overrides], {}), name, words)


def pod_of(jobset: Any) -> Any:
    (job,) = jobset["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def container_of(jobset: Any) -> Any:
    (container,) = pod_of(jobset)["containers"]
    return container


@pytest.mark.parametrize("case", CASES)
def test_the_api_server_takes_what_is_rendered(project: Project, case: str) -> None:
    jobset = rendered(project, *CASES[case])
    assert faults(JOBSET, jobset) == []
    assert faults(JOBSET, jobset, copy.deepcopy(jobset)) == []  # applied again, it changes nothing
    assert yaml.safe_load(to_yaml(jobset)) == jobset


BREAKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an unknown field": (lambda spec: spec.update(restarts=3), "restarts"),
    "an unknown action": (lambda spec: spec["failurePolicy"]["rules"][0].update(action="Retry"), "Retry"),
    "no name": (lambda spec: spec["replicatedJobs"][0].pop("name"), "name"),
    "a number as text": (lambda spec: spec["replicatedJobs"][0].update(replicas="1"), "integer"),
    "orders that exclude each other": (
        lambda spec: (
            spec.update(startupPolicy={"startupPolicyOrder": "InOrder"}),
            spec["replicatedJobs"][0].update(dependsOn=[{"name": "node", "status": "Ready"}]),
        ),
        "mutually exclusive",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_the_judge_refuses_what_is_broken(project: Project, case: str) -> None:
    jobset = rendered(project)
    change, word = BREAKS[case]
    change(jobset["spec"])
    assert any(word in fault for fault in faults(JOBSET, jobset)), faults(JOBSET, jobset)


def test_the_judge_knows_rules_of_changes(project: Project) -> None:
    jobset = rendered(project)
    other = copy.deepcopy(jobset)
    other["spec"]["network"]["subdomain"] = "another"
    assert faults(JOBSET, other, jobset) == ["$.spec.network: Value is immutable"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [("examples/serve/kubernetes.yaml", "Deployment"), ("docs/examples/aifx-doctor-daemonset.yaml", "DaemonSet")],
)
def test_the_pods_of_the_examples(path: str, kind: str) -> None:
    """Kinds whose schema of the pod is here."""
    documents = list(yaml.safe_load_all((ROOT / path).read_text()))
    (found,) = [one for one in documents if one["kind"] == kind]
    template = found["spec"]["template"]
    assert faults(schema_at(*POD), template) == []
    template["spec"]["containers"][0]["imagePullSecret"] = "x"
    assert faults(schema_at(*POD), template)


def test_the_job_of_the_page_on_launch() -> None:
    text = (ROOT / "docs/launch.md").read_text()
    (example,) = re.findall(r"```yaml\n(apiVersion: batch/v1\n.*?)```", text, re.DOTALL)
    job = yaml.safe_load(example)
    assert job["kind"] == "Job"
    assert faults(schema_at(*JOB), job["spec"]) == []


# What JobSet and Kubernetes do with the manifest


def pods(jobset: Any) -> list[tuple[str, Any, Mapping[str, str]]]:
    """The name, the container and the annotations of each pod, as JobSet's controller makes them."""
    name, spec = jobset["metadata"]["name"], jobset["spec"]
    first = spec["coordinator"]
    (job,) = spec["replicatedJobs"]
    coordinator = f"{name}-{first['replicatedJob']}-{first['jobIndex']}-{first['podIndex']}.{name}"
    found = []
    for slice_index in range(job["replicas"]):
        for index in range(job["template"]["spec"]["completions"]):
            annotations = {
                "jobset.sigs.k8s.io/coordinator": coordinator,
                "jobset.sigs.k8s.io/jobset-name": name,
                "jobset.sigs.k8s.io/jobset-uid": "0f1e2d3c-uid",
                "jobset.sigs.k8s.io/replicatedjob-name": job["name"],
                "jobset.sigs.k8s.io/job-index": str(slice_index),
                "batch.kubernetes.io/job-completion-index": str(index),
            }
            found.append((f"{name}-{job['name']}-{slice_index}-{index}", container_of(jobset), annotations))
    return found


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` and `$$`, as k8s.io/kubernetes/third_party/forked/golang/expansion reads them."""

    def replaced(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replaced, text)


def environment(container: Any, annotations: Mapping[str, str], secrets: Mapping[str, str] = {}) -> dict[str, str]:
    found = {"JOB_COMPLETION_INDEX": annotations["batch.kubernetes.io/job-completion-index"]}
    for variable in container["env"]:
        if "value" in variable:
            found[variable["name"]] = expand(variable["value"], found)
        elif "fieldRef" in variable["valueFrom"]:
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]
            found[variable["name"]] = annotations[path.removeprefix("metadata.annotations['").removesuffix("']")]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            found[variable["name"]] = secrets[f"{reference['name']}/{reference['key']}"]
    return found


@pytest.mark.parametrize(
    ("overrides", "count"),
    [(["launch.nodes=4"], 4), (CASES["a TPU slice"], 4), (CASES["TPU slices"], 12)],
    ids=["nodes", "slice", "slices"],
)
def test_each_process_finds_its_place(project: Project, overrides: list[str], count: int) -> None:
    jobset = rendered(project, *overrides)
    found = [(name, detect(environment(one, annotations))) for name, one, annotations in pods(jobset)]
    assert len(found) == count
    memberships = [member for _, member in found]
    assert all(member is not None for member in memberships)
    assert [member.process_id for member in memberships if member] == list(range(count))
    assert {member.num_processes for member in memberships if member} == {count}
    assert {member.host for member in memberships if member} == {f"{found[0][0]}.wide"}
    assert jobset["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}


def test_one_pod_trains_alone(project: Project) -> None:
    ((_, container, annotations),) = pods(rendered(project))
    assert detect(environment(container, annotations)) is None


def outcome(jobset: Any, reason: str, message: str) -> str:
    """The action of JobSet when a Job fails: pkg/controllers/failure_policy.go."""
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            return str(rule["action"])
    return "RestartJobSet"


def failed(jobset: Any, container: str, code: int, condition: str = "") -> tuple[str, str]:
    """The reason for which a Job fails if a pod ends so: pkg/controller/job/pod_failure_policy.go of Kubernetes."""
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = "Container" if not condition else "Pod"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        assert rule["action"] == "FailJob"
        end = f"matching FailJob rule at index {index}"
        codes = rule.get("onExitCodes", {"values": [], "containerName": ""})
        if code in codes["values"] and container == codes["containerName"]:
            return (
                "PodFailurePolicy",
                f"{pod} {container} for pod default/wide-node-0-1 failed with exit code {code} {end}",
            )
        if condition in [one["type"] for one in rule.get("onPodConditions", ())]:
            return "PodFailurePolicy", f"Pod default/wide-node-0-1 has condition {condition} {end}"
    assert job["backoffLimit"] == 0
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


@pytest.mark.parametrize(
    ("container", "code", "condition", "action"),
    [
        ("aifx", 75, "", "RestartJobSetAndIgnoreMaxRestarts"),  # preempted, or another process was lost
        ("aifx", 143, "DisruptionTarget", "RestartJobSetAndIgnoreMaxRestarts"),  # evicted
        ("aifx", 137, "", "RestartJobSet"),  # out of memory
        ("doctor", 1, "", "RestartJobSet"),  # another node may be healthy
        ("aifx", 1, "", "FailJobSet"),
        ("aifx", 2, "", "FailJobSet"),
        ("aifx", 70, "", "FailJobSet"),
    ],
)
def test_what_starts_again(project: Project, container: str, code: int, condition: str, action: str) -> None:
    jobset = rendered(project, "launch.restarts=5")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 5
    assert outcome(jobset, *failed(jobset, container, code, condition)) == action
    pod = pod_of(jobset)
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy needs it
    assert {one["name"] for one in pod["initContainers"] + pod["containers"]} == {"doctor", "aifx"}


def test_an_unknown_message_restarts_a_limited_number_of_times(project: Project) -> None:
    assert outcome(rendered(project), "PodFailurePolicy", "worded otherwise") == "RestartJobSet"


def test_the_pod_saves_before_it_is_killed(project: Project) -> None:
    jobset = rendered(project, "checkpoint.stop_timeout_s=100.5")
    assert pod_of(jobset)["terminationGracePeriodSeconds"] >= 101 + 15


def test_resources_volumes_and_selectors(project: Project) -> None:
    jobset = rendered(project, *CASES["GPUs"])
    pod, container = pod_of(jobset), container_of(jobset)
    devices = {"nvidia.com/gpu": "8", "rdma/hca": "1", "memory": "512Gi"}
    assert container["resources"] == {"requests": {"cpu": "32", **devices}, "limits": devices}
    assert pod["initContainers"][0]["resources"] == container["resources"]  # it checks the GPUs
    volumes = {volume.pop("name"): volume for volume in copy.deepcopy(pod["volumes"])}
    assert volumes == {
        "runs": {"persistentVolumeClaim": {"claimName": "runs"}},
        "cache": {"persistentVolumeClaim": {"claimName": "cache"}},
        "shm": {"emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"runs": "/project/runs", "cache": "/cache", "shm": "/dev/shm"}
    assert pod["tolerations"] == [
        {"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists"},
        {"key": "x.example/y", "operator": "Equal", "value": "", "effect": "NoExecute"},
    ]
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    variables = environment(container, pods(jobset)[0][2], {"wandb/api-key": "a", "hub.tokens/token": "b"})
    assert (variables["WANDB_API_KEY"], variables["HF_TOKEN"], variables["HOME_OF"]) == ("a", "b", "$(HOME)")
    slices = rendered(project, *CASES["TPU slices"])
    assert pod_of(slices)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x2x4",
    }
    assert container_of(slices)["resources"]["limits"] == {"google.com/tpu": "4"}
    assert slices["spec"]["replicatedJobs"][0]["replicas"] == 3
    assert slices["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == 4
    assert "initContainers" not in pod_of(slices)


REFUSED: dict[str, tuple[list[str], str, str]] = {
    "no image": (["launch.image="], "wide", "launch.image is not set"),
    "an underscore": ([], "my_run", "--name my-run"),
    "a capital": ([], "Wide.1", "--name wide-1"),
    "a number first": ([], "1b", "--name run-1b"),
    "too long": ([], "a" * 49, "at most 48 characters"),
    "nothing": ([], "", "--name run"),
    "a line": ([], "wide\n", "--name wide"),
    "a variable of ours": (['k8s.secrets={AIFX_PROCESS_ID = "a/b"}'], "wide", "sets it itself"),
    "a variable twice": (['launch.environment=["A=1"]', 'k8s.secrets={A = "a/b"}'], "wide", "set twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_rendered(project: Project, case: str) -> None:
    overrides, name, word = REFUSED[case]
    with pytest.raises(AifxError) as caught:
        rendered(project, *overrides, name=name)
    assert word in str(caught.value)
    assert caught.value.hint
    hint = re.search(r"--name (\S+)", caught.value.hint)
    if hint is not None:
        rendered(project, name=hint[1])


def test_the_longest_name_that_is_taken_has_pods_of_63_characters(project: Project) -> None:
    jobset = rendered(project, "launch.nodes=200", name="a" * 46)
    assert max(len(f"{name}-abcde") for name, _, _ in pods(jobset)) == 63


# Injection

HOSTILE = [
    *(
        "$(AIFX_COORDINATOR)",
        "$$(X)",
        "$",
        "`id`",
        "$(rm -rf /)",
        "a\nkind: Secret",
        "--- \n- x",
        "\t- a: b",
        "'; x",
        '"',
    ),
    *(
        "# no comment",
        "!!python/object:os.system",
        "&a *a",
        "{a: b}",
        "[a]",
        "a: b",
        "a #b",
        "%YAML 1.1",
        "@x",
        "|",
        ">-",
    ),
    *(
        "yes",
        "NO",
        "on",
        "null",
        "~",
        "1e3",
        "08",
        "0o17",
        "0x1f",
        "1_000",
        "12:30:45",
        ".inf",
        "2026-11-27",
        "=",
        "<<",
    ),
    *(
        "\u2028",
        "\ufeff",
        "\x85",
        "\x7f",
        "\x1b[31m",
        "é",
        "🐋",
        "",
        " ",
        " a",
        "a ",
        "a:",
        ":a",
        "-",
        "?",
        "\\",
        "\\n",
    ),
]
words = st.sampled_from(HOSTILE) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20
)


class Strict(yaml.SafeLoader):
    """Reads what any reader of YAML would read: of a plain scalar, only words that no reader takes for more."""

    def construct_scalar(self, node: Any) -> Any:
        if node.style is None and node.tag.endswith(":str"):
            assert re.fullmatch(r"[A-Za-z/][A-Za-z0-9_.:/-]*[A-Za-z0-9_./-]|[A-Za-z/]", node.value), node.value
            assert node.value.lower() not in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
        return super().construct_scalar(node)


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(st.lists(words, max_size=4), words)
def test_no_argument_or_variable_can_become_more(arguments: list[str], value: str) -> None:
    project = Project(Path("/nowhere"))
    from aifx.kinds import make_config

    launch = {"image": "a", "environment": [f"X={value}"]}
    try:
        config = make_config({"launch": launch, "k8s": {"runs_claim": "runs"}}, project, "test")
    except ConfigError:  # the variable holds control characters
        config = make_config({"launch": {"image": "a"}, "k8s": {"runs_claim": "runs"}}, project, "test")
    jobset = render_jobset(config, "wide", ["train", *arguments])
    text = to_yaml(jobset)
    (document,) = yaml.load_all(text, Strict)
    assert document == jobset
    assert faults(JOBSET, document) == []
    ((_, container, annotations),) = pods(document)
    variables = environment(container, annotations)
    command = [expand(word, variables) for word in (*container["command"], *container["args"])]
    supervised = ["aifx", "launch", "node", "--id", "0f1e2d3c-uid", "-n", "1", "--"]
    assert command == [*supervised, "train", *arguments]
    assert not config.launch.environment or variables["X"] == value


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(KubernetesSection.model_fields)), words)
def test_no_setting_can_become_more(key: str, value: str) -> None:
    """A hostile text is refused, or is one word of the manifest."""
    from aifx.kinds import make_config

    field = KubernetesSection.model_fields[key]
    is_table, is_list = isinstance(field.default, dict), isinstance(field.default, tuple)
    for given_value in [{"X": value}, {value: "a/b"}] if is_table else [[value]] if is_list else [value]:
        k8s = {"runs_claim": "runs", key: given_value}
        try:
            config = make_config({"launch": {"image": "a"}, "k8s": k8s}, Project(Path("/nowhere")), "test")
            jobset = render_jobset(config, "wide", ["train"])
        except (ConfigError, UsageError):
            continue
        (document,) = yaml.load_all(to_yaml(jobset), Strict)
        assert faults(JOBSET, document) == []
        texts = set(json.dumps(document))
        assert texts <= set(string.printable) - set("\n\r\t\x0b\x0c")


@settings(deadline=None, max_examples=200)
@given(
    st.recursive(
        words | st.booleans() | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
        max_leaves=8,
    )
)
def test_yaml_comes_back(data: Any) -> None:
    (document,) = yaml.load_all(to_yaml(data), Strict)
    assert document == data
