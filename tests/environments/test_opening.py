# SPDX-License-Identifier: Apache-2.0
"""Environments of every kind: what they hold, where they come from, and that a ready one opens at once."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.environments import Environment, EnvironmentRequest
from atoll.environments.interpreters import find_interpreter, host_executable
from atoll.environments.uv_command import clean_environ, find_uv
from atoll.errors import BuildError, EnvironmentError, InterpreterNotFound, ManifestError, ResolutionError

from .conftest import nothing_half_made, python_says

Open = Callable[..., Environment]
Request = Callable[..., EnvironmentRequest]
network = pytest.mark.network


def make_package(folder: Path, name: str, *, version: str = "1.0", body: str = "", setup: str = "") -> Path:
    """A small package that builds with nothing but what uv's cache or the index has."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(body)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "{version}"\n[project.scripts]\n{name} = "{name}:main"\n'
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    )
    if setup:
        (folder / "setup.py").write_text(setup)
    return folder


def test_without_options_it_is_the_hosts_own(open_for: Open, cache: Path) -> None:
    environment = open_for()
    assert environment.is_host
    assert environment.key == "host"
    assert environment.python == sys.executable
    assert environment.prefix == sys.prefix
    assert environment.version == sys.version_info[:3]
    assert environment.pinned == {}
    assert not cache.exists()


