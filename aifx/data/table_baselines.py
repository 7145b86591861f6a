"""What simple predictors make of a table: the most frequent class or the mean, a linear model, boosted trees."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
from scipy import optimize, sparse
from scipy.special import log_softmax, softmax

from aifx.data.arrays import Arrays
from aifx.data.spec import Column, DataSpec

L2 = 1e-4
"""Penalty on the squared weights of linear models, for each example."""

MOST_ITERATIONS = 200

MOST_TREE_CATEGORIES = 255
"""scikit-learn's histogram gradient boosting takes so many of a column; more are read as numbers."""


def table_baselines(spec: DataSpec, train: Arrays, inputs: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The name and the outputs `[examples, outputs]` of each baseline for `inputs` `[examples, columns]`.

    Outputs are log-probabilities of classes, or values of the scaled target.
    """
    count, num_classes = len(inputs), len(spec.classes)
    targets = train["targets"]
    learned, asked = design(spec.columns, train["inputs"]), design(spec.columns, inputs)
    if num_classes:
        shares = np.bincount(targets, minlength=num_classes) / len(targets)
        yield "majority", np.tile(np.log(np.maximum(shares, 1e-9)), (count, 1))
        yield "logistic", logistic_regression(learned, targets, num_classes, asked)
    else:
        yield "mean", np.full((count, 1), targets.mean())
        yield "linear", linear_regression(learned, targets, asked)
    if importlib.util.find_spec("sklearn") is not None:
        yield "boosted trees", boosted_trees(spec, train, inputs)


def design(columns: tuple[Column, ...], inputs: np.ndarray) -> sparse.csr_array:
    """The inputs of linear models, `[examples, features]`: numbers, a mark for each missing one, a mark per category,
    and a constant. A missing number is 0, the mean."""
    parts: list[sparse.csr_array] = []
    for column, values in zip(columns, inputs.T, strict=True):
        if column.is_categorical:
            rows = np.arange(len(values))
            shape = (len(values), column.num_categories)
            parts.append(sparse.csr_array((np.ones(len(values)), (rows, values.astype(np.int64))), shape=shape))
        else:
            missing = np.isnan(values)
            parts.append(sparse.csr_array(np.stack([np.where(missing, 0, values), missing], axis=1, dtype=np.float64)))
    parts.append(sparse.csr_array(np.ones((len(inputs), 1))))
    return sparse.hstack(parts, format="csr")


def linear_regression(learned: sparse.csr_array, targets: np.ndarray, asked: sparse.csr_array) -> np.ndarray:
    """Ridge regression: the values `[examples, 1]` for `asked`."""
    damping = np.sqrt(L2 * learned.shape[0])
    weights = sparse.linalg.lsqr(learned, targets.astype(np.float64), damp=damping, iter_lim=1000)[0]
    return np.asarray(asked @ weights)[:, None]


def logistic_regression(
    learned: sparse.csr_array, labels: np.ndarray, num_classes: int, asked: sparse.csr_array
) -> np.ndarray:
    """Multinomial logistic regression by L-BFGS: the log-probabilities `[examples, classes]` for `asked`."""
    count, num_features = learned.shape
    rows = np.arange(count)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(num_features, num_classes)
        logits = learned @ weights
        errors = softmax(logits, axis=1)
        nats = -log_softmax(logits, axis=1)[rows, labels].mean()
        errors[rows, labels] -= 1
        gradient = learned.T @ errors / count + L2 * weights
        return float(nats + L2 / 2 * (weights**2).sum()), gradient.ravel()

    start = np.zeros(num_features * num_classes)
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": MOST_ITERATIONS})
    return np.asarray(log_softmax(asked @ found.x.reshape(num_features, num_classes), axis=1))


def boosted_trees(spec: DataSpec, train: Arrays, inputs: np.ndarray) -> np.ndarray:
    """scikit-learn's histogram gradient boosting with its defaults: outputs as `table_baselines` gives them."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    categorical = [0 < column.num_categories <= MOST_TREE_CATEGORIES for column in spec.columns]
    kind = HistGradientBoostingClassifier if spec.classes else HistGradientBoostingRegressor
    trees = kind(categorical_features=categorical, random_state=0).fit(train["inputs"], train["targets"])
    if not spec.classes:
        return np.asarray(trees.predict(inputs))[:, None]
    probabilities = np.full((len(inputs), len(spec.classes)), 1e-9)
    probabilities[:, trees.classes_] = np.maximum(trees.predict_proba(inputs), 1e-9)  # classes_: of the training rows
    return np.log(probabilities)
