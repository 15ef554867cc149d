# SPDX-License-Identifier: Apache-2.0
"""Memory from the operating system: nameless, of a size that stays, and nothing else is taken for it."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from mmap import ACCESS_COPY, ACCESS_WRITE, MAP_SHARED, PAGESIZE, PROT_READ, PROT_WRITE, mmap
from pathlib import Path

import pytest

from atoll_worker import shared_memory
from atoll_worker.errors import DecodeError

SIZE = 16 * PAGESIZE
SHRINK, GROW, FUTURE_WRITE = 0x2, 0x4, 0x10

both = pytest.mark.parametrize("posix", [False, True], ids=["memfd", "posix"])


# What ``shm_open`` is given: nothing else, of other tests or programs that run meanwhile, is looked at.
OWN_NAME = r"atoll-[0-9a-f]+-[0-9a-f]+"


def names() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if re.fullmatch(OWN_NAME, name)}


# -- what is made ----------------------------------------------------------------------------------------------------


@both
def test_zeros_that_others_see_written(posix: bool) -> None:
    """It begins as zeros; a second mapping sees what is written; a private one keeps what it writes to itself."""
    fd = shared_memory.create(SIZE, posix)
    try:
        assert os.fstat(fd).st_size == SIZE
        with (
            mmap(fd, SIZE, access=ACCESS_WRITE) as one,
            mmap(fd, SIZE) as two,
            mmap(fd, SIZE, access=ACCESS_COPY) as own,
        ):
            assert bytes(one) == bytes(SIZE)
            one[5] = 7
            assert two[5] == own[5] == 7
            own[5] = 8
            assert two[5] == 7
    finally:
        os.close(fd)


@both
def test_it_is_not_inherited_and_has_no_name(posix: bool) -> None:
    """Close-on-exec, and nothing of that name is in the file system, from the first moment on."""
    before = names()
    fd = shared_memory.create(SIZE, posix)
    try:
        assert not os.get_inheritable(fd)
        assert names() == before
        assert os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)


@both
def test_the_memory_goes_with_the_last_who_has_it(posix: bool) -> None:
    """A mapping keeps it; nothing else does."""
    fd = shared_memory.create(SIZE, posix)
    with mmap(fd, SIZE) as memory:
        os.close(fd)
        memory[0] = 1
        assert memory[0] == 1


@both
def test_no_room_is_an_error_and_no_descriptor_is_left(posix: bool) -> None:
    """More than there can be."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises((OSError, OverflowError)):
        shared_memory.create(1 << 63, posix)
    assert os.listdir("/proc/self/fd") == before
    assert not names()


def test_a_memfd_can_neither_shrink_nor_grow() -> None:
    """Not by who made it either."""
    fd = shared_memory.create(SIZE, posix=False)
    try:
        for size in (0, SIZE - PAGESIZE, SIZE + PAGESIZE):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
    finally:
        os.close(fd)


def test_sealed_against_writers() -> None:
    """Who has a mapping goes on writing; nobody gets another one to write to, nor by opening it anew."""
    fd = shared_memory.create(SIZE, posix=False)
    try:
        with mmap(fd, SIZE, access=ACCESS_WRITE) as memory:
            shared_memory.seal_against_writers(fd)
            shared_memory.seal_against_writers(fd)
            memory[0] = 9
            again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            for one in (fd, again):
                with pytest.raises(PermissionError):
                    mmap(one, SIZE, access=ACCESS_WRITE)
                with pytest.raises(PermissionError):
                    os.pwrite(one, b"x", 0)
            os.close(again)
            with mmap(fd, SIZE, MAP_SHARED, PROT_READ) as reader, mmap(fd, SIZE, access=ACCESS_COPY) as own:
                assert reader[0] == own[0] == 9
                own[0] = 1
                assert memory[0] == 9
    finally:
        os.close(fd)


def test_sealing_what_cannot_be_sealed_is_no_error() -> None:
    """As on systems that have no seals."""
    fd = shared_memory.create(SIZE, posix=True)
    try:
        shared_memory.seal_against_writers(fd)
        mmap(fd, SIZE, MAP_SHARED, PROT_READ | PROT_WRITE).close()
    finally:
        os.close(fd)


# -- what is taken from others ---------------------------------------------------------------------------------------


def memfd(size: int, seals: int = SHRINK | GROW, flags: int = 0) -> int:
    fd = os.memfd_create("liar", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def regular_file() -> int:
    fd = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(fd, SIZE)
    return fd


def file_in_shared_memory() -> int:
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(fd, SIZE)
    return fd


def one_of(pair: tuple[int, int]) -> int:
    os.close(pair[1])
    return pair[0]


LIARS: dict[str, Callable[[], int]] = {
    "unsealed": lambda: memfd(SIZE, 0),
    "may shrink": lambda: memfd(SIZE, GROW),
    "may grow": lambda: memfd(SIZE, SHRINK),
    "too small": lambda: memfd(SIZE - PAGESIZE),
    "empty": lambda: memfd(0),
    "a file": regular_file,
    "a file in memory": file_in_shared_memory,
    "shm_open": lambda: shared_memory.create(SIZE, posix=True),
    "a pipe": lambda: one_of(os.pipe()),
    "a folder": lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
    "a socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    "a device": lambda: os.open("/dev/zero", os.O_RDWR),
    "a file of /proc": lambda: os.open("/proc/self/mem", os.O_RDONLY),
    "only a place": lambda: os.open("/proc/self/exe", os.O_PATH),
}


@pytest.mark.parametrize("kind", LIARS)
def test_what_is_no_segment_is_refused(kind: str) -> None:
    """Whatever could raise SIGBUS later, or is no memory at all; the descriptor stays the caller's."""
    fd = LIARS[kind]()
    try:
        with pytest.raises(DecodeError, match=r"segment|memory"):
            shared_memory.check(fd, SIZE, sealed=True)
        os.fstat(fd)
    finally:
        os.close(fd)


def test_huge_pages_are_refused() -> None:
    """They are sealed as others are, but touching one raises SIGBUS where none is left."""
    try:
        fd = memfd(2 << 20, flags=os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"no huge pages here: {error}")
    try:
        with pytest.raises(DecodeError, match="huge pages"):
            shared_memory.check(fd, 2 << 20, sealed=True)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [0, -PAGESIZE])
