"""A small residual convolutional network for images of a fixed size."""

from aifx.config.kinds import Family
from aifx.models.resnet.section import ResnetSection

FAMILY = Family("resnet", ResnetSection, "aifx.models.resnet.model:make")
