"""Hooks around the steps: the order of the calls, hooks of a project, their errors, and several processes."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from documented import blocks
from stopping import StopAt

from aifx.checkpoint.manifest import read_manifest
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.core.stop_signals import StopSignals
from aifx.parallel.group import Group
from aifx.training import run as training_run
from aifx.training.dispatcher import EventDispatcher
from aifx.training.hook import Hook, Stop
from aifx.training.hooks.project import ProjectHook, shared_hooks
from aifx.training.hooks.watchdog import Watchdog
from aifx.training.records import Record, TrainResult
from aifx.training.restore import InitialState
from aifx.training.run import assemble, run_info

(CODE,), (TOML,) = blocks("hooks", "python"), blocks("hooks", "toml")
NAMED = f"train.hooks={TOML.partition('hooks = ')[2].strip()}"
RECORD = Record(5, 1.0, 1.0, 0.01, "rows", 40, 8.0, 1.0, None, None, 0.0, 0.0)


def test_the_documented_hooks(tiny, whole, logged: list[str]) -> None:
    """As they are on the page, but for the time. Nothing else differs from a run without them."""
    (tiny.root / "my_hooks.py").write_text(CODE)
    result = tiny.train(NAMED, "checkpoint.keep_last=3")
    assert (result.status, result.state_digest) == ("completed", whole.result.state_digest)
    validations = [record["validation"] for record in tiny.records() if "validation" in record]
    assert len(validations) == 3
    assert all(validation.pop("weight_norm") > 0 for validation in validations)
    assert validations == [record["validation"] for record in whole.records if "validation" in record]

    (tiny.root / "my_hooks.py").write_text(CODE.replace("% 100", "% 5").replace("HOURS = 8", "HOURS = 0"))
    del sys.modules["my_hooks"]
    result = tiny.train(NAMED, run="short")
    assert (result.status, result.step, result.exit_code) == ("early_stopped", 4, 0), "it validates after step 4"
    assert (tiny.run("short").checkpoints / "4").is_dir()
    assert tiny.records("short")[-1]["validation"]["weight_norm"] > 0
    assert any("TimeLimit" in line and "it has taken 0 hours" in line for line in logged)
    assert tiny.train(NAMED, run="short").already


class Recorder(Hook):
    """Notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def start(self, info: Any) -> None:
        self.calls.append(("start", info.first_step))

    def pauses(self, step: int) -> bool:
        return step == 2

    def around_step(self, take_step: Any) -> Any:
        def taken(step: int, state: Any, batch: Any) -> Any:
            self.calls.append(("step", step))
            return take_step(step, state, batch)

        return taken

    def after_step(self, record: Record, batch: Any) -> None:
        assert len(batch["weights"]) == 8
        self.calls.append(("after", record.step))

    def at_pause(self, state: Any, record: Record) -> None:
        assert int(state.step) == record.step
        self.calls.append(("pause", record.step))

    def on_record(self, record: Record) -> None:
        self.calls.append(("record", record.step))

    def stop(self, result: TrainResult | None) -> None:
        self.calls.append(("stop", result and result.status))


def test_the_order_of_the_calls(tiny) -> None:
    recorder = Recorder()
    tiny.train("train.num_steps=4", "train.validate_every=0", "checkpoint.every=0", hooks=[recorder])
    assert recorder.calls == [
        ("start", 0),
        ("step", 1),
        ("step", 2),  # one ahead of what is known
        *(("after", 1), ("record", 1)),
        *(("after", 2), ("pause", 2), ("record", 2)),
        ("step", 3),
        ("step", 4),
        *(("after", 3), ("record", 3)),
        *(("after", 4), ("pause", 4), ("record", 4)),
        ("stop", "completed"),
    ]


