# SPDX-License-Identifier: Apache-2.0
"""``atoll extension check`` says what of a pack can run isolated, and why not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import atoll
from atoll.extensions import ExtensionConfig, ExtensionManager, check_pack

Run = Callable[[Callable[[ExtensionManager], Any]], Any]
Write = Callable[..., Path]

PACK = """
    import numpy as np
    import yaml
    import folder_paths
    from .inner import help
    try:
        import comfy.model_management
    except ImportError:
        pass

    class Clean:
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "run"
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"image": ("IMAGE",), "by": ("FLOAT", {"default": 1.0})}}
        def run(self, image, by):
            return (image * by,)

    class Sampler:
        RETURN_TYPES = ("LATENT",)
        FUNCTION = "run"
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"model": ("MODEL",)}}
        def run(self, model): ...

    class Loader:
        RETURN_TYPES = ("MODEL",)
        FUNCTION = "run"
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"name": (folder_paths.get_filename_list("loras"),)}}
        def run(self, name): ...

    class NoNode:
        pass

    WEB_DIRECTORY = "./js"
    NODE_CLASS_MAPPINGS = {"Clean": Clean, "Sampler": Sampler, "Loader": Loader}
"""
SCHEMA = """
    from comfy_api.latest import io, ui

    class Preview(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Preview", inputs=[io.Image.Input("image"), io.Clip.Input("clip")])
        @classmethod
        def execute(cls, image):
            return io.NodeOutput(ui=ui.PreviewImage(image, cls=cls), name=cls.hidden.unique_id)
"""


def test_what_can_and_what_cannot(write: Write) -> None:
    manifest = "dependencies: [numpy, pyyaml]\n"
    folder = write("mixed", PACK, manifest, inner__py="import scipy\n", schema__py=SCHEMA)
    report = check_pack(folder)
    assert report.nodes == {"Clean": "yes", "Sampler": "look", "Loader": "no", "Preview": "look"}
    assert not report.can_be_isolated
    said = {(finding.level, finding.place, finding.node, finding.text.partition(":")[0]) for finding in report.findings}
    assert said == {
        ("no", "__init__.py:4", "", "imports folder_paths"),
        ("look", "__init__.py:7", "", "imports comfy.model_management"),
        ("look", "__init__.py:25", "Sampler", "takes MODEL, which is passed as a reference"),
        ("no", "__init__.py:33", "Loader", "uses folder_paths of the host's module folder_paths"),
        ("look", "__init__.py:39", "", "WEB_DIRECTORY"),
        ("look", "inner.py:1", "", "imports scipy, which no dependency of manifest.yaml is named after"),
        ("look", "schema.py:7", "Preview", "takes CLIP, which is passed as a reference"),
    }


def test_what_the_host_offers_is_there(write: Write) -> None:
    offered = """
        import folder_paths
        import comfy.utils
        from comfy import utils, model_management
        from comfy_api.latest import ComfyAPI, io

        HERE = folder_paths.get_output_directory()

        class Loader:
            RETURN_TYPES = ("STRING",)
            FUNCTION = "run"
            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"name": (folder_paths.get_filename_list("loras"),)}}
            def run(self, name):
                return (comfy.utils.load(name),)

        class Manager:
            RETURN_TYPES = ("STRING",)
            FUNCTION = "run"
            def run(self):
                return (model_management.get(),)
    """
    folder = write("offered", offered, "dependencies: [numpy]\n")
    alone = check_pack(folder)
    assert alone.nodes == {"Loader": "no", "Manager": "no"}
    report = check_pack(folder, ["folder_paths", "comfy.utils"])
    assert report.nodes == {"Loader": "yes", "Manager": "no"}
    assert [(finding.level, finding.place, finding.text.partition(":")[0]) for finding in report.findings] == [
        ("no", "__init__.py:4", "imports comfy.model_management"),
        ("no", "__init__.py:5", "imports comfy_api.latest.ComfyAPI"),
        (
            "no", "__init__.py:7",
            "calls folder_paths.get_output_directory while it is imported, when the host's module folder_paths cannot "
            "be called",
        ),
        ("no", "__init__.py:22", "uses model_management of the host's module comfy.model_management"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("import folder_paths", False),
        ("import folder_paths", True),
        ("from folder_paths import models_dir", True),
        ("import folder_paths\nx = folder_paths.get()", True),
        ("import folder_paths\ndef f():\n    return folder_paths.get()", True),
        ("import comfy.utils", False),
        ("import comfy.utils", True),
        ("from comfy import utils", True),
        ("from comfy import samplers", True),
        ("import nodes", False),
        ("from comfy_api.latest import io, ui, ComfyExtension, Input, InputImpl, Types, IO, UI", False),
        ("from comfy_api.latest import ComfyAPI", False),
        ("from comfy_api.latest._io import Image", False),
        ("from comfy_api.v0_0_2 import io", False),
        ("import comfy_api.latest", False),
        ("import comfy_api.input", False),
    ],
)
def test_the_check_agrees_with_what_happens(run: Run, write: Write, text: str, offered: bool) -> None:
    folder = write("agreed", text + "\nclass Node:\n    FUNCTION = 'run'\nNODE_CLASS_MAPPINGS = {'Node': Node}\n")
    module = ModuleType("of_the_host")
    exec("models_dir = '/models'\ndef get():\n    return 1\n", module.__dict__)
    modules = {"folder_paths": module, "comfy.utils": module} if offered else {}

    async def main(manager: ExtensionManager) -> bool:
        try:
            await manager.load_extension(ExtensionConfig("agreed", folder, modules=modules))
        except atoll.WorkerStartError:
            return False
        return True

    assert check_pack(folder, modules).can_be_isolated == run(main)


def test_nothing_of_a_pack_is_run(write: Write) -> None:
    folder = write("running", "raise SystemExit('was run')\n", "isolated: false\n")
    report = check_pack(folder)
    assert report.can_be_isolated
    assert [finding.text.partition(",")[0] for finding in report.findings] == [
        "says isolated: false",
        "no node class can be seen in its text; its methods can be called",
    ]


def test_what_is_imported_in_other_ways(write: Write) -> None:
    text = """
        import importlib
        import typing
        from typing import TYPE_CHECKING

        if TYPE_CHECKING:
            import folder_paths
        if typing.TYPE_CHECKING:
            import nodes

        def later():
            importlib.import_module("comfy.sd")
            return __import__("server")
    """
    folder = write("dynamic", text, "dependencies: [numpy]\n", deep__py="x = " + "+".join("1" * 100_000))
    said = [(one.level, one.place, one.text.partition(":")[0]) for one in check_pack(folder).findings]
    assert said == [
        ("no", "__init__.py:12", "imports comfy.sd"),
        ("no", "__init__.py:13", "imports server"),
        ("look", "deep.py:1", "is nested too deeply to be read, so nothing is known of it"),
        ("look", "dynamic", "no node class can be seen in its text; its methods can be called"),
    ]


def test_what_is_no_python_and_what_is_no_pack(write: Write) -> None:
    folder = write("broken", "def f(:\n")
    assert [finding.place for finding in check_pack(folder).findings if finding.level == "no"] == ["__init__.py:1"]
    with pytest.raises(atoll.ManifestError, match=r"found no __init__\.py"):
        check_pack(folder.parent)


def test_the_command(write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("typer")
    from atoll.cli import main

    folder = write("mixed", PACK, "dependencies: [numpy, pyyaml]\n", inner__py="")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["atoll", "extension", "check", str(folder)])
    assert main() == 1
    out = capsys.readouterr().out
    assert "✓ Clean\n! Sampler\n✗ Loader\n" in out
    assert "✗ __init__.py:4: imports folder_paths: the host knows its folders: it can offer this module" in out
    assert out.endswith(
        "of 3 nodes, 2 can run isolated, 1 of them with a look at what is said above; 1 cannot as they are\n"
    )
    monkeypatch.setattr(sys, "argv", ["atoll", "extension", "check", "--json", str(folder)])
    assert main() == 1
    assert json.loads(capsys.readouterr().out)["nodes"] == {"Clean": "yes", "Sampler": "look", "Loader": "no"}
