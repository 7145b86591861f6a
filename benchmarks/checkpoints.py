"""Saving and restoring a training state, against raw Orbax and safetensors.

    python benchmarks/checkpoints.py [--rounds 5] [--repeats 5] [--at FOLDER]

The state is that of the language-model template before its first step, parameters and optimizer. A save is timed from
the call until its bytes are durable, a restore from the call until every array is on its device; the files are in the
page cache. Ours flushes every file and folder, keeps a digest of each array and the SHA-256 of each file, and
compares each array with its digest when it restores. The peers do not: "as it comes" is what their users have, "flushed
and digested" is the same with what ours guarantees done around it by our functions. Each restored state is compared
with the one that was saved, untimed.

safetensors may lie in a folder of its own: pip install --target PEERS safetensors; PYTHONPATH=PEERS python ...
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
from side_by_side import Side, Told, Work

NOTES = (
    "Orbax as it comes (`StandardCheckpointer`) leaves its small files unflushed and keeps no digest of an array.",
    "safetensors as it comes (`safetensors.numpy`, then `jax.device_put`) flushes nothing, keeps no digest and knows "
    "nothing of shardings.",
    "Flushed and digested: every file and folder flushed, the SHA-256 of each file and a digest of each array made by "
    "the save, the digests compared by the restore, around the peer.",
)
SAVED = "saved"
FORMS = {"": "as it comes", ", guarded": "flushed and digested"}

Save = Callable[[Path], None]
Restore = Callable[[Path], Any]


def main() -> None:
    parser = side_by_side.arguments_of(__doc__, rounds=5, quick_rounds=1)
    parser.add_argument("--repeats", type=int, default=5, help="saves and restores in a process, besides the first")
    parser.add_argument("--at", type=Path, default=Path.cwd(), help="a folder on the disk that is measured (this one)")
    arguments = parser.parse_args()
    if arguments.side:
        project = Path(arguments.folder)
        side_by_side.tell(lambda: SIDES[arguments.side](project, arguments.repeats), peers=("safetensors",))
        return
    with tempfile.TemporaryDirectory(dir=arguments.at, prefix=".checkpoints-") as folder:
        project = scaffolded(Path(folder))
        environ = {**side_by_side.training_environment(), "AIFX_CACHE_DIR": str(Path(folder) / "cache")}
        options = ("--folder", str(project), "--repeats", str(arguments.repeats))
        commands = {name: side_by_side.own(__file__, name, *options) for name in SIDES}
        sides = [Side(name, side_by_side.process(command, environ)) for name, command in commands.items()]
        runs = side_by_side.alternate(sides, side_by_side.rounds_of(arguments))
    size = runs.told["aifx"][0]["size_bytes"] / 1e6
    works = [Work(thing, f"{thing}, {size:.0f} MB", amount=size, unit="MB") for thing in ("save", "restore")]
    rows = [
        side_by_side.versus(runs, work, peer, thing=work.thing + form, against=f"{peer}, {words}")
        for work in works
        for peer in runs.peers
        for form, words in FORMS.items()
    ]
    found = side_by_side.document("checkpoints", rows, arguments, runs, notes=NOTES)
    side_by_side.report(found, arguments)


def scaffolded(folder: Path) -> Path:
    from aifx.scaffold.projects import scaffold

    scaffold(folder / "project", "language-model", data={}, ask=False)
    return folder / "project"


@dataclass(frozen=True)
class State:
    """A state on its devices, as a tree of named arrays; and the tree of what a restore is asked for."""

    tree: Any
    wanted: Any

    @property
    def size_bytes(self) -> int:
        import jax

        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.tree))


def first_state(project: Path) -> State:
    import jax

    from aifx.config import load_config
    from aifx.core.project import Project
    from aifx.parallel.layout import local_layout
    from aifx.programs.build import build
    from aifx.tasks.registry import open_task
    from aifx.training.state import to_tree

    config = load_config(Project(project), ())
    programs = build(config, open_task(config, Project(project), project / "assets"), local_layout())
    tree = to_tree(programs.init()[0], stacked=programs.is_stacked)
    return State(jax.block_until_ready(tree), to_tree(programs.abstract[0], stacked=programs.is_stacked))


def aifx_side(project: Path, repeats: int) -> Told:
    from aifx.checkpoint.checkpoints import Checkpoints
    from aifx.config.sections import CheckpointSection

    state = first_state(project)
    checkpoints = Checkpoints(project / SAVED, CheckpointSection(asynchronous=True))

    def save(folder: Path) -> None:
        checkpoints.save(0, state.tree, host={})
        checkpoints.wait()

    def restore(folder: Path) -> Any:
        return checkpoints.restore(0, state.wanted)[0]

    return timed(project, repeats, state, {"": (save, restore)})


def orbax_side(project: Path, repeats: int) -> Told:
    import orbax.checkpoint as ocp

    state = first_state(project)
    checkpointer = ocp.StandardCheckpointer()

    def save(folder: Path) -> None:
        checkpointer.save(folder / "state", state.tree)
        checkpointer.wait_until_finished()

    def restore(folder: Path) -> Any:
        return checkpointer.restore(folder / "state", state.wanted)

    return timed(project, repeats, state, both(state, save, restore))


def safetensors_side(project: Path, repeats: int) -> Told:
    import jax
    from safetensors.numpy import load_file, save_file

    from aifx.checkpoint.digest import key_data
    from aifx.checkpoint.naming import flat_names, from_named, nest

    state = first_state(project)
    wanted = flat_names(state.wanted)

    def save(folder: Path) -> None:
        folder.mkdir()
        save_file({name: np.asarray(key_data(leaf)) for name, leaf in flat_names(state.tree).items()}, folder / "state")

    def restore(folder: Path) -> Any:
        arrays = load_file(folder / "state")
        placed = jax.device_put(list(arrays.values()), [wanted[name].sharding for name in arrays])
        return from_named(nest(dict(zip(arrays, placed, strict=True))), state.wanted)

    return timed(project, repeats, state, both(state, save, restore))


def both(state: State, save: Save, restore: Restore) -> dict[str, tuple[Save, Restore]]:
    """A peer as it comes, and with what ours guarantees."""
    from aifx.checkpoint.inventory import files_below, list_files, sync_files, sync_folders
    from aifx.core.json_files import sync_directory

    kept: dict[str, str] = {}

    def guarded_save(folder: Path) -> None:
        kept.update(digests(state.tree))
        save(folder)
        files = files_below(folder)
        list_files(folder, files)
        sync_files(files)
        sync_folders(folder)
        sync_directory(folder.parent)

    def guarded_restore(folder: Path) -> Any:
        restored = restore(folder)
        if digests(restored) != kept:
            raise SystemExit("what was restored is not what was saved")
        return restored

    return {"": (save, restore), ", guarded": (guarded_save, guarded_restore)}


def digests(tree: Any) -> dict[str, str]:
    """As ours makes them."""
    from aifx.checkpoint.digest import host_lanes, key_data, shown
    from aifx.checkpoint.naming import flat_names

    named = flat_names(tree)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda leaf: shown(host_lanes(np.asarray(key_data(leaf)))), named.values())
        return dict(zip(named, found, strict=True))


def timed(project: Path, repeats: int, state: State, forms: dict[str, tuple[Save, Restore]]) -> Told:
    """The first of each, which has modules to import and memory to take, is not counted."""
    import jax

    from aifx.checkpoint.digest import state_digest

    saved = state_digest(state.tree)
    seconds: dict[str, list[float]] = {thing + form: [] for form in forms for thing in ("save", "restore")}
    for number in range(repeats + 1):
        for form, (save, restore) in forms.items():
            folder = project / SAVED
            started = time.perf_counter()
            save(folder)
            between = time.perf_counter()
            restored = jax.block_until_ready(restore(folder))
            ended = time.perf_counter()
            if state_digest(restored) != saved:
                raise SystemExit("what was restored is not what was saved")
            shutil.rmtree(folder)
            if number:
                seconds["save" + form].append(between - started)
                seconds["restore" + form].append(ended - between)
    versions = side_by_side.installed("jax", "orbax-checkpoint", "safetensors")
    return {"seconds": seconds, "versions": versions, "size_bytes": state.size_bytes}


SIDES = {"aifx": aifx_side, "Orbax": orbax_side, "safetensors": safetensors_side}

if __name__ == "__main__":
    main()
