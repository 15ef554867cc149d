# SPDX-License-Identifier: Apache-2.0
"""Which distributions lie in a folder, and which import names they own."""

from __future__ import annotations

import importlib.metadata
import sysconfig
from pathlib import Path

from atoll.environments.installed import normalise, scan


def distribution(site: Path, name: str, version: str, *files: str) -> Path:
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: not this\n")
    (info / "RECORD").write_text("".join(f"{file},sha256=x,1\n" for file in files))
    return info


def test_names_and_modules(tmp_path: Path) -> None:
    distribution(
        tmp_path, "Py_YAML.c", "6.0", "yaml/__init__.py", "_yaml.cpython-312-x86_64-linux-gnu.so", "../../bin/x.py"
    )
    distribution(tmp_path, "six", "1.17", "six.py", "__pycache__/six.cpython-312.pyc", "six-1.17.dist-info/METADATA")
    distribution(tmp_path, "data", "1", "data-files/x.py", "share/readme.txt", '"with, comma/x.py"')
    versions, modules = scan([str(tmp_path)])
    assert versions == {"py-yaml-c": "6.0", "six": "1.17", "data": "1"}
    assert modules == {"yaml": "py-yaml-c", "_yaml": "py-yaml-c", "six": "six"}


def test_names_shipped_by_accident_are_nobodys(tmp_path: Path) -> None:
    distribution(tmp_path, "careless", "1", "tests/__init__.py", "careless.py", "docs/conf.py")
    distribution(tmp_path, "tools", "1", "tools/__init__.py")
    assert scan([str(tmp_path)])[1] == {"careless": "careless", "tools": "tools"}


def test_eggs_and_broken_metadata(tmp_path: Path) -> None:
    egg = tmp_path / "Old-1.0.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text("Name: Old\nVersion: 1.0\n")
    (egg / "top_level.txt").write_text("old\n")
    (tmp_path / "single.egg-info").write_text("Name: Single\nVersion: 2\n")
    (tmp_path / "empty-1.dist-info").mkdir()
    (tmp_path / "garbled-1.dist-info").mkdir()
    (tmp_path / "garbled-1.dist-info" / "METADATA").write_bytes(b"\xff\xfe\x00")
    assert scan([str(tmp_path), str(tmp_path / "not there")]) == ({"old": "1.0", "single": "2"}, {"old": "old"})


def test_the_first_folder_wins(tmp_path: Path) -> None:
    distribution(tmp_path / "a", "six", "1", "six.py")
    distribution(tmp_path / "b", "six", "2", "six.py")
    assert scan([str(tmp_path / "a"), str(tmp_path / "b")])[0] == {"six": "1"}


def test_as_the_standard_library_sees_it() -> None:
    site = sysconfig.get_path("purelib")
    versions, modules = scan([site])
    found = list(importlib.metadata.distributions(path=[site]))
    assert versions == {normalise(one.metadata["Name"]): one.version for one in found}
    assert modules["numpy"] == "numpy"
    assert modules["yaml"] == "pyyaml"
