# SPDX-License-Identifier: Apache-2.0
"""Workers are forked from a process that has imported what they need; where that is not safe, they are started.

Which of the two a worker is, is told by its parent: a template, or this process.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.processes import template as templates
from conditions import WITHIN, children_of, end, is_gone, start_python, until, until_gone

Write = Callable[[str, str], Path]

SERVICE = """\
import gc, os, random, subprocess, sys
from atoll_worker import Service, expose

COLLECTED = gc.isenabled()

class Preloaded(Service):
    @expose
    def parent(self):
        return os.getppid()

    @expose
    def collects(self):
        return COLLECTED, gc.isenabled()

    @expose
    def place(self):
        return os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0)

    @expose
    def marks(self):
        import slowly
        return slowly.MARK, os.environ.get("MARK"), sys.argv, sys.stdin.read()

    @expose
    def imported(self):
        return list(sys.modules)

    @expose
    def chance(self):
        numpy = sys.modules.get("numpy")
        return random.random(), None if numpy is None else float(numpy.random.rand())

    @expose
    def product(self, size):
        import numpy
        return float((numpy.ones((size, size)) @ numpy.ones((size, size))).sum())

    @expose
    def descriptors(self):
        found = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                found[name] = os.readlink("/proc/self/fd/" + name)
            except OSError:
                pass
        return found

    @expose
    def say(self):
        print("said out", flush=True)
        print("said err", file=sys.stderr, flush=True)

    @expose
    def stray(self):
        child = subprocess.Popen(["sleep", "600"])
        away = subprocess.Popen(["sleep", "601"], start_new_session=True)
        return child.pid, away.pid

    @expose
    def exit(self, code):
        os._exit(code)
"""

SLOWLY = """\
import os, sys
print("imported once", flush=True)
MARK = os.getpid()
"""


class Heard(logging.Handler):
    """The warnings that pools gave."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def about_forks(self) -> list[str]:
        return [one for one in self.messages if "not forked" in one]


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    logger = logging.getLogger("atoll.pool")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def serve(write: Write) -> Iterator[Callable[..., Any]]:
    """Make a service with modules to preload."""
    services: list[atoll.Service] = []

    def make(*preload: str, **options: Any) -> Any:
        write("slowly.py", SLOWLY)
        service = atoll.Service(write("preloaded.py", SERVICE), preload=list(preload), **options)
        services.append(service)
        return service

    yield make
    for service in services:
        service.close()


@pytest.mark.parametrize("preload", [[], ["slowly"]], ids=["started", "forked"])
def test_garbage_of_user_code_is_collected(serve: Callable[..., Any], preload: list[str]) -> None:
    """The garbage collector rests while a worker starts, and no longer."""
    assert serve(*preload).collects() == (True, True)


def template_pids() -> list[int]:
    return [one.pid for one in list(templates._living)]


def replace_worker(service: Any) -> None:
    """Kill the worker, and wait until another one is ready."""
    before = service.pid
    os.kill(before, signal.SIGKILL)
    until(lambda: service.pid not in (None, before))


# -- a forked worker is as any other -------------------------------------------------------------------------------


def test_workers_are_forked_and_the_modules_are_there(serve: Callable[..., Any], heard: Heard) -> None:
    service = serve("slowly", env_vars={"MARK": "here"})
    pid, parent, group, session = service.place()
    assert parent in template_pids()
    assert parent != os.getpid()
    assert pid == group == session == service.pid
    mark, variable, arguments, stdin = service.marks()
    assert mark == parent  # imported there, and only there
    assert variable == "here"
    assert (len(arguments), stdin) == (1, "")
    assert heard.about_forks() == []
    service.close()
    until_gone(pid, parent)


def test_without_modules_there_is_no_template(serve: Callable[..., Any]) -> None:
    assert serve().parent() == os.getpid()
    assert template_pids() == []


def test_what_is_printed_arrives_once_and_from_each(serve: Callable[..., Any], printed: Any) -> None:
    service = serve("slowly", workers=2)
    service.start()
    service.say()
    until(lambda: "said out" in printed.lines("stdout") and "said err" in printed.lines("stderr"))
    assert printed.lines("stdout").count("imported once") == 1


