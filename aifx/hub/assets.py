"""The files and settings that belong to a model's arrays: tokenizer and sampling, or classes and size of pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import tokenizers

from aifx.config.sections import DataSection
from aifx.core.errors import DataError
from aifx.data.chat.assets import template_of_settings
from aifx.data.chat.template import ChatTemplate, load_template
from aifx.data.images import pictures_spec
from aifx.data.picture_lists import Listing
from aifx.data.sections import ImagesSection, TextSection
from aifx.data.spec import DataSpec
from aifx.data.text import text_spec
from aifx.data.tokenizer import Tokenizer
from aifx.hub.folder import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    PREPROCESSOR,
    TOKENIZER,
    TOKENIZER_CONFIG,
    ModelFolder,
)
from aifx.models.hub import HubConfig

logger = logging.getLogger(__name__)

SEQ_LEN = 1024
"""`data.seq_len` of an imported model, unless its context is shorter."""


@dataclass(frozen=True)
class HubAssets:
    """The files and settings that a run keeps in addition to its arrays.

    Attributes:
        files: in its assets, by name.
        sections: values of its configuration, by section and key.
        data_spec: what its model must know of its data, from that `[data]`.
    """

    files: Mapping[str, bytes]
    sections: Mapping[str, Mapping[str, Any]]
    data_spec: Callable[[DataSection], DataSpec]


def read_text_assets(folder: ModelFolder, config: HubConfig, model: Mapping[str, Any]) -> HubAssets:
    """The tokenizer of a model of text, the tokens around a text, and how it is sampled.

    `model` are the values of `[model]`. Raises DataError for a tokenizer that cannot be used.
    """
    if not folder.has(TOKENIZER):
        what = f"{folder.place(TOKENIZER).parent} has no {TOKENIZER}"
        why = "aifx reads tokenizers in the format of Hugging Face's tokenizers"
        script = f"from transformers import AutoTokenizer as T; T.from_pretrained('{folder.source}').save_pretrained"
        raise DataError(what, why, f"python -c \"{script}('{folder.source}')\"")
    content = folder.read(TOKENIZER)
    settings, generation = folder.optional(TOKENIZER_CONFIG), folder.optional(GENERATION_CONFIG)
    ends = _end_tokens(content, folder, {GENERATION_CONFIG: generation, CONFIG: config.values}, settings)
    begin = begin_token(content)
    tokenizer = Tokenizer(content, str(folder.place(TOKENIZER)), ends=ends, begin=begin)
    files = {name: folder.read(name) for name in (TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG) if folder.has(name)}
    if (template := _chat_template(folder, settings)) is not None:
        files[CHAT_TEMPLATE] = template
    data = {
        "tokenizer": TOKENIZER,
        # Gemma 3's tokenizer has a token for images, without a row of the embedding.
        "vocab_size": model["vocab_size"] if model["vocab_size"] < tokenizer.vocab_size else None,
        "end_tokens": list(ends),
        "begin_token": begin,
        "seq_len": min(SEQ_LEN, model["max_seq_len"]),
    }

    def data_spec(section: DataSection) -> DataSpec:
        assert isinstance(section, TextSection)
        return text_spec(section, tokenizer)

    return HubAssets(files, {"data": data, "generate": _sampling(generation)}, data_spec)


def _end_tokens(
    data: bytes, folder: ModelFolder, numbered: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> tuple[str, ...]:
    """The tokens that end a text: the first `eos_token_id` of the documents `numbered`, otherwise `eos_token`."""
    names = _names(data, folder)
    for place, document in numbered.items():
        ids = document.get("eos_token_id")
        found = [i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)]
        if lacking := [i for i in found if i not in names]:
            logger.warning(f"{folder.place(place)}: eos_token_id {lacking} are not in {TOKENIZER}")
        if ends := tuple(names[i] for i in found if i in names):
            return ends
    token = settings.get("eos_token")
    text = token.get("content") if isinstance(token, Mapping) else token
    return (text,) if isinstance(text, str) and text in names.values() else ()


def _names(data: bytes, folder: ModelFolder) -> dict[int, str]:
    try:
        vocabulary = tokenizers.Tokenizer.from_buffer(data).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises bare Exception
        why = str(error).splitlines()[0]
        raise DataError(f"{folder.place(TOKENIZER)}: not a tokenizer", why, "download the model again") from None
    return {index: token for token, index in vocabulary.items()}


def begin_token(data: bytes) -> str | None:
    """The token that a tokenizer.json itself puts before a text."""
    tokenizer = tokenizers.Tokenizer.from_buffer(data)
    plain, full = (tokenizer.encode("a", add_special_tokens=adds).tokens for adds in (False, True))
    return full[0] if full[:1] != plain[:1] else None


def _chat_template(folder: ModelFolder, settings: Mapping[str, Any]) -> bytes | None:
    """The folder's template. Raises DataError for one that aifx would not run."""
    if folder.has(CHAT_TEMPLATE):
        return load_template(folder.read(CHAT_TEMPLATE), str(folder.place(CHAT_TEMPLATE))).source.encode()
    template = template_of_settings(settings)
    return None if template is None else ChatTemplate(template, str(folder.place(TOKENIZER_CONFIG))).source.encode()


