# SPDX-License-Identifier: Apache-2.0
"""A ``service.yaml`` -> a mapping, strictly: a key that is written twice is an error, not a silent loss.

What always holds here: only plain data comes out; every error names file and line. What does not belong here: what
the keys mean.
"""

from __future__ import annotations

from typing import Any, NoReturn

import yaml

from ..errors import ManifestError


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                    continue
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None,
                        None,
                        f"key {key.value!r} is written twice (first in line {seen[key.value]})",
                        key.start_mark,
                    )
                seen[key.value] = line
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: str) -> dict[str, Any]:
    """The top-level mapping of a YAML file; empty for an empty file.

    Raises:
        ManifestError: the file cannot be read, is not YAML, or is not a mapping with text keys.
    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ManifestError(f"{path}, line {line}: not UTF-8: byte 0x{error.object[error.start]:02x}") from None
    try:
        value = yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader that is stricter still
    except yaml.YAMLError as error:
        _refuse(path, text, error)
    except RecursionError:
        raise ManifestError(f"{path}: nested too deeply") from None
    except ValueError as error:  # such as 2024-99-99, which YAML takes for a date
        raise ManifestError(f"{path}: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ManifestError(f"{path}: found {type(value).__name__}, expected keys and values, such as 'name: vision'")
    for key in value:
        if not isinstance(key, str):
            raise ManifestError(f"{path}: key {key!r}: found {type(key).__name__}, expected text (put it in quotes)")
    return value


def _refuse(path: str, text: str, error: yaml.YAMLError) -> NoReturn:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if mark is not None:
        raise ManifestError(f"{path}, line {mark.line + 1}, column {mark.column + 1}: {problem}") from None
    position = getattr(error, "position", None)
    line = text.count("\n", 0, position) + 1 if isinstance(position, int) else 1
    raise ManifestError(f"{path}, line {line}: {problem}") from None
