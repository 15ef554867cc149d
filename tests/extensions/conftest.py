# SPDX-License-Identifier: Apache-2.0
"""For the tests of extensions: writing packs, loading them, and what stands for a host's own interface of nodes."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from atoll.extensions import ExtensionManager

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a pack: its ``__init__.py``, and other files by name with ``__`` for a dot. Its folder."""

    def write_pack(name: str, text: str, manifest: str | None = None, **files: str) -> Path:
        folder = tmp_path / "nodes" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text(textwrap.dedent(text))
        if manifest is not None:
            (folder / "manifest.yaml").write_text(textwrap.dedent(manifest))
        for file, content in files.items():
            (folder / file.replace("__", ".")).write_text(textwrap.dedent(content))
        return folder

    return write_pack


@pytest.fixture
def run() -> Callable[[Callable[[ExtensionManager], Coroutine[Any, Any, Any]]], Any]:
    """Run a coroutine function with a manager, which is closed at the end."""

    def run_with_manager(main: Callable[[ExtensionManager], Coroutine[Any, Any, Any]]) -> Any:
        async def whole() -> Any:
            async with ExtensionManager() as manager:
                return await main(manager)

        return asyncio.run(asyncio.wait_for(whole(), 300))

    return run_with_manager


INTERFACE = """
import enum


class NumberDisplay(str, enum.Enum):
    number = "number"
    slider = "slider"


class _Part:
    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs


class Image:
    class Input(_Part): ...
    class Output(_Part): ...


class Float:
    class Input(_Part): ...
    class Output(_Part): ...


def Custom(name):
    class Made:
        io_type = name
        class Input(_Part): ...
        class Output(_Part): ...
    return Made


class Schema:
    def __init__(self, node_id, display_name=None, category="", inputs=(), outputs=()):
        self.node_id, self.display_name, self.category = node_id, display_name, category
        self.inputs, self.outputs = list(inputs), list(outputs)


class NodeOutput:
    def __init__(self, *args, ui=None, expand=None, block_execution=None):
        self.args, self.ui = args, ui

    @property
    def result(self):
        return self.args


class ExecutionBlocker:
    def __init__(self, message=None):
        self.message = message


class ComfyNode:
    hidden = None


import os
"""
SHOWING = """
import os


class PreviewImage:
    def __init__(self, image, animated=False, cls=None):
        self.image, self.cls = image, cls

    def as_dict(self):
        return {"images": [self.image.shape]}
"""


@pytest.fixture
def interface(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module with ``io`` and ``ui``, as a host of nodes has one."""
    io = ModuleType("host_of_nodes.io")
    monkeypatch.setitem(sys.modules, io.__name__, io)
    exec(INTERFACE, io.__dict__)
    module = ModuleType("host_of_nodes")
    module.io = io  # type: ignore[attr-defined]
    ui = ModuleType("host_of_nodes.ui")
    exec(SHOWING, ui.__dict__)
    module.ui = ui  # type: ignore[attr-defined]
    return module
