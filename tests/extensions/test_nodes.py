# SPDX-License-Identifier: Apache-2.0
"""Proxy classes look like the pack's own nodes, and run in it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.extensions import ExtensionConfig, ExtensionManager, proxy_nodes
from conditions import until
from interpreters import INTERPRETERS

Run = Callable[[Callable[[ExtensionManager], Any]], Any]
Write = Callable[..., Path]


def _minor(version: str) -> int:
    return int(version.partition(".")[2])


V1 = """
    class AnyType(str):
        def __ne__(self, other):
            return False

    class Brighten:
        \"\"\"Makes it brighter.\"\"\"
        RETURN_TYPES = ("IMAGE", "INT")
        RETURN_NAMES = ("image", "uses")
        FUNCTION = "brighten"
        CATEGORY = "image/tone"
        OUTPUT_NODE = True

        def __init__(self):
            self.uses = 0

        @classmethod
        def INPUT_TYPES(cls):
            return {
                "required": {"image": ("IMAGE",), "how": (["add", "multiply"], {"default": "add"})},
                "optional": {"by": ("FLOAT", {"default": 0.5, "min": 0.0}), "any": (AnyType("*"),)},
            }

        @classmethod
        def VALIDATE_INPUTS(cls, by):
            return True if by < 10 else f"{by} is too much"

        @classmethod
        def IS_CHANGED(cls, image, how, by=0.5, any=None):
            return float("nan")

        def brighten(self, image, how, by=0.5, any=None):
            self.uses += 1
            return (image + by if how == "add" else image * by, self.uses)

    class Load:
        RETURN_TYPES = ("MODEL",)
        FUNCTION = "load"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"name": ("STRING", {})}}

        async def load(self, name):
            return (Model(name),)

    class Model:
        def __init__(self, name):
            self.name = name

        def apply(self, image):
            return image * len(self.name)

    class Apply:
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "apply"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"model": ("MODEL",), "image": ("IMAGE",)}}

        def apply(self, model, image):
            return {"ui": {"text": ["done"]}, "result": (model.apply(image),)}

    class Broken:
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"image": (object(),)}}

        def run(self, image): ...

    NODE_CLASS_MAPPINGS = {"Brighten": Brighten, "Load": Load, "Apply": Apply, "Broken": Broken}
    NODE_DISPLAY_NAME_MAPPINGS = {"Brighten": "Make brighter"}
