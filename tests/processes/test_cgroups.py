# SPDX-License-Identifier: Apache-2.0
"""Control groups: where they are looked for, what is written into them, what the kernel's answers mean.

The machines that run these tests rarely hand down a group with controllers. So the kernel is played by a folder: its
files are there when a group is made, and go with it. What is really there is looked at in one test, and, where groups
can be used, a worker is put into one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import atoll
from atoll.processes import Limits, cgroups
from atoll.processes.cgroups import WorkerGroups, find_groups, own_group
from atoll.processes.limits import apply_limits, enforcement
from atoll.processes.tree import descendants, kill_tree
from atoll.processes.usage import start_time
from conditions import until, until_gone
from storm import ready_pids

FILES = (
    *("cgroup.procs", "cgroup.subtree_control", "cgroup.controllers", "cgroup.kill"),
    *("memory.max", "memory.swap.max", "memory.oom.group", "memory.events", "memory.peak", "cpu.max"),
)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that plays a group whose children can be limited."""
    monkeypatch.delenv("ATOLL_CGROUP", raising=False)

    def make(folder: str) -> None:
        os.mkdir(folder)
        for name in FILES:
            Path(folder, name).touch()

    monkeypatch.setattr(cgroups, "_make_folder", make)
    # As the kernel does: whoever else removes it at the same time.
    monkeypatch.setattr(cgroups, "_remove_folder", partial(shutil.rmtree, ignore_errors=True))
    folder = tmp_path / "groups"
    make(str(folder))
    (folder / "cgroup.subtree_control").write_text("cpu io memory pids\n")
    (folder / "cgroup.controllers").write_text("cpu io memory pids\n")
    return folder


def groups_in(folder: Path) -> list[Path]:
    """The workers' groups there."""
    return sorted(folder.glob("atoll-*-*"))


def listing(tmp_path: Path, mount: str, group: str, *, root: str = "/") -> tuple[str, str]:
    """Files as the kernel has them, of a mount and of the group that this process is in."""
    mounts, own = tmp_path / "mountinfo", tmp_path / "cgroup"
    mounts.write_text(
        "25 1 0:5 / /sys rw - sysfs sysfs rw\n"
        "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        f"31 25 0:27 {root} {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    )
    own.write_text(f"4:memory:/elsewhere\n0::{group}\n")
    return str(mounts), str(own)


def test_a_group_limits_memory_and_processors(base: Path) -> None:
    groups = WorkerGroups(str(base), ["memory", "cpu"])
    group = groups.add([41, 42], memory=2_000_000_000, cpus=1.5)
    assert group is not None
    (folder,) = groups_in(base)
    assert (folder / "memory.max").read_text() == "2000000000"
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "memory.oom.group").read_text() == "1"
    assert (folder / "cpu.max").read_text() == "150000 100000"
    assert (folder / "cgroup.procs").read_text() == "42"  # the last one that was written
    assert (group.limits_memory, group.limits_cpus) == (True, True)
    group.remove()
    assert groups_in(base) == []


def test_what_is_not_limited_is_not_written(base: Path) -> None:
    group = WorkerGroups(str(base), ["cpu"]).add([], memory=None, cpus=0.001)
    assert group is not None
    (folder,) = groups_in(base)
    assert (folder / "memory.max").read_text() == ""
    assert (folder / "cpu.max").read_text() == "1000 100000"  # the least that the kernel takes
    assert group.out_of_memory() is None


