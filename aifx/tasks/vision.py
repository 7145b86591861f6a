"""Image classification."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from aifx.config import Config
from aifx.config.sections import Section, VisionDataSection, VisionModelSection
from aifx.data import ImageData, ImageSource, open_images
from aifx.data.base import Batch, Say, Split
from aifx.models.vision import VisionNetwork
from aifx.nn.specs import Params
from aifx.project import Project
from aifx.tasks.base import Sums, Task, Totals
from aifx.tasks.language import batches_digest
from aifx.tasks.objectives import confusion_matrix, cross_entropy


class VisionTask(Task):
    """A network that names what is in a picture; reports accuracy, a report by class and the confusion matrix."""

    model_section: ClassVar[type[Section]] = VisionModelSection
    data_section: ClassVar[type[Section]] = VisionDataSection
    unit = "images"

    def __init__(self, model: VisionNetwork, data: ImageData, config: Config) -> None:
        self.model: VisionNetwork = model
        self.data = data
        self.config = config

    @classmethod
    def create(cls, config: Config, project: Project, assets: Path, *, say: Say) -> VisionTask:
        assert isinstance(config.data, VisionDataSection)
        assert isinstance(config.model, VisionModelSection)
        data = open_images(config.data, project, say=say)
        return cls(
            VisionNetwork(config.model, image_shape=data.image_shape, num_classes=data.num_classes), data, config
        )

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
            sums["confusion"] = (confusion_matrix(labels, predicted, weights, self.data.num_classes), weight)
        return sums

    def metrics(self, totals: Totals) -> dict[str, Any]:
        """loss [nats], accuracy; where confusion was summed macro_f1, images, per_class and confusion as well."""
        loss, images = (float(x) for x in totals["loss"])
        report: dict[str, Any] = {
            "loss": loss / images if images else math.nan,
            "accuracy": float(totals["accuracy"][0]) / images if images else math.nan,
        }
        if "confusion" in totals:
            report |= class_report(np.asarray(totals["confusion"][0], np.float64), self.data.classes)
        return report

    def units(self, batch: Batch) -> int:
        return int(np.count_nonzero(batch["weights"]))

    def batch_shape(self) -> tuple[int, ...]:
        return (self.config.train.global_batch_size, *self.data.image_shape)

    def data_digest(self) -> str:
        return batches_digest(self.data.digest, self.config)


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
