# SPDX-License-Identifier: Apache-2.0
"""A worker is held to its limits from before its first line of user code, with everything it starts; its host is not.

These run with what every machine has, without control groups (for those see ``test_cgroups``).
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.processes import Limits, cgroups, limits, thread_variables, tree_memory, warden
from conditions import until, until_gone

MB = 1_000_000


@pytest.fixture(autouse=True)
def no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without control groups, also where there are some."""
    monkeypatch.setenv("ATOLL_CGROUP", "0")
    monkeypatch.setattr(cgroups, "_looked", False)


def state() -> dict[str, Any]:
    """What a worker is held to, as its kernel says, and what a child of it inherits."""
    import json
    import os
    import resource
    import subprocess
    import sys

    own = {
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "processors": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    code = "import json, os, resource; print(json.dumps([resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.nice(0)]))"
    own["child"] = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    return own


SANDBOXES = [None, {}]


@pytest.mark.parametrize("sandbox", SANDBOXES, ids=["plain", "sandboxed"])
def test_every_limit_is_set_for_the_worker_and_what_it_starts_and_not_for_the_host(
    sandbox: dict[str, Any] | None,
) -> None:
    before = state()
    nice = os.getpriority(os.PRIO_PROCESS, 0) + 3
    limited = atoll.function(memory="1GB", cpus=0.5, nice=nice, open_files=77, sandbox=sandbox)(state)
    assert limited() == {
        "files": (77, 77),
        "data": 2 * 1000 * MB + (1 << 30),
        "nice": nice,
        "processors": 1,
        "threads": "1",
        "child": [77, nice],
    }
    assert state() == before  # the host


def test_limits_are_in_force_when_the_service_is_imported(write: Callable[[str, str], Path]) -> None:
    file = write(
        "early.py",
        """
        import os, resource
        import atoll_worker
        FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        SEEN = FILES, len(os.sched_getaffinity(0)), os.environ["MKL_NUM_THREADS"]

        @atoll_worker.expose
        def seen():
            return SEEN
        """,
    )
    with atoll.Service(file, open_files=64, cpus=1) as service:
        assert service.seen() == (64, 1, "1")


def test_the_fewest_files_suffice() -> None:
    @atoll.function(open_files=limits.FEWEST_OPEN_FILES)
    def double(number: int) -> int:
        return 2 * number

    assert double(4) == 8


def test_workers_do_not_all_get_the_same_processor() -> None:
    processors = os.sched_getaffinity(0)
    if len(processors) < 2:
        pytest.skip("there is only one")
    seen = set()
    for _ in processors:

        @atoll.function(cpus=1)
        def processor() -> int:
            import os

            (one,) = os.sched_getaffinity(0)
            return one

        seen.add(processor())
    assert seen == processors


def test_more_processors_than_there_are_is_no_limit() -> None:
    assert atoll.function(cpus=4096)(state)()["processors"] == len(os.sched_getaffinity(0))


def test_numeric_libraries_are_told_of_their_processors_unless_the_service_says_otherwise() -> None:
    assert thread_variables(None) == thread_variables(Limits(memory=5)) == {}
    assert set(thread_variables(Limits(cpus=2.9)).values()) == {"2"}
    assert set(thread_variables(Limits(cpus=0.3)).values()) == {"1"}

    @atoll.function(cpus=2, env_vars={"OMP_NUM_THREADS": "7"})
    def told() -> tuple[str, str]:
        import os

        return os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]

    assert told() == ("7", "2")


