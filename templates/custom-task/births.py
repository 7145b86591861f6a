"""Births per day in the United States, from the calendar: a tabular regression."""

import jax
import numpy as np
from pydantic import Field

from aifx.extend import ArrayFormat, ArraysSection, DataKind, read_examples
from aifx.extend import ArraySpec, Family, Head, Model, ModelSection, PositiveInt, normal, zeros


class MlpSection(ModelSection):
    width: PositiveInt = Field(64, description="Units of the hidden layer.")


class Mlp(Model):
    def __init__(self, section, data):
        self.inputs, self.width = data.fields["inputs"].shape[0], section.width

    def specs(self):
        hidden = ArraySpec((self.inputs, self.width), (None, "mlp"), normal(0.5), matrix=((0,), (1,)), decay=True)
        output = ArraySpec((self.width, 1), ("mlp", None), zeros, decay=True)
        return {"hidden": hidden, "output": output}

    def hidden(self, params, batch, ctx):
        return jax.nn.gelu(batch["inputs"].astype(params["hidden"].dtype) @ params["hidden"])

    def head(self, params, ctx):
        return Head(params["output"])

    def flops(self, rows):
        return 6 * rows * (self.inputs + 1) * self.width


class Days(ArrayFormat):
    @classmethod
    def read(cls, section, path):
        return read_examples(path, lambda row: {"inputs": calendar(row), "targets": np.float32(row["births"]) / 1000})

    def encode(self, row):
        return {"inputs": calendar(row)[None]}


def calendar(row):
    year, month, day, weekday = (int(row[name]) for name in ("year", "month", "date_of_month", "day_of_week"))
    season = 2 * np.pi * (month + day / 31) / 12 * np.arange(1, 4)
    known = [1, (year - 1978) / 10], np.sin(season), np.cos(season), np.arange(1, 8) == weekday
    return np.concatenate(known, dtype=np.float32)


FAMILY = Family("mlp", MlpSection, Mlp)
DATA = DataKind("days", ArraysSection, Days)
