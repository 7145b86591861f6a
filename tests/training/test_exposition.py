"""`aifx train --metrics-port`: what Prometheus gets while a run goes."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from aifx.checkpoint.manifest import read_info, step_directories
from aifx.core.errors import EnvironmentFault
from aifx.training.hook import Hook
from aifx.training.hooks.metrics_server import MetricsServer, open_metrics_server
from aifx.training.records import Record

EXAMPLES = Path(__file__).parents[2] / "examples/train"


def scrape(url: str) -> dict[str, Any]:
    """Samples by name, all of which name the run."""
    text = httpx.get(url, timeout=120).raise_for_status().text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all(sample.labels["run"] == "main" for sample in samples)
    return {sample.name: sample.value for sample in samples}


class Asks(Hook):
    """Scrapes after each record."""

    def __init__(self) -> None:
        self.server: MetricsServer
        self.scrapes, self.records, self.began = list[dict[str, Any]](), list[Record](), time.time()

    def on_record(self, record: Record) -> None:
        self.scrapes.append(scrape(self.server.url))
        self.records.append(record)


@pytest.fixture
def asked(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Asks:
    """A run of twelve steps that was scraped after each."""
    asks = Asks()
    begin = MetricsServer.start

    def start(self: MetricsServer, info: Any) -> None:
        asks.server = self
        begin(self, info)

    monkeypatch.setattr(MetricsServer, "start", start)
    tiny.train("log.metrics_port=0", "checkpoint.asynchronous=false", hooks=[asks])
    return asks


def test_a_scrape_has_the_last_step(asked: Asks) -> None:
    assert [one["aifx_train_step"] for one in asked.scrapes] == list(range(1, 13))
    for one, record in zip(asked.scrapes, asked.records, strict=True):
        assert one["aifx_train_loss"] == record.loss
        assert one["aifx_train_units_per_second"] == record.units_per_s
        assert one["aifx_train_steps"] == 12
        assert ("aifx_train_validation_loss" in one) == (record.step >= 4)
    saved = [one.get("aifx_train_checkpoint_step") for one in asked.scrapes]
    assert saved[0] is None
    assert saved[-1] == 8
    assert 0 <= asked.scrapes[-1]["aifx_train_checkpoint_age_seconds"] <= time.time() - asked.began
    with pytest.raises(httpx.ConnectError):  # it ends with the run
        scrape(asked.server.url)


def test_the_alerts_name_metrics_that_exist(asked: Asks) -> None:
    text = (EXAMPLES / "alerts.yml").read_text()
    used = set(re.findall(r"aifx_train_\w+", text))
    assert len(used) > 5
    assert used <= set().union(*asked.scrapes)
    assert all({"alert", "expr"} <= set(rule) for group in yaml.safe_load(text)["groups"] for rule in group["rules"])


@pytest.mark.slow
def test_the_age_of_the_checkpoint_is_known_from_the_start(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may refuse all checkpoints of a process, and the alert on their age must fire then too."""
    scraped: list[dict[str, Any]] = []
    began = time.time()
    begin = MetricsServer.start

    def start(self: MetricsServer, info: Any) -> None:
        begin(self, info)
        scraped.append(scrape(self.url))

    monkeypatch.setattr(MetricsServer, "start", start)
    tiny.train("log.metrics_port=0")
    assert 0 <= scraped[0]["aifx_train_checkpoint_age_seconds"] <= time.time() - began
    assert "aifx_train_checkpoint_step" not in scraped[0]
    steps = step_directories(tiny.run().checkpoints)
    shutil.rmtree(steps[12])
    moment = read_info(steps[8]).saved_at
    assert moment is not None
    monkeypatch.setattr("time.time", lambda: moment + 7200)
    tiny.train("log.metrics_port=0")
    assert scraped[1]["aifx_train_checkpoint_step"] == 8
    assert scraped[1]["aifx_train_checkpoint_age_seconds"] == pytest.approx(7200)


def test_the_way_out_fits_the_refusal(tiny: Any) -> None:
    with pytest.raises(EnvironmentFault) as refused:
        MetricsServer("nosuch.invalid", 0, tiny.run())
    assert "log.metrics_host" in refused.value.hint


def test_a_port_in_use_is_refused(tiny: Any) -> None:
    section = tiny.config("log.metrics_port=0").log
    (first,) = open_metrics_server(section, tiny.run())
    assert isinstance(first, MetricsServer)
    with pytest.raises(EnvironmentFault, match="cannot listen"):
        MetricsServer("127.0.0.1", httpx.URL(first.url).port, tiny.run())
    first.stop(None)
    assert open_metrics_server(tiny.config().log, tiny.run()) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1"])
def test_who_is_refused(tiny: Any, host: str) -> None:
    """A page whose host name points at this machine reads nothing, and nothing but metrics is there."""
    server = MetricsServer(host, 0, tiny.run())
    try:
        with httpx.Client(timeout=120, trust_env=False) as client:
            assert client.get(server.url, headers={"Host": "evil.example"}).status_code == 421
            assert client.get(server.url, headers={"Origin": "http://evil.example"}).status_code == 403
            assert client.post(server.url).status_code == 405
            assert client.get(server.url.removesuffix("metrics")).status_code == 404
            answer = client.get(server.url, headers={"Accept-Encoding": "gzip"})
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert "content-encoding" not in answer.headers
    finally:
        server.stop(None)
