# SPDX-License-Identifier: Apache-2.0
"""A sandboxed worker reaches what it was given and nothing else, answers as any other, and ends as any other.

Each denial is shown against the same code outside, or against a sandbox that allows it: what is missing anyway proves
nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import atoll
from atoll.processes import sandbox as sandbox_module
from atoll.processes.sandbox import is_broad, sandbox_environ, wrap
from atoll.processes.tree import descendants
from conditions import WITHIN, end, is_gone, run_python, start_python, until, until_gone
from sandboxes import needs_sandbox

Try = Callable[..., str]


def try_to(what: str, *arguments: str) -> str:
    """Do one thing, in a worker: "done", or the name of the error."""
    import os
    import socket

    try:
        if what == "read":
            with open(arguments[0]) as file:
                return file.read()
        if what == "write":
            with open(arguments[0], "w") as file:
                file.write("from the worker")
        if what == "connect":
            with socket.create_connection(("127.0.0.1", int(arguments[0])), 5):
                pass
        if what == "connect to a path":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(arguments[0])
        if what == "list":
            return " ".join(os.listdir(arguments[0]))
        if what == "signal":
            os.kill(int(arguments[0]), 0)
    except OSError as error:
        return type(error).__name__ if error.errno != 30 else "ReadOnly"
    return "done"


@pytest.fixture
def inside() -> Try:
    """``try_to``, in a sandbox to which nothing was given."""
    return atoll.function(sandbox=atoll.Sandbox())(try_to)


@pytest.fixture
def outside() -> Try:
    """``try_to``, in a worker without a sandbox."""
    return atoll.function()(try_to)


@needs_sandbox
def test_files_outside_are_not_there(tmp_path: Path, outside: Try, inside: Try) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    for path in (str(secret), "/etc/passwd", "/proc/1/environ", os.path.expanduser("~/.bashrc")):
        if os.path.exists(path):
            assert outside("read", path) != "FileNotFoundError"
        if path != "/proc/1/environ":  # which is the sandbox's own first process, and holds nothing of the host
            assert inside("read", path) == "FileNotFoundError"
    assert "a secret" not in inside("read", "/proc/1/environ")


@needs_sandbox
def test_nothing_can_be_written_but_a_tmp_of_its_own(tmp_path: Path, outside: Try, inside: Try) -> None:
    name = f"atoll-test-{os.getpid()}"
    prefix = os.path.join(sys.prefix, name)
    # Whoever may not write there outside is told so first inside.
    refusals = {"ReadOnly"} if os.access(sys.prefix, os.W_OK) else {"ReadOnly", "PermissionError"}
    try:
        if os.access(sys.prefix, os.W_OK):
            assert outside("write", prefix) == "done"
            Path(prefix).unlink()
        assert inside("write", prefix) in refusals
        assert inside("write", f"/usr/{name}") in {"ReadOnly", "PermissionError"}
        assert inside("write", f"/{name}") == "ReadOnly"
        assert outside("write", str(tmp_path / "file")) == "done"
        assert inside("write", str(tmp_path / "file")) == "FileNotFoundError"
        assert inside("write", f"/tmp/{name}") == "done"
        assert inside("read", f"/tmp/{name}") == "from the worker"
        assert not os.path.exists(f"/tmp/{name}")
    finally:
        for path in (prefix, f"/usr/{name}", f"/tmp/{name}"):
            Path(path).unlink(missing_ok=True)


@needs_sandbox
def test_what_is_named_can_be_read_or_written_and_what_lies_inside_goes_before_what_is_around(tmp_path: Path) -> None:
    readable, writable = tmp_path / "readable", tmp_path / "readable" / "writable"
    writable.mkdir(parents=True)
    (readable / "text").write_text("a text")
    named = atoll.function(sandbox=atoll.Sandbox(read=(str(readable),), write=(str(writable),)))(try_to)
    assert named("read", str(readable / "text")) == "a text"
    assert named("write", str(readable / "text")) == "ReadOnly"
    assert named("write", str(writable / "new")) == "done"
    assert (writable / "new").read_text() == "from the worker"
    assert (readable / "text").read_text() == "a text"


@needs_sandbox
def test_a_file_that_does_not_exist_cannot_be_shared(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(atoll.WorkerStartError, match=f"write='{missing}' does not exist"):
        atoll.function(sandbox=atoll.Sandbox(write=(missing,)))(try_to)("list", "/")
    with pytest.raises(atoll.AtollError, match="'/'"):
        atoll.function(sandbox=atoll.Sandbox(read=("/",)))(try_to)("list", "/")


@pytest.fixture
def server() -> Iterator[str]:
    """The port of a server on this machine's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield str(sock.getsockname()[1])