def test_a_size_that_is_none_is_refused(size: int) -> None:
    """Zero and less, whatever comes with it."""
    fd = memfd(SIZE)
    try:
        with pytest.raises(DecodeError, match="announced"):
            shared_memory.check(fd, size, sealed=True)
    finally:
        os.close(fd)


@both
def test_what_is_made_here_is_taken_there(posix: bool) -> None:
    """By the side that makes the same kind; and less than there is may be announced."""
    fd = shared_memory.create(SIZE, posix)
    try:
        shared_memory.check(fd, SIZE, sealed=not posix)
        shared_memory.check(fd, PAGESIZE, sealed=not posix)
        shared_memory.seal_against_writers(fd)
        shared_memory.check(fd, SIZE, sealed=not posix)
    finally:
        os.close(fd)


# -- as on macOS -----------------------------------------------------------------------------------------------------

SERVICE = """\
    import numpy as np
    import atoll_worker
    from atoll_worker import expose, shared_memory

    kept = []

    @expose
    def kind():
        return "memfd" if shared_memory.IS_SEALED else "posix"

    @expose
    def echo(x):
        return x

    @expose
    def invert(x, out=None):
        return np.subtract(255, x, out=out) is None

    @expose
    def make(size):
        return np.arange(size, dtype="u1")

    @expose
    def keep(x):
        kept.append(x)

    @expose
    def scribble(x):
        x[...] = 1
        return int(x.sum())

    @expose
    def stream(count):
        for number in range(count):
            yield np.full(300_000, number, "u1")
"""
PROGRAM = """\
    import gc, os, re, socket, sys
    import numpy as np
    import atoll
    from atoll.processes import process
    from atoll_worker import shared_memory

    process._MESSAGES = getattr(socket, sys.argv[2])
    before = len(os.listdir("/proc/self/fd"))
    with atoll.Service(sys.argv[1], timeout=60) as service:
        assert service.kind() == "posix" and not shared_memory.IS_SEALED
        names = [name for name in os.listdir("/dev/shm") if re.fullmatch(sys.argv[3], name)]
        for size in (70_000, 300_000, 5_000_000):
            x = np.random.default_rng(size).integers(0, 255, size, "u1")
            for _ in range(5):
                assert np.array_equal(service.echo(x), x)
                assert np.array_equal(service.echo([x, {"a": x[::-2]}])[1]["a"], x[::-2])
            a = atoll.asarray(x)
            assert service.scribble(a) == size and np.array_equal(a, x)
            out = atoll.empty(size, "u1")
            service.invert(x, out=out)
            assert np.array_equal(out, 255 - x)
            made = service.make(size)
            assert np.array_equal(made, np.arange(size, dtype="u1"))
            assert np.array_equal(service.echo(made), made)
            assert service.echo(bytes(x) * 2) == bytes(x) * 2
            service.keep(a)
        assert [int(one[7]) for one in service.stream(20)] == list(range(20))
        many = service.echo([np.full(300_000, number, "u1") for number in range(100)])
        assert [int(one[-1]) for one in many] == list(range(100))
        status = atoll.memory()
        assert status.segments > 0 and status.copies > 0, status
        assert not [name for name in os.listdir("/dev/shm") if re.fullmatch(sys.argv[3], name) and name not in names]
        del a, out, made, many, x
    gc.collect()
    atoll.shutdown()
    atoll.trim_memory()
    status = atoll.memory()
    assert (status.segments, status.lent, status.borrowed) == (0, 0, 0), status
    left = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd != "3"
            and os.path.islink(f"/proc/self/fd/{fd}")]
    assert not [one for one in left if "/dev/shm" in one], left
    print("passed")
"""


@pytest.mark.parametrize("messages", ["SOCK_SEQPACKET", "SOCK_DGRAM"])
def test_arrays_by_what_macos_has(tmp_path: Path, messages: str) -> None:
    """POSIX shared memory on both sides, and datagrams for the descriptors: all ways of arrays, and nothing is left."""
    service, program = tmp_path / "service.py", tmp_path / "program.py"
    service.write_text(textwrap.dedent(SERVICE))
    program.write_text(textwrap.dedent(PROGRAM))
    before = names()
    done = subprocess.run(
        [sys.executable, str(program), str(service), messages, OWN_NAME],
        env={**os.environ, "ATOLL_SHARED_MEMORY": "posix"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "passed\n", done.stderr
    assert names() == before