def _sampling(generation: Mapping[str, Any]) -> dict[str, float | int]:
    """The sampling that the makers of the model recommend, as far as [generate] has it."""
    if not generation.get("do_sample"):
        return {}
    found: dict[str, float | int] = {}
    temperature, top_k, top_p = (generation.get(key) for key in ("temperature", "top_k", "top_p"))
    if isinstance(temperature, int | float) and temperature >= 0:
        found["temperature"] = float(temperature)
    if isinstance(top_k, int) and top_k >= 0:
        found["top_k"] = top_k
    if isinstance(top_p, int | float) and 0 < top_p <= 1:
        found["top_p"] = float(top_p)
    return found


PICTURES = "data/images"
"""`data.path` of an imported model: a folder for pictures of one's own."""

LARGEST = 255
"""A pixel's largest value."""

MOST_CLASSES = 100_000
"""More than any model has."""

_OBJECTIVES: Mapping[str, tuple[str, Literal["label", "labels"]]] = {
    "single_label_classification": ("classification", "label"),
    "multi_label_classification": ("multilabel", "labels"),
}
"""The objective, and what a picture's target is."""

_NO_EFFECT = (
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "resample",
    "do_convert_rgb",
    "data_format",
    "input_data_format",
    "return_tensors",
    "default_to_square",
    "device",
    "disable_grouping",
)
"""Keys of preprocessor_config.json that do not change the model. aifx resizes in its own way: docs/import.md."""


def read_picture_assets(folder: ModelFolder, config: HubConfig, model: Mapping[str, Any]) -> HubAssets:
    """The classes of a model of pictures, and the pictures' size and normalization, from two files of the folder.

    Raises ConfigError for a value, DataError for a missing file.
    """
    if not folder.has(PREPROCESSOR):
        what, why = f"{folder.path} has no {PREPROCESSOR}", "it says how the model's pictures are normalized"
        raise DataError(what, why, f"hf download {folder.source} {PREPROCESSOR}")
    place, ignored = str(folder.path / PREPROCESSOR), (*_NO_EFFECT, *config.ignored)
    file = HubConfig(folder.document(PREPROCESSOR), place, config.hint, ignored)
    channels = config.read("num_channels", int, 3)
    mean, std = _normalization(file, channels)
    size, fit = _size(file)
    _check_size(config, size)
    file.finish()
    problem = config.read("problem_type", str, "single_label_classification")
    if problem not in _OBJECTIVES:
        raise config.refused("problem_type", f"aifx imports {' and '.join(_OBJECTIVES)}")
    objective, target = _OBJECTIVES[problem]
    classes = _classes(config)
    sections: dict[str, dict[str, Any]] = {
        "model": {"pixel_mean": mean, "pixel_std": std},
        "data": {"path": PICTURES, "classes": classes, "channels": channels, "image_size": size, "fit": fit},
        "objective": {"kind": objective},
    }
    listing = Listing(PICTURES, [], target, tuple(classes))

    def data_spec(section: DataSection) -> DataSpec:
        assert isinstance(section, ImagesSection)
        assert section.image_size
        assert section.channels
        return pictures_spec(listing, (*section.image_size, section.channels))

    return HubAssets({PREPROCESSOR: folder.read(PREPROCESSOR)}, sections, data_spec)


