"""examples/serve: what it says of ports, drain, keys, files and metrics is what aifx has."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from aifx.config.serve_section import ServeSection
from aifx.core.web.app import exposition
from aifx.serving.http.documents import Operation
from aifx.serving.http.metrics import PredictionMetrics, TextMetrics
from aifx.serving.http.state import KEY_VARIABLE
from aifx.serving.predictor import PredictorStats
from aifx.serving.requests import EngineStats
from aifx.serving.swap import SwapCounts

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples/serve"
METRIC = re.compile(r"\b(?:aifx|vllm):\w+")


class Engine:
    """As far as metrics ask it."""

    max_model_len = rows_per_batch = 8
    on_batch: Any = None

    def __init__(self, stats: Any) -> None:
        self.stats = lambda: stats


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    """The names of all samples of both kinds of servers."""
    counts = SwapCounts()
    text: Any = Engine(EngineStats(*[0] * 12))
    rows: Any = Engine(PredictorStats(*[0] * 5))
    made = [TextMetrics(text, "m", counts), PredictionMetrics(rows, "m", counts)]
    for metrics in made:
        metrics.response(200)
    lines = b"\n".join(exposition(metrics.registry, "")[0] for metrics in made).decode().splitlines()
    return {line.partition("{")[0].partition(" ")[0] for line in lines if not line.startswith("#")}


@pytest.mark.parametrize("name", ["alerts.yml", "grafana.json"])
def test_each_metric_is_there(exposed: set[str], name: str) -> None:
    text = (EXAMPLES / name).read_text()
    used = set(METRIC.findall(text))
    assert len(used) >= 5
    assert used <= exposed, used - exposed


def test_the_dashboard_and_the_rules_can_be_read() -> None:
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places) >= 8
    assert all(panel["targets"] for panel in dashboard["panels"])
    rules = yaml.safe_load((EXAMPLES / "alerts.yml").read_text())["groups"][0]["rules"]
    assert all(rule["expr"] and rule["annotations"]["summary"] for rule in rules)
    scrape = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    assert scrape["rule_files"] == ["alerts.yml"]
    (service,) = [one for one in _objects() if one["kind"] == "Service"]
    (target,) = scrape["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"


def _objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))


def test_the_deployment_drains_and_asks_routes_that_are_there() -> None:
    from aifx.serving.http.app import OPERATIONS

    deployment, service = _objects()
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = container["args"]
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    drain_s = float(options["--set"].removeprefix("serve.drain_s="))
    assert pod["terminationGracePeriodSeconds"] > drain_s
    (port,) = container["ports"]
    assert options["--port"] == str(port["containerPort"])
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    routes = {operation.path for operation in OPERATIONS if isinstance(operation, Operation)}
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["path"] for probe in probes.values()} == {"/health", "/ready"} <= routes
    assert probes["livenessProbe"]["path"] == "/health"
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert KEY_VARIABLE in {variable["name"] for variable in container["env"]}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_image_copies_what_is_there() -> None:
    lines = (EXAMPLES / "Dockerfile").read_text().splitlines()
    instructions = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    known = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions} == known
    for name, rest in instructions:
        *sources, _ = shlex.split(rest) if name == "COPY" else [""]
        for source in sources if "--from=build" not in sources else []:
            assert (REPOSITORY / source).exists(), source
    copied = {source for name, rest in instructions if name == "COPY" for source in rest.split()[:-1]}
    roots = {"aifx", "commands", "jax_kernels", "templates", "pyproject.toml", "README.md", "LICENSE"}
    assert roots <= copied
    command = json.loads(next(rest for name, rest in instructions if name == "CMD"))
    assert command[command.index("--port") + 1] == next(rest for name, rest in instructions if name == "EXPOSE")


def test_the_unit_waits_for_the_drain(tmp_path: Path) -> None:
    text = (EXAMPLES / "aifx-serve.service").read_text()
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert float(values["TimeoutStopSec"]) > ServeSection().drain_s
    assert values["SuccessExitStatus"] == "75"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    unit = tmp_path / "aifx-serve.service"
    unit.write_text(text.replace("/opt/aifx/bin/aifx", sys.executable))  # it must be a program that is there
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=120)
    complaints = [line for line in done.stderr.splitlines() if "aifx-serve.service" in line]
    assert complaints == []
