"""The machine and software of a measurement: parts that must be equal for a comparison, and parts that are reported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from aifx.core.errors import EnvironmentFault

SAME = ("platform", "device_kind", "num_devices", "cpu", "cores")
"""Parts of the hardware that must be equal."""


class Fingerprint(BaseModel):
    """Device, driver, versions, flags, clocks, commit.

    Attributes:
        hardware: host, os, cpu, cores, memory_bytes, platform, device_kind, num_devices, driver.
        versions: of Python and the packages that move numbers.
        flags: the variables that steer XLA, JAX and NCCL.
        clocks: the governor and the limits of the clocks, as far as the system reports them.
        git: commit, branch and dirtiness of the folder; None where git cannot say.
    """

    model_config = ConfigDict(frozen=True)

    hardware: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    flags: dict[str, str] = Field(default_factory=dict)
    clocks: dict[str, Any] = Field(default_factory=dict)
    git: dict[str, Any] | None = None

    def obstacles(self, other: Fingerprint) -> list[str]:
        """List the reasons why measurements on the two cannot be compared: "cores: 2 and 16"."""
        return [
            f"{name}: {self.hardware.get(name)} and {other.hardware.get(name)}"
            for name in SAME
            if self.hardware.get(name) != other.hardware.get(name)
        ]

    def differences(self, other: Fingerprint) -> list[str]:
        """List other differences, which may explain a change: versions, flags, driver, host, clocks, commit."""
        changes = []
        for part in ("hardware", "versions", "flags", "clocks"):
            mine, others = getattr(self, part), getattr(other, part)
            names = [name for name in {**mine, **others} if part != "hardware" or name not in (*SAME, "memory_bytes")]
            changes += [
                f"{name}: {mine.get(name, 'unset')} -> {others.get(name, 'unset')}"
                for name in names
                if mine.get(name) != others.get(name)
            ]
        if self.commit != other.commit:
            changes.append(f"commit: {self.commit or 'none'} -> {other.commit or 'none'}")
        return changes

    @property
    def commit(self) -> str | None:
        """The commit in short, with "+" where files differ from it."""
        if not self.git:
            return None
        return str(self.git["commit"])[:8] + ("+" if self.git.get("dirty") else "")


def fingerprint(folder: Path) -> Fingerprint:
    """Describe this process's devices and the folder's commit. Imports JAX. Raises EnvironmentFault if it has none."""
    from aifx.machine.host import hardware, versions
    from aifx.runs.provenance import flags, git_state

    return Fingerprint(
        hardware={**hardware(_devices()), "driver": _read("/sys/module/nvidia/version")},
        versions=versions(),
        flags=flags(os.environ),
        clocks=_clocks(),
        git=git_state(folder),
    )


def _devices() -> list[Any]:
    import jax

    try:
        return list(jax.local_devices())
    except Exception as error:  # of JAX_PLATFORMS that it lacks it says nothing, in an AssertionError
        platforms = os.environ.get("JAX_PLATFORMS") or "any platform"
        why = (str(error).strip() or f"none of {platforms} came up").splitlines()[0]
        raise EnvironmentFault("JAX finds no device to measure", why, "aifx doctor") from error


def _clocks() -> dict[str, Any]:
    """Read the limits of cpufreq; empty if the system does not report them, as virtual machines do not."""
    names = {"governor": "scaling_governor", "max_khz": "scaling_max_freq", "min_khz": "scaling_min_freq"}
    texts = {key: _read(f"/sys/devices/system/cpu/cpu0/cpufreq/{name}") for key, name in names.items()}
    return {key: int(text) if text.isdigit() else text for key, text in texts.items() if text is not None}


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