"""

IMAGE = np.full((1, 4, 4, 3), 0.25, np.float32)


def test_plain_nodes(run: Run, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    folder = write("tone", V1)

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("tone", folder))
        nodes = proxy_nodes(pack)
        assert set(nodes) == {"Brighten", "Load", "Apply"}
        assert "node Broken is left out: TypeError: node 'Broken': a node's schema holds <object" in caplog.text
        assert pack.display_names == {"Brighten": "Make brighter"}
        brighten: Any = nodes["Brighten"]
        assert (brighten.__name__, brighten.__doc__) == ("Brighten", "Makes it brighter.")
        assert (brighten.RETURN_TYPES, brighten.RETURN_NAMES) == (("IMAGE", "INT"), ("image", "uses"))
        assert (brighten.FUNCTION, brighten.CATEGORY, brighten.OUTPUT_NODE) == ("brighten", "image/tone", True)
        inputs = brighten.INPUT_TYPES()
        assert list(inputs) == ["required", "optional"]
        assert inputs["required"]["how"] == (["add", "multiply"], {"default": "add"})
        (anything,) = inputs["optional"]["any"]
        assert not anything != "MODEL"  # noqa: SIM202 - as hosts compare
        inputs.clear()
        assert brighten.INPUT_TYPES()  # a host may change what it got
        # Hosts look at what a check takes by name.
        assert inspect.getfullargspec(brighten.VALIDATE_INPUTS).args == ["cls", "by"]
        assert brighten.VALIDATE_INPUTS(by=1) is True
        assert brighten.VALIDATE_INPUTS(by=11) == "11 is too much"
        assert brighten.IS_CHANGED(image=1, how="add") != brighten.IS_CHANGED(image=1, how="add")  # NaN
        assert not hasattr(nodes["Load"], "IS_CHANGED")

        first, second = brighten(), brighten()
        image, uses = first.brighten(image=IMAGE, how="multiply", by=2)
        assert image.dtype == np.float32
        assert np.array_equal(image, IMAGE * 2)
        assert (uses, first.brighten(image=IMAGE, how="add")[1], second.brighten(IMAGE, "add")[1]) == (1, 2, 1)

        load: Any = nodes["Load"]
        assert inspect.iscoroutinefunction(load.load)
        (model,) = await load().load(name="abc")
        done = nodes["Apply"]().apply(model=model, image=IMAGE)  # type: ignore[attr-defined]
        assert done["ui"] == {"text": ["done"]}
        assert np.array_equal(done["result"][0], IMAGE * 3)

        class HostModel:
            def apply(self, image: Any) -> Any:
                return image - 1

        done = nodes["Apply"]().apply(model=HostModel(), image=IMAGE)  # type: ignore[attr-defined]
        assert np.array_equal(done["result"][0], IMAGE - 1)

    run(main)


def test_objects_of_nodes_go_with_the_hosts(run: Run, write: Write) -> None:
    folder = write(
        "counted",
        """
        living = 0

        class Node:
            RETURN_TYPES = ("INT",)
            FUNCTION = "run"
            def __init__(self):
                global living
                living += 1
            def __del__(self):
                global living
                living -= 1
            def run(self):
                return (living,)

        NODE_CLASS_MAPPINGS = {"Node": Node}
        """,
    )

    async def main(manager: ExtensionManager) -> None:
        node: Any = proxy_nodes(await manager.load_extension(ExtensionConfig("counted", folder)))["Node"]
        first, second = node(), node()
        assert first.run() == (1,)
        assert second.run() == (2,)
        del first
        until(lambda: second.run() == (1,))  # a moment later: calls do not wait for it

    run(main)


def test_nodes_in_the_host_are_their_own(run: Run, write: Write) -> None:
    folder = write("tone_here", V1)

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("tone_here", folder, isolated=False))
        nodes = proxy_nodes(pack)
        assert nodes["Brighten"]().brighten(IMAGE, "add")[1] == 1  # type: ignore[attr-defined]
        assert nodes["Brighten"].__module__ == "tone_here"

    run(main)


V3 = """
    from comfy_api.latest import ComfyExtension, io

    Palette = io.Custom("PALETTE")


    class Invert(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(
                node_id="Invert",
                display_name="Invert",
                category="image",
                inputs=[
                    io.Image.Input("image"),
                    io.Float.Input("by", default=1.0, display_mode=io.NumberDisplay.slider),
                    Palette.Input("palette", optional=True),
                ],
                outputs=[io.Image.Output(display_name="inverted")],
            )

        @classmethod
        def fingerprint_inputs(cls, image, by):
            return by

        @classmethod
        def execute(cls, image: io.Image.Type, by: float = 1.0, palette=None) -> io.NodeOutput:
            return io.NodeOutput(by - image, ui={"text": ["inverted"]})


    class Later(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Later", inputs=[io.Image.Input("image")], outputs=[io.Image.Output()])

        @classmethod
        async def execute(cls, image):
            return io.NodeOutput(image)


    class Pack(ComfyExtension):
        async def get_node_list(self):
            return [Invert, Later]


    async def comfy_entrypoint():
        return Pack()
"""


def test_nodes_with_a_schema(run: Run, write: Write, interface: ModuleType) -> None:
    folder = write("inverting", V3)

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("inverting", folder))
        assert pack.get_node_ids() == ["Invert", "Later"]
        nodes = proxy_nodes(pack, interface)
        io = interface.io
        invert: Any = nodes["Invert"]
        assert issubclass(invert, io.ComfyNode)
        schema = invert.define_schema()
        assert type(schema) is io.Schema
        assert (schema.node_id, schema.category) == ("Invert", "image")
        assert type(schema.inputs[0]) is io.Image.Input
        assert schema.inputs[1].kwargs == {"default": 1.0, "display_mode": io.NumberDisplay.slider}
        assert schema.inputs[2].args == ("palette",)
        output = invert.execute(image=IMAGE, by=2.0)
        assert type(output) is io.NodeOutput
        assert np.array_equal(output.result[0], 2 - IMAGE)
        assert output.ui == {"text": ["inverted"]}
        assert invert.fingerprint_inputs(image=IMAGE, by=0.5) == 0.5
        assert not hasattr(nodes["Later"], "fingerprint_inputs")
        later: Any = nodes["Later"]
        assert inspect.iscoroutinefunction(later.execute)
        assert np.array_equal((await later.execute(image=IMAGE)).result[0], IMAGE)
        # By the extension itself, where a host makes classes of its own.
        result = await pack.execute_node("Invert", image=IMAGE)
        assert np.array_equal(result.result[0], 1 - IMAGE)
        with pytest.raises(LookupError, match="no node 'Absent'; its nodes are: Invert, Later"):
            await pack.execute_node("Absent")

    run(main)


@pytest.mark.parametrize(
    "schema",
    ["io.os.system('true')", "io.Schema.Absent", "io.Image.Input.Nothing('x')", "io.enum.Enum('A', 'b')"],
)
def test_a_schema_reaches_nothing_but_the_interface(run: Run, write: Write, interface: ModuleType, schema: str) -> None:
    text = f"""
        from comfy_api.latest import io

        class Node(io.ComfyNode):
            @classmethod
            def define_schema(cls):
                return io.Schema(node_id="Node", inputs=[{schema}])

            @classmethod
            def execute(cls): ...

        class Pack:
            async def get_node_list(self):
                return [Node]

        def comfy_entrypoint():
            return Pack()
    """
    folder = write("reaching", text)

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("reaching", folder))
        with pytest.raises(atoll.AtollError, match="comfy_api has not"):
            proxy_nodes(pack, interface)

    run(main)


@pytest.mark.parametrize("version", [min(INTERPRETERS, key=_minor), max(INTERPRETERS, key=_minor)])
def test_nodes_of_both_kinds_on_the_oldest_and_newest_python(
    run: Run, write: Write, interface: ModuleType, version: str
) -> None:
    plain, schema = write("tone_then", V1), write("inverting_then", V3)
    python = INTERPRETERS[version]

    async def main(manager: ExtensionManager) -> None:
        first = await manager.load_extension(ExtensionConfig("plain", plain, python=python))
        second = await manager.load_extension(ExtensionConfig("schema", schema, python=python))
        nodes: Any = {**proxy_nodes(first), **proxy_nodes(second, interface)}
        assert nodes["Brighten"]().brighten(image=1, how="multiply", by=3) == (3, 1)
        (model,) = await nodes["Load"]().load(name="abc")
        assert model.apply(2) == 6
        assert nodes["Invert"].execute(image=1, by=3).result == (2,)

    run(main)


def test_without_an_interface_it_says_what_is_missing(run: Run, write: Write) -> None:
    folder = write("lonely", V3)

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("lonely", folder))
        with pytest.raises(atoll.AtollError, match=r"needs comfy_api\.latest in this process"):
            await asyncio.to_thread(proxy_nodes, pack)

    run(main)
