"""Sampling without a sort, against the definition with one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import seed_of_commit

from aifx.programs.sampling import Sampling, sample

PROBABILITIES = np.array([0.1, 0.4, 0.2, 0.3])
DRAWS = 4000


@functools.cache
def program():
    return jax.jit(sample)


def definition(logits, temperature=1.0, top_k=0, top_p=1.0):
    """The probability of each token: all are sorted, cut to top-k, then to top-p."""
    logits = np.asarray(logits, np.float64)
    if temperature == 0.0:
        return np.eye(logits.size)[np.argmax(logits)]
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits[order] - logits.max()) / temperature)
    weights[top_k or logits.size :] = 0
    weights /= weights.sum()
    weights[np.cumsum(weights) - weights >= top_p] = 0
    found = np.zeros_like(weights)
    found[order] = weights / weights.sum()
    return found


def shares(logits, draws=DRAWS, **values):
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (draws, len(logits)))
    tokens = program()(rows, jax.random.split(jax.random.key(0), draws), Sampling.of(**values, rows=draws))
    return np.bincount(np.asarray(tokens), minlength=len(logits)) / draws


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 9}, PROBABILITIES),
        ({"top_k": 1 << 40}, PROBABILITIES),
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        ({"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0]),
    ],
)
def test_what_the_values_say(values, expected):
    np.testing.assert_allclose(shares(np.log(PROBABILITIES), **values), expected, atol=0.03)


@pytest.mark.slow
def test_equal_scores_are_cut_to_top_k():
    assert shares(np.zeros(4), top_k=2)[2:].tolist() == [0, 0]
    assert shares(np.zeros(300), 1000, top_k=100)[100:].sum() == 0  # more than are looked for in few blocks


@pytest.mark.slow
def test_random_values_against_the_definition():
    """The tokens that are never drawn are those that the definition excludes; the others as often as it says."""
    rng = np.random.default_rng(seed_of_commit())
    vocab, draws = 300, 1000
    for _ in range(6):
        logits = np.round(rng.normal(size=vocab) * rng.choice([0.1, 1, 4]), rng.choice([0, 1, 6])).astype(np.float32)
        values = {
            "temperature": float(rng.choice([0, 0.5, 1, 2])),
            "top_k": int(rng.choice([0, 1, 5, 40, 65, 200])),
            "top_p": float(rng.choice([1, 0.9, 0.5, 0.01])),
        }
        expected, found = definition(logits, **values), shares(logits, draws, **values)
        assert found[expected == 0].sum() == 0, (values, logits.tolist())
        # The distance of n draws from their distribution is below this but for 1 in 10^7.
        deviation = np.sqrt((expected > 0).sum() / draws) + np.sqrt(16 / draws)
        assert np.abs(found - expected).sum() <= deviation, (values, logits.tolist())


@pytest.mark.slow
def test_the_token_of_a_row_does_not_depend_on_the_others():
    rng = np.random.default_rng(3)
    logits = jnp.asarray(3 * rng.normal(size=(6, 1000)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 6)
    values = [(1.0, 0, 1.0), (0.7, 50, 0.9), (0.0, 0, 1.0), (1.3, 400, 0.8), (1.0, 1, 1.0), (0.9, 0, 0.3)]
    sampling = Sampling(*(jnp.asarray(x) for x in zip(*values, strict=True)))
    together = program()(logits, keys, sampling)
    order = rng.permutation(6)
    shuffled = program()(logits[order], keys[order], Sampling(*(x[order] for x in sampling)))
    assert np.asarray(together)[order].tolist() == np.asarray(shuffled).tolist()
    company = Sampling(*(jnp.broadcast_to(x[:1], x.shape) for x in sampling))
    assert program()(logits, keys, company)[0] == together[0]


def test_what_is_not_finite_ends():
    rows = [[np.nan, 1.0, 2.0, 0.0], [-np.inf, -np.inf, 0.5, -np.inf], [np.nan] * 4]
    logits = np.resize(np.asarray(rows, np.float32), (DRAWS, 4))  # each row again and again
    for values in ({}, {"top_k": 2}, {"top_p": 0.5}):
        tokens = program()(logits, jax.random.split(jax.random.key(0), DRAWS), Sampling.of(**values, rows=DRAWS))
        assert (tokens[1::3] == 2).all()
        assert ((tokens >= 0) & (tokens < 4)).all()
