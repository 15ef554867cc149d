# SPDX-License-Identifier: Apache-2.0
"""A pack is loaded, called, reloaded and unloaded in the same way, whether it is isolated or not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.extensions import ExtensionConfig, ExtensionManager, ProxiedSingleton
from conditions import is_gone, until_gone

Run = Callable[[Callable[[ExtensionManager], Any]], Any]
Write = Callable[..., Path]

both = pytest.mark.parametrize("isolated", [True, False], ids=["isolated", "in the host"])

PACK = """
    import os
    from atoll_worker import ExtensionBase
    from .inner import twice


    class Model:
        def __init__(self, factor):
            self.factor = factor

        def scale(self, values):
            return values * self.factor

        def stronger(self):
            return Model(self.factor + 1)


    class Pack(ExtensionBase):
        def on_module_loaded(self, module):
            self.seen = module.__name__

        def where(self):
            return os.getpid(), self.seen

        async def later(self, value):
            import asyncio
            await asyncio.sleep(0)
            return twice(value)

        def counted(self, n):
            yield from range(n)

        def model(self, factor):
            return Model(factor)

        def factor_of(self, model):
            return type(model).__name__, model.scale(10)

        def pick(self, model, other):
            return {"all": [model, other.stronger()]}

        def fail(self):
            raise KeyError("of the pack")

        def _private(self):
            return 1
