"""Packages that aifx uses if they are installed."""

from __future__ import annotations

EXTRAS = {
    "tensorboard": ("tensorboardX>=2.6",),
    "wandb": ("wandb>=0.18",),
    "mlflow": ("mlflow-skinny>=2.17",),
    "serve": ("llguidance>=1.9",),
    "sweep": ("optuna>=5.0",),
    "s3": ("s3fs>=2024.6",),
    "html": ("trafilatura>=2.0", "warcio>=1.8"),
    "databases": ("adbc-driver-manager>=1.6", "adbc-driver-postgresql>=1.6,!=1.12.*", "sqlalchemy>=2.0"),
    "cleanlab": ("cleanlab>=2.9",),
    "ray": ("ray[data]>=2.50",),
    "pii-names": ("presidio-analyzer>=2.2.360",),
    "signing": ("cryptography>=44",),
    "notify": ("standardwebhooks>=1.1",),
    "serve-otel": ("opentelemetry-sdk>=1.27", "opentelemetry-exporter-otlp-proto-http>=1.27"),
    "plan-tpu": ("libtpu>=0.0.40",),
}
"""The requirements of each extra in pyproject.toml."""


def install_command(extra: str) -> str:
    """The command that installs what an extra needs.

    It names the packages themselves, because `aifx` in an index is another project.
    """
    return f"pip install {' '.join(map(repr, EXTRAS[extra]))}"
