"""NVIDIA's management library (NVML): what the driver and each GPU report. `python -m aifx.machine.nvml` prints all."""

from aifx.machine.nvml.driver import open_driver, open_gpus, read_clocks
from aifx.machine.nvml.words import FAULT_REASONS

__all__ = ["FAULT_REASONS", "open_driver", "open_gpus", "read_clocks"]