class Scales(Hook):
    """Changes the batch to other numbers at each call."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def around_step(self, take_step: Any) -> Any:
        def taken(step: int, state: Any, batch: Any) -> Any:
            self.steps.append(step)
            return take_step(step, state, {**batch, "weights": batch["weights"] * len(self.steps)})

        return taken


@pytest.mark.slow
def test_a_step_that_is_computed_twice_calls_the_hooks_of_a_project_once(tiny) -> None:
    hook = Scales()
    settings = ("train.num_steps=2", "train.validate_every=0", "checkpoint.every=0", "guards.verify_every=1")
    assert tiny.train(*settings, hooks=[hook]).status == "completed"
    assert hook.steps == [1, 2]


@pytest.mark.slow
def test_a_pending_validation_that_is_interrupted_again(tiny, whole) -> None:
    first = StopAt(3)
    assert tiny.train("checkpoint.keep_last=3", hooks=[first], stop=first.signals).step == 4
    again = StopSignals()
    again.requested = 15  # type: ignore[assignment]
    recorder = Recorder()
    result = tiny.train("checkpoint.keep_last=3", hooks=[recorder], stop=again)
    assert (result.status, result.step) == ("preempted", 4)
    assert recorder.calls == [("start", 4), ("pause", 4), ("record", 4), ("stop", "preempted")], "judged once"
    assert [event["event"] for event in tiny.events()].count("checkpoint") == 1, "which has the validation to do"
    assert [record["step"] for record in tiny.records()] == [1, 2, 3, 4]
    assert tiny.train("checkpoint.keep_last=3").state_digest == whole.result.state_digest
    assert tiny.records() == whole.records
    manifest = read_manifest(tiny.run().checkpoints / "4")
    assert (manifest.score is None, manifest.host["pending_validation"]) == (False, None), "saved again, with its score"


class StopsAt(Hook):
    def __init__(self, step: int) -> None:
        self.step = step

    def pauses(self, step: int) -> bool:
        return step == self.step

    def at_pause(self, state: Any, record: Record) -> Stop | None:
        return Stop() if record.step == self.step else None


@pytest.mark.parametrize(("step", "status"), [(2, "early_stopped"), (3, "completed")])
@pytest.mark.slow
def test_a_stop_at_the_last_step_is_its_end(tiny, step: int, status: str) -> None:
    settings = ("train.num_steps=3", "train.validate_every=0", "checkpoint.every=0")
    result = tiny.train(*settings, hooks=[StopsAt(step)])
    assert (result.status, result.step) == (status, step)
    assert [event["step"] for event in tiny.events() if event["event"] == "checkpoint"] == [step]


METHODS = """\
from aifx.extend import Hook


class Fails(Hook):
    def fail(self, *_):
        return 1 / 0

    {method} = fail
"""


def project_hook(root: Path, code: str, name: str = "Fails", group: Group | None = None) -> ProjectHook:
    (root / "failing_hooks.py").write_text(code)
    return ProjectHook(f"failing_hooks:{name}", Project(root), group or Group())


CALLS: dict[str, tuple[Any, ...]] = {
    "__init__": (),
    "start": (None,),
    "pauses": (1,),
    "around_step": (None,),
    "after_step": (RECORD, {}),
    "at_pause": (None, RECORD),
    "on_record": (RECORD,),
    "on_event": ("checkpoint", {}),
    "stop": (None,),
}


@pytest.mark.parametrize("method", CALLS)
def test_an_error_names_the_hook_and_the_place(tmp_path: Path, method: str) -> None:
    def call() -> None:
        getattr(project_hook(tmp_path, METHODS.format(method=method)), method)(*CALLS[method])

    with pytest.raises(ConfigError) as raised:
        call()
    assert "train.hooks = 'failing_hooks:Fails'" in raised.value.what
    assert f"Fails.{method} failed" in raised.value.what
    assert "ZeroDivisionError" in raised.value.why
    assert "failing_hooks.py:6" in raised.value.why


def test_an_error_ends_the_run(tiny) -> None:
    (tiny.root / "failing_hooks.py").write_text(METHODS.format(method="on_record"))
    with pytest.raises(ConfigError, match=r"Fails\.on_record failed"):
        tiny.train("train.hooks=['failing_hooks:Fails']")
    stop = tiny.events()[-1]
    assert (stop["event"], stop["status"]) == ("stop", "failed")
    assert "failing_hooks:Fails" in stop["error"]
    assert tiny.train().status == "completed", "other hooks change no number"


AROUND = """\
from aifx.extend import Hook


