# SPDX-License-Identifier: Apache-2.0
"""Every Python snippet of seed 002 (isolated extensions), and its manifest.

Each case says which lines of the seed it covers, and stands here as text of its own that does the same with the same
interface. Where the seed's text lies beside the repository, its own lines are run as well, with ``pyisolate``
changed to ``atoll.extensions`` in the host and to ``atoll_worker`` in a pack, and nothing else; excerpts get the names
around them that they use.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.extensions import ExtensionConfig, ExtensionManager, ProxiedSingleton, load_manifest

pytestmark = [pytest.mark.network, pytest.mark.slow]

SEED = Path(__file__).parents[3] / "shared" / "seeds" / "002-process-isolation-pyisolate.md"

# By first and last line of the seed's blocks.
OWN = {
    (33, 50): """
        from comfy_api.v3 import io, ComfyNodeV3
        from atoll_worker import ExtensionBase


        class Nodes(ExtensionBase):
            def on_module_loaded(self, module):
                self.nodes = {"MyNode": MyNode, "MyOtherNode": MyOtherNode}

            async def execute_node(self, node_id, **inputs):
                return await self.nodes[node_id].execute(**inputs)
        """,
    (54, 64): """
        name: my_node_pack
        version: 1.0.0
        dependencies: [numpy==1.26.4, tensorflow==2.15.0, custom-library>=1.0.0]
        isolated: true
        share_torch: true
        """,
    (70, 91): """
        async def load_custom_node_v3(module_path):
            said = load_manifest(module_path)
            if not said["isolated"]:
                import_module(module_path)
                return
            config = ExtensionConfig(
                name=said["name"], module_path=module_path, isolated=True, dependencies=said["dependencies"],
                share_torch=said.get("share_torch", False),
            )
            extension = await manager.load_extension(config)
            NODE_CLASS_MAPPINGS.update({one: create_proxy_node(extension, one) for one in extension.get_node_ids()})
        """,
    (95, 115): """
        def create_proxy_node(extension, node_id):
            class Proxy(ComfyNodeV3):
                @classmethod
                def DEFINE_SCHEMA(cls):
                    return extension.get_node_schema(node_id)

                @classmethod
                async def execute(cls, **inputs):
                    return await extension.execute_node(node_id, **inputs)

            return Proxy
        """,
    (122, 129): """
        dependencies = [
            "numpy==1.26.4", "torch>=2.0.0,<3.0", "opencv-python", "git+https://github.com/org/repo.git@v1.0"
        ]
        """,
    (134, 141): """
        async def execute(cls, image: torch.Tensor, model: ModelPatcher):
            return io.NodeOutput(model(image))
        """,
    (146, 164): """
        from atoll.extensions import ProxiedSingleton

        class ModelManager(ProxiedSingleton):
            def __init__(self):
                self.models = {}

            async def load_model(self, name, path):
                if name not in self.models:
                    self.models[name] = await load_checkpoint(path)
                return self.models[name]

            async def get_model(self, name):
                return self.models.get(name)

        manager = ModelManager()
        model = await manager.get_model("sd_xl")
        """,
    (169, 178): """
        ExtensionConfig(
            name="heavy_node", isolated=True, max_memory="8GB", max_cpu_percent=80, timeout=300, share_torch=True
        )
        """,
}


@pytest.fixture(params=["own", "seed"])
def source(request: pytest.FixtureRequest) -> str:
    """Whose text is run."""
    if request.param == "seed" and not SEED.exists():
        pytest.skip("the seed's text is not beside the repository")
    return str(request.param)


def block(source: str, first: int, last: int, module: str = "atoll.extensions") -> str:
    """The text of a block."""
    if source == "own":
        return textwrap.dedent(OWN[first, last])
    lines = SEED.read_text().splitlines()
    assert lines[first - 1].startswith("```")
    assert lines[last - 1] == "```"
    return "\n".join(lines[first : last - 1]).replace("from pyisolate import", f"from {module} import") + "\n"


def test_every_python_block_has_its_case() -> None:
    if not SEED.exists():
        pytest.skip("the seed's text is not beside the repository")
    opened = [number for number, line in enumerate(SEED.read_text().splitlines(), 1) if line == "```python"]
    assert opened == [first for first, last in OWN if first != 54]


async def run_in(text: str, names: dict[str, Any]) -> None:
    """Run text that may await at its top."""
    code = compile(text, "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.iscoroutine(result):
        await result


NODES = """

class MyNode(ComfyNodeV3):
    @classmethod
    def DEFINE_SCHEMA(cls):
        return io.Schema(node_id="MyNode", inputs=[io.Image.Input("image")], outputs=[io.Image.Output()])

    @classmethod
    async def execute(cls, image):
        import numpy
        return io.NodeOutput(image * 2, numpy.__version__)


class MyOtherNode(MyNode):
    pass
