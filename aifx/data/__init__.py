"""Sources become deterministic batches, a function of (seed, step, rows)."""

from aifx.data.images import ImageData, ImageSource, open_images
from aifx.data.order import prefetch
from aifx.data.text import TextData, TextSource, open_text
from aifx.data.tokenizer import Tokenizer

__all__ = [
    "ImageData",
    "ImageSource",
    "TextData",
    "TextSource",
    "Tokenizer",
    "open_images",
    "open_text",
    "prefetch",
]
