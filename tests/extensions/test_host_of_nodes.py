# SPDX-License-Identifier: Apache-2.0
"""What a node uses of its host, in an isolated pack: ``cls.hidden``, ``ui``, modules that the host offers; and what is
said of the rest."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.extensions import ExtensionConfig, ExtensionManager, proxy_nodes
from interpreters import INTERPRETERS

Run = Callable[[Callable[[ExtensionManager], Any]], Any]
Write = Callable[..., Path]

NODES = """
    from comfy_api.latest import ComfyExtension, io, ui

    class Base(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id=cls.__name__, inputs=[io.Image.Input("image")], outputs=[io.Image.Output()])

    class Tells(Base):
        @classmethod
        def execute(cls, image):
            hidden = cls.hidden
            if hidden is None:
                return io.NodeOutput(None)
            return io.NodeOutput(hidden.unique_id, hidden.prompt, hidden.dynprompt.name(), hidden.not_said)

    class TellsLater(Base):
        @classmethod
        async def execute(cls, image):
            import asyncio
            await asyncio.sleep(0)
            return io.NodeOutput(cls.hidden.unique_id)

    class Shows(Base):
        @classmethod
        def execute(cls, image):
            return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))

    class ShowsPlain(Base):
        @classmethod
        def execute(cls, image):
            return {"ui": ui.PreviewImage(image).as_dict(), "result": (image,)}

    class Blocks(Base):
        @classmethod
        def execute(cls, image):
            return io.NodeOutput(io.ExecutionBlocker("not today"))

    class Reaches(Base):
        @classmethod
        def execute(cls, image):
            return io.NodeOutput(ui=ui.os.system("true"))

    class Loops(Base):
        @classmethod
        def execute(cls, image):
            return io.NodeOutput(list(ui.PreviewImage(image)))

    class Pack(ComfyExtension):
        async def get_node_list(self):
            return [Tells, TellsLater, Shows, ShowsPlain, Blocks, Reaches, Loops]

    def comfy_entrypoint():
        return Pack()
"""
IMAGE = np.full((1, 2, 2, 3), 0.5, np.float32)


class Hidden:
    """As a host sets it on the class it runs."""

    def __init__(self, **said: Any) -> None:
        self.__dict__.update(said)


class Dynamic:
    """A host's object that is no data."""

    def name(self) -> str:
        return "of the host"


def test_hidden_values_are_those_of_the_run(run: Run, write: Write, interface: ModuleType) -> None:
    folder = write("telling", NODES)

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("telling", folder, concurrency=2))
        nodes: Any = proxy_nodes(pack, interface)
        assert nodes["Tells"].execute(image=IMAGE).result == (None,)  # the host said nothing

        def clone(cls: type, number: int) -> Any:
            """As ComfyUI runs a node: by a class of its own for each run."""
            hidden = Hidden(unique_id=str(number), prompt={"1": {"inputs": {}}}, dynprompt=Dynamic(), secret="s")
            return type(cls.__name__, (cls,), {"hidden": hidden})

        said = clone(nodes["Tells"], 7).execute(image=IMAGE).result
        assert said == ("7", {"1": {"inputs": {}}}, "of the host", None)
        # Each run has its own, also where several are in progress.
        classes = [clone(nodes["TellsLater"], number) for number in range(8)]
        results = await asyncio.gather(*(cls.execute(image=IMAGE) for cls in classes))
        assert [one.result for one in results] == [(str(number),) for number in range(8)]

    run(main)


def test_what_is_shown_is_made_by_the_host(run: Run, write: Write, interface: ModuleType) -> None:
    folder = write("showing", NODES)

    async def main(manager: ExtensionManager) -> None:
        nodes: Any = proxy_nodes(await manager.load_extension(ExtensionConfig("showing", folder)), interface)
        output = nodes["Shows"].execute(image=IMAGE)
        assert type(output.ui) is interface.ui.PreviewImage
        assert np.array_equal(output.ui.image, IMAGE)
        assert output.ui.cls is nodes["Shows"]  # not the pack's class: the host's
        assert nodes["ShowsPlain"].execute(image=IMAGE)["ui"] == {"images": [IMAGE.shape]}
        (blocker,) = nodes["Blocks"].execute(image=IMAGE).result
        assert type(blocker) is interface.io.ExecutionBlocker
        assert blocker.message == "not today"
        with pytest.raises(atoll.AtollError, match=r"node 'Reaches' uses ui\.os, which this process's comfy_api has"):
            nodes["Reaches"].execute(image=IMAGE)
        with pytest.raises(TypeError, match=r"<ui\.PreviewImage\(…\)> is evaluated by the host"):
            nodes["Loops"].execute(image=IMAGE)
        del interface.ui
        with pytest.raises(atoll.AtollError, match="node 'Shows' uses ui, which this process's comfy_api has not"):
            nodes["Shows"].execute(image=IMAGE)

    run(main)


