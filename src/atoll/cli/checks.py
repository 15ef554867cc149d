# SPDX-License-Identifier: Apache-2.0
"""What ``atoll doctor`` looks at, one function each.

What always holds here: a check looks and tells, changes nothing that stays, needs no network, and never raises; what
it tells has two parts, what is there and what that means. What does not belong here: printing.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from atoll_worker import shared_memory

from ..environments.cache import cache_folder, make_folder, remove
from ..environments.interpreters import OLDEST, is_offline, survey
from ..environments.uv_command import clean_environ, find_uv
from ..errors import AtollError, DecodeError, SandboxUnavailable
from ..processes.cgroups import find_groups, own_group
from ..processes.limits import enforcement
from ..processes.sandbox import require_bubblewrap
from .output import size_text


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        state: ``"good"``; ``"limited"``: atoll works, something does not; ``"bad"``: atoll does not work.
        found: what is there.
        means: what that means.
        details: further lines.
    """

    name: str
    state: Literal["good", "limited", "bad"]
    found: str
    means: str
    details: tuple[str, ...] = ()


def all_checks() -> list[Check]:
    """Every check, in the order in which a user would want to read them."""
    return [_guarded(check) for check in _CHECKS]


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a doctor that dies of one finding tells nothing of the others
        name = check.__name__.removeprefix("_check_").replace("_", " ")
        return Check(name, "limited", f"could not be looked at: {type(error).__name__}: {error}", "Unknown.")


def _check_platform() -> Check:
    uname = os.uname()
    system = f"{uname.sysname} {uname.release}, {uname.machine}, {_cores()} processor cores to use"
    if uname.sysname == "Linux":
        return Check("platform", "good", system, "First-class: everything that the machine allows is used.")
    return Check("platform", "limited", system, "Fallbacks are used where the system lacks what Linux has.")


def _check_interpreters() -> Check:
    seen = survey()
    usable = [one for one in seen if one.interpreter is not None and one.refusal is None]
    usable.sort(key=lambda one: one.interpreter.version_key if one.interpreter else (), reverse=True)
    details = [f"{one.interpreter.version_text:<7} {one.path} ({one.origin})" for one in usable if one.interpreter]
    details += [f"not taken: {one.path}: {one.refusal}" for one in seen if one.refusal is not None]
    if not usable:
        needed = f"No CPython of version {OLDEST[0]}.{OLDEST[1]} or newer was found; no worker can start."
        return Check("interpreters", "bad", "none", needed, tuple(details))
    versions = sorted({one.interpreter.version[:2] for one in usable if one.interpreter}, reverse=True)
    found = ", ".join(f"{major}.{minor}" for major, minor in versions)
    return Check("interpreters", "good", found, "python= may ask for any of these versions.", tuple(details))


def _check_uv() -> Check:
    try:
        path = find_uv()
    except AtollError as error:
        return Check("uv", "bad", "none", f"Environments cannot be built. {error}")
    said = _output([path, "--version"], environ=clean_environ(os.environ))
    if said is None:
        return Check("uv", "bad", path, "It does not run, so environments cannot be built.")
    return Check("uv", "good", f"{said} ({path})", "Resolves, locks and installs the packages of services.")


def _check_network() -> Check:
    if is_offline(None):
        means = "Ready environments open; new ones are built only from what uv's cache and find_links hold."
        return Check("network", "limited", "offline mode (ATOLL_OFFLINE is set)", means)
    return Check(
        "network", "good", "offline mode is off", "uv may fetch packages and interpreters when a build needs them."
    )


def _check_cache() -> Check:
    folder = cache_folder()
    probe = os.path.join(folder, f"doctor-{os.getpid()}")
    try:
        make_folder(folder)
        os.mkdir(probe)
        os.rename(probe, probe + "-renamed")
        os.rmdir(probe + "-renamed")
    except OSError as error:
        return Check(
            "cache", "bad", folder, f"Environments cannot be built there: {error.strerror}. Set ATOLL_CACHE_DIR."
        )
    finally:
        remove(probe)
    free = shutil.disk_usage(folder).free
    found = f"{folder}, {size_text(free)} free"
    linked = _links_from_uv_cache(folder)
    if free < 2e9:
        return Check("cache", "limited", found, "Little room: large packages may not fit. See `atoll env prune`.")
    if not linked:
        means = (
            "uv's cache is on another disk or cannot be linked from: packages are copied, which takes time and room."
        )
        return Check("cache", "limited", found, means)
    return Check(
        "cache", "good", found, "Renaming and hard links work: builds are quick, and packages are stored once."
    )


def _links_from_uv_cache(folder: str) -> bool:
    said = _output([find_uv(), "cache", "dir", "--color", "never"], environ=clean_environ(os.environ))
    if said is None or not os.path.isdir(said):
        return True  # nothing was ever fetched, so nothing is known against it
    source, target = (os.path.join(one, f"atoll-doctor-{os.getpid()}") for one in (said, folder))
    try:
        with open(source, "wb"):
            pass
        os.link(source, target)
    except OSError:
        return False
    finally:
        remove(source)
        remove(target)
    return True


