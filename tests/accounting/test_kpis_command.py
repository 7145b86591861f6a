"""`aifx kpis` adds up what real runs, promotions and drills left on disk, and says what it does not know."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pytest
from made_once import made_once
from table_project import make_table_project

from aifx.accounting.served import Served, read_served
from aifx.core.json_files import read_jsonl
from aifx.core.project import Project, RunDirectory
from aifx.drills.guarantees import DrillReport, DrillResult
from aifx.drills.record import leave_drills
from aifx.serving.record import document_of_arrays, packed
from aifx.serving.records import RecordWriter, encoded, erase_payloads

pytestmark = pytest.mark.representative("KPIs add up what projects left on disk")


def aifx(root: Path, *args: str, code: int = 0) -> Any:
    done = inprocess.run([*args, "--json"], root, os.environ)
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout)


def make_factory(folder: Path) -> None:
    """A run on a data set with a price and one on a file without, a promoted version, and a refused promotion."""
    root = make_table_project(folder / "project", 480).root
    aifx(root, "data", "add", "rows", "rows.csv", "--license", "CC0-1.0")
    split = aifx(root, "data", "split", "rows", "--validation", "0.2", "--test", "0.2")["reference"]
    settings = (root / "aifx.toml").read_text()
    keys = ("path", "validation_fraction", "test_fraction")
    lines = [line for line in settings.splitlines(keepends=True) if not line.startswith(keys)]
    (root / "table.toml").write_text("".join(lines).replace("[data]\n", f'[data]\ndataset = "{split}"\n'))
    costs = ("costs.price_per_hour=3600", "costs.power_w=100", "costs.gco2e_per_kwh=400")
    aifx(root, "train", "--config", "table.toml", "--run", "priced", *(x for one in costs for x in ("--set", one)))
    aifx(root, "train", "--run", "plain", "--set", "train.num_steps=2")
    aifx(root, "registry", "push", "priced", "tiny")
    aifx(root, "registry", "promote", "tiny@v1", "production")
    aifx(root, "registry", "init")  # production needs an evaluation from now on
    aifx(root, "registry", "promote", "tiny@v1", "production", code=1)


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path / "project"
    shutil.copytree(made_once(tmp_path_factory, "kpi-factory", make_factory) / "project", root, symlinks=True)
    return Project(root)


def values(document: Any) -> dict[str, Any]:
    return {one["name"]: one["value"] for one in document["kpis"]}


def missing(document: Any, name: str) -> str:
    return " ".join(lack for one in document["kpis"] if one["name"] == name for lack in one["missing"])


def test_sums_are_those_of_the_runs(project: Project) -> None:
    found = aifx(project.root, "kpis")
    kpis = values(found)
    bills = {name: aifx(project.root, "runs", "show", name)["bill"] for name in ("priced", "plain")}
    num_devices = json.loads(project.run("plain").provenance.read_text())["hardware"]["num_devices"]
    running_s = {name: bill["running_s"] for name, bill in bills.items()}
    assert kpis["runs"] == 2
    assert kpis["accelerator_hours"] == 0  # known: the runs have CPUs alone
    assert kpis["cpu_hours"] == pytest.approx(sum(running_s.values()) * num_devices / 3600)
    steps = sum(bill["seconds"]["step"] for bill in bills.values())
    assert kpis["goodput"] == pytest.approx(steps / sum(bill["elapsed_s"] for bill in bills.values()))
    assert kpis["money"] == pytest.approx(running_s["priced"])
    assert kpis["energy"] == pytest.approx(sum((bill["energy"] or {"joules": 0})["joules"] for bill in bills.values()))
    assert kpis["emissions"] == pytest.approx(bills["priced"]["energy"]["operational_gco2e"])
    assert "1 of 2 runs have no costs.price_per_hour: plain" in missing(found, "money")
    hours = {one["devices"]: one["categories"] for one in found["hours"]}["cpu"]
    assert hours["setup"] == pytest.approx(
        sum(bill["seconds"]["setup"] for bill in bills.values()) * num_devices / 3600
    )
    assert found["problems"] == []


def test_promotions_refusals_and_the_time_from_rows_to_service(project: Project) -> None:
    kpis = values(aifx(project.root, "kpis", "--since", "1d"))
    assert (kpis["promotions"], kpis["refused_promotions"], kpis["drift_alarms"]) == (1, 1, 0)
    entries = aifx(project.root, "registry", "history", "tiny")["entries"]
    (entry,) = (one for one in entries if one["action"] == "promote")
    promoted_at = time.mktime(time.strptime(entry["time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    reference = json.loads(project.run("priced").provenance.read_text())["dataset"]["reference"]
    name, digest = reference.split("@")
    (manifest,) = (project.root / "datasets" / name).glob(f"{digest[:12]}/manifest.json")
    assert kpis["rows_to_service"] == pytest.approx(promoted_at - manifest.stat().st_mtime, abs=1.1)


def test_what_is_not_known_is_null_and_said(project: Project) -> None:
    shutil.rmtree(project.run("priced").path)
    project.run("plain").provenance.write_text("{}")
    found = aifx(project.root, "kpis")
    kpis = values(found)
    assert kpis["runs"] == 1
    for name in ("accelerator_hours", "cpu_hours", "goodput", "money", "emissions", "days_since_drill"):
        assert kpis[name] is None, name
        assert missing(found, name), name


def test_a_period_counts_what_lies_in_it(project: Project, tmp_path: Path) -> None:
    run = project.run("priced")
    whole = values(aifx(project.root, "kpis"))
    shutil.copytree(project.root, tmp_path / "moved", symlinks=True)
    moved = Project(tmp_path / "moved").run("priced")
    # The first line of the run becomes two days old: its time counts before the period, all the rest within.
    lines = read_jsonl(run.events)
    lines[0]["time"] -= 2 * 86400
    moved.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = values(aifx(tmp_path / "moved", "kpis", "--since", "1d"))
    first_s = sum(lines[0]["account"]["seconds"].values())
    assert last["money"] == pytest.approx(whole["money"] - first_s, abs=0.05)
    old = time.time() - 3 * 86400
    os.utime(run.events, (old, old))
    assert values(aifx(project.root, "kpis", "--since", "1d"))["runs"] == 1


def test_projects_add_up_and_a_shared_registry_counts_once(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.root, tmp_path / "second", symlinks=True)
    leave_drills(
        DrillReport(True, 24, 6, "", None, None, [DrillResult("kill", "step", "passed", [])]), project.runs_path
    )
    second = tmp_path / "second" / "aifx.toml"
    second.write_text(f'{second.read_text()}\n[registry]\nroot = "{project.root / "registry"}"\n')
    one = values(aifx(project.root, "kpis"))
    found = aifx(project.root, "kpis", ".", "../second", "../second")
    both = values(found)
    assert (both["runs"], both["money"]) == (4, pytest.approx(2 * one["money"]))
    assert (both["promotions"], both["refused_promotions"]) == (1, 1)
    assert 0 <= both["days_since_drill"] < 1
    assert "second" in missing(found, "days_since_drill")


def record(run: RunDirectory, counts: Sequence[int]) -> RecordWriter:
    """Answers of a server with some rows each."""
    writer = RecordWriter(run.records)
    for number, count in enumerate(counts):
        request, answer = {"rows": [{"x": 1.0}] * count}, {"outputs": document_of_arrays({"p": np.zeros((count, 2))})}
        writer.append(f"id-{number}", time.time(), "m" * 64, "fp", encoded(request), encoded(answer))
    writer.close()
    return writer


def test_unit_costs_are_all_money_by_what_came_of_it(project: Project) -> None:
    record(project.run("priced"), [3, 5, 2])
    found = aifx(project.root, "kpis")
    kpis = values(found)
    assert (kpis["rows_served"], kpis["tokens_served"], kpis["cost_per_million_tokens"]) == (10, None, None)
    assert kpis["cost_per_million_rows"] == pytest.approx(kpis["money"] * 1e5)
    assert kpis["cost_per_promotion"] == pytest.approx(kpis["money"])
    parts = {one["name"]: one["cost"] for one in found["costs"]}
    steps_s = aifx(project.root, "runs", "show", "priced")["bill"]["seconds"]["step"]
    assert parts == {
        "training": pytest.approx(steps_s),  # at 3,600 per hour
        "failed trials": 0,
        "idle": pytest.approx(kpis["money"] - steps_s),
    }
    assert "plain" in missing(found, "cost_per_million_rows")
    shutil.rmtree(project.root / "registry")
    parts = {one["name"]: one["cost"] for one in aifx(project.root, "kpis")["costs"]}
    assert (parts["training"], parts["failed trials"]) == (0, pytest.approx(steps_s))


def test_answers_are_counted_by_their_records(project: Project) -> None:
    run = project.run("priced")
    folder = record(run, [3, 5, 2]).folder
    erase_payloads(folder, lambda records: {one.place for one in records if one.id == "id-1"}, dry_run=False)
    assert read_served(run.records, lambda _: True) == Served(3, 0, 5, 1)
    assert read_served(run.records, lambda _: False) == Served()
    writer = RecordWriter(project.run("plain").records)
    text = encoded({"tokens": packed("i", [4, 5, 6]), "logprobs": packed("f", [])})
    writer.append("id", time.time(), "m" * 64, "fp", encoded({}), text, 2)
    writer.close()
    assert read_served(project.run("plain").records, lambda _: True) == Served(1, 3, 0, 2)
    (chain,) = folder.glob("*.chain")
    chain.write_bytes(chain.read_bytes().replace(b"id-2", b"id-9"))
    found = aifx(project.root, "kpis")
    assert values(found)["runs"] == 1
    assert ".chain:3" in found["problems"][0]


def test_groups_divide_what_is_added_up(project: Project, tmp_path: Path) -> None:
    aifx(project.root, "runs", "tag", "priced", "night")
    aifx(project.root, "registry", "tag", "tiny@v1", "team==risk<b>")
    found = {by: aifx(project.root, "kpis", "--by", by) for by in ("tag", "team", "model", "month")}
    groups = {by: {one["name"]: values(one) for one in document["groups"]} for by, document in found.items()}
    names = {"tag": "night", "team": "=risk<b>", "model": "tiny"}
    for by, name in names.items():
        assert set(groups[by]) == {name, "(none)"}
        assert (groups[by][name]["runs"], groups[by]["(none)"]["runs"]) == (1, 1)
        assert groups[by][name]["money"] == pytest.approx(values(found[by])["money"])
        assert groups[by]["(none)"]["money"] is None
        assert (groups[by][name]["promotions"], groups[by]["(none)"]["promotions"]) == (1, 0)
    for name in ("money", "cpu_hours", "promotions", "refused_promotions"):
        month = [one[name] for one in groups["month"].values()]
        assert sum(filter(None, month)) == pytest.approx(values(found["month"])[name])
    page, table = tmp_path / "kpis.html", tmp_path / "kpis.csv"
    aifx(project.root, "kpis", "--by", "team", "--html", str(page), "--csv", str(table))
    assert "=risk&lt;b&gt;" in page.read_text()
    rows = list(csv.DictReader(table.open(newline="")))
    money = [row["value"] for row in rows if row["name"] == "money"]
    assert money == [str(values(found["team"])["money"]), str(groups["team"]["=risk<b>"]["money"]), ""]
    assert {row["group"] for row in rows} == {"", "'=risk<b>", "(none)"}


def test_bad_arguments_are_named(project: Project, tmp_path: Path) -> None:
    assert "--since soon" in aifx(project.root, "kpis", "--since", "soon", code=2)["error"]["what"]
    assert "--by teams" in aifx(project.root, "kpis", "--by", "teams", code=2)["error"]["what"]
    assert "aifx.toml" in aifx(project.root, "kpis", str(tmp_path), code=2)["error"]["what"]


def test_one_damaged_ledger_hides_no_other_model(project: Project) -> None:
    aifx(project.root, "registry", "push", "plain", "other")
    whole = values(aifx(project.root, "kpis"))
    next((project.root / "registry").glob("models/other/**/00000001.json")).write_bytes(b"{")
    found = aifx(project.root, "kpis")
    assert values(found)["promotions"] == whole["promotions"] == 1
    assert "the ledger of other" in json.dumps(found)


def test_drills_and_homes_that_cannot_be_read_are_named(project: Project) -> None:
    (project.runs_path / "drills.jsonl").unlink(missing_ok=True)
    (project.runs_path / "drills.jsonl").symlink_to("nowhere")
    config = project.config_path
    config.write_text(config.read_text() + '\n[datasets]\nroot = "~nosuchuser/data"\n')
    found = aifx(project.root, "kpis")
    assert values(found)["runs"] == 2
    assert "drills.jsonl" in json.dumps(found)