def test_descriptors_are_those_of_a_plain_worker(serve: Callable[..., Any]) -> None:
    def kinds(service: Any) -> list[str]:
        found = service.descriptors().values()
        return sorted(one.partition(":[")[0].partition(" (")[0] for one in found if not one.startswith("/proc/"))

    service = serve("slowly", "numpy", workers=2)
    service.start()
    assert kinds(service) == kinds(serve())


@pytest.mark.parametrize("concurrency", [1, 3])
def test_several_calls_at_a_time(serve: Callable[..., Any], concurrency: int) -> None:
    service = serve("slowly", concurrency=concurrency)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(service.parent())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert set(found) == set(template_pids())


@pytest.mark.parametrize("modules", [("random",), ("numpy",), ("numpy.random",)])
def test_each_worker_has_random_numbers_of_its_own(serve: Callable[..., Any], modules: tuple[str, ...]) -> None:
    service = serve(*modules)
    found = []
    for _ in range(3):
        found.append((service.chance(), service.parent()))
        replace_worker(service)
    assert {parent for _, parent in found} == set(template_pids())
    assert len({one for (one, _), _ in found}) == 3
    if modules != ("random",):
        assert len({other for (_, other), _ in found}) == 3


def test_limits_hold_and_are_not_the_templates(serve: Callable[..., Any]) -> None:
    import resource

    service = serve("slowly", nice=5, open_files=100)
    parent = service.parent()
    assert parent in template_pids()
    assert os.getpriority(os.PRIO_PROCESS, service.pid) == 5
    assert os.getpriority(os.PRIO_PROCESS, parent) == os.getpriority(os.PRIO_PROCESS, 0)
    assert resource.prlimit(service.pid, resource.RLIMIT_NOFILE) == (100, 100)
    assert resource.prlimit(parent, resource.RLIMIT_NOFILE) == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_numpy_computes_in_a_fork(serve: Callable[..., Any], heard: Heard) -> None:
    """numpy's OpenBLAS has threads from its import on; they are no reason not to fork, and are there again."""
    service = serve("numpy", workers=2)
    service.start()
    parent = service.parent()
    assert parent in template_pids()
    assert os.listdir(f"/proc/{parent}/task") == [str(parent)]
    assert service.product(400) == 400.0**3
    assert heard.about_forks() == []


@pytest.mark.slow
@pytest.mark.skipif("ATOLL_TEST_TORCH" not in os.environ, reason="ATOLL_TEST_TORCH names no interpreter that has torch")
def test_torch_computes_in_a_fork(heard: Heard) -> None:
    @atoll.function(preload=["torch"], start_timeout=120, environment=os.environ["ATOLL_TEST_TORCH"])
    def multiply(size: int) -> Any:
        import os
        import sys

        loaded = "torch" in sys.modules
        import torch

        return loaded, os.getppid(), float((torch.ones(size, size) @ torch.ones(size, size)).sum())

    try:
        for _ in range(2):
            loaded, parent, total = multiply(300)
            assert (loaded, total) == (True, 300.0**3)
            assert parent in template_pids()
            replace_worker(multiply)
        assert heard.about_forks() == []
    finally:
        multiply.close()


# -- one template ---------------------------------------------------------------------------------------------------


def test_pools_with_the_same_environment_share_a_template(serve: Callable[..., Any]) -> None:
    first, second, other = serve("slowly"), serve("slowly"), serve("slowly", "json")
    assert first.parent() == second.parent()
    assert other.parent() != first.parent()
    parent = first.parent()
    first.close()
    assert not is_gone(parent)
    assert second.parent() == parent
    second.close()
    assert is_gone(parent)
    assert len(template_pids()) == 1


def test_a_reload_imports_anew(serve: Callable[..., Any], write: Write) -> None:
    service = serve("slowly")
    before = service.parent()
    write("slowly.py", SLOWLY.replace("os.getpid()", "'anew'"))
    service.reload()
    until_gone(before)
    assert service.parent() in template_pids()
    assert service.marks()[0] == "anew"


