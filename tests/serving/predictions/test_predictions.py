"""`/v1/predict` and `/v1/classify`: what they answer, in batches with the same bits, and what they refuse."""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import inprocess
import jsonschema
import numpy as np
import pytest
from faulty_files import damage_arrays
from published_schemas import check_answer

import aifx
from aifx.core.errors import DataError, UsageError
from aifx.core.project import Project
from aifx.loading.prediction import RowEncoder
from aifx.serving.predictor import NotNumbers, Predictor
from aifx.serving.records import RecordWriter, encoded, read_records
from aifx.serving.requests import QueueFull
from aifx.serving.swap import StepsOfRun

Serve = Callable[..., Any]
WAIT_S = 120.0
"""Only ends a hang."""


def rows(count: int, seed: int = 0) -> list[dict[str, float]]:
    values = np.random.default_rng(seed).normal(size=(count, 2)).round(3)
    return [{"length": float(length), "weight": float(weight)} for length, weight in values]


def batch_of(served: Any, values: list[dict[str, float]]) -> dict[str, np.ndarray]:
    from aifx.data.readers.rows import Row

    encoder = RowEncoder(served.state.form)
    batches = [encoder.encode(Row("-", 1, "row", row)) for row in values]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def wait_until(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_rows_are_answered_as_aifx_predict_answers_them(rows_served: Any, table: Project) -> None:
    several = rows(21)
    lines = "".join(json.dumps(row) + "\n" for row in several)
    done = inprocess.run(["predict", "-"], table.root, dict(os.environ), stdin=lines)
    expected = [json.loads(line) for line in done.stdout.splitlines()]
    answer = rows_served.http.post("/v1/predict", json={"rows": several}).json()
    assert answer["predictions"] == expected
    assert answer["system_fingerprint"] == rows_served.predictor.fingerprint
    one = rows_served.http.post("/v1/predict", json={"rows": several[0], "model": "main"}).json()
    assert one["predictions"] == expected[:1]
    assert rows_served.service.fits == {"rows_per_batch": 8}


@pytest.mark.slow
def test_an_ensemble_is_served_as_one_model(table: Project, serve: Serve, tmp_path: Path) -> None:
    shutil.copytree(table.root / "data", tmp_path / "data")
    config = (table.root / "aifx.toml").read_text().replace("[train]", "[train]\nfolds = 3")
    (tmp_path / "aifx.toml").write_text(config)
    trained = inprocess.run(["train", "--run", "main"], tmp_path, dict(os.environ))
    assert trained.returncode == 0, trained.stderr
    several = rows(9)
    lines = "".join(json.dumps(row) + "\n" for row in several)
    done = inprocess.run(["predict", "-"], tmp_path, dict(os.environ), stdin=lines)
    expected = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(set(map(json.dumps, expected))) == len(several)  # it reads them
    served = serve(Project(tmp_path))
    assert served.http.post("/v1/predict", json={"rows": several}).json()["predictions"] == expected


def test_an_example_has_the_same_bits_alone_and_in_company(rows_served: Any) -> None:
    assert rows_served.predictor.is_reproducible
    several = rows(40, seed=1)
    alone = [rows_served.http.post("/v1/predict", json={"rows": [row]}).json()["predictions"] for row in several]
    before = rows_served.predictor.stats()
    release, run = threading.Event(), rows_served.predictor.predict

    def held(batch: Any, weights: Any) -> Any:
        release.wait(WAIT_S)
        return run(batch, weights)

    rows_served.predictor.predict = held
    try:
        with ThreadPoolExecutor(40) as pool:
            answers = [pool.submit(rows_served.http.post, "/v1/predict", json={"rows": [row]}) for row in several]
            stats = rows_served.predictor.stats
            wait_until(lambda: stats().running + stats().waiting == 40)
            release.set()
            together = [answer.result().json()["predictions"] for answer in answers]
    finally:
        release.set()
        del rows_served.predictor.predict
    assert together == alone
    after = rows_served.predictor.stats()
    assert after.rows - before.rows == 40
    assert after.batches - before.batches <= 6  # a call has 8 rows, the first perhaps fewer
    assert after.compilations == 0


def test_many_rows_do_not_delay_one(rows_served: Any) -> None:
    predictor, done = rows_served.predictor, []
    release, run = threading.Event(), predictor.predict
    predictor.predict = lambda *given: (release.wait(WAIT_S), run(*given))[1]
    finished: queue.Queue[str] = queue.Queue()
    try:
        predictor.submit(batch_of(rows_served, rows(1)), lambda found: finished.put("first"))
        wait_until(lambda: predictor.stats().running == 1)
        predictor.submit(batch_of(rows_served, rows(100)), lambda found: finished.put("many"))
        predictor.submit(batch_of(rows_served, rows(1)), lambda found: finished.put("one"))
        release.set()
        done = [finished.get(timeout=WAIT_S) for _ in range(3)]
    finally:
        release.set()
        del predictor.predict
    assert done == ["first", "one", "many"]


def test_bad_rows_are_refused_with_their_place(rows_served: Any) -> None:
    def refused(body: Any, status: int = 400) -> dict[str, Any]:
        answer = rows_served.http.post("/v1/predict", json=body)
        assert answer.status_code == status, answer.text
        return answer.json()["error"]  # type: ignore[no-any-return]

    assert refused({"rows": [*rows(1), {"length": 1.0}]})["param"] == "rows[1]"
    assert "no field 'weight'" in refused({"rows": {"length": 1.0}})["message"]
    assert "column 'weight'" in refused({"rows": {"length": 1, "weight": "heavy"}})["message"]
    assert refused({"rows": []})["param"] == "rows"
    assert refused({"row": {}})["param"] == "rows"
    assert refused({"rows": rows(1), "top_k": 1})["code"] == "unknown_field"
    assert "serve.max_rows = 1024" in refused({"rows": rows(1025)})["message"]
    assert refused({"rows": rows(1), "model": "other"}, 404)["code"] == "model_not_found"
    assert refused({"rows": {**rows(1)[0], "prediction": 1}})["message"].startswith("rows[0]: ")
    answer = rows_served.http.post("/v1/predict", content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert rows_served.http.post("/v1/completions", json={"prompt": "a"}).status_code == 404


def test_metrics_log_and_description(rows_served: Any) -> None:
    http = rows_served.http
    http.post("/v1/predict", json={"rows": rows(3)}, headers={"X-Request-Id": "logged"})
    text = http.get("/metrics").text
    for line in (
        'aifx:compilations_total{engine="0",model_name="main"} 0.0',
        "aifx:batch_rows_count",
        "aifx:rows_total",
    ):
        assert line in text, line
    assert "vllm:" not in text
    wait_until(lambda: '"id": "logged"' in rows_served.log_file.read_text())
    line = next(json.loads(x) for x in rows_served.log_file.read_text().splitlines() if '"logged"' in x)
    assert (line["rows"], line["status"], line["model"]) == (3, 200, "main")
    assert "max_model_len" not in http.get("/v1/models").json()["data"][0]
    assert http.get("/ready").status_code == 200
    document = http.get("/openapi.json").json()
    assert "/v1/predict" in document["paths"]
    assert "/v1/completions" not in document["paths"]
    reference = {"$ref": "#/components/schemas/Predictions", "components": document["components"]}
    jsonschema.validate(http.post("/v1/predict", json={"rows": rows(2)}).json(), reference)


def sent_at_once(served: Any, body: Any) -> bytes:
    """The answer to a request whose body comes with its headers, however busy the client is."""
    data = json.dumps(body).encode()
    head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\nConnection: close\r\n"
    head += "Content-Type: application/json\r\n"
    key = f"Authorization: {served.http.headers['Authorization']}\r\n\r\n"
    host, _, port = served.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as client:
        client.sendall((head + key).encode() + data)
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def test_limits_key_and_end(table: Project, serve: Serve) -> None:
    served = serve(table, key="se-cret", overrides=("serve.queue=1", "serve.drain_s=0.2"))
    assert served.http.post("/v1/predict", json={"rows": rows(1)}).status_code == 401
    served.http.headers["Authorization"] = "Bearer se-cret"
    assert served.http.get("/v1/models").status_code == 200
    release, run = threading.Event(), served.predictor.predict
    served.predictor.predict = lambda *given: (release.wait(WAIT_S), run(*given))[1]

    def ask() -> int:
        return int(served.http.post("/v1/predict", json={"rows": rows(9)}).status_code)

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask)
        wait_until(lambda: served.predictor.stats().waiting == 1)  # its ninth row, while the device has eight
        second = pool.submit(ask)
        wait_until(lambda: served.predictor.stats().waiting == 2)
        full = served.http.post("/v1/predict", json={"rows": rows(1)})
        assert full.status_code == 429
        assert int(full.headers["Retry-After"]) >= 1
        release.set()
        assert (first.result(), second.result()) == (200, 200)
    assert served.predictor.stats().rows == 18
    release.clear()
    settings = served.state.settings
    served.state.settings = settings.model_copy(update={"request_s": 0.5})
    assert b" 504 " in sent_at_once(served, {"rows": rows(9)})
    release.set()
    wait_until(lambda: served.predictor.stats().waiting == served.predictor.stats().running == 0)
    assert served.predictor.stats().rows == 18 + 8  # the ninth row was cancelled
    served.state.settings = settings
    release.clear()
    with ThreadPoolExecutor(1) as pool:
        cut = pool.submit(ask)
        wait_until(lambda: served.predictor.stats().running + served.predictor.stats().waiting == 1)
        served.server.stop()
        wait_until(lambda: served.predictor._is_stopping)  # serve.drain_s is over
        release.set()
        assert cut.result() == 503
    served.thread.join(WAIT_S)
    assert served.ending.cut == 1


def test_a_queue_of_0_takes_the_request_of_the_next_call(rows_served: Any) -> None:
    served = rows_served.predictor
    predictor = Predictor(served.weights, queue=0)  # not started: none ends
    batch = batch_of(rows_served, rows(1))
    predictor.submit(batch, lambda found: None)
    with pytest.raises(QueueFull, match=r"^0 requests"):
        predictor.submit(batch, lambda found: None)


def test_numbers_that_are_none_are_a_failure(rows_served: Any) -> None:
    predictor = rows_served.predictor
    old = predictor.weights
    import jax

    broken = replace(old, params=jax.tree.map(lambda x: x * np.nan, old.params), fingerprint="fp")
    assert "not numbers" in str(predictor.probe(broken))
    found: queue.Queue[Any] = queue.Queue()
    predictor.submit(batch_of(rows_served, rows(1)), found.put, weights=broken)
    assert isinstance(found.get(timeout=WAIT_S), NotNumbers)
    assert predictor.failure is None
    answer = rows_served.http.post("/v1/predict", json={"rows": [*rows(1), {"length": 1e39, "weight": 0.0}]})
    assert answer.status_code == 400, answer.text


def test_a_predictor_that_fails_says_so(table: Project, serve: Serve) -> None:
    served = serve(table)

    def fail(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    served.predictor.predict = fail
    answer = served.http.post("/v1/predict", json={"rows": rows(20)})
    assert answer.status_code == 500
    assert "the device is gone" in answer.json()["error"]["message"]
    assert served.http.get("/health").status_code == 503
    assert served.http.get("/ready").status_code == 503
    assert served.predictor.stats().running == served.predictor.stats().waiting == 0


@pytest.mark.slow
def test_pictures_are_classified(pictures: Project, serve: Serve) -> None:
    served = serve(pictures)
    path = pictures.root / "data/3.png"
    done = inprocess.run(["predict", str(path)], pictures.root, dict(os.environ))
    expected = {key: value for key, value in json.loads(done.stdout).items() if key not in ("file", "row")}
    raw = served.http.post("/v1/classify", content=path.read_bytes(), headers={"Content-Type": "image/png"}).json()
    encoded = base64.b64encode(path.read_bytes()).decode()
    assert served.http.post("/v1/classify", json={"image": encoded}).json() == raw
    assert {key: raw[key] for key in expected} == expected
    assert set(raw["thresholds"]) == {"blue", "red"}
    named = [name for name, p in raw["probabilities"].items() if p >= raw["thresholds"][name]]
    assert raw["labels"] == named
    for body, content_type, status in (
        (b"no picture", "image/png", 400),
        (path.read_bytes(), "application/octet-stream", 415),
        (b'{"image": "@"}', "application/json", 400),
        (b"", "image/jpeg", 400),
    ):
        answer = served.http.post("/v1/classify", content=body, headers={"Content-Type": content_type})
        assert answer.status_code == status, answer.text
    document = served.http.get("/openapi.json").json()
    content = document["paths"]["/v1/classify"]["post"]["requestBody"]["content"]
    assert {"application/json", "image/png", "image/jpeg"} <= set(content)
    reference = {"$ref": "#/components/schemas/Classification", "components": document["components"]}
    jsonschema.validate(raw, reference)
    assert served.predictor.stats().compilations == 0


def test_a_new_checkpoint_takes_over(watched: Project, table: Project, serve: Serve) -> None:
    served = serve(watched)
    watcher = served.service.watch(StepsOfRun(served.service.trained, None, ()), None)
    try:
        old = served.http.post("/v1/predict", json={"rows": rows(1)}).json()
        new = watched.root / "new"
        shutil.copytree(table.root / "runs/main/checkpoints/2", new)
        new.rename(watched.root / "runs/main/checkpoints/2")
        wait_until(lambda: watcher.counts.taken)
        after = served.http.post("/v1/predict", json={"rows": rows(1)}).json()
        assert after["system_fingerprint"] != old["system_fingerprint"]
        assert after["predictions"] != old["predictions"]
        assert 'aifx:swaps_total{engine="0",model_name="main"} 1.0' in served.http.get("/metrics").text
        shutil.copytree(table.root / "runs/main/checkpoints/3", new)
        damage_arrays(new)
        new.rename(watched.root / "runs/main/checkpoints/3")
        wait_until(lambda: watcher.counts.refused)
        again = served.http.post("/v1/predict", json={"rows": rows(1)}).json()
        assert again == after
        assert served.predictor.stats().compilations == 0
    finally:
        watcher.stop()


@pytest.mark.slow
def test_a_checkpoint_that_fails_the_gates_is_refused(
    watched: Project, table: Project, serve: Serve, logged: list[str]
) -> None:
    config = watched.root / "aifx.toml"
    config.write_text(config.read_text().replace("[eval]", '[eval]\ngates = ["accuracy >= 2"]'))
    served = serve(watched)
    watcher = served.service.watch(StepsOfRun(served.service.trained, None, ()), None)
    try:
        old = served.predictor.fingerprint
        shutil.copytree(table.root / "runs/main/checkpoints/2", watched.root / "new")
        (watched.root / "new").rename(watched.root / "runs/main/checkpoints/2")
        wait_until(lambda: watcher.counts.refused)
        assert served.predictor.fingerprint == old
        assert any("passed: predictions: numbers" in line for line in logged)
        assert any("step 2 of run main is refused" in line and "accuracy >= 2" in line for line in logged)
    finally:
        watcher.stop()


@pytest.mark.slow
def test_a_record_is_replayed_bit_for_bit(table: Project, serve: Serve) -> None:
    served = serve(table, overrides=("serve.log_requests=true",))
    for count in (1, 9, 3):
        headers = {"X-Request-Id": f"asked-{count}"}
        answer = served.http.post("/v1/predict", json={"rows": rows(count, seed=count)}, headers=headers)
        assert answer.status_code == 200
        answered = answer.json()["predictions"]
    served.predictor.stop()
    path = table.run("main").records
    records = list(read_records(path))
    assert [record.id for record in records] == ["asked-1", "asked-9", "asked-3"]
    assert records[1].request["rows"] == rows(9, seed=9)
    recorded = [one["label"] for one in records[2].answer["predictions"]]
    assert recorded == [one["prediction"] for one in answered]
    assert aifx.serve_replay(path, table.root / "runs/main").document() == {
        "schema_version": 1,
        "fingerprint": served.predictor.fingerprint,
        "replayed": 3,
        "tokens": 0,
        "rows": 13,
        "skipped": 0,
        "erased": 0,
        "missing": 0,
        "difference": None,
    }

    def rewrite(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
        """Write the records anew, as a server would that answered otherwise."""
        shutil.rmtree(path)
        writer = RecordWriter(path)
        for number, one in enumerate(records):
            request, answer = json.loads(json.dumps([one.request, one.answer]))
            if number == 1:
                change(request, answer)
            writer.append(one.id, one.time, one.model, one.fingerprint, encoded(request), encoded(answer))
        writer.close()

    def other_bit(request: dict[str, Any], answer: dict[str, Any]) -> None:
        (output,) = answer["outputs"].values()
        changed = bytearray(base64.b64decode(output["base64"]))
        changed[len(changed) // 9 * 7] ^= 1  # of the row 7
        output["base64"] = base64.b64encode(changed).decode()

    rewrite(other_bit)
    ended = inprocess.run(["serve", "replay", str(path), "--run", "main", "--json"], table.root, dict(os.environ))
    assert ended.returncode == 1, ended.stderr
    check_answer(["serve", "replay", "--json"], ended.stdout)
    found = json.loads(ended.stdout)["difference"]
    assert (found["record"][-15:], found["unit"], found["place"]) == ("/000000.chain:2", "row", 7)
    (name,) = records[1].answer["outputs"]
    ended = inprocess.run(["serve", "replay", str(path), "--run", "main"], table.root, dict(os.environ))
    assert f"000000.chain:2, row 7: recorded {name} " in ended.stdout
    for batch in (None, {}, {"x": {"dtype": "float32", "shape": [1], "base64": "AA=="}}):
        rewrite(lambda request, answer, batch=batch: request.update(batch=batch))
        with pytest.raises(DataError, match=r"000000\.chain:2: its request cannot be read"):
            aifx.serve_replay(path, table.root / "runs/main")
    shutil.rmtree(path)


@pytest.mark.slow
def test_pictures_are_recorded_and_replayed_like_rows(pictures: Project, serve: Serve) -> None:
    served = serve(pictures, overrides=("serve.log_requests=true",))
    for number in range(3):
        data = (pictures.root / f"data/{number}.png").read_bytes()
        url = served.state.operations[0].path
        answer = served.http.post(url, content=data, headers={"Content-Type": "image/png"})
        assert answer.status_code == 200, answer.text
    served.predictor.stop()
    path = pictures.run("main").records
    found = aifx.serve_replay(path, pictures.root / "runs/main")
    assert (found.passed, found.replayed, found.rows) == (True, 3, 3)
    shutil.rmtree(path)


def test_what_is_for_text_is_refused(table: Project, serve: Serve, tmp_path: Path) -> None:
    for setting in ("serve.quantize=int8", "serve.memory=1GiB", 'serve.adapters=["a=b"]'):
        with pytest.raises(UsageError, match=setting.partition("=")[0]):
            serve(table, overrides=(setting,))
    served = serve(table)
    with pytest.raises(UsageError, match="--canary"):
        served.service.watch(StepsOfRun(served.service.trained, None, ()), tmp_path / "canary.jsonl")
    with pytest.raises(UsageError, match="--step 1"):
        StepsOfRun(served.service.trained, 1, ())


def test_a_prediction_has_its_share_of_energy_and_price(table: Project, serve: Serve) -> None:
    served = serve(table, overrides=("serve.power_w=50", "serve.price_per_hour=3600"))
    start = time.monotonic()
    answers = [served.http.post("/v1/predict", json={"rows": rows(count)}).json()["usage"] for count in (1, 20)]
    seconds = time.monotonic() - start
    assert [answer["rows"] for answer in answers] == [1, 20]
    assert 0 < sum(answer["cost"] for answer in answers) <= seconds
    for answer in answers:
        if answer["energy"]["basis"] == "declared":  # otherwise this machine has counters
            assert answer["energy"]["joules"] == pytest.approx(50 * answer["cost"])
