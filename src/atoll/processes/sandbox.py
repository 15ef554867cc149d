# SPDX-License-Identifier: Apache-2.0
"""Shutting a worker in, by bubblewrap: it sees what it was given, and nothing else of this machine.

What it has: its interpreter, its environment, its service's folders and the system's libraries, all read-only; a
``/tmp``, ``/dev`` and ``/proc`` of its own; processes, shared memory and a network of its own that hold nothing but
itself; the descriptors that it was started with, through which it is called. What always holds here: where this cannot
be had, nothing is started; a worker is never shut in less than was asked for. What does not belong here: how a sandbox
is written in a manifest.

How processes lie: the one that the host started is bubblewrap's, the parent of the first process (pid 1) of the
sandbox, which is bubblewrap's too, and that is the parent of the worker's interpreter::

    host ── bwrap ─┬─ bwrap (pid 1 in there) ── python ── whatever it starts
                   └ ends when python does, with 128 + n for signal n, or when the host does; and with it everything
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from ..errors import SandboxUnavailable, WorkerStartError
from .tree import children

# What programs need of the system, where it is there: to be linked, to tell the time and the language, to verify
# certificates. None of it tells one user from another.
_SYSTEM = (
    "/usr",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mime.types",
    "/etc/ssl/certs",  # and not what lies beside them: private keys
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust",
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/sys/devices/system/cpu",  # how many processors there are
    "/nix/store",
)
_SYSTEM_ROOTS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/services", "/etc/protocols")

# Namespaces of its own, no privileges, and its end tied to that of its parent.
_SHUT_IN = (
    *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
    *("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "worker"),
)
# What starts bubblewrap, waits for it and ends as it did; see ``Gate``.
_KEEPER = ("/bin/sh", "-c", '"$@" </dev/null; exit $?', "keeper")
# Seconds.
_PROBE_TIMEOUT = 20.0
_GATE_TIMEOUT = 20.0

# Folders of everybody's; somebody's home is another.
_BROAD = ("/", "/tmp", "/var", "/var/tmp", "/home", "/root", "/etc", "/opt", "/srv", "/run", "/dev/shm")  # noqa: S108

# Of the host's variables: the language, the clock, and where programs are found. Nothing that could be a secret.
_KEPT_VARIABLES = ("PATH", "LANG", "LANGUAGE", "TZ", "VIRTUAL_ENV")


class SandboxPolicy(Protocol):
    """What may be reached from inside: ``manifest.options.Sandbox`` has this shape."""

    @property
    def network(self) -> bool:
        """Whether it may use the network."""

    @property
    def read(self) -> tuple[str, ...]:
        """Files and folders that it may read."""

    @property
    def write(self) -> tuple[str, ...]:
        """Files and folders that it may read and write."""


def wrap(
    command: Sequence[str], policy: SandboxPolicy, needed: Sequence[str], *, memory: int | None = None
) -> list[str]:
    """The command that runs ``command`` shut in. Descriptors that it inherits stay open inside.

    Args:
        command: the interpreter, as an absolute path, and its arguments.
        policy: what may be reached beside what every worker needs.
        needed: files and folders that the command reads, such as its environment's.
        memory: bytes that files in its ``/tmp``, which lie in memory, may take; None for the kernel's default, which is
            also what an older bubblewrap leaves it at.

    Raises:
        SandboxUnavailable: there is no bubblewrap, it cannot make a sandbox here, or what is needed lies where sharing
            it would share somebody's home.
        WorkerStartError: a file or folder of the policy does not exist.
    """
    bwrap = require_bubblewrap(network=policy.network)
    mounts: dict[str, list[str]] = {}
    for path in (*_SYSTEM, *(_NETWORK if policy.network else ())):
        mounts[path] = ["--ro-bind-try", path, path]
    for path in _SYSTEM_ROOTS:
        if os.path.islink(path):
            mounts[path] = ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            mounts[path] = ["--ro-bind", path, path]
    own = {path: ["--ro-bind-try", path, path] for path in needed} | _interpreter_mounts(command[0])
    for path, mount in own.items():
        if mount[0] != "--symlink" and is_broad(path):
            raise SandboxUnavailable(
                f"a sandbox was asked for, and the worker needs {path}, which holds much that is none of its business; "
                "keep the service and its interpreter in folders of their own"
            )
        if not _is_within(path, mounts):
            mounts[path] = mount
    mounts["/proc"] = ["--proc", "/proc"]
    mounts["/dev"] = ["--dev", "/dev"]
    bounded = ("--size", str(memory)) if memory is not None and _can_bound(bwrap) else ()
    mounts["/tmp"] = [*bounded, "--tmpfs", "/tmp"]  # noqa: S108
    for kind, paths in (("read", policy.read), ("write", policy.write)):
        for path in map(os.path.abspath, paths):
            if not os.path.exists(path):
                raise WorkerStartError(
                    f"sandbox: {kind}={path!r} does not exist; a sandbox can only share what is there"
                )
            if path == "/":
                raise WorkerStartError(f"sandbox: {kind}='/' would share everything; name the folders that are needed")
            option = "--ro-bind" if kind == "read" else "--bind"
            # Devices work only where they were bound as such.
            mounts[path] = ["--dev-bind" if path.startswith("/dev/") else option, path, path]
    # What lies in another comes after it, and over it.
    arguments = [word for path in sorted(mounts, key=lambda path: path.split("/")) for word in mounts[path]]
    network = [] if policy.network else ["--unshare-net"]
    # The folders that lead to the mounts lie in memory, and are not for keeping anything either.
    return [bwrap, *_SHUT_IN, *network, *arguments, "--remount-ro", "/", "--", *command]


class Gate:
    """Holds a sandbox shut from when it is made until the host has done what must be done first, such as setting
    limits: what runs in there inherits them.

    Bubblewrap is two processes, each of which ends with its parent. If the host were the parent and ended just when the
    first has made the second, or the first had nobody to report that to, the second would wait for the first for ever.
    So there is a keeper between them. It does not end with the host, but with bubblewrap; that ends with the worker;
    and that with the host, by its lifeline.

    Args:
        command: as ``wrap`` makes it.

    Attributes:
        command: what to start instead.
        stdin: its standard input: where bubblewrap reports to, which stays open for as long as the keeper lives.
        passed: the descriptors that bubblewrap has to inherit; none of them reaches what runs in the sandbox.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._info, info = os.pipe()
        try:
            block, self._block = os.pipe()
        except OSError:
            os.close(self._info)
            os.close(info)
            raise
        self.passed = [info, block]
        bwrap, *rest = command
        self.command = [*_KEEPER, bwrap, "--info-fd", str(info), "--block-fd", str(block), *rest]
        self.stdin = self._info

    def close_theirs(self) -> None:
        """After bubblewrap was started: let go of its ends."""
        for fd in self.passed:
            os.close(fd)

    def wait(self) -> None:
        """Wait until the sandbox's first process is there; the worker is not yet. Returns, too, if bubblewrap ended.

        Raises:
            WorkerStartError: it takes too long.
        """
        poll = select.poll()
        poll.register(self._info, select.POLLIN)
        said = b""
        while b"}" not in said:
            if not poll.poll(_GATE_TIMEOUT * 1000):
                raise WorkerStartError(f"bubblewrap did not begin to make a sandbox within {_GATE_TIMEOUT:g} seconds")
            part = os.read(self._info, 4096)
            if not part:
                return
            said += part

    def close(self) -> None:
        """Let the worker begin, and let go of the descriptors."""
        with contextlib.suppress(OSError):  # it has ended
            # Said, not shown by closing: a child that was forked meanwhile may hold a copy.
            os.write(self._block, b"\0")
        os.close(self._info)
        os.close(self._block)