def _normalization(file: HubConfig, channels: int) -> tuple[list[float], list[float]]:
    """Mean and deviation of pixels from 0 to 1."""
    factor = 1.0
    if file.read("do_rescale", bool, True):
        factor = file.read("rescale_factor", float, 1 / LARGEST)
        if factor <= 0:
            raise file.refused("rescale_factor", "pixels are multiplied by it")
    largest = factor * LARGEST
    means, deviations = [0.0] * channels, [1.0] * channels
    if file.read("do_normalize", bool, True):
        means, deviations = (_of_channels(file, key, channels) for key in ("image_mean", "image_std"))
    file.pass_over("rescale_factor", "image_mean", "image_std")
    if min(deviations) <= 0:
        raise file.refused("image_std", "pixels are divided by it")
    return [mean / largest for mean in means], [deviation / largest for deviation in deviations]


def _of_channels(file: HubConfig, key: str, channels: int) -> list[float]:
    values: list[Any] = file.read(key, list)
    if len(values) != channels or not all(type(one) in (int, float) and math.isfinite(one) for one in values):
        raise file.refused(key, f"the model's pictures have {channels} channels, each with a number")
    return [float(one) for one in values]


def _size(file: HubConfig) -> tuple[tuple[int, int], str]:
    """Height and width, and `data.fit`."""
    is_cropped = file.read("do_center_crop", bool, False)
    is_resized = file.read("do_resize", bool, True)
    file.pass_over("size", "crop_size")
    key = "crop_size" if is_cropped else "size"
    value = file.values.get(key)
    keeps_proportions = is_cropped or file.read("crop_pct", float, optional=True) is not None
    if isinstance(value, Mapping) and value.keys() == {"shortest_edge"}:
        value, keeps_proportions = value["shortest_edge"], True
    sides: list[Any] = [value.get("height"), value.get("width")] if isinstance(value, Mapping) else [value, value]
    if not (is_resized or is_cropped) or not all(type(side) is int and side > 0 for side in sides):
        raise file.refused(key, "aifx reads a height and a width of all pictures in it")
    return (sides[0], sides[1]), "crop" if keeps_proportions else "stretch"


def _check_size(config: HubConfig, size: tuple[int, int]) -> None:
    """Raise ConfigError if the model is for pictures of another size."""
    value = config.values.get("image_size")
    if value not in (None, size[0] if size[0] == size[1] else None, list(size)):
        raise config.refused("image_size", f"{PREPROCESSOR} makes pictures {size[0]} x {size[1]}")
    config.pass_over("image_size")


def _classes(config: HubConfig) -> list[str]:
    """The names of the classes. A name that several have is followed by its number, but for the first."""
    count = config.read("num_labels", int, 2)
    names = config.read("id2label", dict, {str(i): f"LABEL_{i}" for i in range(min(count, MOST_CLASSES))})
    numbered = {str(key): name for key, name in names.items()}
    if not 1 < len(numbered) <= MOST_CLASSES or numbered.keys() != {str(i) for i in range(len(numbered))}:
        raise config.refused("id2label", "aifx imports two classes or more, numbered from 0")
    found: dict[str, None] = {}  # in order
    for i in range(len(numbered)):
        if not isinstance(name := numbered[str(i)], str) or not name:
            raise config.refused("id2label", f"the name of class {i} is no text")
        while name in found:
            name += f" ({i})"
        found[name] = None
    return list(found)
