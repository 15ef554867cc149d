# SPDX-License-Identifier: Apache-2.0
"""Running uv: with a clean environment, in a neutral folder, its words kept unchanged.

What always holds here: uv sees the user's indexes, credentials, certificates and caches, and nothing of the virtual
environment or project that the host happens to run in; it is never a parent of user code; it and what it starts end
when the host does, however that ends (``atoll_worker.lifeline``). What does not belong here:
which commands to give.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from ..errors import BuildError

if TYPE_CHECKING:
    import subprocess

# Of uv's own variables those that say where packages come from and how they travel; the others choose interpreters,
# environments, constraints or projects, and would mix the shell's with ours.
_UV_KEPT = (
    "UV_CACHE_DIR", "UV_NO_CACHE", "UV_CONFIG_FILE", "UV_NO_CONFIG", "UV_LINK_MODE", "UV_OFFLINE", "UV_EXCLUDE_NEWER",
    "UV_DEFAULT_INDEX", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_KEYRING_PROVIDER", "UV_INSECURE_HOST",
    "UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "UV_HTTP_TIMEOUT", "UV_HTTP_RETRIES", "UV_HTTP_CONNECT_TIMEOUT",
    "UV_REQUEST_TIMEOUT", "UV_GITHUB_TOKEN", "UV_GIT_LFS", "UV_CREDENTIALS_DIR", "UV_PYTHON_DOWNLOADS",
    "UV_TORCH_BACKEND", "UV_PRERELEASE", "UV_NO_BUILD", "UV_NO_BUILD_PACKAGE", "UV_NO_BINARY", "UV_NO_BINARY_PACKAGE",
)  # fmt: skip
_UV_KEPT_PREFIXES = ("UV_INDEX_", "UV_CONCURRENT_", "UV_PYTHON_INSTALL_", "UV_PYPY_INSTALL_", "UV_PYTHON_DOWNLOADS_")
# Source distributions may call pip while they build; the same holds for its variables.
_PIP_KEPT = (
    "PIP_CERT", "PIP_CLIENT_CERT", "PIP_CONFIG_FILE", "PIP_DEFAULT_TIMEOUT", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS",
    "PIP_INDEX_URL", "PIP_PROXY", "PIP_TRUSTED_HOST",
)  # fmt: skip
_DROPPED = ("VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "RUST_LOG", "FORCE_COLOR",
            "CLICOLOR_FORCE", "COLUMNS")  # fmt: skip
_DROPPED_PREFIXES = ("PYTHON", "__PYVENV", "UV_", "PIP_")


@dataclass(frozen=True)
class UvResult:
    """What uv did: its exit status, its output, and its messages without any change."""

    status: int
    stdout: str
    stderr: str


def clean_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The host's variables, less those that would mix its own environment into the one being built."""
    kept = {}
    for name, value in environ.items():
        wanted = name in _UV_KEPT or name in _PIP_KEPT or name.startswith(_UV_KEPT_PREFIXES)
        if wanted or not (name in _DROPPED or name.startswith(_DROPPED_PREFIXES)):
            kept[name] = value
    kept["NO_COLOR"] = "1"
    kept["UV_NO_PROGRESS"] = "1"
    return kept


# uv asks sysconfig, whose variables are half made while another thread is the first to ask (Python 3.11).
_finding = Lock()


def find_uv() -> str:
    """Path of the uv that this installation of atoll depends on, else of one on PATH.

    Raises:
        BuildError: there is none.
    """
    import shutil

    try:
        from uv import find_uv_bin

        with _finding:
            return find_uv_bin()
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
        if found is None:
            raise BuildError("uv is not installed beside atoll nor on PATH; run `pip install uv`") from None
        return found


def run_uv(
    arguments: Sequence[str],
    *,
    offline: bool,
    cwd: str = "/",
    stdin: str = "",
    variables: Mapping[str, str] | None = None,
    inherit: Sequence[int] = (),
    on_line: Callable[[str], object] | None = None,
) -> UvResult:
    """Run one uv command to its end.

    Args:
        arguments: the command, without ``uv`` itself.
        offline: forbid the network.
        cwd: folder to run in. uv takes settings from the project around it, so the default is where there is none.
        stdin: what it reads.
        variables: further environment variables.
        inherit: file descriptors it holds open as long as it (and what it starts) runs.
        on_line: called with each line it says, as it says it.

    Raises:
        BuildError: uv cannot be started.
    """
    import subprocess
    import tempfile

    from atoll_worker.lifeline import arm

    command = [find_uv(), *arguments, "--color", "never"]
    if offline:
        command.append("--offline")
    said: list[bytes] = []
    # Files rather than pipes on both ends: only one stream is left to read, so nothing can fill up and block.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
        given.write(stdin.encode("utf-8", "surrogateescape"))
        given.seek(0)
        lifeline, held = os.pipe()  # its write end is this process's alone; uv has the other one
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**clean_environ(os.environ), **(variables or {})},
                stdin=given,
                stdout=output,
                stderr=subprocess.PIPE,
                pass_fds=(*inherit, lifeline),
                start_new_session=True,  # no terminal either: nothing in there may stop and ask for a password
            )
            arm(lifeline, -process.pid)
        except OSError as error:
            os.close(held)
            raise BuildError(f"{command[0]} cannot be started: {error.strerror}") from error
        finally:
            os.close(lifeline)
        assert process.stderr is not None
        try:
            for line in process.stderr:
                said.append(line)
                text = line.decode("utf-8", "replace").rstrip()
                if on_line is not None and text:
                    on_line(text)
            status = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            os.close(held)
            process.stderr.close()
        output.seek(0)
        stdout = output.read().decode("utf-8", "replace")
    return UvResult(status, stdout, b"".join(said).decode("utf-8", "replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End uv and what it started; a Ctrl-C at the terminal does not reach them, they are a session of their own."""
    import signal
    import subprocess

    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wants_network(result: UvResult) -> bool:
    """Whether a command failed because it ran offline, by our wish or by uv's settings; uv says so in these ways."""
    words = result.stderr.lower()
    return any(
        phrase in words for phrase in ("network was disabled", "network connectivity is disabled", "found in the cache")
    )