@needs_sandbox
def test_there_is_no_network_unless_it_is_allowed(server: str, outside: Try, inside: Try) -> None:
    allowed = atoll.function(sandbox=atoll.Sandbox(network=True))(try_to)
    assert outside("connect", server) == "done"
    assert allowed("connect", server) == "done"
    assert inside("connect", server) in ("ConnectionRefusedError", "OSError")
    assert "resolv.conf" not in inside("list", "/etc")
    if os.path.exists("/etc/resolv.conf"):
        assert "resolv.conf" in allowed("list", "/etc")


@needs_sandbox
def test_sockets_of_the_host_are_not_visible(tmp_path: Path, outside: Try, inside: Try) -> None:
    path = f"/tmp/atoll-test-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        try:
            sock.listen()
            assert outside("connect to a path", path) == "done"
            assert inside("connect to a path", path) == "FileNotFoundError"
        finally:
            os.unlink(path)


@needs_sandbox
def test_shared_memory_and_devices_are_its_own(outside: Try, inside: Try) -> None:
    name = f"atoll-test-{os.getpid()}"
    shared = Path("/dev/shm", name)
    shared.write_text("the host's")
    try:
        assert outside("read", str(shared)) == "the host's"
        assert inside("read", str(shared)) == "FileNotFoundError"
        assert inside("list", "/dev/shm") == ""
        assert inside("write", str(shared)) == "done"
        assert shared.read_text() == "the host's"
    finally:
        shared.unlink()
    devices = set(inside("list", "/dev").split())
    assert {"null", "zero", "urandom"} <= devices
    assert not devices & {"mem", "kmsg", "sda", "vda", "nvidia0", "fuse", "kvm"}


@needs_sandbox
def test_processes_of_the_host_are_not_visible(outside: Try, inside: Try) -> None:
    assert outside("signal", str(os.getpid())) == "done"
    seen = [name for name in inside("list", "/proc").split() if name.isdigit()]
    assert seen == ["1", "2"]
    assert inside("signal", "999999") == "ProcessLookupError"


