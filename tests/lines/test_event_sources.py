"""Events of what aifx really writes: a line's journal, runs, doctor's reports, and a registry that projects share."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from ticking import Ticking
from webhook_receiver import LOOPBACK, SECRET, receiver

import aifx
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.lines.delivery import deliver
from aifx.lines.events import Event, read_events
from aifx.lines.file import EVENT_TYPES, Target
from aifx.registry.roots import open_root

HERE = Path(__file__).parent
TOML = """
[task]
kind = "tiny:TinyTask"
[train]
num_steps = 4
global_batch_size = 8
validate_every = 2
[checkpoint]
every = 2
[data]
poison_steps = [3]
"""
LINE = """
[[station]]
name = "nodes"
run = "aifx doctor node --root tree --only memory"

[[station]]
name = "poisoned"
run = "aifx train --run poisoned --set guards.non_finite=stop"
cooldown = "1d"
budget_per_day = 1

[[station]]
name = "good"
run = "aifx train --run good --set data.poison_steps=[]"
cooldown = "1d"
budget_per_day = 1

[[station]]
name = "judge"
run = "aifx eval --run good --gate 'loss <= -1'"
after = ["good"]

[[station]]
name = "missing"
run = "aifx eval --run nothing"

[[station]]
name = "push"
run = ["aifx registry push good shop --step 2", "aifx registry push good shop --step 4"]
after = ["good"]

[[station]]
name = "live"
run = ["aifx registry promote shop@v1 production", "aifx registry promote shop@v2 production"]
after = ["push"]
"""
POLICY = '[aliases."*"]\neval = {}\n'


def events_of(root: Path) -> list[Event]:
    project = load_config(Project(root)).apply_to(Project(root))
    reading = read_events(project, open_root(None, project), {})
    assert not reading.problems
    return list(reading.events)


def make_project(root: Path, registry: Path) -> Path:
    root.mkdir()
    shutil.copy(HERE.parent / "training" / "tiny.py", root)
    (root / "aifx.toml").write_text(f"{TOML}\n[registry]\nroot = {str(registry)!r}\n")
    return root


@pytest.mark.slow
def test_each_event_comes_from_what_aifx_writes(tmp_path: Path) -> None:
    registry = tmp_path / "models"
    root = make_project(tmp_path / "shop", registry)
    counts = root / "tree/sys/devices/system/edac/mc/mc0"
    counts.mkdir(parents=True)
    (counts / "ue_count").write_text("1\n")
    (root / "tree/proc/sys/kernel").mkdir(parents=True)
    (root / "tree/proc/sys/kernel/hostname").write_text("n7\n")
    (root / "tree/proc/meminfo").write_text("MemTotal: 1024 kB\nMemAvailable: 512 kB\n")
    line = Ticking(root)
    line.write(LINE)
    line.tick()
    assert Counter((event.type, event.subject) for event in events_of(root)) == {
        ("node.unhealthy", "n7"): 1,
        ("run.diverged", "poisoned"): 1,
        ("gate.failed", "judge"): 1,
        ("station.failed", "missing"): 1,
        ("promoted", "shop"): 2,
    }, [(record.station, record.facts) for record in line.records("ended")]

    aifx.registry_rollback("shop", "production", project=root)
    (tmp_path / "policy.toml").write_text(POLICY)
    aifx.registry_init(tmp_path / "policy.toml", project=root)
    assert aifx.registry_promote("shop@v2", "production", project=root).action == "refuse"
    found = events_of(root)
    assert [event.type for event in found if event.subject == "shop"] == [
        "promoted", "promoted", "rolled_back", "gate.failed",
    ]  # fmt: skip
    unhealthy = next(event for event in found if event.type == "node.unhealthy")
    assert unhealthy.data["findings"]
    assert {event.type for event in found} == {*EVENT_TYPES} - {"drift"}  # tests/feedback

    # Another project, on another machine, watches the root of the registry.
    other = make_project(tmp_path / "office", registry)
    shared = [event for event in found if event.subject == "shop"]
    assert events_of(other) == shared
    target = Target("ops", EVENT_TYPES, "OPS_URL", "OPS_URL_SECRET", LOOPBACK)
    with receiver() as at:
        project = load_config(Project(other)).apply_to(Project(other))
        deliver(project, [target], {"OPS_URL": at.url, "OPS_URL_SECRET": SECRET})
        assert at.ids == [event.id for event in shared]
        assert json.loads(json.dumps(at.accepted[0]["data"]))["version"] == "shop@v1"