def test_a_schema_that_loops_over_the_interface_does_not_hang(run: Run, write: Write) -> None:
    folder = write("looping", "from comfy_api.latest import io\nNODE_CLASS_MAPPINGS = {x: 1 for x in io.FolderType}\n")

    async def main(manager: ExtensionManager) -> None:
        with pytest.raises(atoll.WorkerStartError, match=r"<io\.FolderType> is evaluated by the host"):
            await manager.load_extension(ExtensionConfig("looping", folder))

    run(main)


def test_types_of_a_packs_own(run: Run, write: Write, interface: ModuleType) -> None:
    text = """
        from comfy_api.latest import ComfyExtension, io

        @io.comfytype(io_type="PALETTE")
        class Palette(io.ComfyTypeIO):
            Type = list

        @io.comfytype(io_type="TREE")
        class Tree(io.ComfyTypeI, io.ComfyTypeIO):
            class Input(io.WidgetInput):
                def __init__(self, *args): ...

        class Node(io.ComfyNode):
            @classmethod
            def define_schema(cls):
                return io.Schema(node_id="Node", inputs=[Palette.Input("palette")], outputs=[Palette.Output()])

            @classmethod
            def execute(cls, palette: Palette.Type):
                return io.NodeOutput(palette[::-1])

        class Odd(Node):
            @classmethod
            def define_schema(cls):
                return io.Schema(node_id="Odd", inputs=[Tree.Input("tree")])

        class Pack(ComfyExtension):
            async def get_node_list(self):
                return [Node, Odd]

        def comfy_entrypoint():
            return Pack()
    """
    folder = write("typed", text)

    async def main(manager: ExtensionManager) -> None:
        nodes: Any = proxy_nodes(await manager.load_extension(ExtensionConfig("typed", folder)), interface)
        assert list(nodes) == ["Node"]  # an input that only the pack knows is no data
        (palette,) = nodes["Node"].define_schema().inputs
        assert type(palette).__qualname__ == "Custom.<locals>.Made.Input"
        assert palette.args == ("palette",)
        assert nodes["Node"].execute(palette=[1, 2]).result == ([2, 1],)

    run(main)


FOLDERS = """
    import os

    from of_the_host_too import hidden_here

    models_dir = "/models"
    folder_names_and_paths = {"loras": (["/models/loras"], {".safetensors"})}
    system = os.system
    opened = open


    class Progress:
        def __init__(self, total):
            self.total, self.done = total, 0

        def update(self, by):
            self.done += by
            return self


    def functions():
        return "called"


    def get_filename_list(name):
        return [f"{name}/first", f"{name}/{models_dir}"]
"""
USES = """
    import folder_paths
    from comfy.utils import Progress
    from folder_paths import get_filename_list, models_dir

    AT_IMPORT = folder_paths.models_dir, models_dir, sorted(folder_paths.folder_names_and_paths)

    class Load:
        RETURN_TYPES = ("STRING",)
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"name": (get_filename_list("loras"),)}}

        def run(self, name):
            progress = Progress(3)
            progress.update(2)
            return (folder_paths.get_filename_list(name), folder_paths.models_dir, AT_IMPORT,
                    (progress.total, progress.update(1).done), folder_paths.functions())

        @classmethod
        def IS_CHANGED(cls, name):
            return getattr(folder_paths, name)("true")

    NODE_CLASS_MAPPINGS = {"Load": Load}
"""


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the host's."""
    import textwrap

    other = ModuleType("of_the_host_too")
    other.hidden_here = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "of_the_host_too", other)
    module = ModuleType("of_the_host")
    exec(textwrap.dedent(FOLDERS), module.__dict__)
    return module


OLDEST = min(INTERPRETERS, key=lambda version: int(version.partition(".")[2]))


