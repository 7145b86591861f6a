"""aifx line graph, unit and k8s: what they write is what systemd, Kubernetes and a reader of XML take."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest
import yaml
from inprocess import run
from kubernetes_schema import JOB, POD, faults, schema_at

from aifx.core.errors import AifxError
from aifx.lines.deploying import calendar_of, cron_of
from aifx.lines.file import Line
from aifx.lines.graph import HEIGHT, GraphStation, LineGraph
from aifx.lines.schedule import next_start, parse_duration

LINE = """
[line]
every = "6h"
timezone = "Europe/Berlin"

[[station]]
name = "data"
run = "aifx data make"
environment = ["PGPASSWORD"]

[[station]]
name = "train"
run = "aifx train --set 'data.dataset={stations.data.data_sets.0.reference}' --run <b>&"
when = "changed:corpus"
"""
SETTINGS = """
[launch]
image = "registry.example/lm:1"
[k8s]
runs_claim = "runs"
namespace = "research"
secrets = { PGPASSWORD = "postgres/password" }
"""
NOW = datetime(2026, 12, 2, 13, 7, 11, tzinfo=UTC).timestamp()


def aifx(folder: Path, *args: str, code: int = 0, line: str = LINE) -> str:
    (folder / "aifx.toml").write_text(SETTINGS)
    (folder / "line.toml").write_text(line)
    found = run(["line", *args], folder, dict(os.environ))
    assert found.returncode == code, found.stderr
    return found.stdout if code == 0 else found.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("options", [[], ["--watch"]])
def test_systemd_takes_the_units(tmp_path: Path, options: list[str]) -> None:
    project = tmp_path / 'a "b" 50% $HOME'
    project.mkdir()
    (project / "line.env").write_text("PGPASSWORD=secret\n")
    units = tmp_path / "units"
    written = ["--name", "lm", "--environment-file", "line.env", "--output", str(units)]
    aifx(project, "unit", *options, *written)
    assert sorted(path.name for path in units.iterdir()) == ["lm.service", *([] if options else ["lm.timer"])]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = ["systemd-analyze", "verify", "--user", *map(str, sorted(units.iterdir()))]
    found = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    service = (units / "lm.service").read_text()
    assert "50%% " in service
    assert "$$HOME" in service
    assert "secret" not in service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("every", ["30s", "15m", "1h", "6h", "1d", "7d"])
def test_a_timer_elapses_when_a_period_begins(every: str) -> None:
    line = Line(Path("line.toml"), {}, "", parse_duration(every), "Europe/Berlin")
    command = ["systemd-analyze", "calendar", f"--base-time=@{NOW:.0f}", calendar_of(line)]
    text = subprocess.run(command, env={**os.environ, "TZ": "UTC"}, capture_output=True, text=True, check=True).stdout
    begin = datetime.fromtimestamp(next_start(NOW, parse_duration(every), "Europe/Berlin"), UTC)
    assert f"{begin:%Y-%m-%d %H:%M:%S} UTC" in text


@pytest.mark.parametrize("every", ["45m", "5h", "2d", "2w"])
def test_a_period_that_no_calendar_has_is_counted_or_refused(every: str) -> None:
    line = Line(Path("line.toml"), {}, "", parse_duration(every))
    assert calendar_of(line) == ""
    with pytest.raises(AifxError, match="CronJob"):
        cron_of(line)


def test_variables_that_nothing_sets_are_refused(tmp_path: Path) -> None:
    assert "PGPASSWORD" in aifx(tmp_path, "unit", code=2)
    assert "PGPASSWORD" in aifx(tmp_path, "k8s", "--set", "k8s.secrets={}", code=2)


def test_kubernetes_takes_the_cron_job_and_the_deployment(tmp_path: Path) -> None:
    cron, deployment = (yaml.safe_load(aifx(tmp_path, "k8s", "--name=lm", *more)) for more in ([], ["--watch"]))
    assert (cron["apiVersion"], cron["kind"]) == ("batch/v1", "CronJob")
    spec = cron["spec"]
    assert faults(schema_at(*JOB), spec["jobTemplate"]["spec"]) == []
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == ("0 */6 * * *", "Europe/Berlin", "Forbid")
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    spec = deployment["spec"]
    assert faults(schema_at(*POD), spec["template"]) == []
    assert (spec["replicas"], spec["strategy"], spec["template"]["spec"]["restartPolicy"]) == (
        1, {"type": "Recreate"}, "Always",
    )  # fmt: skip
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    for made, verb in ((cron["spec"]["jobTemplate"]["spec"]["template"], "run"), (spec["template"], "watch")):
        container = made["spec"]["containers"][0]
        assert container["command"] + container["args"] == ["aifx", "line", verb, "--file=line.toml"]
        kept = {one["mountPath"]: one.get("subPath") for one in container["volumeMounts"]}
        assert kept["/project/runs"] is None
        for folder in ("line", "datasets", "registry"):
            assert kept[f"/project/{folder}"] == f".{folder}"


def test_a_line_that_submits_jobs_has_an_account_that_may(tmp_path: Path) -> None:
    """Which calls of kubectl need which verb is Kubernetes' documentation of kubectl and RBAC; no server is asked."""
    plain = yaml.safe_load(aifx(tmp_path, "k8s", "--name=lm"))
    assert plain["spec"]["jobTemplate"]["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    submitting = LINE.replace('run = "aifx train', 'on = "k8s"\nrun = "aifx train')
    launching = LINE.replace('"aifx data make"', '"aifx launch k8s --apply --no-follow -- train"')
    for line, given in ((submitting, None), (launching, None), (submitting, "mine")):
        options = [] if given is None else [f"--set=k8s.service_account={given}"]
        documents = list(yaml.safe_load_all(aifx(tmp_path, "k8s", "--name=lm", *options, line=line)))
        *accounts, role, binding, cron = documents
        assert [one["kind"] for one in accounts] == ([] if given else ["ServiceAccount"])
        assert {(one["metadata"]["name"], one["metadata"]["namespace"]) for one in documents} == {("lm", "research")}
        name = given or accounts[0]["metadata"]["name"]
        pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        assert (pod["serviceAccountName"], pod.get("automountServiceAccountToken", True)) == (name, True)
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name}]
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == (role["kind"], role["metadata"]["name"])
        verbs = {(*one["apiGroups"], *one["resources"]): set(one["verbs"]) for one in role["rules"]}
        assert verbs == {
            ("jobset.x-k8s.io", "jobsets"): {"get", "list", "create", "patch", "delete"},
            ("", "pods"): {"get", "list", "delete"},
            ("", "pods/log"): {"get"},
        }


