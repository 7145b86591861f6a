"""The results of a stress test so far, as facts: complete at any moment, so that no result is lost if it ends."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aifx.core.digests import sha256_of
from aifx.core.facts import Absent, from_document
from aifx.health.probing import counted
from aifx.health.stress import sensors

Ended = Literal["finished", "out of time", "interrupted", "held", "hung", "died"]
ALL = "all"
LISTS = ("matmul", "memory", "copies", "sustained")
FEWEST_PEERS = 4


@dataclass
class Record:
    level: Literal["quick", "full"]
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    collectives: list[dict[str, Any]] | None = None
    consistency: list[dict[str, Any]] | None = None
    failures: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    samples: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    running: Mapping[str, Any] | None = None
    next_step: int = 0
    loaded: tuple[float, float] | None = None

    def take(self, event: Mapping[str, Any], at: float) -> None:
        """Take one line of the child, which arrived at `at` (`time.monotonic`)."""
        kind = event["event"]
        if kind in ("result", "unsupported", "hung", "failed", "crowded"):
            self.running = None
            if event["key"] == "sustained" and self.loaded:
                self.loaded = (self.loaded[0], at)
        match kind:
            case "devices":
                for row in event["devices"]:
                    new = {**row, "state": "finished", "error": "", **{key: [] for key in LISTS}}
                    self.devices.setdefault(row["device"], new)
            case "begin":
                self.running, self.next_step = event, event["step"] + 1
                if event["key"] == "sustained":
                    self.loaded = (at, float("inf"))
            case "left out":
                self.left_out.append(f"{event['what']} of {event['device']}")
            case "result":
                self._take_result(event["key"], event["device"], from_document(event["value"]))
            case "unsupported":
                lacking = Absent(f"not supported: {event['why']}")
                rates = dict.fromkeys(("tflops", "of_peak", "of_usual", "of_own", "is_right"), lacking)
                self._take_result("matmul", event["device"], {"dtype": event["what"].split()[-1], **rates})
            case "hung":
                for name in event["device"].split(", "):
                    self.fail(name, "hung", f"{event['what']} did not end")
            case "failed" | "crowded":
                self.fail(event["device"], kind, f"{event['what']}: {event['why']}")

    def _take_result(self, key: str, device: str, value: Any) -> None:
        if key.startswith("consistency"):
            kinds = {name: row["kind"] for name, row in self.devices.items()}
            rows = compare(value["hashes"], kinds, value["exact"])
            when = key.removeprefix("consistency ")
            self.consistency = self.consistency or []
            self.consistency += [
                {**row, "device": f"{row['device']} {when}", "made_by": value["made_by"]} for row in rows
            ]
        elif key == "collectives":
            self.collectives = value
        elif key == "sustained":
            for name, row in value.items():
                self.devices[name]["sustained"].append({"device": "load", **row})
        else:
            rows = value if isinstance(value, list) else [{"device": value.get("dtype", key), **value}]
            self.devices[device][key].extend(rows)

    def fail(self, device: str, state: str, why: str) -> None:
        """Record that a device, or all together, failed. The first reason is kept."""
        row = self.devices.get(device)
        if row is None:
            self.failures.append({"device": device, "state": state, "why": why})
        elif row["state"] == "finished":
            row.update(state=state, error=why)

    def facts(self, ended: Ended, why: str, duration_s: float) -> dict[str, Any]:
        none = Absent("it was not reached" if self.devices else "JAX gave no devices")
        single = Absent("there is only one device") if len(self.devices) == 1 else none
        return {
            "level": self.level,
            "duration_s": round(duration_s, 1),
            "ended": ended,
            "why": why,
            "is_cut": ended in ("out of time", "interrupted", "held"),
            "is_broken": ended in ("hung", "died"),
            "devices": [self._device(row) for row in self.devices.values()],
            "collectives": single if self.collectives is None else self.collectives,
            "consistency": none if self.consistency is None else self.consistency,
            "sensors": sensors.summary(self.samples, *self.loaded) if self.loaded else none,
            **counted(failures=self.failures),
            "left_out": self.left_out,
        }

    def _device(self, row: Mapping[str, Any]) -> dict[str, Any]:
        products = []
        for item in row["matmul"]:
            rates = self._rates(row["kind"], item["dtype"])
            of_peers: float | Absent = Absent(f"fewer than {FEWEST_PEERS} devices of a kind")
            if len(rates) >= FEWEST_PEERS and isinstance(item["tflops"], float):
                of_peers = item["tflops"] / statistics.median(rates)
            products.append({**item, "of_peers": of_peers})
        checked = [*products, *row["memory"], *row["copies"]]
        wrong = [item["device"] for item in checked if item["is_right"] is False]
        missing = Absent("it was not measured")
        lists = {key: row[key] or missing for key in LISTS}
        return {**row, **lists, "matmul": products or missing, **counted(wrong=wrong)}

    def _rates(self, kind: str, dtype: str) -> list[float]:
        """Return the rates of products by the devices of a kind."""
        items = [item for row in self.devices.values() if row["kind"] == kind for item in row["matmul"]]
        return [item["tflops"] for item in items if item["dtype"] == dtype and isinstance(item["tflops"], float)]


def compare(
    hashes: Mapping[str, Mapping[str, Sequence[str]]], kinds: Mapping[str, str], exact: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return a row per device: the programs in which it differs from most equal devices, from itself, from NumPy.

    Of two devices that differ from each other, both are odd, because nothing shows which is right. `hashes` are by
    device and program, one per run. `exact` has the right hashes of programs of whole numbers.
    """
    rows: list[dict[str, Any]] = []
    for device, programs in hashes.items():
        peers = [hashes[name] for name in hashes if kinds.get(name) == kinds.get(device)]
        odd = [p for p, runs in programs.items() if runs and _usual(runs) != _majority(peers, p)]
        unsteady = [p for p, runs in programs.items() if len(set(runs)) > 1]
        inexact = [p for p, runs in programs.items() if p in exact and any(run != exact[p] for run in runs)]
        runs = max((len(runs) for runs in programs.values()), default=0)
        row = {"device": device, "peers": len(peers), "runs": runs, "programs": len(programs)}
        rows.append({**row, "digest": _digest(programs), **counted(odd=odd, unsteady=unsteady, inexact=inexact)})
    return rows


def _digest(programs: Mapping[str, Sequence[str]]) -> str:
    """Return one digest of all hashes of a device, to compare it with equal devices of other nodes."""
    words = (f"{name}={_usual(runs)}" for name, runs in sorted(programs.items()) if runs)
    return sha256_of("\n".join(words))[:16]


def _usual(runs: Sequence[str]) -> str:
    return Counter(runs).most_common(1)[0][0]


def _majority(peers: Sequence[Mapping[str, Sequence[str]]], program: str) -> str | None:
    """Return the hash of more than half of the devices; None without a majority. A single device is one."""
    counts = Counter(_usual(p[program]) for p in peers if p.get(program))
    value, count = counts.most_common(1)[0]
    return value if 2 * count > counts.total() else None
