"""Image classification."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from aifx.config import Config
from aifx.config.sections import Section, VisionDataSection, VisionModelSection
from aifx.core.errors import DataError
from aifx.core.files import read_file
from aifx.core.parsing import parse_json
from aifx.core.project import Project
from aifx.data import ImageData, ImageSource, open_images
from aifx.data.base import Batch, Split
from aifx.data.image_rows import IMAGE_FIELD, read_images
from aifx.data.images import ImageSpec, open_image_file
from aifx.data.rows import InputFile, Row, field
from aifx.data.store import write_synced
from aifx.models.resnet.model import VisionNetwork
from aifx.objectives.losses import confusion_matrix, cross_entropy
from aifx.specs import Params
from aifx.tasks.base import Sums, Task, Totals
from aifx.tasks.language import batches_digest

SPEC_FILE = "images.json"
"""In a run's assets: the shape of the images and the names of the classes."""


class VisionTask(Task):
    """A network that names what is in a picture; reports accuracy, a report by class and the confusion matrix."""

    model_section: ClassVar[type[Section]] = VisionModelSection
    data_section: ClassVar[type[Section]] = VisionDataSection
    unit = "images"

    def __init__(self, spec: ImageSpec, config: Config, data: ImageData | None = None) -> None:
        """Without `data`, the task of a trained model: it makes predictions, and measures what `with_data` opens."""
        assert isinstance(config.model, VisionModelSection)
        self.model = VisionNetwork(config.model, image_shape=spec.image_shape, num_classes=len(spec.classes))
        self.spec = spec
        self.config = config
        self._data = data

    @classmethod
    def create(cls, config: Config, project: Project, assets: Path) -> VisionTask:
        assert isinstance(config.data, VisionDataSection)
        data = open_images(config.data, project)
        keep_spec(assets, data.spec)
        return cls(data.spec, config, data)

    @classmethod
    def load(cls, config: Config, project: Project, assets: Path) -> VisionTask:
        return cls(read_spec(assets), config)

    def with_data(self, path: Path) -> VisionTask:
        assert isinstance(self.config.data, VisionDataSection)
        return type(self)(self.spec, self.config, open_image_file(path, self.config.data, self.spec))

    @property
    def data(self) -> ImageData:
        assert self._data is not None, "the task was loaded without data"
        return self._data

    def source(self, split: Split) -> ImageSource:
        train = self.config.train
        if split == "train":
            return self.data.source(split, batch_size=train.global_batch_size, seed=train.seed)
        return self.evaluation_source(split)

    def evaluation_source(self, split: Split) -> ImageSource:
        rows = self.config.eval.batch_size or self.config.train.global_batch_size
        return self.data.source(split, batch_size=rows, seed=None)

    def objective(self, params: Params, batch: Mapping[str, jax.Array], key: jax.Array, *, training: bool) -> Sums:
        """Sums over images: "loss" in nats, "accuracy", and when evaluating "confusion" [true, predicted]."""
        logits = self.model(params, batch["images"], key=key if training else None)
        labels, weights = batch["labels"], batch["weights"]
        predicted = jnp.argmax(logits, axis=-1)
        weight = weights.sum()
        sums = {
            "loss": ((cross_entropy(logits, labels) * weights).sum(), weight),
            "accuracy": (((predicted == labels) * weights).sum(), weight),
        }
        if not training:
            sums["confusion"] = (confusion_matrix(labels, predicted, weights, len(self.spec.classes)), weight)
        return sums

    def metrics(self, totals: Totals) -> dict[str, Any]:
        """loss [nats], accuracy; where confusion was summed macro_f1, images, per_class and confusion as well."""
        loss, images = (float(x) for x in totals["loss"])
        report: dict[str, Any] = {
            "loss": loss / images if images else math.nan,
            "accuracy": float(totals["accuracy"][0]) / images if images else math.nan,
        }
        if "confusion" in totals:
            report |= class_report(np.asarray(totals["confusion"][0], np.float64), self.spec.classes)
        return report

    def units(self, batch: Batch) -> int:
        return int(np.count_nonzero(batch["weights"]))

    def batch_shape(self) -> tuple[int, ...]:
        return (self.config.train.global_batch_size, *self.spec.image_shape)

    def data_digest(self) -> str:
        return batches_digest(self.data.digest, self.config)

    def read_rows(self, file: InputFile) -> Iterator[Row]:
        """Images of .npz, .npy and picture files, beside rows with a field "image"."""
        return read_images(file, self.spec.image_shape)

    def encode(self, row: Mapping[str, Any]) -> Batch:
        image = np.asarray(field(row, IMAGE_FIELD))
        shape = self.spec.image_shape
        if image.dtype.kind not in "iu" or image.size == 0 or image.min() < 0 or image.max() > 255:
            raise ValueError("an image is whole numbers from 0 to 255")
        if image.shape != shape and (image.shape, shape[2]) != (shape[:2], 1):
            raise ValueError(f"the image has shape {list(image.shape)} and the model takes {list(shape)}")
        return {"images": image.astype(np.uint8).reshape(1, *shape)}

    def predictions(self, params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Of each image: "probabilities" of the classes, float32 [images, classes]."""
        return {"probabilities": jax.nn.softmax(self.model(params, batch["images"]), axis=-1)}

    def decode(self, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The likeliest class as "label", its "probability", and the "probabilities" of all classes."""
        (values,) = predictions["probabilities"]
        best = int(values.argmax())
        by_class = dict(zip(self.spec.classes, values.tolist(), strict=True))
        return {"label": self.spec.classes[best], "probability": float(values[best]), "probabilities": by_class}


def keep_spec(assets: Path, spec: ImageSpec) -> None:
    """Keep with a run what its model was made for, so that it opens without the training images.

    A fork may name the classes otherwise. Images that no longer fit the model change nothing.
    """
    if (assets / SPEC_FILE).exists():
        kept = read_spec(assets)
        fits = (kept.image_shape, len(kept.classes)) == (spec.image_shape, len(spec.classes))
        if kept == spec or not fits:
            return
    document = {"schema_version": 1, "image_shape": list(spec.image_shape), "classes": list(spec.classes)}
    write_synced(assets / SPEC_FILE, json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8") + b"\n")


def read_spec(assets: Path) -> ImageSpec:
    """What `keep_spec` kept. Raises DataError."""
    path = assets / SPEC_FILE
    try:
        document = parse_json(read_file(path))
        height, width, channels = (int(size) for size in document["image_shape"])
        return ImageSpec((height, width, channels), tuple(map(str, document["classes"])))
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError(f"{path} cannot be read", why, "aifx eval with the training images writes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a description of images", str(error), f"restore {path}") from None


def class_report(confusion: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """Precision, recall and F1 of each class from counts [true, predicted]; 0 where a class never occurs."""
    hits, present, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    recall = np.divide(hits, present, out=np.zeros_like(hits), where=present > 0)
    f1 = np.divide(2 * hits, present + predicted, out=np.zeros_like(hits), where=present + predicted > 0)
    rows = zip(classes, precision, recall, f1, present, strict=True)
    return {
        "macro_f1": float(f1.mean()),
        "images": round(float(confusion.sum())),
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "images": round(float(n))}
            for name, p, r, f, n in rows
        },
        "confusion": confusion.round().astype(int).tolist(),
    }