class Fails(Hook):
    def around_step(self, take_step):
        def taken(step, state, batch):
            taken = take_step(step, state, batch)
            return 1 / 0 if step == 2 else taken
        return taken
"""


def test_a_step_that_fails_within_a_hook_is_not_the_hooks_fault(tmp_path: Path) -> None:
    def out_of_memory(step: int, state: Any, batch: Any) -> Any:
        if step == 3:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return state, None

    take_step = project_hook(tmp_path, AROUND).around_step(out_of_memory)
    assert take_step(1, "state", {}) == ("state", None)  # type: ignore[arg-type,comparison-overlap]
    with pytest.raises(ConfigError, match=r"Fails\.around_step failed"):
        take_step(2, None, {})  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED") as raised:
        take_step(3, None, {})  # type: ignore[arg-type]
    files = {Path(frame.filename).name for frame in traceback.extract_tb(raised.value.__traceback__)}
    assert "failing_hooks.py" not in files


RETURNS = """\
from dataclasses import replace
from aifx.extend import Hook, Stop


class Returns(Hook):
    def at_pause(self, state, record):
        return {value}
"""
VALIDATED = replace(RECORD, validation={"loss": 1.5})


@pytest.mark.parametrize(
    "value",
    [
        "5",
        "replace(record, loss=0.0)",
        "replace(record, validation=None)",
        "replace(record, validation={'loss': 0.5})",
        "replace(record, validation={**record.validation, 'name': 'x'})",
    ],
)
def test_a_hook_may_only_add_numbers_to_a_validation(tmp_path: Path, value: str) -> None:
    hook = project_hook(tmp_path, RETURNS.format(value=value), "Returns")
    with pytest.raises(ConfigError, match=r"failing_hooks:Returns.* cannot be used") as raised:
        hook.at_pause(None, VALIDATED)  # type: ignore[arg-type]
    assert "at_pause returned" in raised.value.why


def test_a_validation_cannot_be_made_up(tmp_path: Path) -> None:
    hook = project_hook(tmp_path, RETURNS.format(value="replace(record, validation={'loss': 1.0})"), "Returns")
    with pytest.raises(ConfigError, match="cannot be used"):
        hook.at_pause(None, RECORD)  # type: ignore[arg-type]


def test_what_is_no_hook_is_refused(tiny) -> None:
    (tiny.root / "failing_hooks.py").write_text("class Plain: ...\n")
    with pytest.raises(ConfigError, match=r"train\.hooks = 'failing_hooks:Plain' cannot be used"):
        tiny.train("train.hooks=['failing_hooks:Plain']")
    code, _, err = tiny.command("config", "check", "--set", "train.hooks=['failing_hooks:Plian']")
    assert code == 2
    assert "did you mean 'Plain'" in err
    (tiny.root / "failing_hooks.py").write_text(AROUND)
    del sys.modules["failing_hooks"]
    code, out, err = tiny.command("config", "check", "--json", "--set", "train.hooks=['failing_hooks:Fails']")
    assert json.loads(out)["valid"] is True
    assert "importing failing_hooks:Fails" in err


class Pair(Group):
    """One of two processes, whose other one says this."""

    size = 2

    def __init__(self, index: int, other: Any = None) -> None:
        self.index, self.other = index, other

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other] if self.is_first else []

    def broadcast(self, value: Any = None) -> Any:
        return value if self.is_first else self.other


BOTH = """\
from aifx.extend import Hook, Stop


class First(Hook):
    calls = 0

    def pauses(self, step):
        return step == 3

    def on_record(self, record):
        type(self).calls += 1

    def at_pause(self, state, record):
        type(self).calls += 1
        return Stop("enough") if record.loss < 2 else None


class All(First):
    all_processes = True