def test_a_priority_that_may_not_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Played where the tests run as root, who may have any."""

    def refuse(which: int, who: int, priority: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "setpriority", refuse)
    with pytest.raises(atoll.WorkerStartError, match=r"nice=-5 cannot be set: Permission denied\..*higher number"):
        atoll.function(nice=-5)(state)()


def test_more_files_than_the_host_may_give_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, what: int, values: tuple[int, int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(resource, "prlimit", refuse)
    with pytest.raises(atoll.WorkerStartError, match=r"open_files=9999999 cannot be set: .*ulimit -Hn"):
        atoll.function(open_files=9_999_999)(state)()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"memory": 0}, "memory=0 .* greater than zero"),
        ({"cpus": 0.0}, "cpus=0.0 .* greater than zero"),
        ({"cpus": float("inf")}, "cpus=inf"),
        ({"nice": 20}, "nice=20 .* -20 .* 19"),
        ({"open_files": 3}, "open_files=3 .* 16 or more"),
    ],
)
def test_a_limit_that_nothing_can_run_under_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Limits(**wrong)


def test_no_limits_are_false() -> None:
    assert not Limits()
    assert Limits(nice=0)


# -- memory ----------------------------------------------------------------------------------------------------------


def grow(step: int, pause: float, in_a_child: bool) -> None:
    """Hold more and more memory, up to a hundred steps: less than the limit of data, which would be an error of its own
    if the watch got no processor meanwhile."""
    import subprocess
    import sys
    import time

    if in_a_child:
        code = (
            "import time\nheld = []\n"
            f"for _ in range(100):\n    held.append(b'x' * {step})\n    time.sleep({pause})\n"
            "time.sleep(600)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
    held = []
    for _ in range(100):
        held.append(b"x" * step)
        time.sleep(pause)
    time.sleep(600)


@pytest.mark.parametrize("sandbox", SANDBOXES, ids=["plain", "sandboxed"])
@pytest.mark.parametrize("in_a_child", [False, True], ids=["itself", "a child of it"])
def test_a_worker_that_holds_too_much_is_killed_and_the_error_says_so(
    sandbox: dict[str, Any] | None, in_a_child: bool
) -> None:
    limited = atoll.function(memory="200MB", sandbox=sandbox)(grow)
    with pytest.raises(atoll.WorkerOutOfMemory, match=r"it held .* MB of memory, and may hold 200 MB") as caught:
        limited(5 * MB, 0.001, in_a_child)
    error = caught.value
    assert error.limit == 200 * MB
    assert error.use > 200 * MB
    assert (error.signal, error.exit_code, error.phase) == (signal.SIGKILL, None, "call")
    assert isinstance(error, atoll.WorkerDied)
    until_gone(error.pid)


def test_it_may_be_called_again_after_that() -> None:
    @atoll.function(memory="200MB")
    def hold(size: int) -> int:
        import time

        data = b"x" * size
        if size > 200_000_000:
            time.sleep(600)
        return len(data)

    assert hold(10 * MB) == 10 * MB
    with pytest.raises(atoll.WorkerOutOfMemory):
        hold(300 * MB)
    assert hold(10 * MB) == 10 * MB


def test_one_request_beyond_all_bounds_is_a_memory_error() -> None:
    """Faster than anybody could look: the limit of data is behind the watch."""

    @atoll.function(memory="200MB")
    def bomb() -> None:
        bytearray(100_000_000_000)

    with pytest.raises(MemoryError):
        bomb()


def test_a_worker_that_needs_too_much_to_start_says_so_too(write: Callable[[str, str], Path]) -> None:
    file = write(
        "heavy.py",
        """
        import time
        import atoll_worker
        DATA = b"x" * 300_000_000
        time.sleep(600)
        """,
    )
    with pytest.raises(atoll.WorkerOutOfMemory, match="during start"):
        atoll.Service(file, memory="200MB", start_timeout=60).start()


def test_what_children_share_does_not_count_twice() -> None:
    """Five processes that share 100 MB, within a limit of 300 MB, looked at many times."""

    @atoll.function(memory="300MB")
    def fork() -> list[int]:
        import os
        import time

        data = b"x" * 100_000_000
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                time.sleep(600)
                os._exit(len(data))
            children.append(child)
        time.sleep(1)  # some looks
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
        return children

    assert len(fork()) == 4


def test_the_kernel_would_rather_kill_it_than_its_host() -> None:
    @atoll.function(memory="200MB")
    def score() -> int:
        with open("/proc/self/oom_score_adj") as file:
            return int(file.read())

    assert score() > int(Path("/proc/self/oom_score_adj").read_text())


def test_a_watch_ends_with_what_it_watches() -> None:
    class Process:
        pid = os.getpid()
        has_exited = False
        out_of_memory = None
        killed = 0

        def kill(self) -> None:
            self.killed += 1

    def goes_on(watch: limits.MemoryWatch) -> bool:
        timers = warden().run(lambda: [function for *_, function in warden()._timers])
        return any(getattr(function, "__self__", None) is watch for function in timers)

    process = Process()
    watch = limits.MemoryWatch(process, 1 << 50)
    watch.start()
    until(lambda: goes_on(watch))
    process.has_exited = True
    until(lambda: not goes_on(watch))
    assert process.out_of_memory is None

    process = Process()
    watch = limits.MemoryWatch(process, 1)
    watch.start()
    until(lambda: process.killed)
    assert process.out_of_memory is not None
    limit, use = process.out_of_memory
    assert limit == 1
    assert abs(use - tree_memory(os.getpid(), exact=True)) < 50 * MB
    assert not goes_on(watch)
    assert process.killed == 1


def test_the_error_can_be_pickled() -> None:
    error = atoll.WorkerOutOfMemory("s", 7, limit=2 * 10**9, use=2_130_000_000, phase="call", signal=9)
    assert "held 2.13 GB of memory, and may hold 2 GB (memory=2000000000)" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is atoll.WorkerOutOfMemory
    assert (again.limit, again.use, str(again)) == (error.limit, error.use, str(error))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file below ``tmp_path``, its text dedented."""

    def write_file(name: str, text: str) -> Path:
        file = tmp_path / name
        file.write_text(textwrap.dedent(text))
        return file

    return write_file
