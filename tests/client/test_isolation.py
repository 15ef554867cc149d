# SPDX-License-Identifier: Apache-2.0
"""A worker with an environment of its own holds nothing of its host; one without has what the host has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import atoll
from atoll.environments import environment_request, open_environment
from atoll.manifest import function_spec
from conditions import run_python

Write = Callable[[str, str], Path]

pytestmark = [pytest.mark.network, pytest.mark.slow]


def host_folders() -> list[str]:
    """Where packages of this process are."""
    paths = sysconfig.get_paths()
    repository = str(Path(__file__).resolve().parents[2])
    return [paths["purelib"], paths["platlib"], repository]


def test_nothing_of_the_host_is_on_the_workers_path() -> None:
    @atoll.function(dependencies=["idna==3.6"])
    def look() -> str:
        import json
        import os
        import site
        import sys

        import idna

        modules = sorted({name.partition(".")[0] for name in sys.modules})
        return json.dumps([sys.path, sys.prefix, modules, site.ENABLE_USER_SITE, idna.__file__, dict(os.environ)])

    path, prefix, modules, user_site, idna_file, environ = json.loads(look())
    for folder in host_folders():
        assert not [entry for entry in path if entry.startswith(folder)], folder
    assert "" not in path
    assert os.getcwd() not in path
    assert prefix != sys.prefix
    assert idna_file.startswith(prefix)
    assert not {"atoll", "numpy", "pytest", "msgspec"} & set(modules)
    assert not user_site
    assert environ["VIRTUAL_ENV"] == prefix
    assert environ["PATH"].split(os.pathsep)[0] == os.path.join(prefix, "bin")
    assert not {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"} & set(environ)


@pytest.mark.parametrize("module", ["atoll", "msgspec", "pytest", "numpy", "leaks"])
def test_what_only_the_host_has_cannot_be_imported(module: str) -> None:
    @atoll.function(dependencies=["idna==3.6"])
    def load(name: str) -> str:
        return str(__import__(name))

    with pytest.raises(ModuleNotFoundError, match=f"No module named '{module}'"):
        load(module)


HOST = """\
import json, os, sys
import atoll
import planted_by_pythonpath, planted_by_user_site

@atoll.function(dependencies=["idna==3.6"])
def look():
    import sys
    found = []
    for name in ("planted_by_pythonpath", "planted_by_user_site", "planted_beside", "sitecustomize"):
        try:
            __import__(name)
            found.append(name)
        except ImportError:
            pass
    return found, sys.path, list(sys.modules)

