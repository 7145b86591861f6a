"""A stress test of healthy GPUs: the events of its child, and the facts made of them."""

from __future__ import annotations

import json
from typing import Any

from aifx.core.facts import to_document
from aifx.health.stress.record import Ended, Record
from aifx.machine.catalogue import find_accelerator

KIND = "NVIDIA H100 80GB HBM3"
H100 = find_accelerator(KIND)
DTYPES = {"bfloat16": 0.74, "float16": 0.73, "float32": 0.70, "int8": 0.55}
"""Shares of the peak."""

PROGRAMS = {"matmul bfloat16": "9d1c33aa01b2c3d4", "matmul int8": "51c0ffee0badf00d", "exp": "7e57ab1e0ddba115"}
Events = list[dict[str, Any]]


def names(count: int) -> list[str]:
    return [f"gpu:{i}" for i in range(count)]


def events(count: int = 4) -> Events:
    assert H100 is not None
    told: Events = [
        {"event": "devices", "devices": [{"device": n, "kind": KIND, "platform": "gpu"} for n in names(count)]},
        result("consistency cold", "all", consistency(count)),
    ]
    for name in names(count):
        for dtype, share in DTYPES.items():
            unit = "tfloat32" if dtype == "float32" else dtype
            told.append(result("matmul", name, product(dtype, share, H100.peak_tflops[unit])))
        rate = {
            "gb_s": 2980.0,
            "of_peak": 2980 / H100.memory_gb_s,
            "of_own": 0.99,
            "wrong_elements": 0,
            "is_right": True,
        }
        told.append(result("memory", name, rate))
        told.append(result("copies", name, [copy("to device"), copy("to host")]))
    reduce = {
        "device": "all-reduce",
        "bytes": 1 << 29,
        "bus_gb_s": 380.0,
        "of_usual": 0.83,
        "wrong": [],
        "num_wrong": 0,
    }
    told.append(result("collectives", "all", [reduce]))
    load = {"seconds": 3.0, "tflops_first": 720.0, "tflops_last": 705.0, "kept": 0.979}
    told.append({**result("sustained", "all", {n: dict(load) for n in names(count)}), "event": "begin", "limit_s": 60})
    told.append(result("sustained", "all", {n: dict(load) for n in names(count)}))
    told.append(result("consistency hot", "all", consistency(count)))
    return [*told, {"event": "end"}]


def result(key: str, device: str, value: Any) -> dict[str, Any]:
    return {"event": "result", "step": 0, "key": key, "device": device, "what": key, "value": value}


def product(dtype: str, share: float, peak: float) -> dict[str, Any]:
    told = {"dtype": dtype, "size": 8192, "tflops": share * peak, "of_peak": share, "peak": f"1 x {peak} TFLOP/s"}
    usual = share * peak / 794.5 if dtype.endswith("float16") else {"$absent": f"no usual rate in {dtype} is known"}
    return {**told, "of_usual": usual, "of_own": 0.98, "calls": 40, "is_right": True}


def copy(way: str) -> dict[str, Any]:
    return {"device": way, "gb_s": 47.0, "of_usual": 0.98, "is_pinned": True, "is_right": True}


def consistency(count: int) -> dict[str, Any]:
    hashes = {name: {program: [value] * 3 for program, value in PROGRAMS.items()} for name in names(count)}
    exact = {"matmul int8": PROGRAMS["matmul int8"]}
    return {"hashes": hashes, "exact": exact, "made_by": f"{count} x NVIDIA H100 80GB HBM3; jax 0.9.0; 580.95.05"}


def stress_file(told: Events, ended: Ended = "finished", why: str = "") -> dict[str, str]:
    """As a capture. The sensors give a sample a second while the load runs."""
    record = Record("quick")
    sample = {"temperature_c": 61.0, "clock_mhz": 1755.0, "power_w": 690.0, "reasons": []}
    for at, event in enumerate(told):
        record.take(event, float(at))
        record.samples.append((at + 0.5, {f"GPU {i}": dict(sample) for i in range(len(record.devices))}))
    facts = record.facts(ended, why, 31.0)
    return {"aifx-captured/stress.json": json.dumps(to_document(facts))}
