# SPDX-License-Identifier: Apache-2.0
"""Packs with packages and Pythons that contradict each other work in one host; a sandboxed one is shut in."""

from __future__ import annotations

import os
import socket
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.extensions import ExtensionConfig, ExtensionManager, proxy_nodes
from interpreters import INTERPRETERS
from sandboxes import needs_sandbox

Run = Callable[[Callable[[ExtensionManager], Any]], Any]
Write = Callable[..., Path]

NUMPY = """
    import sys
    import numpy
    from atoll_worker import ExtensionBase

    class Blend:
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "blend"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"one": ("IMAGE",), "other": ("IMAGE",)}}

        def blend(self, one, other):
            assert type(one).__module__ == "numpy"
            return ((one + other) / numpy.float32(2),)

    NODE_CLASS_MAPPINGS = {f"Blend{numpy.__version__[0]}": Blend}

    class Pack(ExtensionBase):
        def versions(self):
            return numpy.__version__, sys.version_info[:2]
"""


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.skipif(not {"3.10", "3.13"} <= set(INTERPRETERS), reason="no Python 3.10 and 3.13")
def test_two_numpys_on_two_pythons_exchange_images(run: Run, write: Write) -> None:
    old = write("old_numpy", NUMPY, "dependencies: ['numpy==1.26.4']\npython: '3.10'\n")
    write("new_numpy", NUMPY, "dependencies: ['numpy>=2.1,<3']\npython: '3.13'\n")

    async def main(manager: ExtensionManager) -> None:
        loaded = await manager.load_all(old.parent)
        for one in loaded.values():
            if isinstance(one, BaseException):
                raise one
        assert set(loaded) == {"old_numpy", "new_numpy"}
        first, second = loaded["old_numpy"], loaded["new_numpy"]
        assert first.versions() == ("1.26.4", (3, 10))
        version, python = second.versions()
        assert (version[:2], python) == ("2.", (3, 13))
        nodes: Any = {**proxy_nodes(first), **proxy_nodes(second)}
        assert set(nodes) == {"Blend1", "Blend2"}
        image = np.zeros((2, 256, 256, 3), np.float32)
        for step in range(3):
            (image,) = nodes["Blend1"]().blend(one=image, other=np.ones_like(image))
            (image,) = nodes["Blend2"]().blend(one=image, other=np.ones_like(image))
            assert image.dtype == np.float32
            assert image.shape == (2, 256, 256, 3)
            assert np.all(image == 1 - 0.25 ** (step + 1))

    run(main)