def sandboxed_process(keeper: int) -> int | None:
    """Process id, out here, of the interpreter in a sandbox, given that of the process which the host started; None
    while, or once, there is none."""
    for bubblewrap in children(keeper):
        for first in children(bubblewrap):
            inside = children(first)
            return inside[0] if inside else None  # the first process's first child; orphans come after it
    return None


def sandbox_environ(environ: Mapping[str, str], env_vars: Mapping[str, str]) -> dict[str, str]:
    """The environment variables for a worker that is shut in: what every program needs, and what the service names."""
    kept = {name: environ[name] for name in environ if name in _KEPT_VARIABLES or name.startswith("LC_")}
    # No user and no home of this machine; what insists on writing there writes into its own /tmp.
    return {**kept, "HOME": "/tmp", "USER": "worker", "LOGNAME": "worker", **env_vars}  # noqa: S108


def _interpreter_mounts(python: str) -> dict[str, list[str]]:
    """What an interpreter needs to run: its installation, the virtual environment it belongs to, and the links that
    lead from one to the other, as links: the folders that those lie in may hold anything."""
    folders: list[str] = []
    links: dict[str, list[str]] = {}
    seen: set[str] = set()
    paths = [python]
    while paths:
        path = paths.pop()
        if path in seen or not os.path.lexists(path):
            continue
        seen.add(path)
        folder = os.path.dirname(path)
        environment = os.path.dirname(folder)
        home = _home_of(environment)
        if home is not None:
            folders.append(environment)
            paths += [os.path.join(home, name) for name in (os.path.basename(python), "python3", "python")]
        if os.path.islink(path):
            links[path] = ["--symlink", os.readlink(path), path]
            paths.append(os.path.normpath(os.path.join(folder, os.readlink(path))))
        elif home is None:
            # As it is named, and, where a folder on the way is a link, as it is.
            for place in dict.fromkeys((folder, os.path.realpath(folder))):
                folders.append(os.path.dirname(place) if os.path.basename(place) == "bin" else place)
    mounts = {folder: ["--ro-bind", folder, folder] for folder in folders if folder != "/"}
    return mounts | {path: link for path, link in links.items() if not _is_within(path, mounts)}


