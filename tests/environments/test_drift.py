# SPDX-License-Identifier: Apache-2.0
"""A pinned package that comes from elsewhere is an error, and nothing else is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.environments import Environment, check_drift
from atoll.errors import EnvironmentDrift


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    site = tmp_path / "env" / "lib" / "python3.12" / "site-packages"
    (site / "numpy").mkdir(parents=True)
    (site / "numpy" / "__init__.py").write_text("")
    return Environment(
        key="3.12.1-0123456789abcdef",
        python=str(tmp_path / "env" / "bin" / "python"),
        prefix=str(tmp_path / "env"),
        version=(3, 12, 1),
        pinned={"numpy": "2.3.0", "pyyaml": "6.0"},
        modules={"numpy": "numpy", "yaml": "pyyaml", "_yaml": "pyyaml", "google": "protobuf"},
        site_packages=(str(site),),
        is_host=False,
    )


def path_of(environment: Environment, *before: object) -> list[str]:
    stdlib = "/usr/lib/python312.zip", "/usr/lib/python3.12", "/usr/lib/python3.12/lib-dynload"
    return [*map(str, before), *stdlib, *environment.site_packages]


def package(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("")
    return folder / name / "__init__.py"


def test_all_is_well(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "vision.py").write_text("")
    numpy = os.path.join(environment.site_packages[0], "numpy", "__init__.py")
    check_drift(environment, path_of(environment, tmp_path / "service"), {"numpy": numpy, "google": ""}, [])


def test_the_host_is_not_checked(environment: Environment, tmp_path: Path) -> None:
    file = package(tmp_path / "other", "numpy")
    check_drift(replace(environment, is_host=True), path_of(environment, tmp_path / "other"), {"numpy": str(file)}, [])


def test_a_module_from_elsewhere(environment: Environment, tmp_path: Path) -> None:
    file = package(tmp_path / "other", "numpy")
    with pytest.raises(EnvironmentDrift) as caught:
        check_drift(environment, path_of(environment), {"numpy": str(file)}, [])
    message = str(caught.value)
    assert "module 'numpy' belongs to numpy 2.3.0 of environment 3.12.1-0123456789abcdef" in message
    assert f"was loaded from {file}; expected it in {environment.site_packages[0]}" in message
    assert "Take that folder out of the worker's import path" in message


def test_a_module_that_nobody_owns_may_come_from_anywhere(environment: Environment, tmp_path: Path) -> None:
    check_drift(environment, path_of(environment), {"other": str(tmp_path / "other.py")}, [])


@pytest.mark.parametrize("name", ["yaml.py", "_yaml.cpython-312-x86_64-linux-gnu.so", "numpy"])
def test_a_folder_in_front_that_would_shadow(environment: Environment, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "front"
    if "." in name:
        folder.mkdir()
        (folder / name).write_text("")
    else:
        package(folder, name)
    with pytest.raises(EnvironmentDrift, match="would be loaded from"):
        check_drift(environment, path_of(environment, folder), {}, [])
    check_drift(environment, [*path_of(environment), str(folder)], {}, [])  # behind, it hides nothing


def test_a_file_beside_the_service(environment: Environment, tmp_path: Path) -> None:
    folder = tmp_path / "service"
    folder.mkdir()
    (folder / "numpy.py").write_text("")
    with pytest.raises(EnvironmentDrift, match=r"Rename numpy\.py: beside the service it hides"):
        check_drift(environment, path_of(environment, folder), {}, [str(folder)])


def test_namespace_folders_never_win(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "front" / "numpy" / "data").mkdir(parents=True)
    check_drift(environment, path_of(environment, tmp_path / "front", tmp_path / "not there"), {}, [])


def test_links_do_not_matter(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(environment.prefix)
    file = tmp_path / "link" / "lib" / "python3.12" / "site-packages" / "numpy" / "__init__.py"
    check_drift(environment, path_of(environment), {"numpy": str(file)}, [])