@pytest.mark.network  # its build backend comes from the index
@pytest.mark.slow
def test_a_dependency_from_a_git_repository_is_built(run: Run, write: Write, tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    (repository / "src" / "gitted_tone").mkdir(parents=True)
    (repository / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=64"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "gitted-tone"\nversion = "1.0"\n'
    )
    package = repository / "src" / "gitted_tone" / "__init__.py"

    def git(*arguments: str) -> None:
        said = ("-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false")
        environ = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        subprocess.run(["git", *said, *arguments], cwd=repository, env=environ, check=True, capture_output=True)

    git("init", "--quiet")
    for version in ("v1.0", "v2.0"):
        package.write_text(f"version = {version!r}\n")
        git("add", ".")
        git("commit", "--quiet", "-m", version)
        git("tag", version)
    pack = """
        import gitted_tone
        from atoll_worker import ExtensionBase

        class Pack(ExtensionBase):
            def version(self):
                return gitted_tone.version, gitted_tone.__file__
    """
    manifest = "name: {name}\ndependencies: ['gitted-tone @ git+file://{repository}@v1.0']\n"
    folder = write("gitted", pack, manifest.format(name="gitted", repository=repository))
    # As the seed spells one: by its address alone.
    newest = write("newest", pack, f"dependencies: ['git+file://{repository}']\n")

    async def main(manager: ExtensionManager) -> None:
        first, second = await manager.load_extension(folder), await manager.load_extension(newest)
        assert first.version()[0] == "v1.0"
        assert second.version()[0] == "v2.0"
        assert first.version()[1] != second.version()[1]  # an environment each
        with pytest.raises(atoll.EnvironmentError, match="absent-tag"):
            await manager.load_extension(
                ExtensionConfig("absent", folder, dependencies=[f"git+file://{repository}@absent-tag"])
            )

    run(main)


def test_an_image_goes_from_pack_to_pack_without_a_copy(run: Run, write: Write) -> None:
    first, second = write("first_numpy", NUMPY), write("second_numpy", NUMPY)

    async def main(manager: ExtensionManager) -> None:
        packs = [await manager.load_extension(ExtensionConfig(one.name, one)) for one in (first, second)]
        (one,), (other,) = (proxy_nodes(pack).values() for pack in packs)
        image = np.ones((4, 256, 256, 3), np.float32)
        (image,) = one().blend(one=image, other=image)
        before = atoll.memory()
        assert before.borrowed == 1  # what has come is the pack's own memory, mapped
        (again,) = other().blend(one=image, other=image)
        assert np.array_equal(again, image)
        assert atoll.memory().copies == before.copies  # and it was passed on as it is
        assert atoll.memory().created == before.created

    run(main)


@pytest.mark.network
@pytest.mark.slow
def test_torch_of_the_hosts_version_is_installed(
    run: Run, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that stands for torch, which is too large: its environment is really built."""
    for version in ("99.5.0", "99.6.0", "99.7.0"):
        with zipfile.ZipFile(tmp_path / f"torch-{version}-py3-none-any.whl", "w") as wheel:
            folder = f"torch-{version}.dist-info"
            wheel.writestr("torch/__init__.py", f"__version__ = {version!r}\n")
            wheel.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
            wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{folder}/RECORD", "".join(f"{one},,\n" for one in (*wheel.namelist(), f"{folder}/RECORD")))
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"torch": "99.6.0+cpu"}[name])
    pack = "import torch\nfrom atoll_worker import ExtensionBase\nclass Pack(ExtensionBase):\n    def version(self):\n"
    folder = write("sharing", pack + "        return torch.__version__\n")

    async def main(manager: ExtensionManager) -> None:
        options: dict[str, Any] = {"share_torch": True, "find_links": [str(tmp_path)]}
        shared = await manager.load_extension(ExtensionConfig("shared", folder, **options))
        assert shared.version() == "99.6.0"
        own = await manager.load_extension(ExtensionConfig("own", folder, dependencies=["torch<99.6"], **options))
        assert own.version() == "99.5.0"

    run(main)


REACHING = """
    import os
    import socket
    from atoll_worker import ExtensionBase

    class Pack(ExtensionBase):
        def read(self, path):
            try:
                with open(path) as file:
                    return file.read()
            except OSError as error:
                return type(error).__name__

        def home(self):
            try:
                return os.listdir(os.path.expanduser("~"))
            except OSError as error:
                return type(error).__name__

        def connect(self, port):
            try:
                with socket.create_connection(("127.0.0.1", port), 5):
                    return "done"
            except OSError as error:
                return type(error).__name__
"""


@needs_sandbox
def test_a_sandboxed_pack_reaches_neither_home_nor_network(
    run: Run, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_text("mine")
    monkeypatch.setenv("HOME", str(home))
    folder = write("reaching", REACHING)

    async def main(manager: ExtensionManager) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            free = await manager.load_extension(ExtensionConfig("free", folder))
            assert free.read(str(home / "secret")) == "mine"  # the same code, not shut in
            assert free.connect(port) == "done"
            shut = await manager.load_extension(ExtensionConfig("shut_in", folder, sandbox=True))
            assert shut.read(str(home / "secret")) == "FileNotFoundError"
            assert "secret" not in shut.home()
            assert shut.connect(port) != "done"
            assert "class Pack" in shut.read(str(folder / "__init__.py"))
            given = ExtensionConfig("given", folder, sandbox={"network": True, "read": [str(home)]})
            open_pack = await manager.load_extension(given)
            assert open_pack.read(str(home / "secret")) == "mine"
            assert open_pack.connect(port) == "done"

    run(main)