def _home_of(environment: str) -> str | None:
    """The folder of the interpreter that a virtual environment was made from; None if it is not one."""
    try:
        with open(os.path.join(environment, "pyvenv.cfg"), encoding="utf-8") as file:
            return next(line.partition("=")[2].strip() for line in file if line.partition("=")[0].strip() == "home")
    except (OSError, StopIteration):
        return None


def _is_within(path: str, mounts: Mapping[str, Sequence[str]]) -> bool:
    """Whether a folder that is shared already holds it."""
    return any(path == one or path.startswith(one + "/") for one in mounts)


def is_broad(folder: str) -> bool:
    """Whether a folder holds so much beside a service that sharing it would defeat a sandbox: the root, somebody's
    home, or what holds homes."""
    folder = os.path.realpath(folder)
    home = os.path.realpath(os.path.expanduser("~"))
    return folder in _BROAD or (home + "/").startswith(folder.rstrip("/") + "/")


# -- whether there can be one ----------------------------------------------------------------------------------------

_works: set[tuple[str, bool]] = set()


def require_bubblewrap(*, network: bool = False) -> str:
    """The path of a bubblewrap that can shut a worker in here. What was found to work is not tried again.

    Raises:
        SandboxUnavailable: there is none; the message says what is missing and how to get it.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable("a sandbox was asked for, and there is none on this system: it needs Linux")
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxUnavailable(
            "a sandbox was asked for, and bubblewrap is not installed: there is no `bwrap` on PATH. Install the "
            "package bubblewrap (apt, dnf, apk and pacman all call it so), or start the service without sandbox="
        )
    if (bwrap, network) not in _works:
        trial = [bwrap, *_SHUT_IN, *([] if network else ["--unshare-net"]), "--ro-bind", "/", "/"]
        trial += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--", "true"]  # noqa: S108
        try:
            done = subprocess.run(
                trial, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PROBE_TIMEOUT, check=False
            )
            said, ok = done.stderr.strip(), done.returncode == 0
        except (OSError, subprocess.TimeoutExpired) as error:
            said, ok = str(error), False
        if not ok:
            raise SandboxUnavailable(
                f"a sandbox was asked for, and {bwrap} cannot make one here: {said or 'it gave no reason'}. {_remedy()}"
            )
        _works.add((bwrap, network))
    return bwrap


@functools.cache
def _can_bound(bwrap: str) -> bool:
    """Whether this bubblewrap can limit the size of a file system in memory."""
    try:
        said = subprocess.run([bwrap, "--help"], capture_output=True, text=True, timeout=_PROBE_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "--size " in said.stdout + said.stderr


def _remedy() -> str:
    if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor keeps programs from making user namespaces: give bwrap a profile that allows `userns`, or set "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if _sysctl("kernel/unprivileged_userns_clone") == "0":
        return "Users may not make user namespaces: set sysctl kernel.unprivileged_userns_clone=1"
    if _sysctl("user/max_user_namespaces") == "0":
        return "There may be no user namespaces: set sysctl user.max_user_namespaces to a few thousands"
    return (
        "It needs user, mount, pid and network namespaces, and to mount /proc; a container must be started so that it "
        "may make them (with docker: --security-opt seccomp=unconfined --security-opt systempaths=unconfined)"
    )


def _sysctl(name: str) -> str | None:
    try:
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None
