"""Each implementation of linear_cross_entropy against the definition in float64 NumPy; gradients: the reference."""

import contextlib
import io
import math
from dataclasses import fields
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from harness import EVERYWHERE, TOLERANCE, jit, relative_error, running
from hypothesis import given
from hypothesis import strategies as st

from jax_kernels._ops.linear_cross_entropy import KERNELS, LINEAR_CROSS_ENTROPY, linear_cross_entropy, xla
from jax_kernels._ops.linear_cross_entropy.cases import CASES, SMALL_CASES, Case

OPTIONS = ("z_loss", "label_smoothing", "ignore_label", "logit_softcap", "reduction")


def arrays(case, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(case.tokens, case.embed))
    weight = rng.normal(size=(case.embed, case.vocab)) / math.sqrt(case.embed)
    labels = rng.integers(0, case.vocab, case.tokens).astype(np.int32)
    if case.ignore_label is not None:
        labels[::3] = case.ignore_label
    return x, weight, labels


def options(case):
    assert {*OPTIONS} < {field.name for field in fields(case)}
    return {name: getattr(case, name) for name in OPTIONS}


def defined(case, x, weight, labels):
    """A token at a time, as the definition reads."""
    losses, counted = [], 0
    for row, label in zip(x, labels, strict=True):
        if label == case.ignore_label:
            losses.append(0.0)
            continue
        counted += 1
        logits = row @ weight
        if case.logit_softcap:
            logits = case.logit_softcap * np.tanh(logits / case.logit_softcap)
        lse = logits.max() + np.log(np.exp(logits - logits.max()).sum())
        target = np.full(case.vocab, case.label_smoothing / case.vocab)
        target[label] += 1.0 - case.label_smoothing
        losses.append(-(target @ (logits - lse)) + case.z_loss * lse**2)
    if case.reduction == "none":
        return np.array(losses)
    return sum(losses) / (max(counted, 1) if case.reduction == "mean" else 1)


def loss_and_gradients(case, implementation, x, weight, labels):
    asked = jnp.asarray(np.random.default_rng(1).normal(size=case.tokens if case.reduction == "none" else ()))

    def scalar(x, weight):
        loss = linear_cross_entropy(x, weight, labels, implementation=implementation, **options(case))
        return jnp.sum(loss * asked.astype(loss.dtype)), loss

    (_, loss), gradients = jit(jax.value_and_grad(scalar, (0, 1), has_aux=True))(x, weight)
    return [loss, *gradients]


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of 37 tokens, which divide no case: without it, a vocabulary this small makes one chunk of all."""
    monkeypatch.setattr(xla, "CHUNK_LOGITS", 1)
    monkeypatch.setitem(xla.CHUNK_TOKENS, "cpu", 37)


# Together each option, reduction, chunk and block but for the sum; the others have one of them alone.
CORNERS = ("chunks, the last one short", "everything, its mean", "blocks of tokens and of the vocabulary")


@pytest.mark.parametrize(
    "case",
    [case if case.name in CORNERS else pytest.param(case, marks=pytest.mark.slow) for case in SMALL_CASES],
    ids=[case.name for case in SMALL_CASES],
)
def test_values_and_gradients(float64, short_chunks, case):
    x, weight, labels = arrays(case)
    given_arrays = [jnp.asarray(y) for y in (x, weight, labels)]
    want = loss_and_gradients(case, "reference", *given_arrays)
    assert relative_error(want[0], defined(case, x, weight, labels)) < 1e-12
    for a, b in zip(loss_and_gradients(case, "xla", *given_arrays), want, strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.slow
@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("implementation", EVERYWHERE)
@pytest.mark.parametrize("case", [c for c in SMALL_CASES if "everything" in c.name], ids=lambda c: c.name)
def test_precision(case, implementation, dtype):
    x, weight, labels = arrays(case)
    rounded = [jnp.asarray(y, dtype) for y in (x, weight)]
    got = loss_and_gradients(case, implementation, *rounded, jnp.asarray(labels))
    assert [y.dtype for y in got] == [jnp.float32, dtype, dtype]
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(y, np.float64)) for y in rounded]
        want = loss_and_gradients(case, "reference", *exact, jnp.asarray(labels))
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < TOLERANCE[dtype]


def check_kernel(implementation, case, dtype):
    """Loss and gradients of a kernel against the reference's in float64, and that no two of its steps race."""
    x, weight, labels = arrays(case)
    rounded = [jnp.asarray(y, dtype) for y in (x, weight)]
    told = io.StringIO()
    with running(LINEAR_CROSS_ENTROPY, implementation, case.call(dtype)), contextlib.redirect_stdout(told):
        got = jax.block_until_ready(loss_and_gradients(case, implementation, *rounded, jnp.asarray(labels)))
    assert "RACE DETECTED" not in told.getvalue()
    assert [y.dtype for y in got] == [jnp.float32, dtype, dtype]
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(y, np.float64)) for y in rounded]
        want = loss_and_gradients(case, "reference", *exact, jnp.asarray(labels))
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < TOLERANCE[dtype]


