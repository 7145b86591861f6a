"""A project's own code that is wrong: an error that names the key, the file and the line, never a bug of aifx."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_tasks import PARTS, PARTS_TOML, TASK, TASK_TOML, aifx, make_project, replaced

from aifx.config.parts import import_object
from aifx.config.project_errors import project_errors
from aifx.core.errors import AifxError
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.tasks import load_task, open_task
from aifx.tasks.base import Task


def opened(root: Path) -> Task:
    project = Project(root)
    (root / "assets").mkdir(exist_ok=True)
    return open_task(load_config(project, [], {}), project, root / "assets")


def place_of(code: str, new: str) -> str:
    """Where the last line of `new` is in the changed code."""
    return f"births.py:{code[: code.index(new) + len(new)].count(chr(10)) + 1}"


def check_error(root: Path, *words: str) -> None:
    with pytest.raises(AifxError) as caught:
        opened(root)
    for word in words:
        assert word in str(caught.value)


PLACE = "<the file and the line of the mistake>"
IMPORTS = [
    ("import jax", "import jaxx", ["'jaxx'", PLACE]),
    ("import jax", "import jax\n1 / 0", ["ZeroDivisionError", PLACE]),
    ("import jax", "import jax\nraise SystemExit(3)", ["SystemExit", PLACE]),
    ("import jax", "import jax\ndef f(:", ["SyntaxError", PLACE]),
]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        *IMPORTS,
        ("class Births(Task)", "class Birth(Task)", ["did you mean 'Birth'?"]),
        ("class Births(Task)", "class Births", ["Births is not an aifx.extend.Task"]),
        ("    def flops(", "    def flop(", ["Mlp lacks flops"]),
        ("normal(0.5)", "normal()", ["specs failed", "TypeError", PLACE]),
        ("Regression(), days.spec, days, d", "object(), days.spec, days, d", ["object lacks sums, metrics, unit"]),
        ("        return cls(Mlp(", "        return None\n        return cls(Mlp(", ["Births.open returned NoneType"]),
        ("config.data, project, assets)", "{}['no'], project, assets)", ["Births.open failed", "KeyError", PLACE]),
    ],
)
def test_a_task_that_is_wrong(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    code = replaced(PARTS + TASK, old, new)
    root = make_project(tmp_path / "births", code, TASK_TOML)
    check_error(root, "task.kind = 'births:Births'", *(word.replace(PLACE, place_of(code, new)) for word in words))


FAMILY, DATA = "model.family = 'births:FAMILY'", "data.kind = 'births:DATA'"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        *((old, new, [FAMILY, *words]) for old, new, words in IMPORTS),
        ("FAMILY = Family(", "FAMILIES = Family(", [FAMILY, "did you mean 'FAMILIES'?"]),
        ("FAMILY = Family(", "FAMILY = (", [FAMILY, "not an aifx.extend.Family"]),
        ("MlpSection, Mlp)", "ArraysSection, Mlp)", [FAMILY, "its section", "ModelSection"]),
        ("MlpSection, Mlp)", 'MlpSection, "births:Mpl")', [FAMILY, "did you mean 'Mlp'?"]),
        ("    def flops(", "    def flop(", [FAMILY, "Mlp lacks flops"]),
        ("class Mlp(Model)", "class Mlp", [FAMILY, "Mlp does not derive from aifx.extend.Model"]),
        (
            "class Mlp(Model)",
            "from aifx.extend import Decodes\n\n\nclass Mlp(Decodes)",
            [FAMILY, "Mlp lacks vocab_size, max_seq_len, page_size, cache_specs, extend, decode"],
        ),
        ('"output": output}', '"output": 3}', [FAMILY, "Mlp.specs returned int at /output"]),
        ("return 6 * rows", 'return "6" * rows', [FAMILY, "Mlp.flops returned str"]),
        ('data.fields["inputs"]', 'data.fields["x"]', [FAMILY, "KeyError", PLACE]),
        ("MlpSection, Mlp)", "MlpSection, lambda section, data: None)", [FAMILY, "NoneType lacks specs"]),
        ("read_examples(path", "read_exampels(path", [DATA, "NameError", PLACE]),
        ("    def read(", "    def reads(", ["Days cannot read data", "define Days.read"]),
        ("np.float32(row", "str(row", ["births.csv:2: the row cannot be used", "TypeError", PLACE]),
        (
            "/ 1000})",
            '/ 1000, "name": row["year"]})',
            ["Days.read returned arrays that cannot be used", "'name' is <U4; batches hold real numbers"],
        ),
        ('"targets": np', '"labels": np', ["regression needs 1 targets", "only 'inputs', 'labels', 'weights'"]),
    ],
)
def test_a_part_that_is_wrong(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    code = replaced(PARTS, old, new)
    root = make_project(tmp_path / "births", code, PARTS_TOML)
    check_error(root, *(word.replace(PLACE, place_of(code, new)) for word in words))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('batch["inputs"]', 'batch["input"]', ["hidden failed", "KeyError", PLACE]),
        ('params["output"]', 'params["outputs"]', ["head failed", "KeyError", PLACE]),
        ('Head(params["output"])', 'params["output"]', ["Mlp.head returned what aifx cannot use", "Head"]),
        ('row["births"]) / 1000', "[1, 2])", ["one output of the model per target", "[16, 1]", "[16, 2]"]),
        ("totals.items()", "totals.itms()", ["metrics failed", "AttributeError", PLACE]),
    ],
)
def test_code_that_fails_later(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    own = "\n\nclass Own(Regression):\n    def metrics(self, totals, data):\n"
    own += "        return {name: float(t / w) for name, (t, w) in totals.items()}\n"
    code = (PARTS + TASK).replace("\n\nclass Births", own + "\n\nclass Births").replace("Regression(), ", "Own(), ")
    code = replaced(code, old, new)
    failed = aifx(make_project(tmp_path / "births", code, TASK_TOML), "train", code=2)
    for word in words:
        assert word.replace(PLACE, place_of(code, new)) in failed.stderr


def test_wrong_results_are_named_with_their_place(tmp_path: Path) -> None:
    own = '\n\nclass Own(Regression):\n    def metrics(self, totals, data):\n        return {"lost": 1.0}\n'
    code = (PARTS + TASK).replace("\n\nclass Births", own + "\n\nclass Births").replace("Regression(), ", "Own(), ")
    root = make_project(tmp_path / "births", code, TASK_TOML)
    failed = aifx(root, "train", code=2)
    line = code.splitlines().index("    def metrics(self, totals, data):") + 1
    for word in ("Own.metrics returned what aifx cannot use", 'no "loss"', f"(births.py:{line})"):
        assert word in failed.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "args", "words"),
    [
        ("def encode(", "def code(", ["predict", "-"], ["Days cannot make predictions", "define Days.encode"]),
        (
            "[None]}",
            "[None, None]}",
            ["predict", "-"],
            ["-:1: the row does not fit the model", "'inputs' float32 [1, 15]"],
        ),
        ("def read(", "def reads(", ["eval", "--data", "data/births.csv"], ["Days cannot read data"]),
        ('Head(params["output"])', "Head()", ["predict", "-"], ["head failed", "TypeError", PLACE]),
    ],
)
def test_code_that_fails_with_a_trained_model(
    tmp_path: Path, old: str, new: str, args: list[str], words: list[str]
) -> None:
    root = make_project(tmp_path / "births", PARTS, PARTS_TOML)
    aifx(root, "train")
    code = replaced(PARTS, old, new)
    (root / "births.py").write_text(code)
    row = '{"year": 1988, "month": 12, "date_of_month": 25, "day_of_week": 7}'
    failed = aifx(root, *args, stdin=row, code=2)
    for word in words:
        assert word.replace(PLACE, place_of(code, new)) in failed.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('raise SystemExit("no GPU")', ["SystemExit: no GPU", "births.py:"]),
        ('return {"loss": open("weights.csv").read()}', ["'weights.csv'", "births.py:"]),
    ],
)
def test_a_failure_of_the_project_is_not_a_bug(tmp_path: Path, code: str, words: list[str]) -> None:
    own = f"\n\nclass Own(Regression):\n    def metrics(self, totals, data):\n        {code}\n"
    task = (PARTS + TASK).replace("\n\nclass Births", own + "\n\nclass Births").replace("Regression(), ", "Own(), ")
    failed = aifx(make_project(tmp_path / "births", task, TASK_TOML), "train", code=2)
    for word in words:
        assert word in failed.stderr


def test_a_disk_that_refuses_is_not_the_projects_mistake(tmp_path: Path) -> None:
    code = "import errno\n\n\ndef save():\n    raise OSError(errno.EIO, 'Input/output error')\n"
    root = make_project(tmp_path / "births", PARTS + code, PARTS_TOML)
    project = Project(root)
    config = load_config(project, [], {})
    failing = import_object("data.kind", "births:save", project)
    with pytest.raises(OSError, match="Input/output"), project_errors(config.parts, project):
        failing()


@pytest.mark.slow
def test_a_source_without_end_is_not_measured(tmp_path: Path) -> None:
    code = PARTS.replace(
        "class Days(ArrayFormat):\n",
        "class Endless(ArrayDataset):\n    def source(self, split, batch_size, *, seed):\n"
        "        return super().source(split, batch_size, seed=seed or 0)\n\n\nclass Days(ArrayFormat):\n"
        "    @classmethod\n    def open(cls, section, project, assets):\n"
        "        form, data = super().open(section, project, assets)\n"
        "        return form, Endless(data.splits, data.spec, data.digest)\n\n",
    ).replace("import ArrayFormat,", "import ArrayDataset, ArrayFormat,")
    root = make_project(tmp_path / "births", code, PARTS_TOML)
    settings = ["--set", "train.num_steps=2", "--set", "train.validate_every=0"]
    aifx(root, "train", *settings)
    failed = aifx(root, "eval", "--split", "train", code=2)
    assert "the train split" in failed.stderr
    assert "aifx eval --split test" in failed.stderr


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("resnet", ["model.family = 'resnet' does not fit the data", "inputs float32 [15]"]),
        ("decoder", ["a decoder cannot be trained on this data", "inputs of this data is float32 [15]"]),
        ("births", ["model.family = 'births' is not known", "One of your own is `module:NAME`"]),
        ("decodr", ["did you mean 'decoder'?"]),
        ("births:Mlp", ["model.family = 'births:Mlp' cannot be used", "not an aifx.extend.Family"]),
    ],
)
def test_a_family_that_does_not_fit(tmp_path: Path, model: str, words: list[str]) -> None:
    toml = PARTS_TOML.replace("births:FAMILY", model).replace("width = 64\n", "")
    check_error(make_project(tmp_path / "births", PARTS, toml), *words)


@pytest.mark.parametrize("kind", ["nowhere:Task", "births:No", "births", "births:np", "a b:C", ":C", "births:calendar"])
def test_a_kind_that_names_no_task(tmp_path: Path, kind: str) -> None:
    check_error(make_project(tmp_path / "births", PARTS + TASK, TASK_TOML.replace("births:Births", kind)), "task.kind")


def test_a_task_without_open(tmp_path: Path) -> None:
    code = replaced(PARTS + TASK, "    def open(cls", "    def opne(cls")
    check_error(make_project(tmp_path / "births", code, TASK_TOML), "Births cannot be opened", "define Births.open")


def test_two_projects_with_modules_of_one_name(tmp_path: Path) -> None:
    first = make_project(tmp_path / "first", PARTS + TASK, TASK_TOML)
    code = replaced(PARTS + TASK, "    width: Pos", "    height: int = 1\n    width: Pos")
    second = make_project(tmp_path / "second", code, TASK_TOML.replace("width = 8", "width = 8\nheight = 2"))
    opened(first)
    opened(second)
    opened(first)


def test_a_run_without_its_spec_is_refused(tmp_path: Path) -> None:
    root = make_project(tmp_path / "births", PARTS, PARTS_TOML)
    aifx(root, "train")
    project = Project(root)
    assets = project.run("main").assets
    task = load_task(load_config(project, [], {}), project, assets)
    assert task.dataset is None
    assert task.data == opened(root).data
    (assets / "data.json").unlink()
    failed = aifx(root, "predict", "-", stdin="{}", code=2)
    assert "data.json" in failed.stderr
