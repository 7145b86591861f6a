"""Label Studio's JSON: https://labelstud.io/guide/task_format. Choices of one value, and pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

from aifx.core.errors import DataError
from aifx.curation.labels.contents import FileLabel, Shown, data_url
from aifx.curation.labels.store import Entry
from aifx.data.names import ROW, SOURCE

TIE = "tie"
"""The label of a pair neither of whose texts is better."""


def task_of(
    row: str, source: str, content: Mapping[str, Any], shown: Shown, column: str, entries: Iterable[Entry]
) -> Any:
    """A row with its labels as a task of Label Studio."""
    data = {name: data_url(value) if isinstance(value, bytes) else _plain(value) for name, value in content.items()}
    return {
        "data": {**data, ROW: row, SOURCE: source},
        "annotations": [_annotation(entry, shown, column) for entry in entries],
    }


def _plain(value: Any) -> Any:
    is_json = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_json else str(value)


def _annotation(entry: Entry, shown: Shown, column: str) -> dict[str, Any]:
    meta = {"labeller": entry.labeller, **({"text": [entry.note]} if entry.note else {})}
    annotation: dict[str, Any] = {"was_cancelled": entry.label is None, "created_at": entry.time, "result": []}
    if "@" in entry.labeller:  # it knows annotators by their address
        annotation["completed_by"] = {"email": entry.labeller}
    if entry.label is None:
        return {**annotation, "meta": meta}
    value: dict[str, Any] = {"choices": [entry.label]}
    kind, to_name = "choices", shown.columns[0]
    if shown.kind == "pairs" and entry.label in shown.columns:
        kind, value = "pairwise", {"selected": "left" if entry.label == shown.columns[0] else "right"}
        to_name = ",".join(shown.columns)
    result = {"id": entry.id[:10], "from_name": column, "to_name": to_name, "type": kind, "value": value, "meta": meta}
    return {**annotation, "result": [result]}


def labeling_config(shown: Shown, column: str, labels: Iterable[str]) -> str:
    """The configuration of a project of Label Studio into which exported tasks can be imported."""
    tag = "Image" if shown.kind == "images" else "Text"
    objects = "".join(f"<{tag} name={quoteattr(name)} value={quoteattr(f'${name}')}/>" for name in shown.columns)
    if shown.kind == "pairs":
        return f"<View><Pairwise name={quoteattr(column)} toName={quoteattr(','.join(shown.columns))}/>{objects}</View>"
    choices = "".join(f"<Choice value={quoteattr(label)}/>" for label in labels)
    to_name = quoteattr(shown.columns[0])
    return (
        f'<View>{objects}<Choices name={quoteattr(column)} toName={to_name} choice="single">{choices}</Choices></View>'
    )


def read_tasks(document: Any, place: str, shown: Shown, column: str, *, predictions: bool) -> Iterator[FileLabel]:
    """The labels of tasks.

    Args:
        document: a task, or a list of tasks.
        predictions: also take those of models, as labels by "model:" and the model's version.

    Raises DataError if the document has something else.
    """
    for number, task in enumerate(document if isinstance(document, list) else [document], 1):
        where = f"{place}: task {number}"
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict):
            why = 'a task is an object with "data"; the export format is JSON, not JSON-MIN or CSV'
            raise DataError(f"{where} is no task of Label Studio", why, "export the project as JSON")
        given: list[tuple[dict[str, Any], str | None]] = [
            (one, None) for one in _objects(task.get("annotations", task.get("completions")))
        ]
        if predictions:
            given += [
                (one, f"model:{one.get('model_version') or 'unknown'}") for one in _objects(task.get("predictions"))
            ]
        for annotation, model in given:
            yield _label(annotation, model, where, data, shown, column)


def _label(
    annotation: Mapping[str, Any], model: str | None, where: str, data: Mapping[str, Any], shown: Shown, column: str
) -> FileLabel:
    results = [one for one in _objects(annotation.get("result")) if one.get("type") in ("choices", "pairwise")]
    results.sort(
        key=lambda one: one.get("from_name") != column
    )  # that of another control only if there is none of ours
    result = results[0] if results else {}
    meta = next((one for one in (result.get("meta"), annotation.get("meta")) if isinstance(one, dict)), {})
    text = meta.get("text")
    time = annotation.get("created_at")
    label, fault = _value(result, shown)
    is_skipped = annotation.get("was_cancelled") is True or annotation.get("skipped") is True
    return FileLabel(
        place=where,
        row=data.get(ROW),
        content=tuple(data.values()),
        label=None if is_skipped else label,
        fault="" if is_skipped else fault,
        labeller=model or meta.get("labeller") or _annotator(annotation.get("completed_by")),
        time=time if isinstance(time, str) else None,
        note=" ".join(map(str, text)) if isinstance(text, list) else "",
    )


def _value(result: Mapping[str, Any], shown: Shown) -> tuple[str | None, str]:
    """The label of a result, and why it has none."""
    value = result.get("value")
    if not isinstance(value, dict):
        return None, "it has no choice" + (" of one of two" if shown.kind == "pairs" else "")
    if result["type"] == "pairwise":
        selected = value.get("selected")
        if shown.kind != "pairs":
            return None, "it compares a pair: --pair A,B names the columns"
        if selected not in ("left", "right"):
            return None, f"it selects {selected!r}"
        return shown.columns[selected == "right"], ""
    choices = value.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], str):
        return None, f"it has {len(choices) if isinstance(choices, list) else 'no'} choices instead of one"
    return choices[0], ""


def _annotator(completed_by: Any) -> str | None:
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("id")
    if isinstance(completed_by, int):
        return f"annotator-{completed_by}"
    return completed_by if isinstance(completed_by, str) else None


def _objects(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