found, path, modules = look()
print(json.dumps([found, path, [name for name in modules if "planted" in name], planted_by_user_site.pth_ran]))
"""


def test_pythonpath_pth_files_and_the_users_site_never_reach_it(write: Write, tmp_path: Path) -> None:
    """A host that is started with all of them, and really has them, starts a worker that has none."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    write("planted/planted_by_pythonpath.py", "")
    write("planted/sitecustomize.py", "import sys; sys.path.append('/planted/by/sitecustomize')\n")
    user_site = f"home/lib/{version}/site-packages"
    write(f"{user_site}/planted_by_user_site.py", "import sys\npth_ran = hasattr(sys, 'planted')\n")
    write(f"{user_site}/planted.pth", "import sys; sys.planted = 1\n/planted/by/pth\n")
    write("planted_beside.py", "")
    script = write("host.py", HOST)
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "planted"), "PYTHONUSERBASE": str(tmp_path / "home")}
    environ["PYTHONSAFEPATH"] = ""
    done = run_python(script, env=environ, cwd=tmp_path, timeout=120)
    if "planted_by_user_site" in done.stderr:
        # A virtual environment has no user site: then it is planted on PYTHONPATH too, which the host does read.
        environ["PYTHONPATH"] += os.pathsep + str(tmp_path / user_site)
        done = run_python(script, env=environ, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    found, path, modules, _ = json.loads(done.stdout)
    assert found == []
    assert modules == []
    assert not [entry for entry in path if "planted" in entry or entry.startswith(str(tmp_path))]


def test_numpy_of_the_one_kind_here_and_of_the_other_there() -> None:
    here = int(np.__version__.partition(".")[0])
    assert here >= 2, "this test's host has numpy 2"

    @atoll.function(dependencies=["numpy==1.26.4"])
    def old(array):  # type: ignore[no-untyped-def]
        import numpy

        return numpy.__version__, numpy.__file__, array * 2, numpy.float32(1.5), {"mask": array > 2}

    @atoll.function(dependencies=["numpy>=2"])
    def new(array):  # type: ignore[no-untyped-def]
        import numpy

        return numpy.__version__, numpy.__file__, array * 2, numpy.float32(1.5), {"mask": array > 2}

    array = np.arange(50_000.0).reshape(100, 500)
    seen = []
    for function in (old, new):
        version, file, doubled, scalar, masks = function(array)
        assert np.array_equal(doubled, array * 2)
        assert masks["mask"].dtype == bool
        assert type(scalar) is np.float32
        assert file != np.__file__
        seen.append(version)
        again = new(old(array)[2])[2] if function is old else old(new(array)[2])[2]
        assert np.array_equal(again, array * 4)
    assert seen[0] == "1.26.4"
    assert seen[1].startswith("2.")


OLD_HOST = """\
import json, sys
import atoll, numpy

@atoll.function(dependencies=["numpy>=2"])
def new(array):
    import numpy
    return numpy.__version__, array.T.copy(), numpy.array(["2024-02-29"], "datetime64[D]"), numpy.float64(2)

version, array, days, two = new(numpy.arange(6, dtype=">i4").reshape(2, 3))
print(json.dumps([numpy.__version__, version, array.tolist(), str(array.dtype), str(days.dtype), type(two).__name__]))
"""


def test_a_host_with_numpy_1_and_a_worker_with_numpy_2(write: Write) -> None:
    repository = str(Path(__file__).resolve().parents[2])
    spec = function_spec("old_host", dependencies=["numpy==1.26.4", "uv", "msgspec", "PyYAML"], python="3.11")
    environment = open_environment(environment_request(spec))
    done = subprocess.run(
        [environment.python, str(write("old_host.py", OLD_HOST))],
        env={**os.environ, "PYTHONPATH": os.path.join(repository, "src")},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    here, there, array, dtype, days, scalar = json.loads(done.stdout)
    assert here == "1.26.4"
    assert there.startswith("2.")
    assert (array, dtype, days, scalar) == ([[0, 3], [1, 4], [2, 5]], ">i4", "datetime64[D]", "float64")


def test_a_file_named_like_a_package_never_stands_in_for_it(write: Write) -> None:
    write("beside/idna.py", "raise RuntimeError('the wrong one')\n")
    file = write(
        "beside/code.py",
        """\
        # /// script
        # dependencies = ["idna==3.6"]
        # ///
        from atoll_worker import expose
        import idna

        @expose
        def where():
            return idna.__file__, idna.encode("ü.example").decode()
        """,
    )
    with atoll.Service(file) as service:
        where, encoded = service.where()
        assert "site-packages" in where
        assert encoded == "xn--tda.example"


def test_a_service_that_puts_another_copy_first_is_refused(write: Write) -> None:
    write("elsewhere/idna.py", "encode = 'the wrong one'\n")
    file = write(
        "code.py",
        """\
        # /// script
        # dependencies = ["idna==3.6"]
        # ///
        import os, sys
        sys.path.insert(0, os.path.join(os.path.dirname(__file__), "elsewhere"))
        import idna
        from atoll_worker import expose

        @expose
        def f():
            return idna.encode
        """,
    )
    with pytest.raises(atoll.EnvironmentDrift, match="idna") as caught:
        atoll.Service(file).start()
    assert str(file.parent / "elsewhere") in str(caught.value)


def test_without_an_environment_it_has_what_the_host_has() -> None:
    @atoll.function
    def look() -> tuple[str, str]:
        import numpy

        return numpy.__version__, numpy.__file__

    assert look() == (np.__version__, np.__file__)


def test_variables_of_the_environment() -> None:
    @atoll.function(dependencies=["idna==3.6"], env_vars={"GREETING": "hello", "PATH": "/only/this"})
    def look() -> dict[str, str]:
        import os

        return {name: os.environ.get(name, "") for name in ("GREETING", "PATH", "ATOLL_TEST_VARIABLE")}

    os.environ["ATOLL_TEST_VARIABLE"] = "the host's"
    try:
        assert look() == {"GREETING": "hello", "PATH": "/only/this", "ATOLL_TEST_VARIABLE": "the host's"}
    finally:
        del os.environ["ATOLL_TEST_VARIABLE"]
