# SPDX-License-Identifier: Apache-2.0
"""Which interpreters this machine has, and which of them satisfies a request.

What always holds here: an interpreter is judged by what it says of itself, never by its file's name; each is asked
once, and its answer kept by the path, inode, size and time of its file. What does not belong here: installing
packages.

Order: the host's own if it satisfies the request, else the newest stable CPython that does. PyPy, pre-releases and
free-threaded builds are taken only when asked for by path; older than 3.9 is always refused, because the worker side
needs that much.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import InterpreterNotFound, OfflineError
from ..python_versions import FINAL, VersionKey, parse_python
from .cache import cache_folder, read_record, write_record
from .request import file_stamp, host_executable, sha256

OLDEST = (3, 9)
_PROBE_SECONDS = 20.0
_MARK = "atoll-interpreter:"

# Runs on anything from Python 2.7 on, so that an old one can say that it is one.
_PROBE = """
import json, os, sys
try:
    from importlib.machinery import EXTENSION_SUFFIXES as suffixes
except ImportError:
    suffixes = [""]
import sysconfig
stdlib = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
print("atoll-interpreter:" + json.dumps({
    "version": list(sys.version_info[:3]),
    "phase": {"alpha": 0, "beta": 1, "candidate": 2}.get(sys.version_info[3], 3),
    "serial": sys.version_info[4],
    "implementation": getattr(getattr(sys, "implementation", None), "name", "cpython"),
    "abi": suffixes[0],
    "platform": sys.platform + "-" + os.uname()[4],
    "executable": sys.executable,
    "base": getattr(sys, "_base_executable", None) or sys.executable,
    "prefix": sys.prefix,
    "base_prefix": getattr(sys, "base_prefix", sys.prefix),
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "path": [entry for entry in sys.path if entry],
    "stdlib": stdlib,
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """An interpreter that was asked what it is.

    Attributes:
        path: absolute path to execute.
        version: major, minor, micro.
        implementation: as in ``sys.implementation.name``, such as ``"cpython"``.
        abi: suffix of extension modules, which names ABI and architecture.
        platform: operating system and machine.
        prefix: its ``sys.prefix``.
        virtual: whether it belongs to a virtual environment.
        free_threaded: whether it was built without the global interpreter lock.
        stamp: which file it was when it was asked.
        import_path: its ``sys.path`` without the working folder.
        stdlib: folders of its standard library.
    """

    path: str
    version: tuple[int, int, int]
    implementation: str
    phase: int = FINAL
    serial: int = 0
    abi: str = ""
    platform: str = ""
    prefix: str = ""
    virtual: bool = False
    free_threaded: bool = False
    stamp: str = ""
    import_path: tuple[str, ...] = field(default=(), repr=False)
    stdlib: tuple[str, ...] = field(default=(), repr=False)

    @property
    def version_key(self) -> VersionKey:
        """For comparing, with pre-releases before their release."""
        return (*self.version, self.phase, self.serial)

    @property
    def version_text(self) -> str:
        """As people write it, such as ``3.12.1`` or ``3.14.0rc2``."""
        suffix = "" if self.phase == FINAL else ("a", "b", "rc")[self.phase] + str(self.serial)
        return ".".join(map(str, self.version)) + suffix

    @property
    def package_folders(self) -> tuple[str, ...]:
        """The part of its import path that is not the standard library: site-packages, and what .pth files add."""
        stdlib = {os.path.realpath(folder) for folder in self.stdlib}
        stdlib |= {os.path.join(folder, "lib-dynload") for folder in stdlib}
        return tuple(
            entry for entry in self.import_path if os.path.realpath(entry) not in stdlib and not entry.endswith(".zip")
        )

    @property
    def identity(self) -> str:
        """What a locked environment depends on: another identity, another environment."""
        return f"{self.implementation} {self.version_text} {self.abi} {self.platform} {os.path.realpath(self.path)}"


@dataclass(frozen=True)
class Seen:
    """A file that may be an interpreter: either what it is, or why it is not taken, or both."""

    path: str
    origin: str
    interpreter: Interpreter | None
    refusal: str | None


def find_interpreter(
    request: str | None, *, offline: bool | None = None, download: bool = True, service: str | None = None
) -> Interpreter:
    """The interpreter for a request: None, a version, a PEP 440 specifier, or a path.

    Args:
        request: as written under ``python``; None for the host's own.
        offline: never fetch one; by default as ``ATOLL_OFFLINE`` says.
        download: let uv fetch one if the machine has none that satisfies.
        service: who asks, for the message.

    Raises:
        InterpreterNotFound: there is none; the message lists those seen, each with the reason.
        OfflineError: there is none, and one might have been fetched.
        ValueError: the request is not one.
    """
    host = host_interpreter()
    if request is None:
        return host
    wanted = parse_python(request)
    if wanted.path is not None:
        return _at_path(os.path.abspath(os.path.expanduser(wanted.path)))
    if wanted.accepts(host.version_key) and _refusal(host) is None:
        return host
    seen = survey()
    chosen = _newest(seen, wanted.accepts)
    if chosen is not None:
        return chosen
    words = ""
    if download and not is_offline(offline):
        from .uv_command import run_uv

        result = run_uv(["python", "install", "--no-bin", request], offline=False)
        chosen = _newest(survey(), wanted.accepts)
        if chosen is not None:
            return chosen
        words = result.stderr.strip()
    lines = [
        f"{'' if service is None else f'service {service!r}: '}no interpreter on this machine satisfies "
        f"python={request!r}; seen were:"
    ]
    lines += [f"    {one.path} ({one.refusal or _describe(one) + ', which does not satisfy it'})" for one in seen]
    if is_offline(offline):
        lines.append("One might be fetched, but offline mode is on: install it, or unset ATOLL_OFFLINE.")
        raise OfflineError("\n".join(lines))
    if words:
        lines += ["uv could not fetch one either; it says:", words]
    lines.append("Install one (for example `uv python install`, pyenv, or the system's packages), or give its path.")
    raise InterpreterNotFound("\n".join(lines))


def all_interpreters() -> list[Interpreter]:
    """Every interpreter that a worker can run on, newest first; one for each file, however many names it has."""
    found = {
        os.path.realpath(one.interpreter.path): one.interpreter
        for one in survey()
        if one.interpreter is not None and one.refusal is None
    }
    return sorted(found.values(), key=lambda one: one.version_key, reverse=True)


def host_interpreter() -> Interpreter:
    """The one this process runs on, without any virtual environment; known without asking.

    Raises:
        InterpreterNotFound: Python is embedded, and there is no executable to start a worker with.
    """
    path = host_executable()
    if not path:
        raise InterpreterNotFound(
            "this process embeds Python and does not know an interpreter's path (sys.executable is empty); "
            "give one: python='/path/of/python'"
        )
    from importlib.machinery import EXTENSION_SUFFIXES

    phase = {"alpha": 0, "beta": 1, "candidate": 2}.get(sys.version_info.releaselevel, FINAL)
    return Interpreter(
        path=path,
        version=sys.version_info[:3],
        implementation=sys.implementation.name,
        phase=phase,
        serial=0 if phase == FINAL else sys.version_info.serial,
        abi=EXTENSION_SUFFIXES[0],
        platform=f"{sys.platform}-{os.uname().machine}",
        prefix=sys.base_prefix,
        stamp=file_stamp(path),
    )


def is_offline(offline: bool | None) -> bool:
    """Whether nothing may be fetched: as given, else as ``ATOLL_OFFLINE`` says."""
    if offline is not None:
        return offline
    return os.environ.get("ATOLL_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def probe(path: str) -> Interpreter:
    """Ask an interpreter what it is, unless the same file was asked before.

    Raises:
        InterpreterNotFound: it cannot be run, or does not answer as an interpreter does.
    """
    stamp = file_stamp(path)
    name = sha256(path.encode("utf-8", "surrogateescape"))[:24]
    record_path = os.path.join(cache_folder(), "probes", name + ".json")
    record = read_record(record_path)
    # An environment's packages are its own affair, but its .pth files and pyvenv.cfg change what the answer was.
    if record is not None and record.get("stamp") == stamp and record.get("settings") == _settings_stamp(path, record):
        try:
            return _interpreter(path, stamp, record["answer"])
        except (KeyError, TypeError):
            pass  # written by another version of atoll
    answer = _ask(path)
    interpreter = _interpreter(path, stamp, answer)
    try:
        record = {"path": path, "stamp": stamp, "answer": answer}
        write_record(record_path, {**record, "settings": _settings_stamp(path, record)})
    except OSError:
        pass  # without a cache it is asked again next time
    return interpreter


def ask(path: str) -> Interpreter:
    """Ask an interpreter what it is, whatever it said before, and keep nothing.

    Raises:
        InterpreterNotFound: it cannot be run, or does not answer as an interpreter does.
    """
    return _interpreter(path, file_stamp(path), _ask(path))


def _settings_stamp(path: str, record: dict[str, Any]) -> list[str]:
    answer = record.get("answer")
    folders = answer.get("path", []) if isinstance(answer, dict) else []
    settings = [file_stamp(os.path.join(os.path.dirname(os.path.dirname(path)), "pyvenv.cfg"))]
    settings += [file_stamp(one) for one in folders if one.endswith(("site-packages", "dist-packages"))]
    return settings


def _interpreter(path: str, stamp: str, answer: dict[str, Any]) -> Interpreter:
    major, minor, micro = answer["version"]
    return Interpreter(
        path=path,
        version=(major, minor, micro),
        implementation=answer["implementation"],
        phase=answer["phase"],
        serial=0 if answer["phase"] == FINAL else answer["serial"],
        abi=answer["abi"],
        platform=answer["platform"],
        prefix=answer["prefix"],
        virtual=answer["prefix"] != answer["base_prefix"],
        free_threaded=answer["free_threaded"],
        stamp=stamp,
        import_path=tuple(answer["path"]),
        stdlib=tuple(one for one in answer["stdlib"] if one),
    )


def _ask(path: str) -> dict[str, Any]:
    import json
    import subprocess

    # -I is not known to 2.7; these two are what it stands for, but for the working folder, which the probe leaves out.
    command = [path, "-E", "-s", "-c", _PROBE]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "__PYVENV"))}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS, env=environ, check=False
        )
    except subprocess.TimeoutExpired:
        raise InterpreterNotFound(f"{path} gave no answer in {_PROBE_SECONDS:g} s") from None
    except OSError as error:
        raise InterpreterNotFound(f"{path} cannot be run: {error.strerror}") from None
    _, mark, answer = done.stdout.decode("utf-8", "replace").rpartition(_MARK)
    if done.returncode == 0 and mark:
        try:
            parsed = json.loads(answer)
        except ValueError:
            parsed = None
        if isinstance(parsed, dict):
            return parsed
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    detail = f": {said[-1]}" if said else ""
    raise InterpreterNotFound(f"{path} did not answer as an interpreter does (exit status {done.returncode}){detail}")


