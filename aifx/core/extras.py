"""Packages that aifx uses if they are installed."""

from __future__ import annotations

EXTRAS = {
    "parquet": "pyarrow>=17",
    "tensorboard": "tensorboardX>=2.6",
    "wandb": "wandb>=0.18",
    "mlflow": "mlflow-skinny>=2.17",
    "plan-tpu": "libtpu>=0.0.40",
}
"""The requirement of each extra in pyproject.toml that is a package of others."""


def install_command(extra: str) -> str:
    """The command that installs what an extra needs.

    It names the package itself, because `aifx` in an index is another project.
    """
    return f"pip install '{EXTRAS[extra]}'"
