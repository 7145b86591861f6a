"""Named vision transformers: the `[model]` values that a preset puts where the project sets none. Pure data.

Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv 2010.11929), table 1, for ViT-B; Touvron et al.,
"Training data-efficient image transformers" (arXiv 2012.12877), table 1, for the width of ViT-S.
"""

from __future__ import annotations

from typing import Any

_SMALL: dict[str, Any] = {"num_layers": 12, "embed_dim": 384, "num_heads": 6, "mlp_dim": 1536}
_BASE: dict[str, Any] = {"num_layers": 12, "embed_dim": 768, "num_heads": 12, "mlp_dim": 3072}

PRESETS: dict[str, dict[str, Any]] = {
    "vit-s-16": {**_SMALL, "patch_size": 16},
    "vit-s-32": {**_SMALL, "patch_size": 32},
    "vit-b-16": {**_BASE, "patch_size": 16},
    "vit-b-32": {**_BASE, "patch_size": 32},
}