def _at_path(path: str) -> Interpreter:
    """What a user names by its path may be anything that the worker side can run on."""
    if os.path.isdir(path):
        path = os.path.join(path, "bin", "python")
    interpreter = probe(path)
    if interpreter.version[:2] < OLDEST:
        raise InterpreterNotFound(f"{path} is Python {interpreter.version_text}: {_too_old()}")
    return interpreter


def _too_old() -> str:
    return f"atoll's workers need Python {OLDEST[0]}.{OLDEST[1]} or newer"


def _refusal(interpreter: Interpreter) -> str | None:
    """Why an interpreter is not taken unless it is named by its path."""
    if interpreter.version[:2] < OLDEST:
        return f"Python {interpreter.version_text}: {_too_old()}"
    if interpreter.implementation != "cpython":
        return f"{interpreter.implementation} {interpreter.version_text}: not CPython; give its path to use it"
    if interpreter.phase != FINAL:
        return f"Python {interpreter.version_text}: a pre-release; give its path to use it"
    if interpreter.free_threaded:
        return f"Python {interpreter.version_text}: a free-threaded build; give its path to use it"
    if interpreter.virtual:
        return f"Python {interpreter.version_text}: belongs to a virtual environment"
    return None


def _describe(seen: Seen) -> str:
    return f"Python {seen.interpreter.version_text}" if seen.interpreter is not None else "unknown"


