"""The kinds of data that come with aifx, by `data.kind`. Imports no jax."""

from __future__ import annotations

from aifx.config.kinds import DataKind
from aifx.data.sections import ImagesSection, TextSection

KINDS = {
    "text": DataKind("text", TextSection, "aifx.data.text:TextFormat"),
    "images": DataKind("images", ImagesSection, "aifx.data.images:ImageFormat"),
}
