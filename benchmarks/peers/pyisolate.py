# SPDX-License-Identifier: Apache-2.0
"""pyisolate: an extension in a process and an environment of its own, awaited.

The extension's class lives here and not in the module that pyisolate loads, since the far side looks it up by
name and pyisolate hands it the host's import path. No dependency is named, and pyisolate itself comes to the
far side by PYTHONPATH, since as soon as there is a dependency 0.10 installs torch as well. Its sandbox is
off: nothing else in the comparison is sandboxed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyisolate

from benchmarks import workload

ASYNCHRONOUS = True


class Vision(pyisolate.ExtensionBase):
    async def on_module_loaded(self, module: Any) -> None:
        """Nothing to load: the function is this class's own."""

    async def detect(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        return workload.detect(*arguments, **keywords)


def describe() -> dict[str, Any]:
    return {"version": pyisolate.__version__, "sandbox": "disabled"}


@asynccontextmanager
async def opened() -> AsyncIterator[Callable[..., Any]]:
    if shutil.which("uv") is None:  # pyisolate looks for uv on PATH only
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder, "vision")
        module.mkdir()
        (module / "__init__.py").touch()
        manager = pyisolate.ExtensionManager(
            Vision, pyisolate.ExtensionManagerConfig(venv_root_path=f"{folder}/environments")
        )
        vision: Any = manager.load_extension(
            pyisolate.ExtensionConfig(
                name="vision",
                module_path=str(module),
                isolated=True,
                dependencies=[],
                env={"PYTHONPATH": str(Path(pyisolate.__file__).parent.parent)},
                apis=[],
                share_torch=False,
                share_cuda_ipc=False,
                sandbox_mode=pyisolate.SandboxMode.DISABLED,
            )
        )
        try:
            await vision.detect(0)
            yield vision.detect
        finally:
            manager.stop_all_extensions()