def _newest(seen: list[Seen], accepts: Any) -> Interpreter | None:
    fitting = [
        one.interpreter
        for one in seen
        if one.interpreter is not None and one.refusal is None and accepts(one.interpreter.version_key)
    ]
    # max() keeps the first of equals, and the order of the search is the order of preference.
    return max(fitting, key=lambda one: one.version_key, default=None)


def survey() -> list[Seen]:
    """Every file in the usual places that may be an interpreter, with what it is or why it is refused."""
    found: list[Seen] = []
    known: set[str] = set()
    for path, origin in _candidates():
        real = os.path.realpath(path)
        if origin == "pyenv shim":
            # Scripts that hand over to the versions listed by themselves, or fail, as the working folder has it.
            folder = os.path.dirname(path)
            if folder not in known:
                refusal = "pyenv's shims, which stand for the versions that are listed by themselves"
                found.append(Seen(folder, origin, None, refusal))
            known.add(folder)
            continue
        # A virtual environment's python is a link to the one it was made with, yet not the same interpreter.
        identity = real if not _in_venv(path) else path
        if identity in known:
            continue
        known.add(identity)
        if real == os.path.realpath(host_executable()) and not _in_venv(path):
            host = host_interpreter()
            found.append(Seen(host.path, "this process", host, _refusal(host)))
            continue
        try:
            interpreter = probe(path)
        except InterpreterNotFound as error:
            found.append(Seen(path, origin, None, str(error).removeprefix(path).strip()))
        else:
            found.append(Seen(path, origin, interpreter, _refusal(interpreter)))
    return found


