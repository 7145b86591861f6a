"""Reports as suites make them, without measuring."""

import numpy as np

from aifx.benchmarking.fingerprint import Fingerprint
from aifx.benchmarking.results import Measured, Report, Request, Result

CPU = {
    "host": "node-7", "os": "Linux", "cpu": "AMD EPYC", "cores": 2, "memory_bytes": 8 << 30, "platform": "cpu",
    "device_kind": "cpu", "num_devices": 1, "driver": None,
}  # fmt: skip
H100 = CPU | {"platform": "gpu", "device_kind": "NVIDIA H100 80GB HBM3", "num_devices": 8, "driver": "570.86.15"}


def result(name: str, median_s: float, *, launches: int = 3, noise: float = 0.01, **more) -> Result:
    """With samples around the median, one of them late."""
    random = np.random.default_rng(sum(name.encode()))
    params = more.pop("params", {})
    seen = []
    for _ in range(launches):
        samples = median_s * (1 + noise * random.standard_normal(12) + noise * random.standard_normal())
        seen.append(
            Measured(name=name, params=params, samples_s=[*samples.tolist(), median_s * (1 + 20 * noise)], **more)
        )
    return Result.of(seen)


def hardware(peak: float = 9e10, memory: float = 2.2e10, cache: float = 1.2e11) -> list[Result]:
    found = [result("hardware.dispatch", 4.3e-6), result("hardware.launch", 2.1e-6)]
    for dtype, factor in (("float32", 1.0), ("bfloat16", 0.4)):
        for size in (256, 1024, 4096):
            rate = peak * factor * size / (size + 200)
            found.append(
                result("hardware.matmul", 2 * size**3 / rate, flops=2 * size**3, params={"dtype": dtype, "size": size})
            )
    for op, factor in (("copy", 1.0), ("scale", 0.97), ("add", 1.05), ("triad", 1.08)):
        for power in range(14, 31, 4):
            rate = factor * (memory + (cache - memory) / (1 + (2**power / 2**24) ** 2))
            params = {"op": op, "num_bytes": 2**power}
            found.append(result("hardware.memory", 2**power / rate, num_bytes=2**power, params=params, noise=0.03))
    for kind, factor in (("all_reduce", 1.5), ("all_gather", 1.3), ("reduce_scatter", 1.2), ("all_to_all", 0.7)):
        for power in range(10, 29, 6):
            seconds = 2e-5 + 2**power / (memory / 4)
            params = {"kind": kind, "size": 2**power}
            figures = {"bus_bytes_per_s": factor * 2**power / seconds}
            found.append(result("hardware.collective", seconds, num_bytes=2**power, params=params, figures=figures))
    return found


def kernels(peak: float = 9e10, memory: float = 2.2e10) -> list[Result]:
    found = []
    for op, intensity, reached in (
        ("attention", 60.0, 0.6), ("linear_cross_entropy", 200.0, 0.8), ("decode_attention", 1.1, 0.8),
        ("rms_norm", 0.7, 0.7), ("rotary", 0.4, 0.5), ("swiglu", 0.8, 0.9), ("quantized_matmul", 30.0, 0.35),
    ):  # fmt: skip
        for case, factor in (("long", 1.9),) if op == "rotary" else (("train_2k", 1.0), ("long", 1.9)):
            for implementation, slower in (("reference", 0.3), ("xla", 0.85), ("pallas_triton", 1.0), ("jax.nn", 0.7)):
                rate = min(peak, memory * intensity * factor) * reached * slower
                flops = 1e9 * factor
                found.append(
                    result(
                        f"kernels.{op}",
                        flops / rate,
                        flops=flops,
                        num_bytes=flops / intensity / factor,
                        bound_s=flops / min(peak, memory * intensity * factor),
                        params={"case": case, "implementation": implementation, "dtype": "float32"},
                        figures={"peak_memory_bytes": 3e7 * factor},
                    )
                )
    return found


def train(step_s: float = 0.12) -> list[Result]:
    parts = {"forward": 0.3, "backward": 0.52, "optimizer": 0.08, "data_wait": 0.02, "dispatch": 0.004}
    found = [
        result(
            "train.loop",
            step_s,
            unit="tokens",
            figures={"units_per_s": 4096 / step_s, "mfu": 0.41, "units_per_joule": None},
        ),
        result("train.step", step_s * 0.97, flops=6e9, bound_s=step_s * 0.4, figures={"peak_memory_bytes": 7.3e8}),
        result("train.compile", 3.1, launches=1, noise=0.0),
    ]
    found += [result(f"train.{name}", step_s * part) for name, part in parts.items()]
    for axis, power, values in (("batch", 0.95, (2, 4, 8)), ("seq", 1.25, (128, 256, 512)), ("depth", 1.0, (2, 4, 8))):
        for value in values:
            seconds = step_s / 4 * (value / values[0]) ** power
            found.append(result("train.growth", seconds, params={"axis": axis, "value": value}))
    return found


def report(*results: Result, machine=CPU, commit: str = "3f2a9c1d00", time: float = 1_795_600_000.0, **more) -> Report:
    return Report(
        request=Request(suites=list(dict.fromkeys(r.name.partition(".")[0] for r in results)) or ["hardware"]),
        launches=3,
        time=time,
        duration_s=93.0,
        fingerprint=Fingerprint(
            hardware=machine,
            versions={"python": "3.13.1", "jax": "0.12.0"},
            flags={"XLA_FLAGS": "--xla_a=1"},
            git={"commit": commit, "branch": "main", "dirty": False},
        ),
        results=list(results),
        notes=more.pop("notes", ["hardware.launch was not steady when its samples began"]),
        **more,
    )
