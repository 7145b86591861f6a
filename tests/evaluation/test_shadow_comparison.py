"""Recorded answers of two models are compared: agreement, lengths, and metrics where the outcome is known."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pytest
from published_schemas import check_answer

import aifx
from aifx.core.errors import DataError, UsageError
from aifx.registry.documents import parse_evidence

Side = tuple[Mapping[str, Any] | None, float]
"""An answer, and the seconds that it took."""


def record(
    id: str, served: Side, shadow: Side, request: Mapping[str, Any] | None = None, digest: str = "d2", at: float = 1.0
) -> dict[str, Any]:
    """A line of shadow.jsonl."""
    sides = [
        {"model": name, "step": 3, "digest": own, "fingerprint": f"fp_{own}", "answer": answer, "seconds": seconds}
        | {"first_token_s": None, "prompt_tokens": 4, "completion_tokens": len(str(answer))}
        for name, own, (answer, seconds) in (("main", "d1", served), ("new", digest, shadow))
    ]
    error = None if shadow[0] is not None else "it broke"
    head = {"schema_version": 1, "time": at, "id": id, "path": "/v1/x", "request": dict(request or {})}
    return {**head, "served": sides[0], "shadow": {**sides[1], "error": error}}


def text(*texts: str) -> Mapping[str, Any]:
    return {"choices": [{"text": one, "finish_reason": "stop"} for one in texts]}


def table(share: float) -> Mapping[str, Any]:
    shares = {"yes": share, "no": 1 - share}
    label = "yes" if share > 0.5 else "no"
    return {"predictions": [{"prediction": label, "prediction.probabilities": shares}]}


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def labelled(count: int, gain: float, seed: int = 0) -> list[dict[str, Any]]:
    """Requests of a row with its outcome, of whose class the second model is surer by `gain`."""
    rng = np.random.default_rng(seed)
    found = []
    for place in range(count):
        outcome = "yes" if rng.random() < 0.5 else "no"
        shares = [float(np.clip(0.5 + rng.normal(0.2 + more, 0.2), 0.01, 0.99)) for more in (0.0, gain)]
        own = [share if outcome == "yes" else 1 - share for share in shares]
        request = {"rows": {"a": 1, "kind": outcome}}
        found.append(record(f"r{place}", (table(own[0]), 0.1), (table(own[1]), 0.1), request, at=float(place)))
    return found


def test_texts_agree_in_part(tmp_path: Path) -> None:
    records = [
        record("a", (text("Call me"), 0.1), (text("Call me"), 0.2)),
        record("b", (text("Call", "me"), 0.3), (text("Cask", "me"), 0.4)),
        record("c", (text("x"), 0.1), (None, 0.1)),
        record("d", (text("x"), 0.1), (text("x"), 0.1), digest="d0", at=0.5),
    ]
    path = write(tmp_path / "runs/main/shadow.jsonl", records)
    path.write_text(path.read_text() + '{"schema')  # the server was killed
    found = aifx.compare_shadow(tmp_path / "runs")
    assert (found.requests, found.answers, found.failed, found.others) == (2, 3, 1, 1)
    assert found.reasons == {"it broke": 1}
    assert found.agreement.share == pytest.approx(2 / 3)
    assert found.same_beginning == pytest.approx((1 + 2 / 4 + 1) / 3)
    assert (found.served.p50_s, found.shadow.p50_s) == pytest.approx((0.2, 0.3))
    assert (found.comparison, found.labelled, found.exit_code) == (None, 0, 0)


def test_numbers_are_joined_with_their_outcomes(tmp_path: Path) -> None:
    two = [{"predictions": [{"value": value}, {"value": value + 1}]} for value in (1.0, 1.5)]
    path = write(tmp_path / "shadow.jsonl", [record("a", (two[0], 0.1), (two[1], 0.1))])
    labels = tmp_path / "outcomes.csv"
    labels.write_text("id,row,paid\na,1,1.5\na,2,2.5\nother,1,7\n")
    found = aifx.compare_shadow(path, labels=labels, target="paid")
    assert (found.mean_difference, found.largest_difference, found.agreement.share) == (0.5, 0.5, 0.0)
    assert (found.labelled, found.metrics["mean_absolute_error"].served) == (2, 0.5)
    assert found.metrics["mean_absolute_error"].difference == -0.5
    assert "1 labelled request: a comparison needs 30" in found.explanation
    for lines, message in (
        ("id,paid\nz,1\n", "labels no recorded request"),
        ("id,row,paid\na,first,1\n", "row = first"),
        ("id,cost\na,1\n", "no column 'paid'"),
    ):
        labels.write_text(lines)
        with pytest.raises(DataError, match=message):
            aifx.compare_shadow(path, labels=labels, target="paid")


def test_a_better_model_is_found_by_the_bootstrap_of_a_comparison(tmp_path: Path) -> None:
    path = write(tmp_path / "shadow.jsonl", labelled(200, 0.2))
    found = aifx.compare_shadow(path, target="kind", metric="min loss")
    compared = found.comparison
    assert compared is not None
    assert (compared.verdict, compared.group, compared.groups) == ("better", "request", 200)
    assert (compared.subject.digest, compared.against) == ("d2", "d1")
    assert compared.difference == pytest.approx(-found.metrics["loss"].difference)
    wrong = [json.loads(line)["served"]["answer"]["predictions"][0] for line in path.read_text().splitlines()]
    kinds = [one["request"]["rows"]["kind"] for one in labelled(200, 0.2)]
    expected = np.mean([-math.log(p["prediction.probabilities"][kind]) for p, kind in zip(wrong, kinds, strict=True)])
    assert found.metrics["loss"].served == pytest.approx(expected)
    # More requests of the same recording are another look at it.
    more = write(tmp_path / "more.jsonl", labelled(300, 0.2))
    again = aifx.compare_shadow(more, target="kind", metric="min loss", look=2).comparison
    assert again is not None
    assert again.data_digest == compared.data_digest
    assert again.alpha < compared.alpha
    same = aifx.compare_shadow(write(tmp_path / "same.jsonl", labelled(200, 0.0)), target="kind", metric="min loss")
    assert same.comparison is not None
    assert same.comparison.verdict == "inconclusive"
    for metric, message in (("max f1", "'f1' cannot decide"), ("f1", "^--metric 'f1'")):
        with pytest.raises(UsageError, match=message):
            aifx.compare_shadow(path, target="kind", metric=metric)


def test_the_document_is_evidence_of_a_comparison(tmp_path: Path) -> None:
    path = write(tmp_path / "shadow.jsonl", labelled(40, 0.3))
    arguments = ["eval", "--shadow", str(path), "--target", "kind", "--metric", "min loss"]
    ended = inprocess.run([*arguments, "--json"], tmp_path, dict(os.environ))
    assert ended.returncode == 0, ended.stderr
    check_answer(["eval", "--json"], ended.stdout)
    kind, content = parse_evidence(ended.stdout.encode(), "comparison", "report.json")
    assert (kind, content["verdict"], content["subject"]["digest"]) == ("comparison", "better", "d2")
    shown = inprocess.run(arguments, tmp_path, dict(os.environ))
    assert "new, step 3, compared with main, step 3, which served: 40 requests" in shown.stdout
    assert "verdict: better" in shown.stdout
    ended = inprocess.run(["eval", "--shadow", str(path), "--run", "main"], tmp_path, dict(os.environ))
    assert "--run cannot be used with --shadow" in ended.stderr


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    good = record("a", (text("x"), 0.1), (text("x"), 0.1))
    damages: tuple[dict[str, Any], ...] = (
        {"schema_version": 2}, {"served": {}}, {"shadow": None}, {"time": "now"}, {"request": []},
    )  # fmt: skip
    for damaged in damages:
        path = write(tmp_path / "shadow.jsonl", [{**good, **damaged}, good])
        with pytest.raises(DataError, match=r"shadow\.jsonl:1: not a record"):
            aifx.compare_shadow(path)
    with pytest.raises(DataError, match="no request that both models answered"):
        aifx.compare_shadow(write(path, [record("a", (text("x"), 0.1), (None, 0.1))]))
    with pytest.raises(DataError, match="has no record"):
        aifx.compare_shadow(write(path, []))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no shadow\*\.jsonl"):
        aifx.compare_shadow(tmp_path / "empty")
