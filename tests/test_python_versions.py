# SPDX-License-Identifier: Apache-2.0
"""Which interpreters a request under ``python`` accepts; compared with the reference implementation of PEP 440."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.python_versions import FINAL, VersionKey, is_path, parse_python


def final(text: str) -> VersionKey:
    major, minor, micro = map(int, text.split("."))
    return (major, minor, micro, FINAL, 0)


@pytest.mark.parametrize(
    ("request_text", "yes", "no"),
    [
        ("3", ["3.9.0", "3.13.1"], ["2.7.18"]),
        ("3.12", ["3.12.0", "3.12.9"], ["3.11.9", "3.13.0", "3.1.2"]),
        ("3.12.1", ["3.12.1"], ["3.12.0", "3.12.2"]),
        (">=3.11,<3.13", ["3.11.0", "3.12.9"], ["3.10.14", "3.13.0"]),
        (" >= 3.11 , != 3.12.* ", ["3.11.0", "3.13.0"], ["3.12.4"]),
        ("~=3.11", ["3.11.0", "3.13.0"], ["3.10.0", "4.0.0"]),
        ("~=3.11.2", ["3.11.2", "3.11.9"], ["3.11.1", "3.12.0"]),
        ("==3.12.*", ["3.12.7"], ["3.13.0"]),
        ("===3.12.7", ["3.12.7"], ["3.12.6"]),
    ],
)
def test_versions(request_text: str, yes: list[str], no: list[str]) -> None:
    request = parse_python(request_text)
    assert [one for one in yes if not request.accepts(final(one))] == []
    assert [one for one in no if request.accepts(final(one))] == []


def test_pre_releases() -> None:
    candidate = (3, 14, 0, 2, 1)
    assert not parse_python("<3.14").accepts(candidate)
    assert not parse_python(">=3.14").accepts(candidate)
    assert parse_python(">=3.14.0rc1").accepts(candidate)
    assert parse_python("3.14.0rc1").accepts(candidate)
    assert not parse_python("3.14.0rc2").accepts(candidate)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        "python3.12",
        ">=",
        ">=3.11 <3.13",
        "3.12.*",
        ">3.12.*",
        "~=3",
        "3.12.1.2",
        ">=3.11,",
        "1!3.12",
        "三",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="PEP 440"):
        parse_python(text)


@pytest.mark.parametrize("text", ["/usr/bin/python3", "./python", "~/bin/python", "../x"])
def test_paths(text: str) -> None:
    assert is_path(text)
    assert parse_python(text).path == text


_NUMBERS = st.tuples(st.integers(2, 4), st.integers(0, 15), st.integers(0, 20))
_CLAUSES = st.builds(
    lambda operator, numbers, count, star: (
        operator
        + ".".join(map(str, numbers[: max(count, 2) if operator == "~=" else count]))
        + (".*" if star and operator in ("==", "!=") else "")
    ),
    st.sampled_from(["==", "!=", "<=", ">=", "<", ">", "~="]),
    _NUMBERS,
    st.integers(1, 3),
    st.booleans(),
)


@given(st.lists(_CLAUSES, min_size=1, max_size=4), _NUMBERS)
def test_final_versions_as_the_reference_has_it(clauses: list[str], version: tuple[int, int, int]) -> None:
    specifiers = pytest.importorskip("packaging.specifiers")
    text = ",".join(clauses)
    expected = specifiers.SpecifierSet(text).contains(".".join(map(str, version)))
    assert parse_python(text).accepts((*version, FINAL, 0)) == expected
