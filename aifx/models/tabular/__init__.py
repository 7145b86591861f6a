"""A multilayer perceptron over the columns of a table, with embeddings of numbers and categories."""

from aifx.models import Family
from aifx.models.tabular.section import TabularSection

FAMILY = Family("tabular", TabularSection, "aifx.models.tabular.model:make")
