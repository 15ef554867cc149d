# SPDX-License-Identifier: Apache-2.0
"""What an extension is to be is checked, and wrong values are named with their place."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.extensions import ExtensionConfig, ExtensionManager, load_manifest

Write = Callable[..., Path]

MANIFEST = """
    name: my_node_pack
    version: 1.0.0
    dependencies:
      - numpy==1.26.4
      - git+https://github.com/org/repo.git@v1.0
      - ./wheels/local
    isolated: true
    share_torch: true
    max_memory: 8GB
    icon: pack.png
"""


def test_a_manifest_says_it(write: Write) -> None:
    folder = write("my_node_pack", "", MANIFEST)
    said = load_manifest(folder)
    assert said["dependencies"][:2] == ["numpy==1.26.4", "git+https://github.com/org/repo.git@v1.0"]
    assert said["dependencies"][2] == str(folder / "wheels" / "local")
    assert said["icon"] == "pack.png"
    config = ExtensionConfig.from_manifest(folder, timeout=30)
    assert (config.name, config.version, config.share_torch, config.timeout) == ("my_node_pack", "1.0.0", True, 30)
    assert config.spec().memory == 8 * 10**9
    assert config.spec().dependencies == tuple(said["dependencies"])  # there is no torch here to be shared


def test_torch_is_shared_at_this_process_version(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"torch": "2.6.0+cpu"}[name])
    folder = write("torch_pack", "")
    shared = ExtensionConfig("torch_pack", folder, share_torch=True, dependencies=["numpy>=2"])
    assert shared.spec().dependencies == ("numpy>=2", "torch==2.6.0")
    own = ExtensionConfig("torch_pack", folder, share_torch=True, dependencies=["torch>=2.0.0,<3.0"])
    assert own.spec().dependencies == ("torch>=2.0.0,<3.0",)


def test_what_a_manifest_leaves_out_has_a_default(write: Write) -> None:
    folder = write("plain_pack", "", "version: '2'\n")
    assert load_manifest(folder) == {"name": "plain_pack", "version": "2", "isolated": True}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("isolated: maybe", r"manifest\.yaml: key isolated: found 'maybe', expected true or false"),
        ("version: 1.0", r"key version: found 1\.0 .*, expected text, in quotes: \"1\.0\""),
        ("dependencies: numpy", r"key dependencies: found 'numpy', expected a list of requirements"),
        ("max_memory: lots", r"key max_memory: found 'lots', expected a number of bytes"),
        ("max_cpu_percent: -1", r"key max_cpu_percent: found -1 .*, expected a number above 0"),
        ("sandbox: {net: true}", r"key sandbox\.net: there is no such key"),
        ("module_path: /etc", r"key module_path: .* the host gives it, not the pack"),
        ("name: a/b", r"key name: found 'a/b', expected text without slashes"),
    ],
)
def test_wrong_values_of_a_manifest(write: Write, line: str, message: str) -> None:
    folder = write("wrong_pack", "", line + "\n")
    with pytest.raises(atoll.ManifestError, match=message):
        load_manifest(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "option timeout of ExtensionConfig: found 0"),
        ({"max_memory": "2G"}, "option max_memory of ExtensionConfig: found '2G'"),
        ({"dependencies": ["-e ."]}, r"option dependencies\[0\] of ExtensionConfig"),
        ({"isolated": 1}, "option isolated of ExtensionConfig: found 1 .*expected true or false"),
        ({"module_path": "/nowhere"}, "option module_path: found /nowhere, expected a folder with an __init__.py"),
        ({"module_path": None}, "option module_path: not given"),
    ],
)
def test_wrong_options(write: Write, options: dict[str, Any], message: str) -> None:
    folder = write("option_pack", "")
    with pytest.raises(atoll.ManifestError, match=message):
        ExtensionConfig(**{"name": "option_pack", "module_path": folder, **options}).spec()


def test_a_slip_of_the_pen_is_told(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    folder = write("slip_pack", "", "dependancies: [numpy]\n")
    load_manifest(folder)
    assert "key dependancies: not a key of an extension, so it has no effect; did you mean dependencies?" in caplog.text
    with pytest.raises(atoll.ManifestError, match="no such option; did you mean isolated"):
        ExtensionConfig.from_manifest(folder, isolate=True)
    with pytest.raises(atoll.ManifestError, match=r"there is no manifest\.yaml"):
        load_manifest(folder.parent)


def test_a_host_goes_before_a_manifest(write: Write) -> None:
    folder = write(
        "sly_pack",
        "import os\nfrom atoll_worker import ExtensionBase\nclass Sly(ExtensionBase):\n"
        "    def pid(self):\n        return os.getpid()\n",
        "isolated: false\ntimeout: 5\n",
    )

    async def main() -> None:
        async with ExtensionManager(overrides={"isolated": True}, defaults={"timeout": 9, "workers": 2}) as manager:
            sly = await manager.load_extension(folder)
            assert sly.pid() != os.getpid()
            assert (sly.config.timeout, sly.config.workers) == (5, 2)

    asyncio.run(main())


def test_paths_of_a_manifest_are_relative_to_it(write: Write) -> None:
    folder = write("path_pack", "", "find_links: [wheels]\nsandbox: {read: [data]}\n")
    spec = ExtensionConfig.from_manifest(folder).spec()
    assert spec.find_links == (str(folder / "wheels"),)
    assert spec.sandbox == atoll.Sandbox(read=(str(folder / "data"),))