SVG = "{http://www.w3.org/2000/svg}"


def test_the_graph_shows_states_and_escapes_texts(tmp_path: Path) -> None:
    text = aifx(tmp_path, "graph", "--svg", "line.svg", "--html", "line.html")
    rows = text.splitlines()
    assert (rows[0].split(), rows[1].split()[:3]) == (["data", "ready"], ["train", "after", "data"])
    root = ElementTree.parse(tmp_path / "line.svg").getroot()
    names = [one.text for one in root.iter(f"{SVG}text") if one.get("class") == "name"]
    assert names == ["data", "train"]
    assert any("<b>&" in (one.text or "") for one in root.iter(f"{SVG}title"))
    page = (tmp_path / "line.html").read_text()
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page
    assert not re.search(r"<script|\son\w+=|href=|src=|url\(", page)
    assert '<span class="word info">ready</span>' in page


def station(name: str, *after: str) -> GraphStation:
    return GraphStation(name, 0, after, ("x",), "", "", "local", "done", "", "", None, None)


@pytest.mark.parametrize("columns", [1, 4])
def test_stations_are_below_their_parents_and_no_arrow_crosses_a_box(columns: int) -> None:
    random = Random(7)
    for count in range(1, 16):
        names = [f"s{number}" for number in range(count)]
        stations = tuple(station(name, *random.sample(names[:at], min(at, random.randrange(4))))
                         for at, name in enumerate(names))  # fmt: skip
        root = ElementTree.fromstring(LineGraph("line.toml", stations, 0.0, ()).svg(columns))
        boxes = {one.findtext(f"{SVG}text"): [float(one.get(key, 0)) for key in ("x", "y", "width", "height")]
                 for one in root.iter(f"{SVG}svg") if one is not root}  # fmt: skip
        assert all(boxes[one.name][1] > boxes[parent][1] for one in stations for parent in one.after)
        rows: dict[float, list[float]] = {}
        for x, y, *_ in boxes.values():
            rows.setdefault(y, []).append(x)
        width = next(iter(boxes.values()))[2]
        assert max(len(row) for row in rows.values()) <= columns
        assert all(b - a >= width for row in rows.values() for a, b in pairwise(sorted(row)))
        paths = [one.get("d", "") for one in root.iter(f"{SVG}path")]
        assert len(paths) == sum(len(one.after) for one in stations)
        right = float(root.get("viewBox", "").split()[2])
        for path in paths:
            for place, end in re.findall(r" (\S+),\S+ V(\S+)", path):
                assert 0 < float(place) < right
                assert not any(x <= float(place) <= x + w and y < float(end) <= y + h for x, y, w, h in boxes.values())
            begin, end = (float(re.findall(r",([\d.]+)", path.partition(" m")[0])[at]) for at in (0, -1))
            passed = sorted(y for y in rows if begin < y < end)
            assert [y + HEIGHT for y in passed] == [float(y) for y in re.findall(r"V(\S+)", path)], "one lane per row"
