"""Answers that follow from data of the user's own: `aifx init --answer data=PATH`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from aifx.core.errors import DataError, UsageError
from aifx.core.project import Project

Answers: TypeAlias = dict[str, Any]

QUESTION = "data"

OF_DATA = {"target", "time", "series", "horizon", "minutes"}
"""Answers about the file or folder that `data` names."""

MARGIN = 0.05
"""A gate asks for so much more macro F1 than the most frequent class has, or so much less error, as a share, than the
mean or the seasonal naive."""

TABLE_SHARES = {"validation_fraction": 0.15, "test_fraction": 0.2}
"""Shares of a table's rows that are held out."""

TABLE_VALIDATIONS, TABLE_PATIENCE = 20, 5
"""Validations of a training on a table, and how many without improvement end it."""


def answers_from_data(template: str, answers: Mapping[str, Any], destination: Path) -> Answers:
    """Answers to the template's questions about the data that `data` names; empty if it names none.

    Raises UsageError, DataError.
    """
    read = READERS.get(template)
    if read is None or not answers.get(QUESTION):
        for key in sorted(OF_DATA & answers.keys()):
            raise UsageError(f"--answer {key} requires --answer data", "it is about that data", "--answer data=FILE")
        return {}
    path = Path(answers[QUESTION]).expanduser()
    if not path.exists():
        raise UsageError(f"--answer data={path}: there is no such file or folder", "", f"ls {path.parent}")
    # A relative path is one from the project, as in `data.path`. The data is never copied, since it may be large.
    found = str(path) if path.is_absolute() else os.path.relpath(path.resolve(), destination.resolve())
    return {QUESTION: found, **read(path, answers)}


def _images(path: Path, answers: Mapping[str, Any]) -> Answers:
    from aifx.scaffold.own_pictures import picture_answers

    return picture_answers(path, answers, MARGIN)


def _table(path: Path, answers: Mapping[str, Any]) -> Answers:
    """The objective, a gate and the settings of a training for a table with a column `target`."""
    if "target" not in answers:
        why, hint = "the template predicts one column of the file", f"--answer data={path} --answer target=COLUMN"
        raise UsageError("--answer data requires --answer target", why, hint)
    import numpy as np

    from aifx.data.sections import TableSection
    from aifx.data.table import TableFormat

    section = TableSection.model_validate({"path": str(path), "target": answers["target"], **TABLE_SHARES})
    with TemporaryDirectory() as assets:
        form, data = TableFormat.open(section, Project(Path.cwd()), Path(assets))
    train, test = data.splits["train"]["targets"], data.splits["test"]["targets"]
    if not len(test):
        raise DataError(f"{path}: {len(train)} rows are too few", "none is held out for the test", "add rows")
    if classes := form.spec.classes:
        counts = np.bincount(train, minlength=len(classes))
        share = float((test == np.argmax(counts)).mean())
        score = 2 * share / (1 + share) / len(classes)  # F1 of the class that is always predicted; others have 0
        gate = f"macro_f1 >= {min(score + MARGIN, 0.99):.2f}"
        settings = table_settings(len(train), class_balance(counts.tolist()))
        return {"objective": "classification", "gate": gate, **TABLE_SHARES, **settings}
    error = float(np.abs(test).mean()) * form.spec.target_scale
    gate = f"mean_absolute_error <= {float(f'{(1 - MARGIN) * error:.3g}'):g}"
    return {"objective": "regression", "gate": gate, **TABLE_SHARES, **table_settings(len(train))}


def class_balance(counts: Sequence[int]) -> float:
    """The probability that two rows have different classes, relative to that of equally frequent classes.

    Args:
        counts: rows of each class.
    """
    rows = sum(counts)
    return (1 - sum((count / rows) ** 2 for count in counts)) / (1 - 1 / len(counts))


def table_settings(rows: int, balance: float | None = None) -> Answers:
    """The model and the training for so many training rows, of numbers or of classes with a balance.

    Steps grow with the root of the rows: a large table has more to learn, and a small one is read more often. Few rows
    are learned by heart soon, so a small table gets small batches, a narrow network, more dropout and more weight
    decay. The average of the weights and that of three validations make the best one less a matter of luck.

    Rows of a frequent class teach little: with a class of share p, the information of a row on a linear model of two
    classes is proportional to p (1 - p). So the rows count by their balance, except for the batch: a small one would
    seldom have a row of the rare class. Smaller steps keep a network of classes nearer to its linear part, which log
    loss rewards; networks of numbers had larger errors with them.

    Args:
        balance: of the classes, from `class_balance`.
    """
    batch_size = _power_of_two(rows / 8, 16, 256)
    rows = rows if balance is None else max(1, round(balance * rows))
    validate_every = max(10, round(math.sqrt(rows)))
    num_steps = TABLE_VALIDATIONS * validate_every
    return {
        "num_steps": num_steps,
        "batch_size": batch_size,
        "validate_every": validate_every,
        "early_stopping": TABLE_PATIENCE,
        "best_over": 3,
        "ema_decay": round(1 - 0.5 / validate_every, 4),
        "learning_rate": 0.003 if balance is None else 0.002,
        "weight_decay": round(100 / num_steps, 3),
        "warmup_steps": min(50, num_steps // 10),
        "width": _power_of_two(3 * math.sqrt(rows), 32, 256),
        "num_layers": 2 if rows < 1000 else 3,
        "dropout": round(min(max(0.6 - 0.1 * math.log10(rows), 0.1), 0.5), 2),
    }


def _power_of_two(number: float, least: int, most: int) -> int:
    """The power of two that is nearest by ratio, between two others."""
    return min(max(1 << round(math.log2(number)), least), most) if number > 1 else least


def _series(path: Path, answers: Mapping[str, Any]) -> Answers:
    from aifx.scaffold.own_series import series_answers

    return series_answers(path, answers, MARGIN)


READERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Answers]] = {
    "series": _series,
    "tabular": _table,
    "vision-inspection": _images,
}
"""By template: what it needs to know of a file or folder, and of the other answers."""