"""


def test_a_pack_its_registration_and_its_proxies(source: str, tmp_path: Path) -> None:
    """Lines 33-50, 70-91 and 95-115."""
    folder = tmp_path / "my_node_pack"
    folder.mkdir()
    (folder / "__init__.py").write_text(block(source, 33, 50, "atoll_worker") + NODES)
    said = "name: my_node_pack\nversion: 1.0.0\ndependencies: ['numpy==1.26.4']\nisolated: true\nshare_torch: true\n"
    (folder / "manifest.yaml").write_text(said)
    other = tmp_path / "plain_pack"
    other.mkdir()
    (other / "manifest.yaml").write_text("isolated: false\n")

    class ComfyNodeV3:
        """The host's."""

    async def main() -> None:
        async with ExtensionManager() as manager:
            imported: list[Any] = []
            names: dict[str, Any] = {
                "manager": manager, "load_manifest": load_manifest, "ExtensionConfig": ExtensionConfig,
                "NODE_CLASS_MAPPINGS": {}, "ComfyNodeV3": ComfyNodeV3, "import_module": imported.append,
            }  # fmt: skip
            await run_in(block(source, 95, 115), names)
            await run_in(block(source, 70, 91), names)
            await names["load_custom_node_v3"](folder)
            nodes = names["NODE_CLASS_MAPPINGS"]
            assert list(nodes) == ["MyNode", "MyOtherNode"]
            assert issubclass(nodes["MyNode"], ComfyNodeV3)
            schema = nodes["MyNode"].DEFINE_SCHEMA()
            assert (schema["kind"], schema["is_async"], schema["name"]) == ("v3", True, "MyNode")
            image = np.ones((1, 4, 4, 3), np.float32)
            doubled, version = (await nodes["MyNode"].execute(image=image)).result
            assert np.array_equal(doubled, image * 2)
            assert version == "1.26.4"
            await names["load_custom_node_v3"](other)
            assert imported == [other]

    asyncio.run(main())


def test_the_manifest(source: str, tmp_path: Path) -> None:
    """Lines 54-64."""
    (tmp_path / "manifest.yaml").write_text(block(source, 54, 64))
    said = load_manifest(tmp_path)
    assert said["name"] == "my_node_pack"
    assert said["version"] == "1.0.0"
    assert said["dependencies"] == ["numpy==1.26.4", "tensorflow==2.15.0", "custom-library>=1.0.0"]
    assert (said["isolated"], said["share_torch"]) == (True, True)


def test_the_kinds_of_dependencies(source: str, tmp_path: Path) -> None:
    """Lines 122-129: each is a requirement that a config takes."""
    names: dict[str, Any] = {}
    asyncio.run(run_in(block(source, 122, 129), names))
    (tmp_path / "__init__.py").write_text("")
    spec = ExtensionConfig("pack", tmp_path, share_torch=True, dependencies=names["dependencies"]).spec()
    assert spec.dependencies == (
        "numpy==1.26.4", "torch>=2.0.0,<3.0", "opencv-python", "git+https://github.com/org/repo.git@v1.0",
    )  # fmt: skip


def test_tensors_and_models_of_the_host(source: str, tmp_path: Path) -> None:
    """Lines 134-141: a tensor by value, a model that stays where it is and is called."""
    around = """
        import numpy
        from atoll_worker import ExtensionBase
        from comfy_api.latest import io

        class torch:
            Tensor = numpy.ndarray  # torch itself is for where it is installed

        ModelPatcher = object

        class Node(io.ComfyNode):
            execute = classmethod(execute)

            @classmethod
            def define_schema(cls):
                return io.Schema(node_id="Node")

        class Nodes(ExtensionBase):
            def on_module_loaded(self, module):
                self.nodes = {"Node": Node}
        """
    before, node, after = textwrap.dedent(around).partition("class Node(")
    folder = tmp_path / "tensor_pack"
    folder.mkdir()
    (folder / "__init__.py").write_text(before + block(source, 134, 141) + "\n\n" + node + after)

    class Model:
        def __call__(self, image: Any) -> Any:
            return image + os.getpid()

    async def main() -> None:
        async with ExtensionManager() as manager:
            pack = await manager.load_extension(ExtensionConfig("tensor_pack", folder))
            image = np.zeros((1, 512, 512, 3))
            (processed,) = (await pack.execute_node("Node", image=image, model=Model())).result
            assert processed.shape == image.shape
            assert np.all(processed == os.getpid())  # the model ran here

    asyncio.run(main())


def test_models_are_shared(source: str, tmp_path: Path) -> None:
    """Lines 146-164: the host's instance, used there and from an isolated pack."""
    folder = tmp_path / "sharing_pack"
    folder.mkdir()
    text = block(source, 146, 164, "atoll_worker").replace("from atoll.extensions", "from atoll_worker")
    definition = text[: text.index("manager = ")]
    use = textwrap.indent(text[text.index("manager = ") :], " " * 8)
    (folder / "__init__.py").write_text(
        "from atoll_worker import ExtensionBase\n"
        + definition
        + f"\n\nclass Pack(ExtensionBase):\n    async def use(self):\n{use}\n        return model\n"
    )

    async def load_checkpoint(path: str) -> str:
        return f"what is in {path}"

    async def main() -> None:
        names: dict[str, Any] = {"load_checkpoint": load_checkpoint, "__name__": "shared_by_seed_002"}
        await run_in(block(source, 146, 164), names)
        assert issubclass(names["ModelManager"], ProxiedSingleton)
        assert names["model"] is None
        await names["manager"].load_model("sd_xl", "sd_xl.safetensors")
        async with ExtensionManager() as manager:
            pack = await manager.load_extension(ExtensionConfig("sharing_pack", folder))
            assert await pack.use() == "what is in sd_xl.safetensors"

    from atoll_worker import singleton

    known = dict(singleton._classes)
    try:
        asyncio.run(main())
    finally:
        singleton._classes.clear()
        singleton._classes.update(known)


def test_limits(source: str, tmp_path: Path) -> None:
    """Lines 169-178. Without a module's path, which loading it asks for."""
    config = eval(block(source, 169, 178).strip(), {"ExtensionConfig": ExtensionConfig})
    assert (config.name, config.isolated, config.timeout, config.share_torch) == ("heavy_node", True, 300, True)
    with pytest.raises(atoll.ManifestError, match="option module_path: not given"):
        config.spec()
