# SPDX-License-Identifier: Apache-2.0
"""The PEP 723 header of a Python file -> keys of a spec.

What always holds here: a file is read as text and never run. What does not belong here: checking the values.
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import ManifestError

# The form that PEP 723 itself defines. What begins as a block and is none has no effect by the PEP; who wrote it meant
# one, so here it is an error.
_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_OPENING = "# /// script"
_CLOSING = "# ///"


def header_text(source: str, where: str = "the script") -> str | None:
    """The TOML text of a file's ``script`` block, or None if it has none.

    Raises:
        ManifestError: there are several, or one is not closed or holds a line that is no comment of its form.
    """
    matches = list(_BLOCK.finditer(source))
    found = [match for match in matches if match.group("type") == "script"]
    # Not splitlines(): a string may hold other characters that it would take for line ends.
    lines = source.split("\n")
    blocks = [(_line_of(source, match.start()), _line_of(source, match.end()), match) for match in matches]
    openings = []
    for number, line in enumerate(lines, 1):
        if line != _OPENING:
            continue
        inside = next((match for first, last, match in blocks if first <= number <= last), None)
        if inside is None:
            _refuse_unfinished(lines, number, where)
        elif inside in found:
            openings.append(number)
    # Two with nothing between them are one block by the PEP's form, with the second's opening line inside.
    if len(openings) > 1:
        numbers = " and ".join(map(str, openings))
        count = "two" if len(openings) == 2 else str(len(openings))
        raise ManifestError(f"{where}, lines {numbers}: {count} `{_OPENING}` blocks, expected at most one (PEP 723)")
    if not found:
        return None
    body = found[0].group("content").removesuffix("\n").split("\n")
    return "".join((line[2:] if line.startswith("# ") else line[1:]) + "\n" for line in body)


def _line_of(source: str, position: int) -> int:
    return source.count("\n", 0, position) + 1


def _refuse_unfinished(lines: list[str], opening: int, where: str) -> None:
    """The error for what begins as a block in line ``opening`` (from 1) and is none; nothing if it is just empty."""
    for number, line in enumerate(lines[opening:], opening + 1):
        if line == _CLOSING:
            return
        if line != "#" and not line.startswith("# "):
            if _CLOSING in lines[number:]:
                raise ManifestError(
                    f"{where}, line {number}: found {line!r} in the `{_OPENING}` block of line {opening}, expected a "
                    "line that is '#' or begins with '# ' (PEP 723)"
                )
            break
    raise ManifestError(
        f"{where}, line {opening}: `{_OPENING}` is never closed, expected a line `{_CLOSING}` (PEP 723)"
    )


def read_header(path: str) -> list[tuple[str, dict[str, Any]]]:
    """What a file's header says, as tables in rising order of precedence: (name of the table, its keys).

    ``requires-python`` and ``dependencies`` are the PEP's own; ``[tool.uv]`` may name indexes and find-links;
    ``[tool.atoll]`` holds any other key of a spec.

    Raises:
        ManifestError: the file cannot be read, or its header is not TOML.
    """
    text = header_text(_read(path), path)
    if text is None:
        return []
    import tomllib

    try:
        header = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{path}: the PEP 723 header is not TOML: {error}") from None
    own: dict[str, Any] = {}
    if "requires-python" in header:
        own["requires-python"] = header["requires-python"]
    if "dependencies" in header:
        own["dependencies"] = header["dependencies"]
    tool = header.get("tool", {})
    tables = [("", own)]
    if isinstance(tool, dict):
        if isinstance(tool.get("uv"), dict):
            tables.append(("[tool.uv] ", _uv_keys(tool["uv"])))
        if "atoll" in tool:
            if not isinstance(tool["atoll"], dict):
                raise ManifestError(f"{path}: key tool.atoll: found {tool['atoll']!r}, expected a table")
            tables.append(("[tool.atoll] ", tool["atoll"]))
    return [(name, keys) for name, keys in tables if keys]


def _uv_keys(table: dict[str, Any]) -> dict[str, Any]:
    """Indexes and find-links as uv spells them -> as a spec does. Anything else there is uv's own business."""
    keys: dict[str, Any] = {}
    indexes = table.get("index", [])
    urls = [index.get("url") for index in indexes if isinstance(index, dict)] if isinstance(indexes, list) else []
    extra = table.get("extra-index-url", [])
    urls += extra if isinstance(extra, list) else []
    urls += [table["index-url"]] if "index-url" in table else []
    if urls:
        keys["indexes"] = urls
    if "find-links" in table:
        keys["find_links"] = table["find-links"]
    return keys


def _read(path: str) -> str:
    import tokenize

    try:
        with tokenize.open(path) as file:  # honours the file's own coding line, and any kind of line end
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ManifestError(f"{path}: cannot be read as a Python file: {reason}") from None