def test_another_variable_makes_another_template(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    service = serve("slowly")
    before = service.parent()
    monkeypatch.setenv("MARK", "changed")
    replace_worker(service)
    assert service.marks()[1] == "changed"
    assert service.parent() in template_pids()
    until_gone(before)


# -- where there can be no fork ------------------------------------------------------------------------------------

UNSAFE = {
    "thread": (
        "import threading\nthreading.Thread(target=threading.Event().wait, name='mine', daemon=True).start()\n",
        "1 thread of Python's is running (mine)",
    ),
    "raw": (
        "import _thread\nlock = _thread.allocate_lock()\nlock.acquire()\n_thread.start_new_thread(lock.acquire, ())\n",
        "1 thread of C code is running (",
    ),
    "cuda": (
        "import sys, types\nsys.modules['torch'] = types.ModuleType('torch')\n"
        "class cuda:\n    is_initialized = staticmethod(lambda: True)\nsys.modules['torch'].cuda = cuda\n",
        "torch has initialised CUDA",
    ),
    "socket": ("import socket\npair = socket.socketpair()\n", "a socket is open"),
    "loop": ("import select\npoll = select.epoll()\n", "an event loop's descriptor is open"),
    "absent": ("import no_such_module\n", "importing unfit raised ModuleNotFoundError: No module named"),
    "exit": ("raise SystemExit('enough')\n", "importing unfit raised SystemExit: enough"),
    "death": ("import os\nos._exit(3)\n", "the process that imports unfit exited with code 3"),
    "kill": ("import os\nos.kill(os.getpid(), 9)\n", "the process that imports unfit was killed by signal 9"),
    "handler": ("import os\nos.register_at_fork(after_in_child=lambda: os._exit(1))\n", "/proc does not tell"),
}


@pytest.mark.parametrize("why", UNSAFE)
def test_what_cannot_be_forked_is_started(serve: Callable[..., Any], write: Write, heard: Heard, why: str) -> None:
    text, reason = UNSAFE[why]
    write("unfit.py", text)
    service = serve("unfit", workers=2)
    service.start()
    assert service.parent() == os.getpid()
    assert len(heard.about_forks()) == 1
    assert reason in heard.about_forks()[0]
    assert heard.about_forks()[0].startswith("preloaded: workers are not forked from a process that has imported unfit")
    replace_worker(service)
    assert service.parent() == os.getpid()
    assert len(heard.about_forks()) == 1
    until(lambda: not template_pids())


def test_a_thread_that_comes_later(serve: Callable[..., Any], write: Write, heard: Heard) -> None:
    """What runs in the template after the imports: a signal handler."""
    write(
        "unfit.py",
        "import signal, threading\n"
        "def start(*_):\n    threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "signal.signal(signal.SIGUSR1, start)\n",
    )
    service = serve("unfit")
    template = service.parent()
    assert template in template_pids()
    os.kill(template, signal.SIGUSR1)
    until(lambda: len(os.listdir(f"/proc/{template}/task")) == 2)
    replace_worker(service)
    assert service.parent() == os.getpid()
    assert "1 thread of Python's is running" in heard.about_forks()[0]
    until_gone(template)


def test_imports_that_never_end(serve: Callable[..., Any], write: Write, heard: Heard) -> None:
    write("unfit.py", "import threading\nthreading.Event().wait()\n")
    service = serve("unfit", start_timeout=20)  # half of it is waited for the imports; the rest is for a plain start
    assert service.parent() == os.getpid()
    assert "importing took too long" in heard.about_forks()[0]


def test_closing_does_not_wait_for_imports(serve: Callable[..., Any], write: Write) -> None:
    write("unfit.py", "import threading\nthreading.Event().wait()\n")
    service = serve("unfit", start_timeout=1000)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            service.parent()
        except BaseException as error:
            errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    template = until(template_pids)[0]
    service.close()
    caller.join(WITHIN)
    assert not caller.is_alive()
    assert isinstance(errors[0], atoll.AtollError)
    until_gone(template)


# -- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(("code", "words"), [(7, "exited with code 7"), (0, "exited with code 0")])
def test_how_a_forked_worker_ended_is_known(serve: Callable[..., Any], code: int, words: str) -> None:
    service = serve("slowly")
    service.start()
    with pytest.raises(atoll.WorkerDied, match=words) as caught:
        service.exit(code)
    assert (caught.value.exit_code, caught.value.signal) == (code, None)
    assert service.parent() in template_pids()


def test_a_killed_worker_takes_what_it_started_with_it(serve: Callable[..., Any]) -> None:
    service = serve("slowly")
    service.start()
    child, away = service.stray()
    first = service.pid
    os.kill(first, signal.SIGKILL)
    until_gone(first, child)
    until(lambda: service.pid not in (None, first))
    assert service.parent() in template_pids()
    os.kill(away, signal.SIGKILL)  # it left the worker's group, and the worker was not killed by its pool
    until_gone(away)
    until(lambda: len(children_of(template_pids()[0])) == 1)


def test_a_timeout_ends_all_a_forked_worker_started(serve: Callable[..., Any], write: Write) -> None:
    service = serve("slowly")
    service.start()
    pids = service.stray()
    service.close()
    os.kill(pids[1], signal.SIGKILL)
    until_gone(*pids)


def test_a_killed_template_leaves_its_workers_alone(serve: Callable[..., Any], heard: Heard) -> None:
    service = serve("slowly")
    template = service.parent()
    worker = service.pid
    child, away = service.stray()
    os.kill(template, signal.SIGKILL)
    until_gone(template)
    assert service.place()[0] == worker
    # The next one is started, and a template is tried again; then workers are forked again.
    until(lambda: template not in template_pids())
    os.kill(worker, signal.SIGKILL)
    until_gone(worker, child)
    until(lambda: service.pid not in (None, worker))
    assert service.parent() == os.getpid()
    assert ["had ended, and is started again" in one for one in heard.about_forks()] == [True]
    second = until(template_pids)[0]
    until(lambda: all(one.is_ready for one in list(templates._living)))
    replace_worker(service)
    assert service.parent() == second
    os.kill(away, signal.SIGKILL)
    until_gone(away)


def test_template_and_worker_killed_at_once(serve: Callable[..., Any]) -> None:
    service = serve("slowly")
    template = service.parent()
    worker = service.pid
    child, away = service.stray()
    os.kill(template, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    until_gone(template, worker, child)
    until(lambda: service.pid not in (None, worker))
    assert service.parent() == os.getpid()
    os.kill(away, signal.SIGKILL)
    until_gone(away)


HOST = """\
import atoll, os, sys
service = atoll.Service(sys.argv[1], preload=["slowly", "numpy"], workers=2)
service.start()
print(service.parent(), *(one.pid for one in service.status().workers), *service.stray(), flush=True)
sys.stdin.read()
"""


def test_a_killed_host_takes_all_with_it(write: Write) -> None:
    write("slowly.py", SLOWLY)
    service = write("preloaded.py", SERVICE)
    host = start_python(write("host.py", HOST), str(service), stdin=subprocess.PIPE)
    try:
        assert host.stdout is not None
        pids = [int(word) for word in host.stdout.readline().split()]
        assert len(pids) == 5
    finally:
        end(host)
    *pids, away = pids
    os.kill(away, signal.SIGKILL)  # it left the worker's group
    until_gone(*pids, away)


def test_a_forked_host_makes_a_template_of_its_own(serve: Callable[..., Any], tmp_path: Path) -> None:
    service = serve("slowly")
    parent = service.parent()
    child = os.fork()
    if child == 0:
        try:
            told = service.parent()
            (tmp_path / "told").write_text(f"{told} {len(template_pids())}")
            service.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    told, count = (tmp_path / "told").read_text().split()
    assert int(told) != parent
    assert count == "1"
    assert service.parent() == parent
    until_gone(int(told))


def test_a_pool_that_nobody_has_any_more(serve: Callable[..., Any], write: Write) -> None:
    write("slowly.py", SLOWLY)
    service: Any = atoll.Service(write("preloaded.py", SERVICE), preload=["slowly"])
    pids = service.place()[:2]
    del service
    import gc

    gc.collect()
    until_gone(*pids)


def test_no_warning_of_forks_beside_threads(write: Write, serve: Callable[..., Any], printed: Any) -> None:
    """Python 3.12 and later warn of a fork while there are threads."""
    service = serve("numpy", env_vars={"PYTHONWARNINGS": "always"}, workers=2)
    service.start()
    assert service.parent() in template_pids()
    service.say()
    until(lambda: "said err" in printed.lines("stderr"))
    assert printed.lines("stderr") == ["said err"]