def test_swap_need_not_be_counted(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = cgroups._make_folder

    def without_swap(folder: str) -> None:
        make(folder)
        os.unlink(folder + "/memory.swap.max")

    monkeypatch.setattr(cgroups, "_make_folder", without_swap)
    assert WorkerGroups(str(base), ["memory"]).add([], memory=5, cpus=None) is not None


def test_a_group_that_cannot_be_limited_is_none_and_leaves_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = cgroups._make_folder

    def without_memory(folder: str) -> None:
        make(folder)
        os.unlink(folder + "/memory.max")

    monkeypatch.setattr(cgroups, "_make_folder", without_memory)
    assert WorkerGroups(str(base), ["memory"]).add([], memory=5, cpus=None) is None
    assert groups_in(base) == []


def test_a_death_for_want_of_memory_is_told_from_others(base: Path) -> None:
    group = WorkerGroups(str(base), ["memory"]).add([], memory=1000, cpus=None)
    assert group is not None
    folder = Path(group.folder)
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 8\noom 0\noom_kill 0\noom_group_kill 0\n")
    assert group.out_of_memory() is None
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 8\noom 1\noom_kill 2\noom_group_kill 1\n")
    assert group.out_of_memory() == (1000, 1000)
    (folder / "memory.peak").write_text("1004\n")
    assert group.out_of_memory() == (1000, 1004)


def test_a_group_that_is_still_held_is_removed_soon(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = WorkerGroups(str(base), ["memory"]).add([], memory=1000, cpus=None)
    assert group is not None
    refusals = iter([True, True, False])

    def remove(folder: str) -> None:
        if next(refusals):
            raise OSError(16, "Device or resource busy")
        shutil.rmtree(folder)

    monkeypatch.setattr(cgroups, "_remove_folder", remove)
    group.remove()
    assert Path(group.folder, "cgroup.kill").read_text() == "1"
    until(lambda: not groups_in(base))


def test_groups_of_dead_hosts_are_swept_and_others_are_not(base: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = f"atoll-{os.getpid()}-{start_time(os.getpid())}-7"
    kept = [mine, "atoll-host", "other-1-2-3", f"atoll-{os.getpid()}"]
    dead = [f"atoll-{ended.pid}-5-0", f"atoll-{os.getpid()}-5-0"]  # the second: another process had this number before
    for name in kept + dead:
        (base / name).mkdir()
    WorkerGroups(str(base), ["memory"]).sweep()
    assert sorted(path.name for path in base.iterdir() if path.is_dir()) == sorted(kept)


# -- where they are looked for ---------------------------------------------------------------------------------------


def test_the_groups_of_this_process_are_found_among_the_mounts(tmp_path: Path) -> None:
    assert own_group(*listing(tmp_path, "/sys/fs/cgroup", "/user.slice/a.scope")) == "/sys/fs/cgroup/user.slice/a.scope"
    assert own_group(*listing(tmp_path, "/sys/fs/cgroup", "/")) == "/sys/fs/cgroup"
    assert own_group(*listing(tmp_path, "/mnt", "/docker/abc/x", root="/docker/abc")) == "/mnt/x"
    assert own_group(*listing(tmp_path, "/mnt", "/../outside")) is None
    (tmp_path / "cgroup").write_text("4:memory:/elsewhere\n")
    assert own_group(str(tmp_path / "mountinfo"), str(tmp_path / "cgroup")) is None
    assert own_group(str(tmp_path / "no-such-file")) is None


def test_a_group_that_hands_down_its_controllers_is_used(base: Path, tmp_path: Path) -> None:
    found = find_groups(*listing(tmp_path, str(base.parent), "/groups"))
    assert found is not None
    assert (found.folder, set(found.controllers)) == (str(base), {"memory", "cpu"})
    assert groups_in(base) == []  # the one that was made to see whether it can be


def test_the_group_above_is_used_if_it_hands_down_controllers(base: Path, tmp_path: Path) -> None:
    cgroups._make_folder(str(base / "own.scope"))
    (base / "own.scope" / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")
    found = find_groups(*listing(tmp_path, str(base.parent), "/groups/own.scope"))
    assert found is not None
    assert found.folder == str(base)


def test_alone_in_its_group_it_steps_aside(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "makedirs", lambda path, exist_ok: cgroups._make_folder(path))
    write = cgroups._write
    # Asked for "+memory", the kernel lists "memory".
    monkeypatch.setattr(cgroups, "_write", lambda folder, name, text: write(folder, name, text.replace("+", "")))
    (base / "cgroup.subtree_control").write_text("")
    (base / "cgroup.procs").write_text(f"{os.getpid()}\n")
    could = find_groups(*listing(tmp_path, str(base.parent), "/groups"), prepare=False)
    assert could is not None
    assert (could.folder, set(could.controllers)) == (str(base), {"memory", "cpu"})
    assert not (base / "atoll-host").exists()
    found = find_groups(*listing(tmp_path, str(base.parent), "/groups"))
    assert found is not None
    assert (found.folder, set(found.controllers)) == (str(base), {"memory", "cpu"})
    assert (base / "atoll-host" / "cgroup.procs").read_text() == str(os.getpid())


@pytest.mark.parametrize("alone", [True, False])
def test_without_controllers_there_are_no_groups(base: Path, tmp_path: Path, alone: bool) -> None:
    (base / "cgroup.subtree_control").write_text("pids\n")
    (base / "cgroup.controllers").write_text("pids\n" if alone else "memory cpu\n")
    (base / "cgroup.procs").write_text(f"{os.getpid()}\n" + ("" if alone else "1\n"))
    assert find_groups(*listing(tmp_path, str(base.parent), "/groups")) is None
    assert sorted(path.name for path in base.iterdir() if path.is_dir()) == []


def test_the_variable_names_a_group_or_none(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    somewhere = listing(tmp_path, "/nowhere", "/")
    monkeypatch.setenv("ATOLL_CGROUP", str(base))
    found = find_groups(*somewhere)
    assert found is not None
    assert found.folder == str(base)
    monkeypatch.setenv("ATOLL_CGROUP", "0")
    assert find_groups(*listing(tmp_path, str(base.parent), "/groups")) is None
    monkeypatch.setenv("ATOLL_CGROUP", str(tmp_path / "missing"))
    assert find_groups(*somewhere) is None


# -- their use -------------------------------------------------------------------------------------------------------


class Process:
    """What limits are applied to."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.has_exited = False
        self.out_of_memory: tuple[int, int] | None = None

    def kill(self) -> None:
        """Not called here."""


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[WorkerGroups | None], None]:
    """Have workers use these groups."""

    def set_groups(groups: WorkerGroups | None) -> None:
        monkeypatch.setattr(cgroups, "_groups", groups)
        monkeypatch.setattr(cgroups, "_looked", True)

    return set_groups


def test_what_a_group_limits_is_not_limited_twice(base: Path, use: Callable[[WorkerGroups | None], None]) -> None:
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        processors = os.sched_getaffinity(sleeper.pid)
        use(WorkerGroups(str(base), ["memory", "cpu"]))
        group = apply_limits(Process(sleeper.pid), Limits(memory=10**9, cpus=0.5))
        assert group is not None
        assert os.sched_getaffinity(sleeper.pid) == processors
        assert "unlimited" in data_limit(sleeper.pid)
        group.remove()
        use(WorkerGroups(str(base), ["memory"]))
        group = apply_limits(Process(sleeper.pid), Limits(memory=10**9, cpus=0.5))
        assert group is not None
        assert len(os.sched_getaffinity(sleeper.pid)) == 1
        assert "unlimited" in data_limit(sleeper.pid)
        group.remove()
        use(None)
        process = Process(sleeper.pid)
        assert apply_limits(process, Limits(memory=10**9)) is None
        assert "unlimited" not in data_limit(sleeper.pid)
    finally:
        sleeper.kill()
        sleeper.wait()


def data_limit(pid: int) -> str:
    """The line of a process's limit of data."""
    return next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max data"))


def test_a_worker_is_put_into_a_group_which_goes_with_it(
    base: Path, use: Callable[[WorkerGroups | None], None]
) -> None:
    use(WorkerGroups(str(base), ["memory", "cpu"]))

    @atoll.function(memory="1GB")
    def pid() -> int:
        import os

        return os.getpid()

    worker = pid()
    (folder,) = groups_in(base)
    assert (folder / "cgroup.procs").read_text() == str(worker)
    (folder / "memory.events").write_text("oom_kill 1\n")
    os.kill(worker, 9)
    until(lambda: not folder.exists())
    until(lambda: worker not in ready_pids(pid))  # a call that had been sent to it would fail
    successor = pid()
    (folder,) = groups_in(base)
    assert (folder / "cgroup.procs").read_text() == str(successor)
    pid.close()
    until(lambda: not groups_in(base))


def test_the_kernel_killing_the_group_is_out_of_memory(base: Path, use: Callable[[WorkerGroups | None], None]) -> None:
    use(WorkerGroups(str(base), ["memory"]))

    @atoll.function(memory="1GB", env_vars={"GROUP": str(base)})
    def be_killed_by_the_kernel() -> None:
        import glob
        import os

        (folder,) = glob.glob(os.environ["GROUP"] + "/atoll-*-*")
        with open(folder + "/memory.events", "w") as file:
            file.write("oom_kill 1\n")
        os.kill(os.getpid(), 9)

    with pytest.raises(atoll.WorkerOutOfMemory) as caught:
        be_killed_by_the_kernel()
    assert (caught.value.limit, caught.value.use) == (10**9, 10**9)
    be_killed_by_the_kernel.close()  # another worker is started at once, in a group of its own
    until(lambda: not groups_in(base))


def test_it_can_be_said_what_holds_a_limit() -> None:
    assert enforcement(["memory", "cpu"])["memory"] == enforcement(["cpu"])["cpus"] == "cgroup"
    assert "watch" in enforcement(["cpu"])["memory"]
    assert "affinity" in enforcement(None)["cpus"]


def test_what_this_machine_has_is_looked_at_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATOLL_CGROUP", raising=False)
    found = own_group()
    assert found is None or os.path.isdir(found)


@pytest.mark.skipif(not os.access(own_group() or "/nowhere", os.W_OK), reason="no group of version 2 to make groups in")
def test_the_kernel_moves_processes_into_a_group_and_ends_them_with_it() -> None:
    """Without controllers, which is all that is needed for this much."""
    folder = str(own_group())
    family = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 601"], start_new_session=True)
    try:
        children = until(lambda: len(found := descendants(family.pid)) == 2 and found)
        group = WorkerGroups(folder, []).add([family.pid, *children], memory=None, cpus=None)
        assert group is not None
        listed = Path(group.folder, "cgroup.procs").read_text().split()
        assert sorted(map(int, listed)) == sorted([family.pid, *children])
        WorkerGroups(folder, []).sweep()
        assert os.path.isdir(group.folder)
        group.remove()
        assert family.wait(20) == -9
        until_gone(*children)
        until(lambda: not os.path.exists(group.folder))
    finally:
        kill_tree(family.pid)
        family.wait()


REAL = os.environ.get("ATOLL_TEST_CGROUP")


@pytest.mark.skipif(not REAL, reason="ATOLL_TEST_CGROUP does not name a group with controllers to make groups in")
def test_the_kernel_holds_a_worker_to_its_memory(
    monkeypatch: pytest.MonkeyPatch, use: Callable[[WorkerGroups | None], None]
) -> None:
    monkeypatch.setenv("ATOLL_CGROUP", str(REAL))
    groups = find_groups()
    assert groups is not None
    use(groups)

    @atoll.function(memory="200MB")
    def hold() -> None:
        import time

        bytearray(b"x" * 400_000_000)
        time.sleep(600)

    with pytest.raises(atoll.WorkerOutOfMemory) as caught:
        hold()
    assert caught.value.limit == 200_000_000
    hold.close()
    until(lambda: not groups_in(Path(str(REAL))))
