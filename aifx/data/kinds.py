"""The kinds of data that come with aifx. Imports no jax."""

from dataclasses import dataclass

from aifx.config.parts import Kind
from aifx.data.chat.section import ChatSection, PreferenceSection
from aifx.data.sections import ImagesSection, SeriesSection, TableSection, TextSection


@dataclass(frozen=True)
class DataKind(Kind):
    """A kind of data, whose `make` is a class with the methods of `aifx.data.base.DataFormat`."""


DATA_KINDS = {
    "text": DataKind("text", TextSection, "aifx.data.text:TextFormat"),
    "chat": DataKind("chat", ChatSection, "aifx.data.chat.format:ChatFormat"),
    "preferences": DataKind("preferences", PreferenceSection, "aifx.data.chat.format:PreferenceFormat"),
    "images": DataKind("images", ImagesSection, "aifx.data.images:ImageFormat"),
    "series": DataKind("series", SeriesSection, "aifx.data.series:SeriesFormat"),
    "table": DataKind("table", TableSection, "aifx.data.table:TableFormat"),
}
"""By `data.kind`."""
