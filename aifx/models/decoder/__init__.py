"""The decoder-only transformer: GPT-2, Llama and models between them."""

from aifx.models import Family
from aifx.models.decoder.section import PRESETS, DecoderSection

FAMILY = Family("decoder", DecoderSection, "aifx.models.decoder.model:make", PRESETS, hub="aifx.models.decoder.hub")
