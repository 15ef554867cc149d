# SPDX-License-Identifier: Apache-2.0
"""What environment a service asks for, and the digest by which the same request is known again.

What always holds here: no subprocess and no network; two requests have one digest only if they would be resolved from
the same text, files and preferred interpreter. What does not belong here: deciding which interpreter or versions it
will be.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ManifestError
from ..python_versions import is_path

if TYPE_CHECKING:
    from ..manifest import ServiceSpec

Kind = Literal["host", "packages", "project", "existing"]
_FORMAT = "1"  # part of every digest and key: raise it when the same request must be built differently
_PASSED_OVER = {"__pycache__", "build", "dist", "node_modules"}


@dataclass(frozen=True)
class EnvironmentRequest:
    """A request for an environment. Made by ``environment_request``.

    Attributes:
        kind: ``"host"``: the host's own; ``"packages"``: an interpreter and requirements, locked and built by atoll;
            ``"project"``: what a ``uv.lock`` says; ``"existing"``: an interpreter or venv that is used as it is.
        service: who asks; for messages, not part of the digest.
        python: what was written under ``python``.
        path: the requirements file, project folder or interpreter that ``environment`` named.
        dependencies: requirements.
        indexes: package indexes to search before the configured ones.
        find_links: places that list further distribution files.
        lock: a lock file to install exactly as it is.
    """

    kind: Kind
    service: str
    python: str | None = None
    path: str | None = None
    dependencies: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    lock: str | None = None

    def digest(self) -> str:
        """Hexadecimal name of the request, including the contents of the files it names."""
        parts = (part.encode("utf-8", "surrogateescape") for part in self._parts())
        return sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts))[:24]

    def _parts(self) -> Iterator[str]:
        yield from (_FORMAT, self.kind, self.python or "", self.path or "", self.lock or "")
        for group in (self.dependencies, self.indexes, self.find_links):
            yield str(len(group))
            yield from group
        # Without a path the host's own interpreter is preferred, so the answer depends on which one that is.
        if self.python is not None and is_path(self.python):
            yield file_stamp(self.python)
        else:
            yield file_stamp(host_executable()) + sys.version
        if self.lock is not None:
            yield _text(self.lock)
        if self.kind == "packages" and self.path is not None:
            yield from _requirement_files(self.path)
        elif self.path is not None:
            yield from self.project_files()
        yield from self.local_packages()

    def project_files(self) -> tuple[str, str]:
        """Text of a project's ``pyproject.toml`` and ``uv.lock``."""
        assert self.path is not None
        return _text(os.path.join(self.path, "pyproject.toml")), _text(os.path.join(self.path, "uv.lock"))

    def local_packages(self) -> list[str]:
        """Names, sizes and times of the files of local packages: with one changed, it must be built again."""
        paths = [local_path(requirement) for requirement in self.dependencies]
        if self.kind == "project":
            if any(mark in self.project_files()[0] for mark in ("[build-system]", "[tool.uv.workspace]", "[tool.uv.s")):
                paths.append(self.path)  # the project itself is installed too
        elif self.path is not None:
            for text in _requirement_files(self.path):
                lines = (line.removeprefix("-e ").strip() for line in text.splitlines())
                folder = os.path.dirname(self.path)
                paths += [os.path.join(folder, line.split()[0]) for line in lines if line.startswith((".", "/"))]
        return [stamp for path in paths if path is not None for stamp in _tree(os.path.normpath(path))]

    def as_record(self) -> dict[str, Any]:
        """Plain data for the cache."""
        return {
            "kind": self.kind,
            "service": self.service,
            "python": self.python,
            "path": self.path,
            "dependencies": list(self.dependencies),
            "indexes": list(self.indexes),
            "find_links": list(self.find_links),
            "lock": self.lock,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> EnvironmentRequest:
        """What ``as_record`` gave."""
        lists = {key: tuple(record[key]) for key in ("dependencies", "indexes", "find_links")}
        return cls(**{**record, **lists})

    def __str__(self) -> str:
        parts = []
        if self.kind == "host":
            return "the host's own packages"
        if self.path is not None:
            parts.append(self.path)
        if self.lock is not None:
            parts.append(f"lock {self.lock}")
        parts += self.dependencies or ([] if parts else ["no packages"])
        if self.python is not None:
            parts.append(f"Python {self.python}")
        return ", ".join(parts)


def environment_request(spec: ServiceSpec) -> EnvironmentRequest:
    """What environment a spec asks for.

    Raises:
        ManifestError: its options contradict each other, or ``environment`` names something that is none.
    """
    if spec.environment is None and not spec.dependencies and spec.python is None and spec.lock is None:
        return EnvironmentRequest("host", spec.name)
    kind: Kind = "packages"
    path: str | None = None
    lock = spec.lock
    if spec.environment is not None:
        kind, path = _classify(spec.name, spec.environment)
    if lock is not None and os.path.basename(lock) == "uv.lock":
        if path is not None:
            raise _contradiction(spec, "lock", "names a uv.lock, which is an environment of its own")
        kind, path, lock = "project", _project(spec.name, os.path.dirname(lock)), None
    if kind in ("existing", "project"):
        for key in ("dependencies", "lock"):
            if getattr(spec, key) and not (key == "lock" and lock is None):
                what = "is used as it is" if kind == "existing" else "is installed as its uv.lock says"
                raise _contradiction(spec, key, f"cannot be added, because {path} {what}")
    return EnvironmentRequest(
        kind,
        spec.name,
        python=spec.python,
        path=path,
        dependencies=tuple(sorted(set(spec.dependencies))),
        indexes=spec.indexes,
        find_links=spec.find_links,
        lock=lock,
    )


def _contradiction(spec: ServiceSpec, key: str, why: str) -> ManifestError:
    return ManifestError(f"service {spec.name!r}: {key} {why}; give either environment or {key}")


def _classify(service: str, path: str) -> tuple[Kind, str]:
    """What a path under ``environment`` is: an existing interpreter, a project, or a requirements file."""
    name = os.path.basename(path)
    if os.path.isdir(path):
        for inside in ("bin/python", "bin/python3"):
            if os.path.exists(os.path.join(path, inside)):
                return "existing", os.path.join(path, inside)
        if os.path.isfile(os.path.join(path, "pyvenv.cfg")):
            raise ManifestError(
                f"service {service!r}: environment {path} is a virtual environment whose interpreter is gone "
                f"({os.path.join(path, 'bin/python')} does not exist or points nowhere); make it anew"
            )
        return "project", _project(service, path)
    if name in ("pyproject.toml", "uv.lock"):
        return "project", _project(service, os.path.dirname(path))
    if not os.path.isfile(path):
        raise ManifestError(f"service {service!r}: environment {path}: there is nothing there")
    if name.endswith((".txt", ".in")):
        return "packages", path
    if os.access(path, os.X_OK):
        return "existing", path
    raise ManifestError(
        f"service {service!r}: environment {path} is none: expected an interpreter, a virtual environment, "
        "a requirements.txt, or a folder with pyproject.toml and uv.lock"
    )


def _project(service: str, folder: str) -> str:
    missing = [name for name in ("pyproject.toml", "uv.lock") if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        hint = "; run `uv lock` there" if missing == ["uv.lock"] else ""
        raise ManifestError(
            f"service {service!r}: environment {folder} is no virtual environment and no locked project: "
            f"{' and '.join(missing)} not found there{hint}"
        )
    return folder


def host_executable() -> str:
    """The interpreter this process runs on, without the virtual environment it may be in."""
    return getattr(sys, "_base_executable", None) or sys.executable


def file_stamp(path: str) -> str:
    """A file's real path, inode, size and time of change: another file, or none, has another stamp."""
    real = os.path.realpath(path)
    try:
        stat = os.stat(real)
    except OSError:
        return f"{real}:gone"
    return f"{real}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}"


def sha256(data: bytes) -> str:
    """Hexadecimal digest. ``hashlib`` loads OpenSSL, which would take longer than all the rest of opening."""
    from importlib import import_module

    for name in ("_sha2", "_sha256", "hashlib"):  # the plain one's name since Python 3.12, and before
        try:
            return str(import_module(name).sha256(data).hexdigest())
        except ImportError:
            continue
    raise ImportError("this Python has no SHA-256")


def local_path(requirement: str) -> str | None:
    """The path that a requirement names, or None if it names a package by name or URL."""
    if requirement.startswith("/"):
        return requirement.partition("[")[0]
    _, at, url = requirement.partition("@")
    if at and url.strip().startswith("file:"):
        from urllib.parse import unquote, urlparse

        return unquote(urlparse(url.partition(";")[0].strip()).path)
    return None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from None


def _requirement_files(path: str, seen: set[str] | None = None) -> list[str]:
    """The text of a requirements file and of those it includes."""
    seen = set() if seen is None else seen
    if path in seen:
        return []
    seen.add(path)
    text = _text(path)
    texts = [text]
    for line in text.splitlines():
        words = line.replace("=", " ", 1).split()
        if len(words) >= 2 and words[0] in ("-r", "-c", "--requirement", "--constraint") and "://" not in words[1]:
            texts += _requirement_files(os.path.normpath(os.path.join(os.path.dirname(path), words[1])), seen)
    return texts


def _tree(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [file_stamp(path)]
    stamps = []
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(
            name
            for name in folders
            if name not in _PASSED_OVER
            and not name.startswith(".")
            and not name.endswith(".egg-info")
            and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
        )
        for name in sorted(files):
            stat = os.lstat(os.path.join(folder, name))
            stamps.append(f"{os.path.join(folder, name)}:{stat.st_size}:{stat.st_mtime_ns}")
    return stamps
