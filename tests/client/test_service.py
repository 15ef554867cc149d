# SPDX-License-Identifier: Apache-2.0
"""``atoll.Service``: from a file, a folder or a module; functions by attribute and by name; setup and teardown."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import atoll
from conditions import WITHIN, run_python, until, until_gone

Write = Callable[[str, str], Path]

VISION = '''\
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""A service."""
from atoll_worker import Service, expose

@expose
def detect(image, threshold: float = 0.5) -> dict:
    """Where it is bright."""
    return {"found": [x > threshold for x in image]}

class Edges(Service):
    def setup(self):
        self.kernel = [1, -1]

    @expose
    def find(self, row: list) -> list:
        return [a * self.kernel[0] + b * self.kernel[1] for a, b in zip(row, row[1:])]

    @expose(name="how_many")
    def count(self, *rows, **named):
        return len(rows) + len(named)
'''


def test_a_file(write: Write) -> None:
    with atoll.Service(write("services/vision.py", VISION)) as vision:
        assert vision.spec.name == "vision"
        assert vision.detect([0.1, 0.9], threshold=0.5) == {"found": [False, True]}
        assert vision.call("detect", [0.1], threshold=0.0) == {"found": [True]}
        assert vision.find([3, 2, 5]) == [1, -3]
        assert vision.how_many(1, 2, a=3) == 3
        assert vision.find.submit([1, 1]).result(WITHIN) == [0]
        assert list(vision.find.map([[1, 1], [2, 1]])) == [[0], [1]]
        assert vision.function("find").options(timeout=WITHIN)([4, 1]) == [3]
        assert str(vision.pid) in repr(vision)
        pid = vision.pid
    assert pid is not None
    until_gone(pid)
    assert "not running" in repr(vision)
    with pytest.raises(atoll.ServiceClosed, match="'vision'"):
        vision.detect([1])


def test_one_class_of_a_file(write: Write) -> None:
    with atoll.Service(f"{write('vision.py', VISION)}:Edges") as edges:
        assert set(edges.functions) == {"find", "how_many"}
        assert edges.spec.name == "Edges"
        with pytest.raises(atoll.FunctionNotFound, match="'Edges' exposes no function 'detect'; it exposes: find"):
            edges.detect([1])
    with (
        pytest.raises(atoll.WorkerStartError, match=r"has no Service class 'Missing'; its services are: \['Edges'\]"),
        atoll.Service(f"{write('vision.py', VISION)}:Missing"),
    ):
        pass


def test_a_folder(write: Write) -> None:
    write("eyes/code.py", VISION)
    manifest = write(
        "eyes/service.yaml",
        """\
        name: eyes
        entry: code.py:Edges
        timeout: 9
        env_vars: {GREETING: hello}
        colour: blue
        """,
    )
    with atoll.Service(manifest.parent) as eyes:
        assert eyes.find([2, 1]) == [1]
        assert (eyes.spec.name, eyes.spec.timeout, eyes.spec.extra) == ("eyes", 9.0, {"colour": "blue"})
    with atoll.Service(str(manifest.parent), name="other", timeout=3.0) as other:
        assert (other.spec.name, other.spec.timeout) == ("other", 3.0)


def test_a_module_and_a_class_of_a_module(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("pack/vision_module.py", VISION)
    write("pack/__init__.py", "raise RuntimeError('must not be imported by the host')\n")
    write("vision_alone.py", VISION)
    monkeypatch.syspath_prepend(str(file.parent.parent))
    with atoll.Service("vision_alone") as alone:
        assert alone.detect([1.0]) == {"found": [True]}
    with atoll.Service("vision_alone:Edges") as edges:
        assert edges.find([5, 1]) == [4]
    assert "vision_alone" not in sys.modules
    with (
        pytest.raises(atoll.WorkerStartError, match="must not be imported by the host"),
        atoll.Service("pack.vision_module"),
    ):
        pass


def test_functions_say_what_they_are(write: Write) -> None:
    with atoll.Service(write("vision.py", VISION)) as vision:
        functions = vision.functions
        assert list(functions) == ["detect", "find", "how_many"]
        detect = functions["detect"]
        assert detect.signature == "(image, threshold: float = 0.5) -> dict"
        assert detect.doc == "Where it is bright."
        assert detect.parameters["required"] == ["image"]
        assert detect.parameters["properties"]["threshold"]["type"] == "number"
        assert detect.parameters["properties"]["threshold"]["default"] == 0.5
        assert functions["find"].signature == "(row: list) -> list"
        assert functions["find"].doc == ""


def test_an_unknown_function_names_the_known_ones(write: Write) -> None:
    vision = atoll.Service(write("vision.py", VISION))
    unstarted = vision.detekt  # nothing is known of it before the worker runs
    with pytest.raises(atoll.FunctionNotFound, match="no function 'detekt'; it exposes: detect, find, how_many"):
        unstarted([1])
    with pytest.raises(AttributeError, match="it exposes: detect, find, how_many"):
        _ = vision.unknown
    with pytest.raises(atoll.FunctionNotFound, match="'__describ__'"):
        vision.call("__describ__")
    with pytest.raises(AttributeError):
        _ = vision._private
    assert not hasattr(vision, "nothing")
    assert vision.detect([]) == {"found": []}
    vision.close()


def test_a_function_with_the_name_of_an_attribute_is_called_by_name(write: Write) -> None:
    file = write(
        "clash.py",
        """\
        from atoll_worker import expose

        @expose
        def call(x): return ["call", x]

        @expose
        def close(): return "closed"

        @expose
        def functions(): return "functions"

        @expose(name="pid")
        def pid_(): return "pid"
        """,
    )
    with atoll.Service(file) as clash:
        assert clash.call("call", 1) == ["call", 1]
        assert clash.call("close") == "closed"
        assert clash.function("functions")() == "functions"
        assert clash.call("pid") == "pid"
        assert isinstance(clash.pid, int)
        assert set(clash.functions) == {"call", "close", "functions", "pid"}


def test_dir_lists_the_functions_once_they_are_known(write: Write) -> None:
    vision = atoll.Service(write("vision.py", VISION))
    assert "call" in dir(vision)
    assert "detect" not in dir(vision)
    vision.start()
    assert {"detect", "find", "how_many", "call", "close"} <= set(dir(vision))
    vision.close()


NOTES = """\
from atoll_worker import Service, expose
import os

class Notes(Service):
    def setup(self):
        self.note("setup")

    @expose
    def note(self, text):
        with open(os.environ["NOTES"], "a") as file:
            file.write(text + "\\n")
        return os.getpid()

    def teardown(self):
        self.note("teardown")
"""


def notes_service(write: Write, tmp_path: Path) -> tuple[atoll.Service, Path]:
    notes = tmp_path / "notes.txt"
    return atoll.Service(write("notes.py", NOTES), env_vars={"NOTES": str(notes)}), notes


@pytest.mark.usefixtures("in_order")
def test_setup_and_teardown_run_once_per_worker(write: Write, tmp_path: Path) -> None:
    service, notes = notes_service(write, tmp_path)
    with service:
        service.note("one")
        service.note("two")
        assert notes.read_text().split() == ["setup", "one", "two"]
    assert notes.read_text().split() == ["setup", "one", "two", "teardown"]


@pytest.mark.usefixtures("in_order")
def test_teardown_at_shutdown(write: Write, tmp_path: Path) -> None:
    service, notes = notes_service(write, tmp_path)
    service.note("one")
    atoll.shutdown()
    assert notes.read_text().split() == ["setup", "one", "teardown"]


@pytest.mark.usefixtures("in_order")
def test_teardown_when_nobody_holds_the_service_any_more(write: Write, tmp_path: Path) -> None:
    service, notes = notes_service(write, tmp_path)
    pid = service.note("one")
    del service
    gc.collect()
    until_gone(pid)
    assert notes.read_text().split() == ["setup", "one", "teardown"]


@pytest.mark.usefixtures("in_order")
def test_no_teardown_when_killed(write: Write, tmp_path: Path) -> None:
    service, notes = notes_service(write, tmp_path)
    pid = service.note("one")
    os.kill(pid, signal.SIGKILL)
    until(lambda: service.pid != pid)  # none for a moment only: another one is started
    service.note("two")
    service.close()
    assert notes.read_text().split() == ["setup", "one", "setup", "two", "teardown"]


def test_teardown_at_the_interpreters_exit(write: Write, tmp_path: Path) -> None:
    write("notes.py", NOTES)
    script = write(
        "script.py",
        """\
        import atoll, os
        service = atoll.Service("notes.py", env_vars={"NOTES": os.path.abspath("notes.txt")})
        service.note("one")
        """,
    )
    done = run_python(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "notes.txt").read_text().split() == ["setup", "one", "teardown"]


def test_a_teardown_that_hangs_is_cut_short(write: Write) -> None:
    file = write(
        "stubborn.py",
        """\
        from atoll_worker import Service, expose
        import os, signal, time

        class Stubborn(Service):
            @expose
            def pid(self): return os.getpid()

            def teardown(self):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(600)
        """,
    )
    service = atoll.Service(file)
    service.start()
    pid = service.call("pid")
    service._pool.close(grace=0.2)
    until_gone(pid)


def test_a_teardown_that_raises_harms_nobody(write: Write) -> None:
    file = write(
        "loud.py",
        """\
        from atoll_worker import Service, expose

        class Loud(Service):
            @expose
            def ok(self): return 1

            def teardown(self):
                raise RuntimeError("too late")
        """,
    )
    with atoll.Service(file) as loud:
        assert loud.ok() == 1


def test_a_setup_that_fails_shows_its_traceback(write: Write) -> None:
    file = write(
        "broken.py",
        """\
        from atoll_worker import Service, expose

        class Broken(Service):
            def setup(self):
                self.model = open("/no/such/model")

            @expose
            def f(self): return 1
        """,
    )
    service = atoll.Service(file, start_timeout=600)
    with pytest.raises(atoll.WorkerStartError, match="could not set it up") as caught:
        service.f()
    text = str(caught.value)
    assert f'File "{file}", line 5, in setup' in text
    assert 'self.model = open("/no/such/model")' in text
    assert "FileNotFoundError" in text
    assert "runtime.py" not in text


@pytest.mark.parametrize(
    ("code", "last"),
    [
        ("import no_such_package_at_all\n", "ModuleNotFoundError: No module named 'no_such_package_at_all'"),
        ("def f(:\n", "SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("x = 1\n", "exposes nothing: mark functions, or methods of a Service class, with @expose"),
    ],
)
def test_an_import_that_fails_is_said_at_once(write: Write, code: str, last: str) -> None:
    # A start_timeout of ten minutes: this test would not end if it were waited for.
    service = atoll.Service(write("bad.py", code), start_timeout=600)
    with pytest.raises(atoll.WorkerStartError, match="could not import it") as caught:
        service.start()
    assert str(caught.value).endswith(last) or last in str(caught.value).splitlines()[-1]
    assert service.pid is None
    with pytest.raises(atoll.WorkerStartError):
        service.f()


def test_a_service_that_was_mended_starts(write: Write) -> None:
    file = write("mended.py", "raise RuntimeError('not yet')\n")
    service = atoll.Service(file)
    with pytest.raises(atoll.WorkerStartError, match="not yet"):
        service.start()
    file.write_text("from atoll_worker import expose\n@expose\ndef f(): return 'now'\n")
    assert service.f() == "now"


@pytest.mark.parametrize(
    "name", ["json.py", "types.py", "service.py", "atoll.py", "values.py", "with-dash.py", "site.py"]
)
def test_any_file_name_will_do(write: Write, name: str) -> None:
    file = write(
        name,
        """\
        from atoll_worker import expose
        import json, types, decimal

        @expose
        def f():
            return json.dumps([1]), types.SimpleNamespace(a=1).a, str(decimal.Decimal(1))
        """,
    )
    with atoll.Service(file) as service:
        assert service.f() == ("[1]", 1, "1")


def test_modules_beside_the_service_can_be_imported_but_never_hide_the_standard_library(write: Write) -> None:
    for standard in ("random", "json", "service", "wire", "runtime", "statistics"):
        write(
            f"beside/{standard}.py",
            "raise RuntimeError('hides another module')\n"
            if standard in ("random", "json", "statistics")
            else f"mine = {standard!r}\n",
        )
    write("beside/sibling.py", "value = 7\n")
    file = write(
        "beside/main.py",
        """\
        import random, json, statistics
        import sibling, service, wire, runtime
        from atoll_worker import expose

        @expose
        def f():
            import heapq
            return sibling.value, service.mine, wire.mine, runtime.mine, hasattr(heapq, "merge"), json.loads("1")
        """,
    )
    with atoll.Service(file) as main:
        assert main.f() == (7, "service", "wire", "runtime", True, 1)


def test_two_functions_of_one_name_are_refused(write: Write) -> None:
    code = "from atoll_worker import expose\n@expose\ndef f(): pass\n@expose(name='f')\ndef g(): pass\n"
    with pytest.raises(atoll.WorkerStartError, match="two functions are exposed as 'f'"):
        atoll.Service(write("twice.py", code)).start()


@pytest.mark.parametrize("source", ["no/such/file.py", "no_such_folder/", "a b", ""])
def test_a_source_that_is_none(source: str) -> None:
    with pytest.raises(atoll.ManifestError):
        atoll.Service(source)


def test_a_module_that_does_not_exist() -> None:
    with pytest.raises(atoll.WorkerStartError, match="No module named 'no_such_module_anywhere'"):
        atoll.Service("no_such_module_anywhere").start()


def test_with_starts_and_an_error_inside_still_closes(write: Write) -> None:
    vision = atoll.Service(write("vision.py", VISION))
    pids = []

    def fail() -> None:
        with vision:
            pids.append(vision.pid)
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert pids != [None]
    until_gone(*pids)
    assert vision.pid is None
