"""The vision transformer of Dosovitskiy et al. (arXiv 2010.11929), for images of a fixed size."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from aifx.core.errors import ConfigError
from aifx.data.spec import DataSpec
from aifx.models.base import Head, Model
from aifx.models.vit.section import VitSection
from aifx.nn import initializers, layers
from aifx.nn.remat import rematerialized
from aifx.parallel.context import ForwardContext
from aifx.specs import LAYERS, ArraySpec, Params, Specs, stack_layer_specs
from jax_kernels._ops.attention import attention
from jax_kernels._ops.norms import layer_norm

INIT_STDDEV = 0.02


class Vit(Model):
    """A network from images `[rows, height, width, channels]` of any scale to `num_outputs` numbers each.

    Patches and a class token go through layers of attention and MLP. The head reads the class token.
    Raises ConfigError if the patches do not fill the image.
    """

    gathers = (LAYERS,)

    def __init__(self, section: VitSection, *, image_shape: tuple[int, int, int], num_outputs: int) -> None:
        self.section = section
        self.image_shape = image_shape
        self.num_outputs = num_outputs
        height, width, channels = image_shape
        section.check_channels(channels)
        if height % section.patch_size or width % section.patch_size:
            raise ConfigError(
                f"images of {height} x {width} do not divide into patches of model.patch_size = {section.patch_size}",
                "patches fill the image without a rest",
                "change model.patch_size or data.image_size: aifx config keys model",
            )
        self.num_patches = (height // section.patch_size) * (width // section.patch_size)

    def specs(self) -> Specs:
        """Arrays by name: `embedding/patch`, `class`, `position`, `layers/<i>/attention/query`, ..., `output`."""
        section, table = self.section, initializers.normal(INIT_STDDEV)
        d, inputs = section.embed_dim, section.patch_size**2 * self.image_shape[2]
        layer = _layer_specs(section)
        return {
            "embedding": {
                "patch": ArraySpec((inputs, d), (None, "embed"), table, matrix=((0,), (1,)), decay=True),
                "patch_bias": ArraySpec((d,), ("embed",), initializers.zeros),
                "class": ArraySpec((d,), ("embed",), initializers.zeros),
                "position": ArraySpec((self.num_patches + 1, d), (None, "embed"), table, decay=True),
            },
            LAYERS: stack_layer_specs(layer, section.num_layers)
            if section.scan_layers
            else {str(i): layer for i in range(section.num_layers)},
            "final_norm": _norm_specs(d),
            "output": {
                "weight": ArraySpec((d, self.num_outputs), ("embed", None), table, decay=True),
                "bias": ArraySpec((self.num_outputs,), (None,), initializers.zeros),
            },
        }

    def flops(self, rows: int) -> int:
        """Forward and backward: 6 for each weight at each token, and 12 L D T for attention, T the tokens."""
        section, tokens = self.section, self.num_patches + 1
        d, hidden = section.embed_dim, section.mlp_dim or 4 * section.embed_dim
        patches = self.num_patches * section.patch_size**2 * self.image_shape[2] * d
        products = section.num_layers * tokens * (4 * d**2 + 2 * d * hidden)
        attended = 12 * section.num_layers * d * tokens**2
        return rows * (6 * (patches + products + d * self.num_outputs) + attended)

    def hidden(self, params: Params, batch: Mapping[str, jax.Array], ctx: ForwardContext) -> jax.Array:
        """The class token `[rows, embed]` of `inputs` `[rows, height, width, channels]`."""
        x = self.embed(params["embedding"], batch["inputs"], ctx)

        def block(x: jax.Array, own: tuple[Params, jax.Array]) -> tuple[jax.Array, None]:
            return self.layer(ctx.layout.gather(own[0]), x, ctx, own[1]), None

        block = rematerialized(block, self.section.remat, ctx.layout)
        numbers = jnp.arange(self.section.num_layers)
        if self.section.scan_layers:
            x, _ = jax.lax.scan(block, x, (params[LAYERS], numbers))
        else:
            for i in range(self.section.num_layers):
                x, _ = block(x, (params[LAYERS][str(i)], numbers[i]))
        return self.norm(params["final_norm"], x[:, 0])

    def embed(self, params: Params, images: jax.Array, ctx: ForwardContext) -> jax.Array:
        """The class token and the patches of images, with their positions: `[rows, tokens, embed]`."""
        x = layers.normalized_pixels(images, self.section.pixel_mean, self.section.pixel_std, params["patch"].dtype)
        rows, height, width, channels = x.shape
        size, d = self.section.patch_size, self.section.embed_dim
        x = x.reshape(rows, height // size, size, width // size, size, channels).swapaxes(2, 3)
        x = layers.linear(x.reshape(rows * self.num_patches, -1), params["patch"], params["patch_bias"])
        tokens = jnp.broadcast_to(params["class"], (rows, 1, d))
        x = jnp.concatenate([tokens, x.reshape(rows, self.num_patches, d)], axis=1) + params["position"]
        return layers.dropout(x, self.section.dropout, ctx)

    def layer(self, params: Params, x: jax.Array, ctx: ForwardContext, number: jax.Array) -> jax.Array:
        """One transformer block over x `[rows, tokens, embed]`; `number` counts from 0."""

        def dropped(y: jax.Array, half: int) -> jax.Array:
            return layers.dropout(y.reshape(x.shape), self.section.dropout, ctx, 2 * number + half + 1)

        x = x + dropped(self.attention(params["attention"], self.norm(params["attention_norm"], x)), 0)
        return x + dropped(self.mlp(params["mlp"], self.norm(params["mlp_norm"], x)), 1)

    def attention(self, params: Params, x: jax.Array) -> jax.Array:
        """Attention of all tokens of an image over each other: `[rows x tokens, embed]` of `[rows, tokens, embed]`."""
        rows, tokens, d = x.shape
        flat, heads = x.reshape(rows * tokens, d), (rows, tokens, self.section.num_heads, -1)

        def project(name: str) -> jax.Array:
            weight = layers.as_matrix(params[name], d)
            return layers.linear(flat, weight, params[f"{name}_bias"].reshape(-1)).reshape(heads)

        out = attention(project("query"), project("key"), project("value"))
        return layers.linear(
            out.reshape(rows * tokens, d), layers.as_matrix(params["output"], d), params["output_bias"]
        )

    def mlp(self, params: Params, x: jax.Array) -> jax.Array:
        hidden = layers.gelu(layers.linear(x.reshape(-1, x.shape[-1]), params["up"], params["up_bias"]))
        return layers.linear(hidden, params["down"], params["down_bias"])

    def norm(self, params: Params, x: jax.Array) -> jax.Array:
        return layer_norm(x, params["scale"], params["bias"], epsilon=self.section.norm_epsilon)

    def head(self, params: Params, ctx: ForwardContext) -> Head:
        return Head(params["output"]["weight"], params["output"]["bias"])


def make(section: VitSection, data: DataSpec) -> Vit:
    """The transformer for images as `data` describes them: one output per class, or one per number to predict."""
    height, width, channels = data.fields["inputs"].shape
    return Vit(section, image_shape=(height, width, channels), num_outputs=len(data.classes) or data.target_size)


def _layer_specs(section: VitSection) -> Specs:
    d, heads, hidden = section.embed_dim, section.num_heads, section.mlp_dim or 4 * section.embed_dim
    width, init = d // heads, initializers.normal(INIT_STDDEV)
    attention_specs: Specs = {}
    for name in ("query", "key", "value"):
        axes = ("embed", "heads", "head_dim")
        attention_specs[name] = ArraySpec((d, heads, width), axes, init, matrix=((0,), (1, 2)), decay=True)
        attention_specs[f"{name}_bias"] = ArraySpec((heads, width), axes[1:], initializers.zeros)
    return {
        "attention_norm": _norm_specs(d),
        "attention": {
            **attention_specs,
            "output": ArraySpec(
                (heads, width, d), ("heads", "head_dim", "embed"), init, matrix=((0, 1), (2,)), decay=True
            ),
            "output_bias": ArraySpec((d,), ("embed",), initializers.zeros),
        },
        "mlp_norm": _norm_specs(d),
        "mlp": {
            "up": ArraySpec((d, hidden), ("embed", "mlp"), init, matrix=((0,), (1,)), decay=True),
            "up_bias": ArraySpec((hidden,), ("mlp",), initializers.zeros),
            "down": ArraySpec((hidden, d), ("mlp", "embed"), init, matrix=((0,), (1,)), decay=True),
            "down_bias": ArraySpec((d,), ("embed",), initializers.zeros),
        },
    }


def _norm_specs(width: int) -> Specs:
    return {
        "scale": ArraySpec((width,), ("embed",), initializers.ones),
        "bias": ArraySpec((width,), ("embed",), initializers.zeros),
    }
