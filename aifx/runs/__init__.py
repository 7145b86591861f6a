"""Run directories: who holds one, what is written there, and reading it back, alive or dead. Imports no jax."""

from aifx.runs.lock import Holder, RunLock, exclusive, holder, is_held
from aifx.runs.provenance import ProvenanceDifference, differences, provenance, read_provenance
from aifx.runs.records import Ledger, MetricsWriter
from aifx.runs.status import RunStatus, run_status

__all__ = [
    "Holder",
    "Ledger",
    "MetricsWriter",
    "ProvenanceDifference",
    "RunLock",
    "RunStatus",
    "differences",
    "exclusive",
    "holder",
    "is_held",
    "provenance",
    "read_provenance",
    "run_status",
]
