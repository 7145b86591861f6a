"""Residual convolutional networks: a small one, and those of He et al."""

from aifx.models import Family
from aifx.models.resnet.section import PRESETS, ResnetSection

FAMILY = Family("resnet", ResnetSection, "aifx.models.resnet.model:make", PRESETS, hub="aifx.models.resnet.hub")
