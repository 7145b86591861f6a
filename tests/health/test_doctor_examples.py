"""The files of docs/examples are of the form that Kubernetes and node-problem-detector take, with options of aifx's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from health_trees import changed, machines, snapshot_of

from aifx.commands.main import run

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NPD = json.loads((EXAMPLES / "npd-aifx.json").read_text())
MACHINE = "8xH100 SXM"


def seconds(text: str) -> float:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0}
    unit = next(unit for unit in units if text.endswith(unit) and text.removesuffix(unit).isdigit())
    return float(text.removesuffix(unit)) * units[unit]


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """By kind."""
    yaml = pytest.importorskip("yaml")
    return {one["kind"]: one for one in yaml.safe_load_all((EXAMPLES / "aifx-doctor-daemonset.yaml").read_text())}


def test_npd_takes_the_configuration() -> None:
    """Defaults and checks as in pkg/custompluginmonitor/types/config.go of node-problem-detector."""
    limits = NPD["pluginConfig"]
    assert NPD["plugin"] == "custom"
    conditions = {condition["type"] for condition in NPD["conditions"]}
    for rule in NPD["rules"]:
        assert rule.keys() <= {"type", "condition", "reason", "path", "args", "timeout", "invoke_interval"}
        assert rule["type"] == "permanent"
        assert rule["condition"] in conditions
        assert seconds(rule["timeout"]) <= seconds(limits["timeout"]) < seconds(limits["invoke_interval"])
        assert rule["path"].startswith("/")
    assert limits["max_output_length"] == 80


@pytest.mark.parametrize(("ecc", "code"), [("0\n", 0), ("1\n", 1)])
def test_npds_rule_runs(ecc: str, code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = changed(machines()[MACHINE](), {"sys/devices/system/edac/mc/mc1/ue_count": ecc})
    snapshot_of(tree, tmp_path / "tree")
    (rule,) = NPD["rules"]
    assert run([*rule["args"], "--root", str(tmp_path / "tree")]) == code
    line = capfd.readouterr().out
    assert line.count("\n") == 1
    assert (line == "healthy\n") == (code == 0), line


def test_the_daemon_set_sees_the_host_and_changes_nothing(manifests: dict[str, dict[str, Any]]) -> None:
    pod = manifests["DaemonSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts.keys() == volumes.keys()
    for name, volume in volumes.items():
        if "emptyDir" not in volume:
            assert mounts[name]["readOnly"] is True, name
        if "hostPath" in volume:  # at its own path, so that no --root is needed
            assert mounts[name]["mountPath"] == volume["hostPath"]["path"]
    assert {m["mountPath"] for n, m in mounts.items() if "hostPath" in volumes[n]} == {"/sys", "/dev/kmsg"}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]
    assert pod["nodeSelector"]["kubernetes.io/os"] == "linux"


def test_the_manifests_fit_together(manifests: dict[str, dict[str, Any]]) -> None:
    daemons, account = manifests["DaemonSet"], manifests["ServiceAccount"]["metadata"]
    template = daemons["spec"]["template"]
    assert daemons["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert template["spec"]["serviceAccountName"] == account["name"]
    (subject,) = manifests["ClusterRoleBinding"]["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    (container,) = template["spec"]["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert f"--config.custom-plugin-monitor={mounted['config']}/npd-aifx.json" in container["command"]
    assert "NODE_NAME" in {one["name"] for one in container["env"]}
