"""Named networks: the `[model]` values that a preset puts where the project sets none. Pure data.

Source: He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), table 1.
"""

from __future__ import annotations

from typing import Any

_DEEP: dict[str, Any] = {"channels": [64, 128, 256, 512], "stem": "7x7", "norm_groups": 32}

PRESETS: dict[str, dict[str, Any]] = {
    "resnet-18": {**_DEEP, "block": "basic", "blocks_per_stage": [2, 2, 2, 2]},
    "resnet-34": {**_DEEP, "block": "basic", "blocks_per_stage": [3, 4, 6, 3]},
    "resnet-50": {**_DEEP, "block": "bottleneck", "blocks_per_stage": [3, 4, 6, 3]},
}
