"""Times, rates and sizes as people read them: three digits and a unit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


def duration(seconds: float) -> str:
    """ "1.27 ms"."""
    return _scaled(seconds, TIMES)


def rate(amount: float, unit: str = "") -> str:
    """ "1.5 TFLOP/s"; without a unit, its prefix alone."""
    return _scaled(amount, PREFIXES) + unit


def size(num_bytes: float) -> str:
    """ "32 KiB", as caches and memories are counted."""
    return _scaled(num_bytes, BINARY)


def _scaled(value: float, scales: Sequence[tuple[float, str]]) -> str:
    """The value in the largest scale that it reaches; two digits of one that is below them all."""
    for scale, name in scales:
        if value >= 0.9995 * scale:
            return f"{digits(value / scale)} {name}"
    return f"{value / scale:.2g} {name}"


def share(fraction: float) -> str:
    """ "87 %"; one digit more below a tenth."""
    return f"{100 * fraction:.{1 if fraction < 0.0995 else 0}f} %"


def change(ratio: float) -> str:
    """ "+3.2%", of what takes 1.032 times as long; "-" where that is not known."""
    return f"{ratio - 1:+.1%}" if math.isfinite(ratio) else "-"


def figure(name: str, value: float, unit: str | None = None) -> tuple[str, str]:
    """A figure's words and its value, by the unit in its name: `peak_memory_bytes` is ("peak memory", "28 MiB").
    "units" in the name means `unit`."""
    words = [(unit or word) if word == "units" else word for word in name.split("_")]
    match words:
        case [*rest, "bytes", "per", "s"]:
            return " ".join(rest), rate(value, "B/s")
        case [*rest, "flops", "per", "s"]:
            return " ".join(rest), rate(value, "FLOP/s")
        case [*rest, "per", per]:
            return f"{' '.join(rest)}/{per}", rate(value).strip()
        case [*rest, "bytes"]:
            return " ".join(rest), size(value)
        case [*rest, "s"]:
            return " ".join(rest), duration(value)
        case [*rest, "j" | "w" as symbol]:
            return " ".join(rest), rate(value, symbol.upper())
        case [*_, "mfu" | "fraction" | "share"]:
            return " ".join(words).replace("mfu", "MFU"), share(value)
    return " ".join(words), digits(value)


def named(name: str, params: Mapping[str, object]) -> str:
    """A thing, and what distinguishes it from others of its name."""
    return " ".join([name, *(param(*given) for given in params.items())])


def param(name: str, value: object) -> str:
    """A size in bytes as such, everything else as it is."""
    is_size = name.endswith("bytes") and isinstance(value, int | float) and not isinstance(value, bool)
    return size(value) if is_size else str(value)  # type: ignore[arg-type]


def digits(value: float) -> str:
    """Three of them, and none of a whole number cut."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def listed(texts: Sequence[str], most: int = 3) -> str:
    """ "a, b, c and 4 more"."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
