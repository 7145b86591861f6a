"""Named models have the documented number of parameters, counted from their specs: nothing is allocated."""

import pytest

from aifx.models.decoder import PRESETS, DecoderSection
from aifx.models.decoder.model import Decoder
from aifx.specs import count_parameters

WITH_65_TOKENS = {"tiny": 4_837_632, "small": 25_733_120, "gpt2-10m": 10_770_816}
PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1558m": 1_557_611_200,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
}


def preset(name, **values):
    section = DecoderSection(**{**PRESETS[name], **values})
    return Decoder(section, vocab_size=section.vocab_size or 65, seq_len=section.max_seq_len or 256)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("name", PUBLISHED | WITH_65_TOKENS)
def test_counts(name, scan):
    assert count_parameters(preset(name, scan_layers=scan).specs()) == (PUBLISHED | WITH_65_TOKENS)[name]


def test_every_preset_is_a_valid_section():
    for name in PRESETS:
        assert preset(name).flops(1) > 0


def test_flops_are_palms():
    """6 N + 12 L H Q T a token: GPT-2 124M at 1,024 tokens, N without the position table."""
    products = 124_439_808 - 1024 * 768
    assert preset("gpt2-124m").flops(2) == 2 * 1024 * (6 * products + 12 * 12 * 12 * 64 * 1024)
    untied = 8_030_261_248 - 128256 * 4096  # the token table is looked up, not multiplied
    assert preset("llama3-8b").flops(1) == 8192 * (6 * untied + 12 * 32 * 32 * 128 * 8192)
