"""A column that is encoded at once has the numbers of its values."""

from __future__ import annotations

import math
from datetime import date, datetime
from typing import Any

import numpy as np
import pytest

from aifx.data.columns import encode_column, encoder
from aifx.data.spec import Column

COLUMNS = (
    Column("a", "numeric", "", 2.5, 0.3, (-1.0, 1.0)),
    Column("a", "numeric", "", 0.0, 1e-300, (-1.0, 1.0)),
    Column("a", "categorical", categories=("1", "1.0", "true", "x")),
    Column("a", "boolean", categories=("false", "true")),
    Column("a", "date", "hour", 12.0, 4.0, (-1.0, 1.0)),
)
VALUES: tuple[list[Any], ...] = (
    [1, 2.5, -7, 10**30],
    ["1", " 2.5 ", "-1e3", "0"],
    ["1", "", "NA", "nan"],
    ["1_0", "2"],
    [1.0, math.nan, None],
    [1e36, 1.1e36],
    ["inf", "1"],
    [10**400, 1],
    [True, False, 1, 1.0, "true", "1.0"],
    ["x", None, "yes", "No", " x"],
    [0.0, -0.0, 1.0],
    [["x"], {"x": 1}],
    ["2024-05-31T12:00", "2024/05/31", None],
    [datetime(2024, 5, 31, 7), date(2024, 5, 31)],
    [],
)


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: f"{column.kind}-{column.scale:g}")
def test_a_column_at_once_has_the_numbers_of_its_values(column: Column) -> None:
    encode = encoder(column)
    for values in VALUES:
        try:
            expected = [encode(value) for value in values]
        except (ValueError, OverflowError) as error:
            with pytest.raises(type(error)):
                encode_column(column, encode, values)
        else:
            np.testing.assert_array_equal(encode_column(column, encode, values), np.array(expected, np.float64))
