# SPDX-License-Identifier: Apache-2.0
"""Amounts of memory: decimal and binary units are told apart, what is ambiguous is refused with what is expected."""

from __future__ import annotations

import pytest

from atoll.manifest.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (123, 123),
        ("123", 123),
        ("123B", 123),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("500MB", 500_000_000),
        ("512MiB", 512 * 1024 * 1024),
        (" 2 gb ", 2_000_000_000),
        ("2GiB", 2 * 1024**3),
        ("1.5GB", 1_500_000_000),
        ("1_000MB", 1_000_000_000),
        ("3TB", 3 * 10**12),
        ("1TiB", 1024**4),
    ],
)
def test_a_size_is_read(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "wrong", ["", "GB", "2G", "2 parsecs", "-1GB", "0", 0, -5, "1e9", "1.2.3MB", "0.1B", True, None, 2.5]
)
def test_anything_else_is_refused_with_what_is_expected(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"expected a number of bytes .* \"500MB\"") as caught:
        parse_size(wrong)  # type: ignore[arg-type]
    assert repr(wrong) in str(caught.value)
