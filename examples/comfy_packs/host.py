# SPDX-License-Identifier: Apache-2.0
"""A host of nodes with two packs that could never share a process: one needs numpy 1, the other numpy 2.

Each has a Python, an environment and a process of its own. The host puts their nodes into one table, as ComfyUI does,
and passes an image from one to the other. The first run builds the environments, the next ones open them.
"""

from __future__ import annotations

import asyncio
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from atoll.extensions import ExtensionManager, proxy_nodes

PACKS = Path(__file__).resolve().parent / "nodes"


class Model:
    """Stands for a model: it stays in this process, and packs use it from theirs."""

    def __init__(self) -> None:
        self.strength = 2
        self.finished_in: set[int] = set()

    def finish(self, image: Any) -> Any:
        """Called by a pack, run here."""
        self.finished_in.add(os.getpid())
        return np.sqrt(image)


def describe(image: Any) -> str:
    """The image in one line."""
    return f"{image.dtype} {image.shape}, mean {image.mean():.3f}, spread {image.std():.3f}"


async def main() -> None:
    """Load both packs at the same time, run their nodes one after the other."""
    async with ExtensionManager() as manager:
        packs = await manager.load_all(PACKS)
        nodes: dict[str, Any] = {}
        for name, pack in packs.items():
            if isinstance(pack, BaseException):
                raise pack
            nodes.update(proxy_nodes(pack))
            print(f"{name:7} in process {pack.workers.pid} has {', '.join(pack.get_node_ids())}")
        print(f"host    in process {os.getpid()} has numpy {np.__version__} on Python {platform.python_version()}\n")

        grain, soften, model = nodes["Grain"](), nodes["Soften"](), Model()
        print("Grain.INPUT_TYPES():", grain.INPUT_TYPES()["required"]["amount"], "\n")
        image = np.full((2, 256, 256, 3), 0.5, np.float32)
        print(f"{'the image':8}", describe(image))
        for _ in range(2):
            image, made_with = grain.add(image=image, amount=0.2)
            print(f"{'grain':9}", describe(image), "-", made_with)
            image, made_with = soften.soften(image=image, model=model)
            print(f"{'soften':9}", describe(image), "-", made_with)
        print("\nthe model was used in the host alone:", model.finished_in == {os.getpid()})


if __name__ == "__main__":
    asyncio.run(main())
