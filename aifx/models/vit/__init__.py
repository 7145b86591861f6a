"""Vision transformers."""

from aifx.models import Family
from aifx.models.vit.section import PRESETS, VitSection

FAMILY = Family("vit", VitSection, "aifx.models.vit.model:make", PRESETS, hub="aifx.models.vit.hub")
