import json

from health_machines.in_project import project
from health_trees import Case

from health_cases.jax import both, edited, on_cpu

HERE = "4 GPUs in a project under stress"
WHY = "aifx.toml:12: train.seed = -1: a whole number from 0 to 4294967295"


def invalid(document):
    absent = {"$absent": "the configuration is invalid"}
    document.update(config={"is_valid": False, "why": WHY}, data=absent, plan=absent, disk=absent)


def larger(parameters):
    """A model of another size on a disk that is large enough."""
    return edited("project", lambda document: document.update(plan=project(parameters)["plan"]))


def on_small_cpu(tree):
    tree["proc/meminfo"] = tree.get("proc/meminfo", "MemAvailable: 0 kB\n")
    lines = [line for line in tree["proc/meminfo"].splitlines() if not line.startswith("MemAvailable")]
    tree["proc/meminfo"] = "\n".join([*lines, "MemAvailable:   16777216 kB", ""])
    document = json.loads(tree["aifx-captured/project.json"])
    document["plan"]["devices"] = {"$absent": "train.devices is all"}
    tree["aifx-captured/project.json"] = json.dumps(document)
    packages = json.loads(tree["aifx-captured/jax_packages.json"])
    packages["nvml"] = {"absent": "NVML Shared Library Not Found"}
    tree["aifx-captured/jax_packages.json"] = json.dumps(packages)


CASES = [
    Case("project.config.invalid", HERE, edited("project", invalid)),
    Case(
        "project.data.unreadable",
        HERE,
        edited("project", lambda s: s["data"].update(is_readable=False, why="no file matches 'data/*.txt'")),
    ),
    Case("project.disk.read_only", HERE, edited("project", lambda s: s["disk"].update(is_writable=False))),
    Case("project.disk.full", HERE, edited("project", lambda s: s["disk"].update(free_bytes=10**9))),
    Case("project.disk.tight", HERE, edited("project", lambda s: s["disk"].update(free_bytes=40 * 10**9))),
    Case("project.memory.device", HERE, larger(8_030_000_000)),
    Case("project.memory.tight", HERE, larger(3_400_000_000)),
    Case("project.memory.host", HERE, both(edited("jax", on_cpu), on_small_cpu)),
    Case("project.devices.missing", HERE, edited("project", lambda s: s["plan"].update(devices=16))),
]
