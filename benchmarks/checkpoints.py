"""Saving and restoring a training state, against Orbax and safetensors.

    python benchmarks/checkpoints.py [--rounds 5] [--repeats 5] [--at FOLDER] [--large]

The state is that of the language-model template before its first step, parameters and optimizer; with --large one of
1 GB, the parameters and two moments of a transformer of 83 million, against safetensors alone. A save is timed from
the call until its bytes are durable, a restore from the call until every array is on its device; the files are in the
page cache. Each side has a layout of its own, and restores what it saved. Ours flushes every file and folder, keeps a
digest of each array and the SHA-256 of each file, and compares each array with its digest when it restores. The peers
do not: "as it comes" is what their users have, "flushed and digested" is the same with what ours guarantees done around
it by our functions. Each restored state is compared with the one that was saved, untimed.

safetensors may lie in a folder of its own: pip install --target PEERS safetensors; PYTHONPATH=PEERS python ...
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
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
    "Flushed and hashed: the peer's files flushed and their SHA-256 made by the save, and made again by the restore.",
)
SAVED = "saved"
FORMS = {"": "as it comes", ", hashed": "flushed and hashed", ", guarded": "flushed and digested"}

Save = Callable[[Path], None]
Restore = Callable[[Path], Any]


def main() -> None:
    parser = side_by_side.arguments_of(__doc__, rounds=5, quick_rounds=1)
    parser.add_argument("--repeats", type=int, default=5, help="saves and restores in a process, besides the first")
    parser.add_argument("--large", action="store_true", help="a state of 1 GB")
    parser.add_argument("--at", type=Path, default=Path.cwd(), help="a folder on the disk that is measured (this one)")
    arguments = parser.parse_args()
    if arguments.side:
        project = Path(arguments.folder)
        make = large_state if arguments.large else first_state
        side_by_side.tell(
            lambda: SIDES[arguments.side](project, make(project), arguments.repeats), peers=("safetensors",)
        )
        return
    with tempfile.TemporaryDirectory(dir=arguments.at, prefix=".checkpoints-") as folder:
        project = scaffolded(Path(folder))
        environ = {**side_by_side.training_environment(), "AIFX_CACHE_DIR": str(Path(folder) / "cache")}
        options = ("--folder", str(project), "--repeats", str(arguments.repeats))
        options += ("--large",) if arguments.large else ()
        names = LARGE_SIDES if arguments.large else tuple(SIDES)
        commands = {name: side_by_side.own(__file__, name, *options) for name in names}
        sides = [Side(name, side_by_side.process(command, environ)) for name, command in commands.items()]
        runs = side_by_side.alternate(sides, side_by_side.rounds_of(arguments))
    size = runs.told["aifx"][0]["size_bytes"] / 1e6
    works = [Work(thing, f"{thing}, {size:.0f} MB", amount=size, unit="MB") for thing in ("save", "restore")]
    rows = [
        side_by_side.versus(runs, work, peer, thing=work.thing + form, against=f"{peer}, {words}")
        for work in works
        for peer in runs.peers
        for form, words in FORMS.items()
        if not (arguments.large and form == "")
    ]
    blocked, saved = (
        statistics.median(second for process in runs.seconds("aifx", thing) for second in process)
        for thing in ("blocked", "save")
    )
    waits = f"The training waits for {blocked:.3f} s of a save, {blocked / saved:.1%} of it."
    table = "checkpoints_large" if arguments.large else "checkpoints"
    found = side_by_side.document(table, rows, arguments, runs, notes=(*NOTES, waits))
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
    is_large: bool = False

    @property
    def size_bytes(self) -> int:
        import jax

        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.tree))


def first_state(project: Path) -> State:
    import jax

    from aifx.core.project import Project
    from aifx.kinds import load_config
    from aifx.parallel.layout import local_layout
    from aifx.programs.build import build
    from aifx.tasks.registry import open_task
    from aifx.training.state import to_tree

    config = load_config(Project(project), ())
    programs = build(config, open_task(config, Project(project), project / "assets"), local_layout())
    tree = to_tree(programs.init()[0], stacked=programs.is_stacked)
    return State(jax.block_until_ready(tree), to_tree(programs.abstract[0], stacked=programs.is_stacked))


def large_state(_: Path) -> State:
    import jax

    random = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return jax.numpy.asarray(random.standard_normal(shape, np.float32))

    def layer() -> dict[str, Any]:
        square = {name: array(768, 768) for name in ("query", "key", "value", "out")}
        return {**square, "up": array(768, 3072), "down": array(3072, 768), "norm": array(768)}

    params = {"embedding": array(16384, 768), "layers": {str(i): layer() for i in range(10)}}
    moments = {"mu": jax.tree.map(lambda x: x / 2, params), "nu": jax.tree.map(lambda x: x * x, params)}
    tree = {"params": params, "opt_state": moments, "step": jax.numpy.int32(1)}
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    return State(jax.block_until_ready(tree), wanted, is_large=True)


def aifx_side(project: Path, state: State, repeats: int) -> Told:
    from aifx.checkpoint.checkpoints import Checkpoints
    from aifx.config.sections import CheckpointSection

    checkpoints = Checkpoints(project / SAVED, CheckpointSection(asynchronous=True))
    blocked: list[float] = []

    def save(folder: Path) -> None:
        started = time.perf_counter()
        checkpoints.save(0, state.tree, host={})
        blocked.append(time.perf_counter() - started)
        checkpoints.wait()

    def restore(folder: Path) -> Any:
        return checkpoints.restore(0, state.wanted)[0]

    told = timed(project, repeats, state, {"": (save, restore)})
    told["seconds"]["blocked"] = blocked[1:]
    return told


def orbax_side(project: Path, state: State, repeats: int) -> Told:
    import orbax.checkpoint as ocp

    checkpointer = ocp.StandardCheckpointer()

    def save(folder: Path) -> None:
        checkpointer.save(folder / "state", state.tree)
        checkpointer.wait_until_finished()

    def restore(folder: Path) -> Any:
        return checkpointer.restore(folder / "state", state.wanted)

    return timed(project, repeats, state, both(state, save, restore))


def safetensors_side(project: Path, state: State, repeats: int) -> Told:
    import jax
    from safetensors.numpy import load_file, save_file

    from aifx.checkpoint.digest import key_data
    from aifx.checkpoint.naming import flat_names, from_named, nest

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
    """A peer as it comes, with its files flushed and hashed, and with what ours guarantees."""
    from aifx.core.artifact import files_below, sync_file, sync_folders
    from aifx.core.json_files import sync_directory

    kept: dict[str, str] = {}
    hashes: dict[Path, str] = {}

    def sha256(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def hashed_save(folder: Path) -> None:
        save(folder)
        for path in files_below(folder):
            sync_file(path)
            hashes[path] = sha256(path)
        sync_folders(folder)
        sync_directory(folder.parent)

    def hashed_restore(folder: Path) -> Any:
        restored = restore(folder)
        if any(sha256(path) != hashes[path] for path in files_below(folder)):
            raise SystemExit("a file is not what was saved")
        return restored

    def guarded_save(folder: Path) -> None:
        kept.update(digests(state.tree))
        hashed_save(folder)

    def guarded_restore(folder: Path) -> Any:
        restored = restore(folder)
        if digests(restored) != kept:
            raise SystemExit("what was restored is not what was saved")
        return restored

    hashed, guarded = (hashed_save, hashed_restore), (guarded_save, guarded_restore)
    as_it_comes = {} if state.is_large else {"": (save, restore)}
    return {**as_it_comes, ", hashed": hashed, ", guarded": guarded}


def digests(tree: Any) -> dict[str, str]:
    """As ours makes them."""
    from aifx.checkpoint.digest import key_data
    from aifx.checkpoint.lanes import as_hex, host_lanes
    from aifx.checkpoint.naming import flat_names

    named = flat_names(tree)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda leaf: as_hex(host_lanes(np.asarray(key_data(leaf)))), named.values())
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
LARGE_SIDES = ("aifx", "safetensors")

if __name__ == "__main__":
    main()