def _check_memfd() -> Check:
    name = "shared memory"
    try:
        fd = shared_memory.create(os.sysconf("SC_PAGE_SIZE"))
    except (ImportError, OSError) as error:
        means = "Calls go over sockets alone, and arrays are copied through them."
        return Check(name, "limited", f"none ({error})", means)
    try:
        shared_memory.check(fd, os.sysconf("SC_PAGE_SIZE"))
    except DecodeError as error:
        return Check(name, "limited", str(error), "Arrays go through a socket, and are copied.")
    finally:
        os.close(fd)
    if not shared_memory.has_memfd():
        means = "Arrays go through it. It cannot be sealed, so the workers have to be trusted not to shrink it."
        return Check(name, "limited", "POSIX shared memory", means)
    found = "memfd with seals"
    with contextlib.suppress(OSError):
        disk = os.statvfs("/dev/shm")  # noqa: S108 - nothing is put there
        found += f"; /dev/shm has {disk.f_frsize * disk.f_blocks / 1e6:,.0f} MB, which does not matter"
    means = "Arrays go through it, up to a quarter of the memory there is. It has no name: nothing can be left behind."
    return Check(name, "good", found, means)


def _check_fast_lane() -> Check:
    machine = os.uname().machine
    if machine not in ("x86_64", "AMD64"):
        means = "Stores become visible out of order here, so small calls go over the socket: tens of microseconds."
        return Check("fast lane", "limited", machine, means)
    if os.environ.get("ATOLL_SPIN") == "0":
        return Check(
            "fast lane", "limited", f"{machine}, ATOLL_SPIN=0", "Waiting asleep, as asked: slower small calls."
        )
    if _cores() < 2:
        return Check(
            "fast lane", "limited", f"{machine}, one core", "Caller and worker take turns: somewhat slower calls."
        )
    return Check("fast lane", "good", machine, "Small calls go through shared memory: a few microseconds.")


def _check_supervision() -> Check:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        return Check(
            "supervision", "limited", f"no pidfd ({error})", "A worker's death is noticed by its socket alone."
        )
    return Check("supervision", "good", "pidfd", "A worker's death is noticed at once, from its first moment on.")


def _check_sandbox() -> Check:
    try:
        bwrap = require_bubblewrap()
    except SandboxUnavailable as error:
        found = shutil.which("bwrap") or "no bubblewrap"
        return Check("sandbox", "limited", found, f"A service with sandbox= does not start. {_sentence(error)}")
    said = _output([bwrap, "--version"]) or "bubblewrap"
    means = "Workers can be shut in (sandbox=): files, network, processes, shared memory."
    return Check("sandbox", "good", f"{said} ({bwrap})", means)


def _sentence(error: Exception) -> str:
    """What an error says, without the words that say where it was met."""
    text = str(error).removeprefix("a sandbox was asked for, and ")
    return text[:1].upper() + text[1:]


def _check_gpu() -> Check:
    devices = sorted(glob.glob("/dev/nvidia[0-9]*"))
    smi = shutil.which("nvidia-smi")
    said = _output([smi, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]) if smi else None
    if said:
        lines = tuple(said.splitlines())
        return Check(
            "GPU", "good", f"{len(lines)} NVIDIA", "Services may use them; see each service's pins for CUDA.", lines
        )
    if devices:
        means = "Devices are there, but nvidia-smi does not answer: the driver's tools are missing or do not match."
        return Check("GPU", "limited", ", ".join(devices), means)
    return Check("GPU", "good", "none", "Nothing is wrong: services run on processors.")


def _check_cgroups() -> Check:
    groups = find_groups(prepare=False)
    held = enforcement(groups.controllers if groups is not None else None)
    details = tuple(f"{limit}= is held by {by}" for limit, by in held.items())
    if groups is not None and set(groups.controllers) >= {"memory", "cpu"}:
        means = "Limits of memory and processors hold for whole workers, by the kernel."
        return Check("cgroups", "good", f"v2, workers' groups in {groups.folder}", means, details)
    if groups is not None:
        found = f"v2, workers' groups in {groups.folder}, with {' and '.join(groups.controllers)} only"
        return Check("cgroups", "limited", found, "The other limits hold for single processes.", details)
    own = own_group()
    if own is None:
        means = "Limits are held by other means (see below); memory is looked at a few times a second."
        return Check("cgroups", "limited", "no unified (v2) hierarchy", means, details)
    means = "Limits are held by other means; `systemd-run --user --scope -p Delegate=yes` gives groups."
    return Check("cgroups", "limited", f"v2, no groups can be made in {own}", means, details)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _output(command: Sequence[str], *, environ: dict[str, str] | None = None) -> str | None:
    """What a command prints, or None if it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, env=environ, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


_CHECKS = (
    _check_platform,
    _check_interpreters,
    _check_uv,
    _check_network,
    _check_cache,
    _check_memfd,
    _check_fast_lane,
    _check_supervision,
    _check_sandbox,
    _check_gpu,
    _check_cgroups,
)