"""
INNER = "def twice(value):\n    return 2 * value\n"


@both
def test_public_methods_are_called_as_they_were_written(run: Run, write: Write, isolated: bool) -> None:
    folder = write("first_pack", PACK, inner__py=INNER)

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("first_pack", folder, isolated=isolated))
        pid, name = pack.where()
        assert (pid == os.getpid()) is not isolated
        assert name == "first_pack"
        assert await pack.later(21) == 42
        assert list(pack.counted(3)) == [0, 1, 2]
        with pytest.raises(KeyError, match="of the pack"):
            pack.fail()
        with pytest.raises(atoll.FunctionNotFound, match="no public method 'absent'; it has: counted, "):
            _ = pack.absent
        with pytest.raises(AttributeError):
            _ = pack._private
        assert manager.get_extension("first_pack") is pack
        assert "first_pack" in manager
        await manager.unload_extension("first_pack")
        with pytest.raises((atoll.ServiceClosed, atoll.FunctionNotFound)):
            pack.where()
        if isolated:
            until_gone(pid)

    run(main)
    assert not [name for name in sys.modules if name.startswith("first_pack")]


@both
def test_objects_that_are_no_data_stay_where_they_are(run: Run, write: Write, isolated: bool) -> None:
    folder = write("model_pack", PACK, inner__py=INNER)

    class HostModel:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def scale(self, values: Any) -> Any:
            return values * self.factor

        def stronger(self) -> HostModel:
            return HostModel(self.factor + 1)

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("model_pack", folder, isolated=isolated))
        model = pack.model(3)
        assert model.scale(2) == 6
        # One of the pack's own is itself there; one of the host's is used through a proxy, and is itself again here.
        assert pack.factor_of(model.stronger()) == ("Model", 40)
        mine = HostModel(5)
        assert pack.factor_of(mine) == ("ReadableObject" if isolated else "HostModel", 50)
        first, second = pack.pick(mine, HostModel(6))["all"]
        assert first is mine
        assert type(second) is HostModel
        assert second.factor == 7

    run(main)


@both
def test_arrays_cross_by_value(run: Run, write: Write, isolated: bool) -> None:
    folder = write(
        "array_pack",
        """
        from atoll_worker import ExtensionBase

        class Pack(ExtensionBase):
            def halve(self, images):
                return {"images": [one / 2 for one in images]}
        """,
    )

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("array_pack", folder, isolated=isolated))
        image = np.ones((1, 512, 512, 3), np.float32)
        (half,) = pack.halve([image])["images"]
        assert half.dtype == np.float32
        assert half.shape == image.shape
        assert half.sum() == image.size / 2

    run(main)


@both
def test_changed_files_are_loaded_anew(run: Run, write: Write, isolated: bool) -> None:
    folder = write("hot_pack", PACK, inner__py=INNER)

    async def main(manager: ExtensionManager) -> None:
        config = ExtensionConfig("hot_pack", folder, isolated=isolated, hot_reload=True)
        pack = await manager.load_extension(config)
        assert await pack.later(2) == 4
        before = (folder / "inner.py").stat().st_mtime_ns
        while (folder / "inner.py").stat().st_mtime_ns == before:  # the clock of files may stand for some milliseconds
            (folder / "inner.py").write_text("def twice(value):\n    return 3 * value\n")  # of the same size
        assert await pack.later(2) == 6
        (folder / "inner.py").write_text("def twice(value)\n    return 3 * value\n")
        with pytest.raises((SyntaxError, atoll.WorkerStartError)):
            await pack.later(2)
        assert await pack.later(2) == 6  # what was loaded before goes on
        (folder / "inner.py").write_text(INNER)
        assert await pack.later(2) == 4

    run(main)


@both
def test_without_hot_reload_it_takes_a_word(run: Run, write: Write, isolated: bool) -> None:
    folder = write("cold_pack", PACK, f"name: cold_pack\nisolated: {str(isolated).lower()}\n", inner__py=INNER)

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(folder)
        (folder / "inner.py").write_text("def twice(value):\n    return 3 * value\n")
        assert await pack.later(2) == 4
        await manager.reload_extension("cold_pack")
        assert await pack.later(2) == 6

    run(main)


@both
def test_what_is_no_extension_says_so_and_leaves_nothing(run: Run, write: Write, isolated: bool) -> None:
    folder = write("empty_pack", "x = 1\n")
    broken = write("broken_pack", "from . import absent\n")

    async def main(manager: ExtensionManager) -> None:
        with pytest.raises((atoll.WorkerStartError, ValueError), match="has no class that derives from ExtensionBase"):
            await manager.load_extension(ExtensionConfig("empty_pack", folder, isolated=isolated))
        with pytest.raises((atoll.WorkerStartError, ImportError), match="absent"):
            await manager.load_extension(ExtensionConfig("broken_pack", broken, isolated=isolated))
        assert len(manager) == 0

    run(main)
    assert "empty_pack" not in sys.modules
    assert "broken_pack" not in sys.modules


def test_one_name_is_loaded_once(run: Run, write: Write) -> None:
    folder = write("twice_pack", PACK, inner__py=INNER)

    async def main(manager: ExtensionManager) -> None:
        config = ExtensionConfig("twice_pack", folder, isolated=False)
        await manager.load_extension(config)
        with pytest.raises(atoll.ManifestError, match="is loaded already"):
            await manager.load_extension(config)
        with pytest.raises(LookupError, match="no extension 'other' is loaded; loaded are: twice_pack"):
            await manager.unload_extension("other")

    run(main)


def test_a_crash_is_its_own(run: Run, write: Write) -> None:
    folder = write(
        "crash_pack",
        """
        import os
        from atoll_worker import ExtensionBase

        class Pack(ExtensionBase):
            def crash(self):
                os.abort()

            def pid(self):
                return os.getpid()
        """,
    )

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("crash_pack", folder))
        before = pack.call("pid")
        with pytest.raises(atoll.WorkerDied):
            pack.crash()
        assert is_gone(before)
        assert pack.call("pid") != before

    run(main)


def test_limits_are_those_of_any_service(write: Write) -> None:
    folder = write("limited_pack", PACK)
    config = ExtensionConfig("limited_pack", folder, max_memory="1GB", max_cpu_percent=80, timeout=300, sandbox=True)
    spec = config.spec()
    assert (spec.memory, spec.cpus, spec.timeout) == (10**9, 0.8, 300)
    assert spec.sandbox == atoll.Sandbox()


def test_limits_hold(run: Run, write: Write) -> None:
    folder = write(
        "greedy_pack",
        """
        import os
        import time
        from atoll_worker import ExtensionBase

        class Pack(ExtensionBase):
            def take(self, size):
                return len(bytearray(size))

            def hold(self, size):
                data = b"x" * size
                time.sleep(600)

            def processors(self):
                return len(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"]
        """,
    )

    async def main(manager: ExtensionManager) -> None:
        config = ExtensionConfig("greedy_pack", folder, max_memory="200MB", max_cpu_percent=100)
        pack = await manager.load_extension(config)
        assert pack.take(10_000_000) == 10_000_000
        with pytest.raises(MemoryError):
            pack.take(100_000_000_000)
        with pytest.raises(atoll.WorkerOutOfMemory, match="may hold 200 MB"):
            pack.hold(300_000_000)
        processors, threads = pack.processors()  # by the next worker
        assert threads == "1"
        assert processors == 1 or _has_cpu_group()

    run(main)


def _has_cpu_group() -> bool:
    """Whether the kernel shares out the processors' time, so that workers need not be kept on few of them."""
    from atoll.processes.cgroups import worker_groups

    groups = worker_groups()
    return groups is not None and "cpu" in groups.controllers


def test_names_that_every_extension_has(run: Run, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(
        "named_pack",
        """
        from atoll_worker import ExtensionBase

        class Pack(ExtensionBase):
            def close(self):
                return "the pack's"

            def status(self):
                return "also the pack's"
        """,
    )

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("named_pack", folder))
        assert pack.status() == "also the pack's"
        assert pack.call("close") == "the pack's"
        assert "extension named_pack: close: attributes of every extension have these names" in caplog.text
        (worker,) = pack.workers.status().workers
        assert not is_gone(worker.pid)

    run(main)


def test_a_deadline_ends_a_method(run: Run, write: Write) -> None:
    folder = write(
        "slow_pack",
        """
        import time
        from atoll_worker import ExtensionBase

        class Pack(ExtensionBase):
            def endless(self):
                while True:
                    time.sleep(0.01)
        """,
    )

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("slow_pack", folder, timeout=0.2))
        with pytest.raises(atoll.CallTimeout):
            pack.endless()

    run(main)


class SharedModels(ProxiedSingleton):
    """Lives in this process."""

    def __init__(self) -> None:
        self.models: dict[str, str] = {}

    async def load_model(self, name: str) -> str:
        return self.models.setdefault(name, f"{name} of {os.getpid()}")


def test_a_singleton_is_the_hosts(run: Run, write: Write) -> None:
    folder = write(
        "shared_pack",
        """
        from atoll_worker import ExtensionBase, ProxiedSingleton

        class SharedModels(ProxiedSingleton):
            async def load_model(self, name): ...

        class Pack(ExtensionBase):
            async def use(self, name):
                return await SharedModels().load_model(name)
        """,
    )

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("shared_pack", folder))
        assert await pack.use("sd_xl") == f"sd_xl of {os.getpid()}"
        assert SharedModels().models == {"sd_xl": f"sd_xl of {os.getpid()}"}

    run(main)
