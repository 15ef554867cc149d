# SPDX-License-Identifier: Apache-2.0
"""Amounts of memory as people write them: ``"2GB"``, ``"512MiB"``, ``1_000_000``.

What always holds here: decimal and binary units are told apart, as their standards do (kB is 1000 bytes, KiB is 1024);
an ambiguous one such as ``"2G"`` is refused. What does not belong here: what an amount is a limit of.
"""

from __future__ import annotations

import re

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
EXPECTED = 'a number of bytes greater than zero, or text such as "500MB", "2GB" (decimal), "512MiB" or "2GiB" (binary)'
_SIZE = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_size(value: int | str) -> int:
    """An amount of memory in bytes.

    Args:
        value: a number of bytes, or a number with a unit: B, kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB
            (powers of 1024), in upper or lower case. A fraction is fine with a unit: ``"1.5GB"``.

    Raises:
        ValueError: it is anything else, or not greater than zero; the message names what is expected.
    """
    size = 0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value)) is not None:
        unit = _UNITS.get(match[2].upper() or "B", 0)
        size = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if size <= 0:
        raise ValueError(f"{value!r} is not an amount of memory; expected {EXPECTED}")
    return size