@pytest.mark.covering(1, "implementation")
@pytest.mark.filterwarnings("error:linear_cross_entropy")
@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize(
    "name",
    [
        "one token",
        "chunks, their mean",
        "ignored labels",
        "blocks of tokens and of the vocabulary",
        "blocks of the embedding",
    ],
)
def test_a_kernel(implementation, name):
    check_kernel(implementation, next(case for case in SMALL_CASES if case.name == name), "float32")


OPTIONS_DRAWN = {
    "reduction": st.sampled_from(["none", "sum", "mean"]),
    "z_loss": st.sampled_from([0.0, 0.3]),
    "label_smoothing": st.sampled_from([0.0, 0.2]),
    "ignore_label": st.none() | st.integers(-1, 3),
    "logit_softcap": st.none() | st.floats(0.5, 20.0),
}


@pytest.mark.slow
@examples(8)
@given(tokens=st.integers(1, 300), vocab=st.integers(1, 70), drawn=st.fixed_dictionaries(OPTIONS_DRAWN))
def test_any_options(tokens, vocab, drawn):
    case = Case("drawn", tokens, 8, vocab, **drawn)
    x, weight, labels = (jnp.asarray(y, "int32" if y.dtype == np.int32 else "float32") for y in arrays(case))
    want = loss_and_gradients(case, "reference", x, weight, labels)
    for a, b in zip(loss_and_gradients(case, "xla", x, weight, labels), want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(b).max())))


