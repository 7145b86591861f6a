"""Find the devices whose hashes differ, by device, program and run."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def compare(
    hashes: Mapping[str, Mapping[str, Sequence[str]]], kinds: Mapping[str, str], exact: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return a row per device: the programs in which it differs from most equal devices, from itself, from NumPy.

    Of two devices that differ from each other, both are odd, because nothing shows which is right.

    Args:
        hashes: by device and program, one per run.
        kinds: the devices' kinds; only equal devices are compared.
        exact: the right hashes of programs of whole numbers.
    """
    rows = []
    for device, programs in hashes.items():
        peers = {name: hashes[name] for name in hashes if kinds.get(name) == kinds.get(device)}
        odd = [p for p, runs in programs.items() if runs and _usual(runs) not in _majority(peers, p)]
        unsteady = [p for p, runs in programs.items() if len(set(runs)) > 1]
        inexact = [p for p, runs in programs.items() if p in exact and any(run != exact[p] for run in runs)]
        rows.append(
            {
                "device": device,
                "peers": len(peers),
                "runs": max((len(runs) for runs in programs.values()), default=0),
                "programs": len(programs),
                "digest": _digest(programs),
                "odd": odd,
                "num_odd": len(odd),
                "unsteady": unsteady,
                "num_unsteady": len(unsteady),
                "inexact": inexact,
                "num_inexact": len(inexact),
            }
        )
    return rows


def _digest(programs: Mapping[str, Sequence[str]]) -> str:
    """Return one digest of all hashes of a device, to compare it with equal devices of other nodes."""
    words = (f"{name}={_usual(runs)}" for name, runs in sorted(programs.items()) if runs)
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _usual(runs: Sequence[str]) -> str:
    return Counter(runs).most_common(1)[0][0]


def _majority(peers: Mapping[str, Mapping[str, Sequence[str]]], program: str) -> set[str]:
    """Return the hash of more than half of the devices; None without a majority, unless there is only one device."""
    counts = Counter(_usual(p[program]) for p in peers.values() if p.get(program))
    total = sum(counts.values())
    return {value for value, count in counts.items() if 2 * count > total}
