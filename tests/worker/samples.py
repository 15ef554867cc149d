# SPDX-License-Identifier: Apache-2.0
"""Values of every type that crosses, and a strategy of arbitrary ones."""

from __future__ import annotations

import datetime
import zoneinfo
from pathlib import Path, PurePosixPath
from typing import Any

from hypothesis import strategies as st

from .array_values import ARRAYS, DTYPES, SCALARS, filled
from .standard_values import HOURS, NAMED, STANDARD, same

__all__ = ["EXAMPLES", "anything", "same"]

EXAMPLES: list[Any] = [*STANDARD, *ARRAYS, *SCALARS]

zones = st.sampled_from([None, datetime.UTC, HOURS, NAMED, zoneinfo.ZoneInfo("Europe/Berlin")])
fixed_zones = st.sampled_from([None, datetime.UTC, HOURS, NAMED])
# Hashable ones, which may be keys.
scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats(width=64)
    | st.complex_numbers() | st.text(max_size=40) | st.characters(categories=["Cs"]) | st.binary(max_size=40)
    | st.dates() | st.times(timezones=fixed_zones) | st.datetimes(timezones=zones) | st.timedeltas() | st.uuids()
    | st.decimals().filter(lambda value: not value.is_snan())
    | st.fractions() | st.sampled_from([..., Path("a"), PurePosixPath("b"), range(3), range(0, 9, 4)])
)  # fmt: skip
arrays = st.tuples(st.sampled_from(DTYPES), st.sampled_from([(), (1,), (0,), (2, 3), (3, 0), (2, 1, 2)])).map(
    lambda pair: filled(*pair)
)
numpy_scalars = st.sampled_from(SCALARS)
keys = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
anything = st.recursive(
    scalars | arrays | numpy_scalars | st.binary(max_size=40).map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
    ),
    max_leaves=15,
)
