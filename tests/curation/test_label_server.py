"""The server of the label page: who gets which row, what is saved, and who is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import inprocess
import numpy as np
import pytest
from effort import IS_LONG, seed_of_commit
from held_port import held_port
from label_rows import TEXTS, entries_of, labels_of, png, rows_version, texts_version
from label_server import ServedLabels
from PIL import Image

from aifx.core.errors import UsageError
from aifx.curation.labels.app import token_of
from aifx.curation.labels.rows import certainty_of, least_certain, sample_rows, view_of
from aifx.curation.labels.store import label_file
from aifx.data.versions.catalog import Catalog, open_catalog

KILLS = 100 if IS_LONG else 5


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


@pytest.fixture
def port() -> Iterator[int]:
    with held_port() as found:
        yield found


@pytest.fixture
def serve(catalog: Catalog) -> Iterator[Callable[..., ServedLabels]]:
    opened: list[ServedLabels] = []

    def start(*args: Any, **options: Any) -> ServedLabels:
        opened.append(ServedLabels(catalog, *args, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_each_row_goes_to_one_labeller(catalog: Catalog, serve: Callable[..., ServedLabels]) -> None:
    served = serve(texts_version(catalog))
    assert served.rows("ann", 2) == ["f-0", "f-1"]
    assert served.rows("bob", 2) == ["f-2", "f-3"]
    assert served.rows("ann", 10) == ["f-0", "f-1", "f-4"]  # hers first
    answer = served.label(0, "good").json()
    assert answer["progress"] == {"rows": 5, "done": 1, "labelled": 1, "skipped": 0}
    assert answer["history"] == ["f-0"]
    assert served.label(1, None, action="skip").status_code == 200
    assert served.rows("ann") == ["f-4"]
    assert served.rows("bob") == ["f-2", "f-3", "f-1"]  # which she left to others
    assert served.label(0, None, action="undo").json()["progress"]["done"] == 0
    assert served.rows("ann") == ["f-0", "f-4"]
    assert labels_of(catalog) == {}


def test_a_row_that_a_labeller_keeps_too_long_goes_to_another(
    catalog: Catalog, serve: Callable[..., ServedLabels], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(texts_version(catalog))
    assert served.rows("eve", 2) == ["f-0", "f-1"]
    monkeypatch.setattr("aifx.curation.labels.rows.LEASE_S", -1.0)
    assert served.rows("ann") == ["f-2", "f-3", "f-4"]
    assert served.rows("bob") == ["f-2", "f-3", "f-4"]


def test_with_an_overlap_each_row_goes_to_several(catalog: Catalog, serve: Callable[..., ServedLabels]) -> None:
    served = serve(texts_version(catalog), overlap=2)
    for who in ("ann", "bob"):
        assert served.rows(who) == [f"f-{row}" for row in range(5)]
    assert served.rows("eve") == []
    served.label(0, "good", "ann")
    assert served.rows("bob")[0] == "f-0"
    answer = served.label(0, "bad", "bob").json()
    assert answer["progress"]["done"] == 1
    assert labels_of(catalog) == {"f-0": {"ann": "good", "bob": "bad"}}


def test_a_label_that_comes_twice_is_one_line(catalog: Catalog, serve: Callable[..., ServedLabels]) -> None:
    version = texts_version(catalog)
    served = serve(version)
    first, second = served.label(0, note="so-so"), served.label(0, note="so-so")
    assert first.json()["saved"] == second.json()["saved"]
    served.close()
    served = serve(version)
    assert served.label(0, note="so-so").status_code == 200
    (entry,) = entries_of(catalog)
    assert (entry.row, entry.label, entry.labeller, entry.note) == ("f-0", "good", "ann", "so-so")
    assert (entry.kind, entry.version) == ("text", version.manifest.whole_reference)
    assert entry.time.endswith("Z")
    assert served.rows("ann")[0] == "f-1"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"row": "f-9"}, "no such row"),
        ({"row": ["f-0"]}, "row: "),
        ({"row": "f-\ud800"}, "row: "),
        ({"label": "\ud800"}, "label is one of"),
        ({"labeller": "\ud800"}, "labeller has at most"),
        ({"id": "\ud800"}, "id: "),
        ({"action": "\ud800"}, "action: "),
        ({"\ud800": "f-0"}, "a label is an object"),
        ({"label": "other"}, "label is one of good, bad"),
        ({"label": ["good"]}, "label is one of"),
        ({"labeller": " "}, "labeller is missing"),
        ({"labeller": "a\nb"}, "labeller has at most"),
        ({"labeller": "a" * 201}, "labeller has at most"),
        ({"id": ""}, "id: "),
        ({"id": 3}, "id: "),
        ({"action": "delete"}, "action: "),
        ({"action": "skip"}, "label is given with the action"),
        ({"label": None}, "label is given with the action"),
        ({"note": "x" * 2001}, "note: "),
        ({"time": "2020"}, "a label is an object"),
    ],
)
def test_what_is_no_label_is_refused(
    catalog: Catalog, serve: Callable[..., ServedLabels], body: dict[str, Any], why: str
) -> None:
    served = serve(texts_version(catalog))
    good = {"id": "1", "row": "f-0", "label": "good", "labeller": "ann", "action": "label", "note": ""}
    answer = served.http.post("/labels", content=json.dumps(good | body))
    assert answer.status_code == 400
    assert why in answer.json()["error"]
    assert entries_of(catalog) == []


def test_a_label_of_a_row_that_was_shown_before_a_restart_is_kept(
    catalog: Catalog, serve: Callable[..., ServedLabels]
) -> None:
    version = texts_version(catalog)
    served = serve(version, rows=["f-1"])
    assert served.label(4).status_code == 200
    assert served.rows() == ["f-1"]
    assert labels_of(catalog) == {"f-4": {"ann": "good"}}


def test_a_name_that_no_label_could_have_gets_no_rows(catalog: Catalog, serve: Callable[..., ServedLabels]) -> None:
    served = serve(texts_version(catalog))
    for name in ("a\tb", "x" * 201):
        answer = served.http.get("/rows", params={"labeller": name})
        assert (answer.status_code, "labeller has at most" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("options", "what"),
    [(["--labels", "a\tb,c"], "--labels has"), (["--labels", "a,b", "--labeller", "\udc80"], "--labeller has")],
)
def test_the_server_refuses_names_that_no_label_could_have(catalog: Catalog, options: list[str], what: str) -> None:
    texts_version(catalog)
    assert catalog.local is not None
    command = ["data", "label", "serve", "reviews", *options, "--root", str(catalog.local)]
    done = inprocess.run(command, catalog.local.parent, {})
    assert (done.returncode, what in done.stderr) == (2, True)


def test_who_is_refused(catalog: Catalog, serve: Callable[..., ServedLabels]) -> None:
    served = serve(texts_version(catalog))
    for path in ("/session", "/rows?labeller=a", "/rows/f-0", "/image/f-0", "/nothing"):
        assert httpx.get(served.url + path, trust_env=False).status_code == 401
    for token in ("x", served.token[:-1], "é" * 8):
        headers = {"Authorization": f"Bearer {token}".encode()}
        assert served.http.get("/session", headers=headers).status_code == 401
    assert served.http.get("/session", headers={"Authorization": f"Basic {served.token}"}).status_code == 401
    assert served.http.get("/session", headers={"Host": "evil.example"}).status_code == 421
    assert served.http.get("/", headers={"Host": "evil.example"}).status_code == 421
    assert served.http.get("/session", headers={"Host": f"localhost:{served.port}"}).status_code == 200
    evil = {"Origin": "http://evil.example"}
    assert served.http.post("/labels", json={}, headers=evil).status_code == 403
    assert served.http.get("/session", headers={"Origin": served.url}).status_code == 200
    assert served.http.post("/labels", content=b"x" * 100_000).status_code == 413
    assert served.http.post("/labels", content=b"{").status_code == 400
    assert served.http.post("/labels", content=b"[" * 100 + b"]" * 100).status_code == 400
    assert served.http.get("/labels").status_code == 405
    for count in ("1e9", "9" * 5000):
        assert served.http.get("/rows", params={"labeller": "a", "count": count}).status_code == 400


def test_the_page_loads_nothing_and_has_no_data(catalog: Catalog, serve: Callable[..., ServedLabels]) -> None:
    served = serve(texts_version(catalog))
    answer = httpx.get(served.url, trust_env=False)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert served.token not in answer.text
    assert "reviews" not in answer.text
    assert not any(text in answer.text for text in TEXTS)


def test_the_token_is_kept_private(catalog: Catalog) -> None:
    path = label_file(catalog, "reviews", "label")
    token = token_of(path)
    assert token_of(path) == token != token_of(label_file(catalog, "reviews", "other"))
    path = next(one for one in Path(os.environ["AIFX_CACHE_DIR"], "label-tokens").iterdir() if one.read_text() == token)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) >= 32


def test_images_have_their_type(catalog: Catalog, serve: Callable[..., ServedLabels], tmp_path: Path) -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    images = [png(pixels), (tmp_path / "a.tif").read_bytes(), b"<svg onload=alert(1)>"]
    served = serve(rows_version(catalog, "pictures", {"image": images, "label": [None, "x", None]}, "images"))
    first, second, third = (served.http.get(f"/image/f-{row}") for row in range(3))
    assert (first.headers["content-type"], first.content) == ("image/png", images[0])
    assert second.headers["content-type"] == "image/png"
    assert second.content.startswith(b"\x89PNG")
    assert third.status_code == 415
    assert served.http.get("/image/f-9").status_code == 404


def test_pairs_come_in_either_order(catalog: Catalog, serve: Callable[..., ServedLabels]) -> None:
    texts = {
        name: [f"{letter}{row}" for row in range(20)] for name, letter in (("one", "a"), ("two", "b"), ("ask", "q"))
    }
    served = serve(rows_version(catalog, "answers", texts, "table"), (), pair="one,two")
    rows = served.http.get("/rows", params={"labeller": "ann", "count": 20}).json()["rows"]
    assert {tuple(one["name"] for one in row["fields"]) for row in rows} == {("one", "two"), ("two", "one")}
    for row in rows:
        assert row["context"] == [{"name": "ask", "text": f"q{row['row'][2:]}"}]
        for one in row["fields"]:
            assert one["text"] == ("a" if one["name"] == "one" else "b") + row["row"][2:]
    assert served.label(3, "two").status_code == 200
    assert served.label(4, "tie").status_code == 200
    assert served.label(5, "left").status_code == 400
    assert labels_of(catalog, "answers") == {"f-3": {"ann": "two"}, "f-4": {"ann": "tie"}}


def test_a_sample_follows_its_seed_and_leaves_out_labelled_rows(catalog: Catalog) -> None:
    labels = [None if row % 2 else "x" for row in range(100)]
    version = rows_version(catalog, "reviews", {"text": [str(row) for row in range(100)], "label": labels})
    one = sample_rows(version, "label", 20, 7)
    assert one == sample_rows(version, "label", 20, 7)
    assert len(set(one)) == 20
    assert all(int(row[2:]) % 2 for row in one)
    assert set(one) != set(sample_rows(version, "label", 20, 8))
    assert one[:5] == sample_rows(version, "label", 5, 7)  # a larger sample has the smaller one
    assert len(sample_rows(version, "label", 1000, 7, relabel=True)) == 100
    with pytest.raises(UsageError, match="column text"):
        sample_rows(version, "text", 10, 0)


@pytest.mark.parametrize(
    ("prediction", "certainty"),
    [
        ({"probabilities": {"a": 0.2, "b": 0.7, "c": 0.1}}, 0.7),
        ({"probabilities.a": "0.2", "probabilities.b": "0.8"}, 0.8),
        ({"prediction.probabilities.a": 0.4, "prediction.probabilities.b": 0.6}, 0.6),
        ({"labels": ["a"], "probabilities": {"a": 0.9, "b": 0.45}}, 0.55),
        ({"label": "a", "probability": 0.3}, 0.3),
        ({"loss": 2.5}, -2.5),
        ({"value": 3.0}, None),
    ],
)
def test_certainty(prediction: dict[str, Any], certainty: float | None) -> None:
    assert certainty_of(prediction) == pytest.approx(certainty)


def test_the_least_certain_rows_come_first(catalog: Catalog, tmp_path: Path) -> None:
    version = texts_version(catalog)
    view = view_of(version, "label")
    path = tmp_path / "predictions.jsonl"
    losses = [0.5, 3.0, 1.0, 2.0, 0.1]
    lines = [{"file": str(version.shards[0]), "row": row + 1, "loss": loss} for row, loss in enumerate(losses)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert least_certain(version, view, "label", str(path), 3) == ["f-1", "f-3", "f-2"]
    path = tmp_path / "predictions.csv"
    path.write_text("_row,probability\nf-4,0.9\nf-0,0.2\n")
    assert least_certain(version, view, "label", str(path), 3) == ["f-0", "f-4"]
    path.write_text("file,row,loss\nother.jsonl,1,0.2\n")
    with pytest.raises(Exception, match="a row of reviews"):
        least_certain(version, view, "label", str(path), 3)


def test_a_run_whose_name_has_a_dot_is_no_file(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = texts_version(catalog)
    (tmp_path / "aifx.toml").touch()
    (tmp_path / "runs/main.2").mkdir(parents=True)
    (tmp_path / "runs/main.2/config.toml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aifx.curation.labels.rows._predict", lambda *_: [("f-2", 0.3), ("f-0", 0.2), ("f-1", 0.9)])
    assert least_certain(version, view_of(version, "label"), "label", "main.2", 2) == ["f-0", "f-2"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_label_is_lost_if_the_server_is_killed(
    catalog: Catalog, tmp_path: Path, port: int, record_property: Callable[[str, object], None]
) -> None:
    """Two labellers send labels again until they are confirmed, as the page does; each that was confirmed is there."""
    texts_version(catalog, [f"text {row}" for row in range(5000)])
    args = [sys.executable, "-P", "-m", "aifx.commands.main", "data", "label", "serve", "reviews", "--json"]
    args += ["--root", str(catalog.local), "--labels", "a,b", "--overlap", "2", "--sample", "5000", "--port", str(port)]
    confirmed: list[tuple[str, str, str, str]] = []
    sent: set[str] = set()
    stop = threading.Event()
    token = ""

    def work(labeller: str) -> None:
        chosen = random.Random(f"{seed_of_commit()}{labeller}")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as http:
            for number in range(10**6):
                row, label = f"f-{chosen.randrange(5000)}", chosen.choice("ab")
                body = {"id": f"{labeller}-{number}", "row": row, "label": label, "labeller": labeller}
                sent.add(body["id"])
                while not stop.is_set():
                    try:
                        answer = http.post("/labels", json=body, headers={"Authorization": f"Bearer {token}"})
                    except httpx.HTTPError:
                        time.sleep(0.02)
                        continue
                    assert answer.status_code == 200, answer.text
                    confirmed.append((body["id"], row, labeller, label))
                    break
                if stop.is_set():
                    return

    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in ("ann", "bob")]
    chosen = random.Random(seed_of_commit())
    for kill in range(KILLS + 1):
        process = subprocess.Popen(args, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        token = json.loads(process.stdout.readline())["url"].partition("token=")[2]
        if not kill:
            for thread in threads:
                thread.start()
        before, until = len(confirmed), time.monotonic() + 120
        while len(confirmed) < before + 3:
            assert time.monotonic() < until
            time.sleep(0.005)
        time.sleep(chosen.uniform(0, 0.2))
        if kill == KILLS:
            stop.set()
            for thread in threads:
                thread.join()
        process.send_signal(signal.SIGKILL if kill < KILLS else signal.SIGTERM)
        code = process.wait(120)
        process.stdout.close()
    assert code == 0
    entries = entries_of(catalog)
    found = {entry.id: (entry.id, entry.row, entry.labeller, entry.label) for entry in entries}
    assert len(found) == len(entries)  # none twice
    assert set(confirmed) <= set(found.values())
    assert set(found) <= sent
    assert len(confirmed) >= 3 * KILLS
    record_property("kills of the label server", KILLS)