@pytest.mark.slow
@pytest.mark.filterwarnings("error:linear_cross_entropy")
@examples(2)
@given(
    tokens=st.integers(1, 300),
    embed=st.integers(1, 70),
    vocab=st.integers(2, 700),
    dtype=st.sampled_from(list(TOLERANCE)),
    drawn=st.fixed_dictionaries(OPTIONS_DRAWN),
)
@pytest.mark.parametrize("implementation", KERNELS)
def test_a_kernel_with_any_options(implementation, tokens, embed, vocab, dtype, drawn):
    check_kernel(implementation, Case("drawn", tokens, embed, vocab, **drawn), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", KERNELS)
def test_float16_keeps_the_small_gradients_of_a_mean(implementation):
    """The gradient for a token here is 2^-13, for a column of the vocabulary a 700th of it: less than float16 holds."""
    case = Case("a mean over many tokens", 40, 4, 700, "sum")
    x, weight, labels = arrays(case)
    rounded = [jnp.asarray(y, "float16") for y in (x, weight)]

    def gradients(implementation, *operands):
        def asked(x, weight):
            return 2.0**-13 * linear_cross_entropy(
                x, weight, jnp.asarray(labels), reduction="sum", implementation=implementation
            )

        return jit(jax.grad(asked, (0, 1)))(*operands)

    with running(LINEAR_CROSS_ENTROPY, implementation, case.call("float16")):
        got = gradients(implementation, *rounded)
    with jax.enable_x64(True):
        want = gradients("reference", *(jnp.asarray(np.asarray(y, np.float64)) for y in rounded))
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < TOLERANCE["float16"]


@pytest.mark.slow
@pytest.mark.parametrize("implementation", [*EVERYWHERE, *KERNELS])
def test_nothing_counts(implementation):
    case = Case("all ignored", 5, 8, 7, "mean", ignore_label=3)
    x, weight, _ = arrays(case)
    labels = jnp.full(5, 3, jnp.int32)
    with running(LINEAR_CROSS_ENTROPY, implementation, case.call("float32")):
        values = loss_and_gradients(case, implementation, jnp.asarray(x), jnp.asarray(weight), labels)
    for y in values:
        assert not np.any(y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [("xla", "uint8"), *((implementation, "int32") for implementation in (*EVERYWHERE, *KERNELS))],
)
def test_labels_outside_the_vocabulary(implementation, dtype):
    """Six tokens, of which those of labels -1 (255 of uint8) and 7 of 7 are wrong, and that of 3 is ignored."""
    case = Case("wrong labels", 6, 8, 7, "none", ignore_label=3)
    x, weight, _ = (jnp.asarray(y, "float32") for y in arrays(case))
    labels = jnp.asarray(np.array([0, -1, 3, 7, 6, 2]).astype(dtype))
    wrong = np.array([False, True, False, True, False, False])

    def run(cotangent, reduction="none"):
        def loss(x, weight):
            return linear_cross_entropy(
                x, weight, labels, ignore_label=3, reduction=reduction, implementation=implementation
            )

        value, pull = jax.vjp(loss, x, weight)
        return value, *pull(cotangent)

    with running(LINEAR_CROSS_ENTROPY, implementation, case.call("float32")):
        compiled = jit(run)
        each, d_x, d_weight = compiled(jnp.ones(6))
        _, d_x_masked, d_weight_masked = compiled(jnp.asarray(~wrong, "float32"))
        mean, d_x_mean, d_weight_mean = jit(partial(run, reduction="mean"))(jnp.ones(()))
    np.testing.assert_array_equal(np.isnan(each), wrong)
    np.testing.assert_array_equal(np.isnan(d_x), np.broadcast_to(wrong[:, None], d_x.shape))
    assert np.isnan(d_weight).all()
    assert all(np.isnan(y).all() for y in (mean, d_x_mean[labels != 3], d_weight_mean))
    right = partial(linear_cross_entropy, labels=labels[~wrong], ignore_label=3, reduction="sum")
    want = jit(jax.grad(lambda x, weight: right(x, weight), (0, 1)))(x[~wrong], weight)
    assert not np.any(d_x_masked[wrong])
    assert relative_error(d_x_masked[~wrong], want[0]) < 1e-5
    assert relative_error(d_weight_masked, want[1]) < 1e-5


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_no_tokens(reduction):
    case = Case("no tokens", 0, 8, 7, reduction)
    x, weight, labels = arrays(case)
    loss, d_x, d_weight = loss_and_gradients(case, "auto", jnp.asarray(x), jnp.asarray(weight), jnp.asarray(labels))
    assert loss.shape == (() if reduction != "none" else (0,))
    assert d_x.shape == (0, 8)
    assert not np.any(loss)
    assert not np.any(d_weight)


@pytest.mark.slow
def test_small_integers_can_be_labels():
    case = Case("uint8", 40, 16, 300)
    x, weight, _ = arrays(case)
    labels = jnp.arange(40, dtype="uint8")
    for a, b in zip(
        loss_and_gradients(case, "xla", jnp.asarray(x), jnp.asarray(weight), labels),
        loss_and_gradients(case, "xla", jnp.asarray(x), jnp.asarray(weight), labels.astype("int32")),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_logits_are_never_held():
    case = CASES["cpu"][0].call("float32")
    shapes = [
        jax.ShapeDtypeStruct((case.tokens, case.embed), "float32"),
        jax.ShapeDtypeStruct((case.embed, case.vocab), "float32"),
        jax.ShapeDtypeStruct((case.tokens,), "int32"),
    ]

    def temporary(implementation, reduction):
        def total(x, weight, labels):
            loss = linear_cross_entropy(x, weight, labels, reduction=reduction, implementation=implementation)
            return jnp.sum(loss)

        compiled = jit(jax.grad(total, (0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for reduction in ("none", "sum"):
        assert temporary("xla", reduction) < 0.35 * temporary("reference", reduction)


GOOD = {"x": ((4, 8), "float32"), "weight": ((8, 5), "float32"), "labels": ((4,), "int32")}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"x": ((4,), "float32")}, "x:"),
        ({"x": ((4, 8), "int32")}, "x:"),
        ({"weight": ((5, 8), "float32")}, "weight:"),
        ({"weight": ((8, 5), "bfloat16")}, "weight:"),
        ({"labels": ((5,), "int32")}, "labels:"),
        ({"labels": ((4,), "float32")}, "labels:"),
        ({"z_loss": -0.1}, "z_loss:"),
        ({"z_loss": math.nan}, "z_loss:"),
        ({"label_smoothing": 1.0}, "label_smoothing:"),
        ({"logit_softcap": 0.0}, "logit_softcap:"),
        ({"weight": ((8, 0), "float32")}, "weight:"),
        ({"ignore_label": -1, "labels": ((4,), "uint8")}, "ignore_label:"),
        ({"ignore_label": 0.5}, "ignore_label:"),
        ({"reduction": "max"}, "reduction:"),
        ({"implementation": "fastest"}, "implementation:"),
    ],
)
def test_what_does_not_fit_is_named(changes, named):
    values = {**GOOD, **changes}
    x, weight, labels = (jnp.zeros(*values.pop(name)) for name in ("x", "weight", "labels"))
    with pytest.raises(ValueError, match=f"^{named} expected"):
        linear_cross_entropy(x, weight, labels, **values)