"""


@pytest.mark.parametrize(("name", "calls"), [("First", 0), ("All", 2)])
def test_a_hook_in_a_process_that_is_not_the_first(tmp_path: Path, name: str, calls: int) -> None:
    hook = project_hook(tmp_path, BOTH, name, Pair(1, other="enough"))
    assert [hook.pauses(step) for step in (2, 3)] == [False, True], "all processes pause after the same steps"
    hook.on_record(RECORD)
    assert hook.at_pause(None, RECORD) == Stop("enough"), "as process 0 says"  # type: ignore[arg-type]
    assert hook._hook.calls == calls  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("other", "loss", "expected"), [(None, 3.0, None), ("enough", 3.0, Stop("enough")), (None, 1.0, Stop("enough"))]
)
def test_one_process_stops_all(tmp_path: Path, other: str | None, loss: float, expected: Stop | None) -> None:
    hook = project_hook(tmp_path, BOTH, "All", Pair(0, other=other))
    assert hook.at_pause(None, replace(RECORD, loss=loss)) == expected  # type: ignore[arg-type]


def assembled(tiny: Any, group: Group, own_hooks: Any = ()) -> list[str]:
    """The names of the hooks of a loop in one of the processes of a job."""
    programs, files = tiny.programs(), [Recorder()] if group.is_first else []
    dispatcher = EventDispatcher(None, [*files, *own_hooks])
    checkpoints: Any = None
    watch = Watchdog(programs.config.guards, group, lambda _: None)
    state: Any = None
    loop = assemble(
        run_info(tiny.run(), programs),
        programs,
        lambda *_: None,  # type: ignore[arg-type,return-value]
        InitialState(0, state, {}),
        checkpoints,
        dispatcher,
        StopSignals(),
        group=group,
        watch=watch,
        own_hooks=own_hooks,
    ).loop
    return [type(hook).__name__ for hook in loop.hooks]


def test_each_process_has_the_hooks_that_all_processes_call(tiny) -> None:
    (tiny.root / "failing_hooks.py").write_text(BOTH)
    make: Callable[[Group], list[Any]] = lambda group: [ProjectHook("failing_hooks:First", tiny.project, group)]  # noqa: E731
    first, second = (assembled(tiny, group, make(group)) for group in (Pair(0), Pair(1)))
    assert first[-5:] == ["ProjectHook", "EventDispatcher", "Recorder", "Verification", "Saving"], (
        "a checkpoint's record is written"
    )
    assert second == [name for name in first if name not in ("EventDispatcher", "Recorder")]
    assert first.index("Guard") < first.index("StopVote") < first.index("Validation") < first.index("EarlyStopping")


def test_hooks_of_a_caller_in_a_process_that_is_not_the_first(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    class Everywhere(Recorder):
        all_processes = True

    monkeypatch.setattr(training_run, "joined", lambda *_: nullcontext(Pair(1)))
    for name in ("agree", "check_shared", "finished"):
        monkeypatch.setattr(training_run, name, lambda *_: None)
    monkeypatch.setattr(training_run, "_supervised", lambda job: job)
    first, everywhere = Recorder(), Everywhere()
    hooks = tiny.train(hooks=[Hook(), first, everywhere]).dispatcher.hooks
    assert [hook.pauses(2) for hook in hooks] == [True, True], "all processes pause after the same steps"
    for hook in hooks:
        hook.start(SimpleNamespace(first_step=1))
    assert (first.calls, everywhere.calls) == ([], [("start", 1)])


class Enough(Hook):
    def __init__(self, answer: Stop | None) -> None:
        self.answer = answer

    def at_pause(self, state: Any, record: Record) -> Stop | None:
        return self.answer


@pytest.mark.parametrize(
    ("index", "answer", "other", "expected"),
    [(0, Stop("b"), None, Stop("b")), (0, None, "a", Stop("a")), (1, Stop("b"), None, None), (1, None, "a", Stop("a"))],
)
def test_a_hook_of_a_caller_stops_all_processes_or_none(
    index: int, answer: Stop | None, other: str | None, expected: Stop | None
) -> None:
    """Process 0 alone calls it, and says what becomes of the run."""
    hooks = shared_hooks([Enough(answer), Hook()], Pair(index, other))
    assert hooks[0].at_pause(None, RECORD) == expected  # type: ignore[arg-type]
    assert type(hooks[1]) is Hook
    alone = Enough(answer)
    assert shared_hooks([alone], Group()) == [alone]
