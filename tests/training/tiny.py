"""A task of a project's own, small enough to train in a second: rows of numbers through a few layers.

Copied into the projects that the tests make, where `task.kind = "tiny:TinyTask"` finds it.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from aifx.config.sections import RESUME_SAFE, ROUNDING, DataSection, ModelSection
from aifx.core import lifecycle
from aifx.data.spec import DataSpec
from aifx.data.spec import Field as DataField
from aifx.models.base import Head, Model
from aifx.nn.initializers import normal, ones, zeros
from aifx.objectives.base import Objective
from aifx.specs import ArraySpec, stack_layer_specs
from aifx.tasks.base import Task

lifecycle.ENDING_S = 60.0  # on a slow machine as well, a process that ends at once says why


def is_held(step: int) -> bool:
    """Whether the file "held", with the number of a batch, holds up the reading of this one."""
    try:
        return step >= int(Path("held").read_text())
    except FileNotFoundError:
        return False


class TinyModelSection(ModelSection):
    width: int = 8
    num_layers: int = 2
    scan_layers: bool = Field(False, json_schema_extra=ROUNDING)


class TinyDataSection(DataSection):
    poison_steps: tuple[int, ...] = Field((), description="Batches of training that hold a NaN.")
    poison_validation: bool = Field(False, description="Batches of validation hold a NaN.")
    spike_steps: tuple[int, ...] = Field((), description="Batches of training with targets far off.")
    flaky_call: int = Field(-1, description="Computation of a loss in training that comes out otherwise.")
    read_s: float = Field(0.0, description="Seconds that reading a batch takes.", json_schema_extra=RESUME_SAFE)
    stuck_step: int = Field(
        -1, description="Batch of training whose reading takes ten minutes.", json_schema_extra=RESUME_SAFE
    )
    noise: float = Field(0.1, description="Random noise on the inputs in training.")
    salt: int = 0
    tags: tuple[str, ...] = Field(default_factory=tuple, description="Nothing that the data depends on.")
    no_signal: bool = Field(False, description="Targets that cannot be learned.")
    compile_s: float = Field(0.0, description="Seconds that tracing the step takes.", json_schema_extra=RESUME_SAFE)


class TinySource:
    def __init__(self, section: TinyDataSection, split: str, width: int, batch_size: int, seed: int) -> None:
        self.section, self.split, self.width, self.batch_size, self.seed = section, split, width, batch_size, seed
        self.num_batches = None if split == "train" else 2

    def read(self, number: int, rows: slice) -> dict[str, np.ndarray]:
        if self.split == "train" and self.section.read_s:
            time.sleep(self.section.read_s)
        while self.split == "train" and is_held(number):
            time.sleep(0.01)
        if self.split == "train" and number == self.section.stuck_step:
            Path("stuck").touch()
            time.sleep(600)
        salt = {"train": 1, "validation": 2, "test": 3}[self.split]
        rng = np.random.default_rng([self.seed, self.section.salt, salt, number])
        x = rng.standard_normal((self.batch_size, self.width), np.float32)
        y = np.tanh(x @ np.random.default_rng(7).standard_normal((self.width, self.width)).astype(np.float32))
        if self.section.no_signal:
            y = rng.standard_normal(y.shape, np.float32)
        weights = rng.integers(0, 5, self.batch_size).astype(np.float32)
        poisoned = number in self.section.poison_steps if self.split == "train" else self.section.poison_validation
        if poisoned:
            x[0, 0] = np.nan
            weights[0] = 1.0
        if self.split == "train" and number in self.section.spike_steps:
            y += 100.0
        batch = {"x": x, "y": y, "weights": weights}
        return {k: v[rows] for k, v in batch.items()}


class TinyModel(Model):
    def __init__(self, section: TinyModelSection) -> None:
        self.section = section

    def specs(self) -> dict:
        d, n = self.section.width, self.section.num_layers
        layer = {
            "kernel": ArraySpec((d, d), ("embed", "mlp"), normal(0.3), matrix=((0,), (1,)), decay=True),
            "scale": ArraySpec((d,), ("embed",), ones),
        }
        layers = stack_layer_specs(layer, n) if self.section.scan_layers else {str(i): layer for i in range(n)}
        return {
            "layers": layers,
            "bias": ArraySpec((d,), ("embed",), zeros),
            "shift": ArraySpec((d,), ("embed",), normal(0.1), kind="frozen"),
        }

    def hidden(self, params: dict, batch: dict, ctx) -> jax.Array:
        def block(x: jax.Array, layer: dict) -> jax.Array:
            return x + jnp.tanh((x * layer["scale"]) @ layer["kernel"])

        x = jnp.asarray(batch["x"], params["bias"].dtype) + params["shift"]
        if self.section.scan_layers:
            x, _ = jax.lax.scan(lambda x, layer: (block(x, layer), None), x, params["layers"])
        else:
            for i in range(self.section.num_layers):
                x = block(x, params["layers"][str(i)])
        return x + params["bias"]

    def head(self, params: dict, ctx) -> Head:
        return Head(jnp.eye(self.section.width, dtype=params["bias"].dtype))

    def flops(self, rows: int) -> int:
        return 6 * rows * self.section.num_layers * self.section.width**2


class TinyObjective(Objective):
    unit = "rows"

    def __init__(self, section: TinyDataSection) -> None:
        self.section = section
        self.calls = 0

    def sums(self, model, params, batch, ctx):
        x = batch["x"]
        if ctx.training:
            if self.section.compile_s:
                time.sleep(self.section.compile_s)
            if self.section.flaky_call >= 0:
                x = x + jax.pure_callback(self.disturbance, jax.ShapeDtypeStruct((), x.dtype))
            if self.section.noise:
                keys = jax.vmap(lambda row: jax.random.fold_in(ctx.key, row))(ctx.row_ids)
                noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
                x = x + self.section.noise * noise
        error = ((model.hidden(params, {"x": x}, ctx).astype(jnp.float32) - batch["y"]) ** 2).mean(-1)
        weights = jnp.asarray(batch["weights"])
        return {"loss": ((error * weights).sum(), weights.sum())}

    def disturbance(self):
        """The error that a faulty processor adds, each time that the program runs."""
        self.calls += 1
        return np.float32(1e-3 if self.calls == self.section.flaky_call else 0.0)

    def metrics(self, totals, data):
        total, weight = totals["loss"]
        return {"loss": float(total) / float(weight)}


class TinyDataset:
    def __init__(self, config, root: Path) -> None:
        self.config = config
        width = (config.model.width,)
        fields = {
            "x": DataField(width, "float32"),
            "y": DataField(width, "float32"),
            "weights": DataField((), "float32"),
        }
        self.spec = DataSpec(fields)
        file = root / "data.txt"  # which a test may write
        content = file.read_bytes() if file.exists() else b""
        self.digest = hashlib.sha256(repr(config.data).encode() + content).hexdigest()

    def source(self, split, batch_size, *, seed):
        width, train = self.config.model.width, self.config.train
        return TinySource(self.config.data, split, width, batch_size, train.seed)

    def counts(self, batch):
        return {"rows": len(batch["weights"])}


class TinyTask(Task):
    model_section = TinyModelSection
    data_section = TinyDataSection
    objective_class = TinyObjective

    @classmethod
    def open(cls, config, project, assets):
        dataset = TinyDataset(config, project.root)
        return cls(TinyModel(config.model), cls.objective_class(config.data), dataset.spec, dataset=dataset)
