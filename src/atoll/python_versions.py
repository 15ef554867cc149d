# SPDX-License-Identifier: Apache-2.0
"""What a service may write under ``python``, and which interpreters satisfy it.

What always holds here: pure text and numbers, the standard library's ``re`` and nothing else, so that the manifest
can check a request and the environments can apply it without importing one another. What does not belong here:
looking for interpreters (``atoll.environments.interpreters``).
"""

from __future__ import annotations

import os
import re

# major, minor, micro, phase (alpha 0, beta 1, candidate 2, final 3), serial within the phase
VersionKey = tuple[int, int, int, int, int]

FINAL = 3
_PHASES = {"a": 0, "b": 1, "rc": 2}
EXPECTED = 'a version ("3.12"), a PEP 440 specifier (">=3.11,<3.14") or the path of an interpreter'

_VERSION = re.compile(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:(a|b|rc)(\d+))?")
_CLAUSE = re.compile(r"\s*(~=|===|==|!=|<=|>=|<|>)\s*(\d+(?:\.\d+){0,2}(?:(?:a|b|rc)\d+)?)(\.\*)?\s*")


class PythonRequest:
    """One parsed request. Make it with ``parse_python``.

    Attributes:
        text: as it was written.
        path: the interpreter's path as written, or None when a version is asked for.
    """

    __slots__ = ("_clauses", "path", "text")

    def __init__(self, text: str, path: str | None, clauses: tuple[tuple[str, str, bool], ...]) -> None:
        self.text = text
        self.path = path
        self._clauses = clauses

    def accepts(self, version: VersionKey) -> bool:
        """Whether an interpreter of this version satisfies every clause. A path accepts any version."""
        return all(_satisfies(version, *clause) for clause in self._clauses)


def parse_python(text: str) -> PythonRequest:
    """Read what was written under ``python``.

    Raises:
        ValueError: it is none of the three forms; the message is what is expected.
    """
    stripped = text.strip()
    if is_path(stripped):
        return PythonRequest(text, stripped, ())
    if _VERSION.fullmatch(stripped):
        # "3.12" means any 3.12; "3.12.1" and "3.13.0rc2" mean exactly that.
        whole = stripped.count(".") == 2 or not stripped.replace(".", "").isdigit()
        return PythonRequest(text, None, (("==", stripped, not whole),))
    clauses = []
    for part in stripped.split(","):
        match = _CLAUSE.fullmatch(part)
        if match is None:
            raise ValueError(EXPECTED)
        operator, version, star = match.group(1), match.group(2), bool(match.group(3))
        # PEP 440 allows the wildcard with these two only, and "compatible" needs two numbers.
        if (star and (operator not in ("==", "!=") or not version.replace(".", "").isdigit())) or (
            operator == "~=" and "." not in version
        ):
            raise ValueError(EXPECTED)
        clauses.append((operator, version, star))
    return PythonRequest(text, None, tuple(clauses))


def is_path(text: str) -> bool:
    """Whether a request reads as a path rather than as a version."""
    return os.sep in text


def _key(version: str) -> VersionKey:
    match = _VERSION.fullmatch(version)
    assert match is not None, version
    major, minor, micro, phase, serial = match.groups()
    final = phase is None
    return (
        int(major),
        int(minor or 0),
        int(micro or 0),
        FINAL if final else _PHASES[phase],
        int(serial or 0),
    )


def _satisfies(found: VersionKey, operator: str, wanted: str, star: bool) -> bool:
    key = _key(wanted)
    if star:
        count = wanted.count(".") + 1
        return (found[:count] == key[:count]) is (operator == "==")
    if operator == "~=":
        count = wanted.count(".")
        return found >= key and found[:count] == key[:count]
    if operator in ("==", "==="):
        return found == key
    if operator == "!=":
        return found != key
    if operator == "<":
        # PEP 440: "<3.13" does not admit 3.13's own pre-releases.
        return found < key and not (found[:3] == key[:3] and key[3] == FINAL)
    if operator == "<=":
        return found <= key
    if operator == ">":
        return found > key
    return found >= key