def test_an_embedded_host_is_told_what_to_do(open_for: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(InterpreterNotFound, match=r"embeds Python.*python='/path/of/python'"):
        open_for()


@network
def test_dependencies(open_for: Open, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "atoll.environments")
    environment = open_for(dependencies=["idna==3.7", "six"])
    assert environment.pinned["idna"] == "3.7"
    assert set(environment.pinned) == {"idna", "six"}
    assert environment.modules == {"idna": "idna", "six": "six"}
    assert environment.version == sys.version_info[:3]
    assert environment.python.startswith(str(cache / "environments"))
    said = python_says(
        environment, "import sys, six; print(sys.prefix, six.__file__, *sys.path, sep='\\n')"
    ).splitlines()
    assert said[0] == environment.prefix
    assert os.path.dirname(said[1]) == environment.site_packages[0]
    assert not set(said[2:]) & {entry for entry in sys.path if entry.endswith("site-packages")}
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert "ready with 2 packages" in caplog.records[1].message
    assert nothing_half_made(cache)


@network
def test_bytecode_is_compiled_when_it_is_built(open_for: Open) -> None:
    environment = open_for(dependencies=["six"])
    compiled = Path(environment.site_packages[0], "__pycache__", f"six.{sys.implementation.cache_tag}.pyc")
    assert compiled.is_file()
    # and is the one that is used, not compiled again because of where it lies
    said = subprocess.run(
        [environment.python, "-I", "-v", "-c", "import six"], capture_output=True, text=True, check=True
    ).stderr
    assert f"matches {environment.site_packages[0]}/six.py" in said


@network
def test_console_scripts_work_where_it_was_published(open_for: Open, tmp_path: Path) -> None:
    package = make_package(
        tmp_path / "p", "hello", body="import sys\ndef main():\n    print(sys.prefix, sys.argv[1])\n"
    )
    environment = open_for(dependencies=[str(package)])
    script = Path(environment.prefix, "bin", "hello")
    done = subprocess.run([script, "there"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [environment.prefix, "there"]


@network
def test_a_changed_local_package_is_built_again(open_for: Open, tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", "hello", body="VALUE = 1\n")
    first = open_for(dependencies=[str(package)])
    (package / "hello" / "__init__.py").write_text("VALUE = 'two'\n")
    os.utime(package / "pyproject.toml")  # what uv looks at to know
    second = open_for(dependencies=[str(package)])
    assert second.key != first.key
    assert python_says(second, "import hello; print(hello.VALUE)") == "two"


def test_only_an_interpreter(open_for: Open) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    environment = open_for(python=version)
    assert not environment.is_host
    assert environment.pinned == {}
    assert environment.version == sys.version_info[:3]
    assert python_says(environment, "import sys; print(sys.prefix)") == environment.prefix
    with pytest.raises(subprocess.CalledProcessError):
        python_says(environment, "import msgspec")


def test_an_interpreter_by_path(open_for: Open) -> None:
    environment = open_for(python=host_executable())
    assert environment.version == sys.version_info[:3]


@network
def test_one_lock_is_one_environment(open_for: Open, request_for: Request) -> None:
    first = open_for(dependencies=["six==1.17.0"])
    assert open_for(dependencies=["six>=1.17.0,<1.17.1"]).key == first.key
    assert open_for(dependencies=["six==1.16.0"]).key != first.key
    assert request_for(dependencies=["idna", "six"]).digest() == request_for(dependencies=["six", "idna"]).digest()


@network
def test_a_requirements_file(open_for: Open, request_for: Request, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("idna==3.7\n")
    file = tmp_path / "requirements.txt"
    file.write_text("six==1.16.0\n-r more.txt\n")
    assert open_for(environment=file).pinned == {"idna": "3.7", "six": "1.16.0"}
    before = request_for(environment=file).digest()
    (tmp_path / "more.txt").write_text("idna==3.10\n")
    assert request_for(environment=file).digest() != before
    assert open_for(environment=file, dependencies=["packaging==24.0"]).pinned["packaging"] == "24.0"


@network
def test_a_locked_project(open_for: Open, tmp_path: Path) -> None:
    project = make_package(tmp_path / "project", "hello", body="def main(): print('hi')\n")
    text = (project / "pyproject.toml").read_text()
    text = text.replace(
        '"1.0"\n',
        '"1.0"\nrequires-python = ">=3.9"\ndependencies = ["idna==3.7"]\n[dependency-groups]\ndev = ["six"]\n'
        "[project.optional-dependencies]\n",
        1,
    )
    (project / "pyproject.toml").write_text(text)
    with pytest.raises(ManifestError, match=r"uv\.lock not found there; run `uv lock` there"):
        open_for(environment=project)
    subprocess.run(
        [find_uv(), "lock", "--quiet"], cwd=project, check=True, env=clean_environ(os.environ), capture_output=True
    )
    environment = open_for(environment=project)
    assert environment.pinned == {"hello": "1.0", "idna": "3.7"}
    assert Path(environment.site_packages[0], "hello", "__init__.py").is_file()
    assert not (project / ".venv").exists()
    assert open_for(environment=project / "uv.lock").key == environment.key
    assert open_for(lock=project / "uv.lock").key == environment.key


@network
def test_a_lock_file_is_installed_as_it_is(open_for: Open, tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("six==1.16.0\nidna==3.7\n")
    assert open_for(lock=lock).pinned == {"idna": "3.7", "six": "1.16.0"}
    assert open_for(lock=lock, dependencies=["six>=1.10"]).pinned == {"idna": "3.7", "six": "1.16.0"}
    with pytest.raises(BuildError, match=r"does not hold its dependencies(?s:.*)packaging"):
        open_for(lock=lock, dependencies=["packaging"])


@network
def test_what_cannot_be_installed_says_the_installers_words(open_for: Open, tmp_path: Path, cache: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("six==99.99\n")
    with pytest.raises(BuildError) as caught:
        open_for(lock=lock)
    venv = tmp_path / "venv"
    common = {"cwd": "/", "capture_output": True, "text": True, "env": clean_environ(os.environ)}
    subprocess.run([find_uv(), "venv", "--python", host_executable(), venv], check=True, **common)  # type: ignore[call-overload]
    command = [find_uv(), "pip", "sync", lock, "--python", venv / "bin" / "python", "--color", "never"]
    beside = subprocess.run(command, **common)  # type: ignore[call-overload]
    # The first line names the environment that is installed into, which is another one here.
    words = beside.stderr.splitlines(keepends=True)[1:]
    assert "".join(words).rstrip("\n") in str(caught.value)
    assert "six==99.99" in str(caught.value)
    assert nothing_half_made(cache)


@network
@pytest.mark.parametrize(
    "dependencies", [["numpy==1.26.4", "numpy>=2"], ["six==99.99", "idna"], ["no-such-package-9x8y"]]
)
def test_the_resolvers_refusal_word_for_word(open_for: Open, dependencies: list[str], cache: Path) -> None:
    with pytest.raises(ResolutionError) as caught:
        open_for(dependencies=dependencies)
    beside = subprocess.run(
        [find_uv(), "pip", "compile", "-", "--python", host_executable(), "--color", "never"],
        cwd="/",
        input="\n".join(sorted(dependencies)),
        capture_output=True,
        text=True,
        env=clean_environ(os.environ),
    )
    assert beside.returncode != 0
    assert str(caught.value).endswith("says:\n" + beside.stderr.rstrip("\n"))
    assert "\x1b" not in str(caught.value)
    assert nothing_half_made(cache)


def test_an_existing_environment_is_used_as_it_is(open_for: Open, tmp_path: Path, cache: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    for path in (venv, venv / "bin" / "python"):
        environment = open_for(environment=path)
        assert environment.python == str(venv / "bin" / "python")
        assert environment.prefix == str(venv)
        assert not environment.is_host
        assert environment.pinned == {}
    package = Path(environment.site_packages[0])
    (package / "thing").mkdir()
    (package / "thing" / "__init__.py").write_text("")
    (package / "thing-1.0.dist-info").mkdir()
    (package / "thing-1.0.dist-info" / "METADATA").write_text("Name: Thing\nVersion: 1.0\n")
    (package / "thing-1.0.dist-info" / "RECORD").write_text("thing/__init__.py,,\n")
    assert open_for(environment=venv).modules == {"thing": "thing"}
    assert not (cache / "environments").exists()


def test_what_contradicts_an_existing_environment(open_for: Open, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    with pytest.raises(ManifestError, match="dependencies cannot be added"):
        open_for(environment=venv, dependencies=["six"])
    with pytest.raises(ManifestError, match=r"python asks for '==2\.7\.\*'"):
        open_for(environment=venv, python="==2.7.*")
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python3").unlink(missing_ok=True)
    with pytest.raises(ManifestError, match="whose interpreter is gone"):
        open_for(environment=venv)
    (tmp_path / "file").write_text("")
    with pytest.raises(ManifestError, match="is none: expected an interpreter"):
        open_for(environment=tmp_path / "file")


def test_an_existing_environment_that_is_too_old(open_for: Open, fake_interpreter: Callable[..., str]) -> None:
    with pytest.raises(InterpreterNotFound, match=r"is Python 3\.8\.18; atoll's workers need Python 3\.9"):
        open_for(environment=fake_interpreter("python3.8", "3.8.18"))


_AUDITED = """
import atoll.environments
from atoll.environments import EnvironmentRequest, open_environment
request = EnvironmentRequest("packages", "mean", python={python!r})
loaded = set(sys.modules)
def forbid(event, arguments):
    if event.startswith(("subprocess", "os.posix_spawn", "os.fork", "os.exec", "os.system", "socket", "pty")):
        raise RuntimeError(f"a ready environment must open without {{event}} {{arguments}}")
sys.addaudithook(forbid)
environment = open_environment(request)
print(environment.key)
print(*sorted(set(sys.modules) - loaded))
"""


def test_a_ready_one_opens_without_subprocess_and_network(open_for: Open, run: Callable[..., str]) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    environment = open_for(python=version)
    key, imported = run(_AUDITED.format(python=version)).splitlines()
    assert key == environment.key
    heavy = {"subprocess", "tempfile", "tomllib", "yaml", "rich", "hashlib", "socket", "shutil"}
    assert not heavy & set(imported.split())


def test_the_shell_does_not_leak_into_a_build(open_for: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "sitecustomize.py").write_text("raise SystemExit('the host’s path leaked')")
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "UV_PYTHON", "UV_PROJECT_ENVIRONMENT", "UV_CONSTRAINT"):
        monkeypatch.setenv(name, str(tmp_path / "evil"))
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "pyproject.toml").write_text("[tool.uv]\nno-such = [not toml")
    monkeypatch.chdir(tmp_path / "project")
    environment = open_for(python=".".join(map(str, sys.version_info[:3])))
    assert python_says(environment, "print('works')") == "works"


@network
def test_settings_of_a_project_around_the_host_do_not_count(
    open_for: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "host"\nversion = "1"\n[tool.uv]\noverride-dependencies = ["six==1.15.0"]\n'
    )
    monkeypatch.chdir(tmp_path)  # the cache lies below it too
    assert open_for(dependencies=["six==1.17.0"]).pinned == {"six": "1.17.0"}


def test_a_cache_that_cannot_be_written(open_for: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATOLL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(EnvironmentError, match=r"the cache folder.*ATOLL_CACHE_DIR"):
        open_for(python=".".join(map(str, sys.version_info[:3])))


@network
def test_another_interpreter(open_for: Open) -> None:
    """Whichever this machine has beside the host's own version."""
    from atoll.environments import all_interpreters

    others = [one for one in all_interpreters() if one.version[:2] != sys.version_info[:2]]
    if not others:
        pytest.skip("this machine has one version of Python only")
    version = "{}.{}".format(*others[0].version)
    environment = open_for(dependencies=["six"], python=version)
    assert environment.version == find_interpreter(version).version
    assert python_says(environment, "import sys, six; print(*sys.version_info[:2], sep='.')") == version


def test_requests_are_told_apart(request_for: Request, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    different = [
        request_for(dependencies=["six"]),
        request_for(dependencies=["six", "idna"]),
        request_for(dependencies=["six"], python="3.12"),
        request_for(dependencies=["six"], indexes=["https://a.invalid/"]),
        request_for(dependencies=["six"], find_links=["https://a.invalid/"]),
        request_for(dependencies=["six"], find_links=[wheels.as_posix()]),
        request_for(python="3.12"),
    ]
    assert len({one.digest() for one in different}) == len(different)
    for one in different:
        assert EnvironmentRequest.from_record(one.as_record()) == one


def test_a_program_with_an_old_record_builds_again(open_for: Open, cache: Path) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    first = open_for(python=version)
    record = cache / "environments" / first.key / "record.json"
    for text in ("{}", "", "[1]", textwrap.dedent('{"python": 3}')):
        record.write_text(text)
        assert open_for(python=version).key == first.key
        assert nothing_half_made(cache)
