"""The figures of a step in addition to its time."""

from __future__ import annotations

from typing import Any

from aifx.benchmarking.train.subject import Subject


def figures(subject: Subject, step_s: float, **more: float | None) -> dict[str, Any]:
    """FLOPs, roofline and figures of a result whose median is `step_s`."""
    flops = subject.info.flops_per_step
    peak, ceiling = subject.info.peak, subject.info.ceiling
    return {
        "flops": flops,
        "bound_s": flops / peak.flops if peak else None,
        "unit": subject.info.unit,
        "figures": {
            "units_per_s": subject.units / step_s,
            "mfu": flops / step_s / peak.flops if peak else None,
            "ceiling_fraction": flops / step_s / ceiling.flops if ceiling else None,
            "model_flops": flops,
            "peak_memory_bytes": subject.program_bytes,
            **more,
        },
    }