def _in_venv(path: str) -> bool:
    return os.path.exists(os.path.join(os.path.dirname(os.path.dirname(path)), "pyvenv.cfg"))


def _candidates() -> Iterator[tuple[str, str]]:
    """Paths in order of preference, with where they were found."""
    if host_executable():
        yield host_executable(), "this process"
    shims = os.path.join(_pyenv_root(), "shims")
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if folder:
            for path in _pythons_in(folder):
                yield path, "pyenv shim" if os.path.realpath(folder) == os.path.realpath(shims) else "PATH"
    for name in _listed(os.path.join(_pyenv_root(), "versions")):
        yield from ((path, "pyenv") for path in _pythons_in(os.path.join(name, "bin"), first=True))
    for name in _listed(_managed_folder()):
        # uv keeps short-named links beside the versions they stand for; the real path makes them one.
        yield from ((path, "uv") for path in _pythons_in(os.path.join(name, "bin"), first=True))
    for folder in ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin", "/home/linuxbrew/.linuxbrew/bin"):
        yield from ((path, "system") for path in _pythons_in(folder))
    for name in _listed("/opt"):
        yield from ((path, "/opt") for path in _pythons_in(os.path.join(name, "bin"), first=True))


def _pyenv_root() -> str:
    return os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")


def _managed_folder() -> str:
    """Where uv keeps the interpreters it fetched."""
    given = os.environ.get("UV_PYTHON_INSTALL_DIR")
    if given:
        return given
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(base, "uv", "python")


def _listed(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    except OSError:
        return []


def _pythons_in(folder: str, *, first: bool = False) -> list[str]:
    """Executables in a folder that are named as interpreters are; ``first`` for a folder of one interpreter."""
    names = ["python3", "python", *(f"python3.{minor}" for minor in range(30, 5, -1)), "pypy3"]
    paths = (os.path.join(folder, name) for name in names)
    found = [path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)]
    return found[:1] if first else found
