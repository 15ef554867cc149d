# SPDX-License-Identifier: Apache-2.0
"""What uv gets to see, what is shown while it works, and what happens where there is none."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atoll.environments import uv_command
from atoll.environments.lock import uv_error
from atoll.environments.progress import Progress, build_progress
from atoll.environments.uv_command import UvResult, clean_environ, find_uv, run_uv
from atoll.errors import BuildError, ResolutionError
from conditions import until_gone


def test_where_packages_come_from_is_kept_and_the_rest_is_not() -> None:
    kept = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "SSL_CERT_FILE": "/certs",
        "HTTPS_PROXY": "http://proxy.invalid",
        "UV_INDEX_URL": "https://index.invalid",
        "UV_DEFAULT_INDEX": "https://index.invalid",
        "UV_INDEX_PRIVATE_PASSWORD": "secret",
        "UV_CACHE_DIR": "/cache",
        "UV_SYSTEM_CERTS": "1",
        "PIP_INDEX_URL": "https://index.invalid",
    }
    dropped = dict.fromkeys(
        [
            "PYTHONPATH",
            "PYTHONHOME",
            "PYTHONSTARTUP",
            "PYTHONPYCACHEPREFIX",
            "VIRTUAL_ENV",
            "CONDA_PREFIX",
            "UV_PYTHON",
            "UV_CONSTRAINT",
            "UV_PROJECT_ENVIRONMENT",
            "UV_OVERRIDE",
            "UV_SYSTEM_PYTHON",
            "UV_RESOLUTION",
            "UV_TARGET",
            "PIP_TARGET",
            "PIP_USER",
            "PIP_REQUIRE_VIRTUALENV",
            "PIP_CONSTRAINT",
            "COLUMNS",
            "FORCE_COLOR",
        ],
        "x",
    )
    assert clean_environ({**kept, **dropped}) == {**kept, "NO_COLOR": "1", "UV_NO_PROGRESS": "1"}


def test_words_are_kept_as_they_come_and_told_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "uv"
    fake.write_text('#!/bin/sh\ncat\nprintf "one\\n  two\\n\\nthree é" >&2\nexit 3\n')
    fake.chmod(0o755)
    monkeypatch.setattr(uv_command, "find_uv", lambda: str(fake))
    lines: list[str] = []
    big = "x" * 200_000  # more than a pipe holds
    result = run_uv(["pip"], offline=False, stdin=big, on_line=lines.append)
    assert result.status == 3
    assert result.stdout == big
    assert result.stderr == "one\n  two\n\nthree é"
    assert lines == ["one", "  two", "three é"]


def test_without_uv_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match="uv is not installed beside atoll nor on PATH; run `pip install uv`"):
        find_uv()
    monkeypatch.setattr(uv_command, "find_uv", lambda: "/no/such/uv")
    with pytest.raises(BuildError, match="/no/such/uv cannot be started: No such file"):
        run_uv(["--version"], offline=False)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], _Terminal]:
    """Have stderr be a terminal from the call on. (Within the test: pytest sets its own after the fixtures.)"""

    def terminal() -> _Terminal:
        stream = _Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        return stream

    return terminal


def test_a_terminal_is_shown_stage_and_words(terminal: Callable[[], _Terminal]) -> None:
    pytest.importorskip("rich")
    stream = terminal()
    with build_progress("environment for service 'mean'", None) as shown:
        shown.stage("installing")
        shown.line("Prepared 3 packages in 1ms")
        shown._live.refresh()  # type: ignore[attr-defined]
        shown.done("ready")
    said = stream.getvalue()
    assert "environment for service 'mean': installing" in said
    assert "Prepared 3 packages in 1ms" in said
    assert "✓ environment for service 'mean': ready in" in said


def test_a_second_build_at_the_same_time_is_told_in_plain_form(terminal: Callable[[], _Terminal]) -> None:
    pytest.importorskip("rich")
    terminal()
    with build_progress("one", None) as first, build_progress("two", None) as second:
        assert type(first) is not Progress
        assert type(second) is Progress
    with build_progress("three", None) as third:
        assert type(third) is not Progress


@pytest.mark.parametrize("wanted", [None, False])
def test_elsewhere_it_is_a_log_line_at_start_and_end(
    wanted: bool | None, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "atoll.environments")
    with build_progress("environment", wanted) as shown:
        shown.stage("installing")
        shown.line("words")
        shown.done("ready")
    assert [one.message.split(" in ")[0] for one in caplog.records] == ["environment: preparing", "environment: ready"]
    assert capfd.readouterr() == ("", "")


def test_a_failure_names_its_stage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "atoll.environments")

    def build() -> None:
        with build_progress("environment", False) as shown:
            shown.stage("resolving")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build()
    assert caplog.records[-1].message.endswith("while resolving")


def test_without_rich_a_terminal_gets_log_lines(
    terminal: Callable[[], _Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    terminal()
    with build_progress("environment", None) as shown:
        assert type(shown) is Progress


def test_uv_and_what_it_starts_end_with_a_killed_host(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    fake = tmp_path / "uv"
    fake.write_text("#!/bin/sh\nsleep 1000 &\necho $$ $! >&2\nwait\n")
    fake.chmod(0o755)
    host = start(
        "from atoll.environments import uv_command\n"
        f"uv_command.find_uv = lambda: {str(fake)!r}\n"
        "uv_command.run_uv(['pip'], offline=False, on_line=print)\n"
    )
    assert host.stdout is not None
    pids = [int(word) for word in host.stdout.readline().split()]
    host.kill()
    host.wait()
    until_gone(*pids)


def test_uv_and_what_it_starts_end_with_an_interrupted_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "uv"
    fake.write_text("#!/bin/sh\nsleep 1000 &\necho $$ $! >&2\nwait\n")
    fake.chmod(0o755)
    monkeypatch.setattr(uv_command, "find_uv", lambda: str(fake))
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.extend(map(int, line.split()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_uv(["pip"], offline=False, on_line=interrupt)
    assert len(pids) == 2
    until_gone(*pids)


def test_a_signal_that_ends_uv_is_named() -> None:
    result = UvResult(-signal.SIGXFSZ, "", "Prepared 3 packages\n")
    error = uv_error(ResolutionError, "service 'mean': its packages cannot be resolved", "the resolver", result)
    assert type(error) is BuildError
    assert str(error) == (
        "service 'mean': its packages cannot be resolved: uv was killed by SIGXFSZ; the resolver said before:\n"
        "Prepared 3 packages"
    )


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="sysconfig has a lock of its own from Python 3.12 on")
def test_two_threads_that_are_the_first_to_look_find_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uv")
    half_made, go_on = threading.Event(), threading.Event()
    fill = sysconfig._init_posix  # type: ignore[attr-defined]

    def fill_in_two_steps(variables: dict[str, object]) -> None:
        half_made.set()
        assert go_on.wait(60)
        fill(variables)

    monkeypatch.setattr(sysconfig, "_init_posix", fill_in_two_steps)
    monkeypatch.setattr(sysconfig, "_CONFIG_VARS", None)  # as in a process that has just begun
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(find_uv)
        assert half_made.wait(60)
        second = threads.submit(find_uv)

        def waits() -> bool:
            frames = [frame for frame in sys._current_frames().values() if frame.f_code is find_uv.__code__]
            return bool(frames)

        # The second one has nothing to do but wait: it is seen there again and again, and comes no further.
        seen = 0
        while seen < 500 and not second.done():
            seen = seen + 1 if waits() else 0
            os.sched_yield()
        came_to = second.exception() if second.done() else None
        go_on.set()
        assert came_to is None
        assert first.result() == second.result()