@pytest.mark.parametrize("python", [None, INTERPRETERS[OLDEST]], ids=["this Python", "the oldest"])
def test_a_pack_imports_what_the_host_offers(run: Run, write: Write, folders: ModuleType, python: str | None) -> None:
    folder = write("offered", USES)

    async def main(manager: ExtensionManager) -> None:
        modules = {"folder_paths": folders, "comfy.utils": folders}
        pack = await manager.load_extension(ExtensionConfig("offered", folder, modules=modules, python=python))
        load: Any = proxy_nodes(pack)["Load"]
        assert load.INPUT_TYPES() == {"required": {"name": (["loras/first", "loras//models"],)}}
        folders.models_dir = "/elsewhere"  # type: ignore[attr-defined]
        names, now, at_import, progress, called = load().run(name="vae")
        assert names == ["vae/first", "vae//elsewhere"]  # run here
        assert now == "/elsewhere"
        assert at_import == ("/models", "/models", ["loras"])  # as it was when the worker was started
        assert progress == (3, 3)
        assert called == "called"
        # What the module merely imported is not its own.
        for name in ("system", "opened", "os", "hidden_here", "absent", "__secret__"):
            with pytest.raises(AttributeError, match=r"module folder_paths offers no|has no attribute"):
                load.IS_CHANGED(name=name)

    run(main)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import folder_paths", r"No module named 'folder_paths': an isolated pack runs without ComfyUI.* modules=\{"),
        ("from comfy import model_management", r"No module named 'comfy': an isolated pack runs without ComfyUI"),
        ("import comfy.model_management", r"No module named 'comfy': an isolated pack runs without ComfyUI"),
        ("from server import PromptServer", r"No module named 'server': .*routes and messages to the browser"),
        ("from comfy_api.latest._io import Image", r"of its interface there is comfy_api\.latest"),
        ("from comfy_api.latest import ComfyAPI", r"comfy_api\.latest\.ComfyAPI is ComfyUI's own"),
        ("import absent_everywhere", "No module named 'absent_everywhere'"),
    ],
)
def test_what_is_not_there_is_named(run: Run, write: Write, text: str, message: str) -> None:
    folder = write("missing", text + "\n")

    async def main(manager: ExtensionManager) -> None:
        with pytest.raises(atoll.WorkerStartError, match=message):
            await manager.load_extension(ExtensionConfig("missing", folder))

    run(main)


def test_an_offered_module_is_called_while_a_node_runs_only(run: Run, write: Write, folders: ModuleType) -> None:
    folder = write("early", "import folder_paths\nfolder_paths.get_filename_list('loras')\n")
    guarded = write(
        "guarded",
        "try:\n    from comfy import samplers\nexcept ImportError:\n    samplers = None\n"
        "import comfy.utils\nclass N:\n    FUNCTION = 'run'\n    def run(self):\n"
        "        return (comfy.utils.models_dir, samplers)\nNODE_CLASS_MAPPINGS = {'N': N}\n",
    )

    async def main(manager: ExtensionManager) -> None:
        with pytest.raises(
            atoll.WorkerStartError, match=r"folder_paths\.get_filename_list is the host's, and is called"
        ):
            await manager.load_extension(ExtensionConfig("early", folder, modules={"folder_paths": folders}))
        pack = await manager.load_extension(ExtensionConfig("guarded", guarded, modules={"comfy.utils": folders}))
        node: Any = proxy_nodes(pack)["N"]
        assert node().run() == ("/models", None)

    run(main)


def test_packs_may_look_whether_their_host_is_there(run: Run, write: Write) -> None:
    folder = write(
        "looking",
        """
        import importlib.util

        THERE = [name for name in ("folder_paths", "comfy", "nodes") if importlib.util.find_spec(name)]
        try:
            import comfy.samplers
        except ModuleNotFoundError as error:
            THERE.append(str(error))

        class Node:
            FUNCTION = "run"

            def run(self, really=False):
                if really:
                    import comfy.samplers
                return THERE

        NODE_CLASS_MAPPINGS = {"Node": Node}
        """,
    )

    async def main(manager: ExtensionManager) -> None:
        node: Any = proxy_nodes(await manager.load_extension(ExtensionConfig("looking", folder)))["Node"]
        assert node().run() == ["No module named 'comfy'"]
        with pytest.raises(ImportError, match="No module named 'comfy': an isolated pack runs without ComfyUI"):
            node().run(really=True)

    run(main)


@pytest.mark.parametrize("modules", ["folder_paths", {"a b": 1}, {"os": 1}, {"comfy_api": 1}, {1: 2}])
def test_wrong_modules_are_named(run: Run, write: Write, modules: Any) -> None:
    folder = write("wrongly", "NODE_CLASS_MAPPINGS = {'N': object}\n")

    async def main(manager: ExtensionManager) -> None:
        with pytest.raises(atoll.ManifestError, match="option modules: found"):
            await manager.load_extension(ExtensionConfig("wrongly", folder, modules=modules))

    run(main)