@needs_sandbox
def test_it_has_no_privileges(inside: Try) -> None:
    status = inside("read", "/proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"


@needs_sandbox
def test_variables_of_the_host_do_not_pass_and_those_of_the_service_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_OF_THE_HOST", "hunter2")
    monkeypatch.setenv("LC_TIME", "C")

    @atoll.function(sandbox=atoll.Sandbox(), env_vars={"GIVEN": "yes"})
    def environment() -> tuple[dict[str, str], str]:
        import os

        with open("/proc/1/environ") as file:
            return dict(os.environ), file.read()

    found, of_the_first = environment()
    assert "A_SECRET_OF_THE_HOST" not in found
    assert "hunter2" not in of_the_first
    assert found["GIVEN"] == "yes"
    assert found["LC_TIME"] == "C"
    assert found["HOME"] == "/tmp"


def test_the_service_has_the_last_word_on_its_variables() -> None:
    environ = {"PATH": "/usr/bin", "AWS_SECRET_ACCESS_KEY": "x", "LC_ALL": "C", "HOME": "/home/somebody"}
    found = sandbox_environ(environ, {"HOME": "/data", "TOKEN": "t"})
    assert found == {
        "PATH": "/usr/bin",
        "LC_ALL": "C",
        "HOME": "/data",
        "USER": "worker",
        "LOGNAME": "worker",
        "TOKEN": "t",
    }


@needs_sandbox
def test_it_inherits_no_descriptor_but_its_own() -> None:
    @atoll.function(sandbox=atoll.Sandbox())
    def descriptors() -> dict[str, str]:
        import os

        found = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                found[name] = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                pass
        return found

    found = descriptors()
    assert sum(target.startswith("socket:") for target in found.values()) == 3  # data, control, descriptors
    assert sum(target.startswith("pipe:") for target in found.values()) == 3  # what it prints, and the lifeline
    assert found["0"] == "/dev/null"


@needs_sandbox
def test_a_service_runs_with_its_folder_and_its_packages_read_only(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "beside.py").write_text("NUMBER = 7\n")
    (folder / "service.py").write_text(
        textwrap.dedent("""\
        import atoll_worker, numpy
        import beside

        @atoll_worker.expose
        def add(array):
            return array + beside.NUMBER

        @atoll_worker.expose
        def spoil(path):
            try:
                open(path, "a").close()
            except OSError as error:
                return error.strerror
        """)
    )
    numpy = pytest.importorskip("numpy")
    with atoll.Service(folder / "service.py", environment=sys.executable, sandbox={}) as service:
        large = numpy.arange(1_000_000)
        assert numpy.array_equal(service.add(large), large + 7)
        assert service.spoil(str(folder / "beside.py")) == "Read-only file system"
        assert service.spoil(numpy.__file__) == "Read-only file system"


@needs_sandbox
@pytest.mark.parametrize(
    ("how", "exit_code", "number"),
    [
        ("os._exit(7)", 7, None),
        ("os.kill(os.getpid(), 9)", None, signal.SIGKILL),
        ("os.abort()", None, signal.SIGABRT),
        ("ctypes.string_at(0)", None, signal.SIGSEGV),
    ],
)
def test_how_it_ended_is_known(how: str, exit_code: int | None, number: int | None) -> None:
    @atoll.function(sandbox=atoll.Sandbox())
    def die(how: str) -> None:
        import ctypes
        import os

        eval(how, {"os": os, "ctypes": ctypes})

    with pytest.raises(atoll.WorkerDied) as caught:
        die(how)
    assert (caught.value.exit_code, caught.value.signal) == (exit_code, number)


START_CHILDREN = """
import subprocess, time
subprocess.Popen(["sleep", "600"], start_new_session=True)
subprocess.Popen(["sh", "-c", "sleep 601 & sleep 602"], start_new_session=True)
"""


def start_children(then: str, folder: str) -> None:
    """Start four processes, in sessions of their own, and then do something else; or hang."""
    import os
    import subprocess
    import time

    if then == "hang":
        sum(range(10**13))  # in C code, so that no exception can end it
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    subprocess.Popen(["sh", "-c", "sleep 601 & sleep 602"], start_new_session=True)
    if then == "die":
        while not os.path.exists(folder + "/seen"):
            time.sleep(0.01)
        os._exit(3)


@needs_sandbox
@pytest.mark.parametrize("then", ["close", "be killed", "die", "hang"])
def test_everything_in_it_ends_with_it(tmp_path: Path, then: str) -> None:
    start = atoll.function(sandbox=atoll.Sandbox(read=(str(tmp_path),)))(start_children)
    before = set(descendants(os.getpid()))
    # Who is to hang has started them before, however long that takes.
    call = start.submit("close" if then == "hang" else then, str(tmp_path))
    # The keeper, two of bubblewrap's, the interpreter, and four that it started.
    pids = until(lambda: len(found := set(descendants(os.getpid())) - before) == 8 and found)
    if then == "close":
        call.result(WITHIN)
        start.close()
    elif then == "be killed":
        call.result(WITHIN)
        assert start.pid in pids
        os.kill(start.pid, signal.SIGKILL)
    elif then == "die":
        (tmp_path / "seen").touch()
        with pytest.raises(atoll.WorkerDied, match="code 3"):
            call.result(WITHIN)
    else:
        call.result(WITHIN)
        with pytest.raises(atoll.CallTimeout):
            start.options(timeout=6)("hang", "")
    until_gone(*pids)


HOST = """\
import atoll, sys, threading

@atoll.function(sandbox=atoll.Sandbox())
def work(what):
    import subprocess, time
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    if what == "computing":
        while True:
            pass
    time.sleep(600)

threading.Thread(target=work, args=(sys.argv[1],), daemon=True).start()
sys.stdin.readline()
"""


@needs_sandbox
@pytest.mark.parametrize("what", ["sleeping", "computing"])
def test_it_ends_with_its_host(tmp_path: Path, what: str) -> None:
    script = tmp_path / "host.py"
    script.write_text(HOST)
    host = start_python(script, what, stdin=subprocess.PIPE)
    pids = until(lambda: len(found := descendants(host.pid)) == 5 and found)
    assert not any(is_gone(pid) for pid in pids)
    end(host, signal.SIGKILL)
    until_gone(*pids)


@needs_sandbox
def test_a_timeout_says_where_it_was() -> None:
    @atoll.function(sandbox=atoll.Sandbox(), timeout=1)
    def wait_for_ever() -> None:
        import time

        time.sleep(600)

    with pytest.raises(atoll.CallTimeout, match="wait_for_ever"):
        wait_for_ever()


@needs_sandbox
def test_files_in_its_tmp_do_not_escape_its_memory_limit() -> None:
    """They lie in memory, and belong to no process."""

    @atoll.function(sandbox=atoll.Sandbox(), memory="200MB")
    def fill() -> int:
        written = 0
        try:
            with open("/tmp/large", "wb", buffering=0) as file:
                while written < 10**9:
                    written += file.write(b"x" * 10**6)
        except OSError:
            pass
        return written

    assert 190_000_000 < fill() < 210_000_000


# -- where there can be none -----------------------------------------------------------------------------------------


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found to work before this test is tried again."""
    monkeypatch.setattr(sandbox_module, "_works", set())


@pytest.mark.usefixtures("forgotten")
def test_without_bubblewrap_nothing_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, inside: Try) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(atoll.SandboxUnavailable, match="Install the package bubblewrap"):
        inside("list", "/")
    assert issubclass(atoll.SandboxUnavailable, atoll.WorkerStartError)


@pytest.mark.usefixtures("forgotten")
def test_a_bubblewrap_that_cannot_make_a_sandbox_is_refused_with_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Played by a program: what the kernel forbids elsewhere cannot be had here."""
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    with pytest.raises(atoll.SandboxUnavailable, match=r"No permissions to create new namespace.*\.") as caught:
        atoll.function(sandbox=atoll.Sandbox())(try_to)("list", "/")
    assert str(fake) in str(caught.value)


# -- what is shared --------------------------------------------------------------------------------------------------


@needs_sandbox
def test_an_interpreter_behind_links_runs_and_what_lies_beside_the_links_is_not_shared(tmp_path: Path) -> None:
    """As installed by uv: a link in a folder of programs, to a folder that is a link, to the installation."""
    programs, data = tmp_path / "home" / "bin", tmp_path / "home" / "data"
    programs.mkdir(parents=True)
    data.mkdir()
    (programs / "token").write_text("a secret")
    (data / "token").write_text("a secret")
    real = os.path.realpath(sys.executable)
    (data / "python-3").symlink_to(os.path.dirname(os.path.dirname(real)))
    (programs / "python3").symlink_to(data / "python-3" / "bin" / os.path.basename(real))
    paths = [str(programs / "token"), str(data / "token")]
    code = f"import os; print(*[os.path.exists(path) for path in {paths!r}])"
    command = wrap([str(programs / "python3"), "-I", "-c", code], atoll.Sandbox(), [])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("False False\n", "")
    environment = tmp_path / "environment"
    subprocess.run([str(programs / "python3"), "-m", "venv", "--without-pip", str(environment)], check=True)
    command = wrap([str(environment / "bin" / "python"), "-I", "-c", code], atoll.Sandbox(), [])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("False False\n", "")


def test_folders_of_everybody_or_of_a_whole_person_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert all(is_broad(folder) for folder in ("/", "/home", "/home/somebody", "/tmp", "/var", "/home/somebody/."))
    assert not any(is_broad(folder) for folder in ("/home/somebody/project", "/srv/service", "/usr", "/tmp/x"))


@needs_sandbox
def test_a_service_in_such_a_folder_gets_its_own_file_alone(tmp_path: Path) -> None:
    script = tmp_path / "service.py"
    script.write_text(
        "import os, atoll_worker\n\n@atoll_worker.expose\n"
        "def seen():\n    return sorted(name for name in os.listdir(os.path.dirname(__file__)) if '.' in name)\n"
    )
    (tmp_path / "diary.txt").write_text("private")
    host = tmp_path / "elsewhere" / "host.py"
    host.parent.mkdir()
    host.write_text(
        f"import os, sys\nos.environ['HOME'] = {str(tmp_path)!r}\nimport atoll\n"
        f"with atoll.Service({str(script)!r}, environment=sys.executable, sandbox={{}}) as service:\n"
        "    print(service.seen())\n"
    )
    done = run_python(host, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert (done.stdout, done.stderr) == ("['service.py']\n", "")
