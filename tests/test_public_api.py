# SPDX-License-Identifier: Apache-2.0
"""What is public: exported once, documented, cheap to import, typed, and complete in the wheel that users install."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import atoll
import atoll.errors
import atoll_worker

ROOT = Path(__file__).resolve().parents[1]
MODULES = [atoll, atoll_worker, atoll.errors]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_export_appears_once_and_exists(module: ModuleType) -> None:
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name


def public_names(module: ModuleType) -> set[str]:
    """What a module's own text binds at its top, but modules, private names and __future__."""
    assert module.__file__ is not None
    found: set[str] = set()
    for node in ast.parse(Path(module.__file__).read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_nothing_is_public_by_accident(module: ModuleType) -> None:
    assert public_names(module) - set(module.__all__) - {"Sequence"} == set()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_everything_public_has_a_docstring(module: ModuleType) -> None:
    missing = []
    for name in module.__all__:
        thing = getattr(module, name)
        if name.startswith("__"):
            continue
        # A docstring of its own, not that of a base or of the type.
        one = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)  # `host` is an instance
        documented = one.__doc__ if inspect.isroutine(one) else vars(one).get("__doc__")
        if not (documented or "").strip():
            missing.append(f"{module.__name__}.{name}")
        if inspect.isclass(thing):
            for attribute, value in vars(thing).items():
                value = value.fget if isinstance(value, property) else value
                if not attribute.startswith("_") and inspect.isfunction(value) and not (value.__doc__ or "").strip():
                    missing.append(f"{module.__name__}.{name}.{attribute}")
    assert missing == []


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    drawn = atoll.errors.__doc__ or ""
    for name in atoll.errors.__all__:
        error = getattr(atoll, name)
        assert issubclass(error, atoll.AtollError)
        assert re.search(rf"\b{name}\b", drawn), name


def test_import_atoll_brings_nothing_heavy() -> None:
    code = "import sys; before = set(sys.modules); import atoll; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    brought = set(done.stdout.split())
    assert "atoll" in brought
    heavy = {
        "numpy",
        "rich",
        "asyncio",
        "subprocess",
        "yaml",
        "msgspec",
        "typer",
        "inspect",
        "ast",
        "concurrent.futures.thread",  # the package itself is light, and has the base of CallCancelled
        "concurrent.futures.process",
    }
    assert brought & heavy == set()


def test_the_worker_side_needs_only_the_standard_library_and_never_the_host() -> None:
    code = (
        "import sys; before = set(sys.modules); import atoll_worker, pkgutil, importlib\n"
        "for one in pkgutil.iter_modules(atoll_worker.__path__):\n"
        "    one.name == '__main__' or importlib.import_module('atoll_worker.' + one.name)\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    environ = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environ
    )
    brought = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert brought == {"atoll_worker"}


def test_the_version_is_the_packages() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert atoll.__version__ == project["version"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as for a release."""
    uv = pytest.importorskip("uv").find_uv_bin()
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "No module named 'hatchling'" in done.stderr:
        command = [uv, "build", "--wheel", "--out-dir", str(out), str(ROOT)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
@pytest.mark.network
def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("atoll", "atoll_worker"):
        assert f"{package}/py.typed" in names
        for file in (ROOT / "src" / package).rglob("*.py"):
            assert file.relative_to(ROOT / "src").as_posix() in names
    assert {name.partition("/")[0] for name in names} == {
        "atoll",
        "atoll_worker",
        f"atoll-{atoll.__version__}.dist-info",
    }
    assert not [name for name in names if name.endswith((".pyc", ".so"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


INSTALLED = """\
import atoll, atoll_worker, sys
assert "site-packages" in atoll.__file__ and "site-packages" in atoll_worker.__file__, atoll.__file__

@atoll.function
def f(x):
    return x + 1

@atoll.function(python=sys.executable)
def where():
    import sys
    try:
        import atoll
    except ImportError:
        return [entry for entry in sys.path if "fresh" in entry]

print(f(41), where())
"""


@pytest.mark.slow
@pytest.mark.network
def test_installed_from_the_wheel_it_makes_a_call(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment, far from the repository, with the dependencies that the wheel itself names."""
    uv = pytest.importorskip("uv").find_uv_bin()
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    python = tmp_path / "fresh" / "bin" / "python"
    for command in (
        [uv, "venv", "--python", sys.executable, str(tmp_path / "fresh")],
        [uv, "pip", "install", "--python", str(python), str(wheel)],
    ):
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stderr
    script = tmp_path / "script.py"
    script.write_text(INSTALLED)
    done = subprocess.run(
        [str(python), str(script)], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "42 []\n"
    command = [str(python.parent / "atoll"), "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "atoll[cli]" in done.stdout + done.stderr, "without the extra, the command says what to install"
