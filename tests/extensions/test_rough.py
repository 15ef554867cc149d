# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with packs: killed, changed while they are called, of one name, odd in what they define."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.extensions import ExtensionConfig, ExtensionManager, proxy_nodes
from conditions import children_of, until, until_gone

ROOT = Path(__file__).parents[2]
Run = Callable[[Callable[[ExtensionManager], Any]], Any]
Write = Callable[..., Path]

both = pytest.mark.parametrize("isolated", [True, False], ids=["isolated", "in the host"])

PACK = """
    import os
    import time
    from atoll_worker import ExtensionBase

    NUMBER = {number}

    class Node:
        FUNCTION = "run"
        RETURN_TYPES = ("INT",)

        def __init__(self):
            self.uses = 0

        def run(self, begun=None):
            self.uses += 1
            if begun is not None:
                begun(os.getpid())
                time.sleep(600)
            return (NUMBER, self.uses)

    NODE_CLASS_MAPPINGS = {{"Node": Node}}

    class Pack(ExtensionBase):
        def number(self):
            return NUMBER

        def hold(self, begun, go_on):
            begun()
            while not go_on():
                time.sleep(0.001)
            return NUMBER

        def items(self, begun):
            begun(os.getpid())
            yield 1
            time.sleep(600)
            yield 2
"""


def test_a_worker_that_is_killed_in_a_call(run: Run, write: Write) -> None:
    folder = write("killed_pack", PACK.format(number=1))

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("killed_pack", folder))
        node: Any = proxy_nodes(pack)["Node"]()
        assert node.run() == (1, 1)
        with pytest.raises(atoll.WorkerDied, match=r"killed by signal 9 \(SIGKILL\) during call"):
            await asyncio.to_thread(node.run, begun=lambda pid: os.kill(pid, signal.SIGKILL))
        assert node.run() == (1, 1)  # in another process, so by another object
        stream = pack.items(lambda pid: killed.append(pid))
        killed: list[int] = []
        assert next(iter(stream)) == 1
        os.kill(killed[0], signal.SIGKILL)
        with pytest.raises(atoll.WorkerDied):
            list(stream)
        assert pack.number() == 1

    run(main)


@both
def test_files_that_change_during_a_call(run: Run, write: Write, isolated: bool) -> None:
    folder = write("changing_pack", PACK.format(number=1))

    async def main(manager: ExtensionManager) -> None:
        config = ExtensionConfig("changing_pack", folder, isolated=isolated, hot_reload=True)
        pack = await manager.load_extension(config)
        begun, go_on = threading.Event(), threading.Event()
        held = asyncio.create_task(asyncio.to_thread(pack.hold, begun.set, go_on.is_set))
        await asyncio.to_thread(begun.wait, 60)
        write("changing_pack", PACK.format(number=22))
        assert await asyncio.to_thread(pack.call, "number") == 22
        go_on.set()
        assert await held == 1  # it went on to its end by what it was begun with
        # Of calls that come at the same time none is run by what is no more.
        write("changing_pack", PACK.format(number=333))
        assert await asyncio.gather(*(asyncio.to_thread(pack.call, "number") for _ in range(8))) == [333] * 8

    run(main)


@both
def test_a_folder_that_goes_away(run: Run, write: Write, isolated: bool) -> None:
    folder = write("leaving_pack", PACK.format(number=1))

    async def main(manager: ExtensionManager) -> None:
        config = ExtensionConfig("leaving_pack", folder, isolated=isolated, hot_reload=True)
        pack = await manager.load_extension(config)
        shutil.rmtree(folder)
        with pytest.raises(atoll.ManifestError, match="expected a folder"):
            pack.number()
        assert pack.number() == 1  # said once; what was loaded before goes on
        write("leaving_pack", PACK.format(number=22))
        assert pack.number() == 22

    run(main)


def test_a_manager_that_is_closed_while_it_loads(write: Write, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    text = f"import os, time\nopen({str(begun)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    folder = write("hanging_pack", text)

    async def main() -> None:
        manager = ExtensionManager()
        loading = asyncio.create_task(manager.load_extension(ExtensionConfig("hanging_pack", folder)))
        pid = int(await asyncio.to_thread(until, lambda: begun.exists() and begun.read_text()))
        await asyncio.to_thread(manager.close)
        with pytest.raises(atoll.ServiceClosed):
            await loading
        await asyncio.to_thread(until_gone, pid)
        # And one whose loading is given up.
        begun.unlink()
        loading = asyncio.create_task(manager.load_extension(ExtensionConfig("hanging_pack", folder)))
        pid = int(await asyncio.to_thread(until, lambda: begun.exists() and begun.read_text()))
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert len(manager) == 0
        await asyncio.to_thread(until_gone, pid)

    asyncio.run(asyncio.wait_for(main(), 120))


def test_a_manifest_that_changes(run: Run, write: Write) -> None:
    text = "import os\nfrom atoll_worker import ExtensionBase\nclass Pack(ExtensionBase):\n    def said(self):\n"
    text += "        return os.environ['SAID']\n"
    folder = write("manifest_pack", text, "hot_reload: true\nenv_vars: {SAID: first}\n")

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(folder)
        assert pack.said() == "first"
        write("manifest_pack", text, "hot_reload: true\nenv_vars: {SAID: second}\n")
        assert pack.said() == "second"
        write("manifest_pack", text, "hot_reload: true\nenv_vars: [SAID]\n")
        with pytest.raises(atoll.ManifestError, match="key env_vars: found"):
            pack.said()
        assert pack.said() == "second"

    run(main)


def test_two_packs_of_one_name(run: Run, write: Write) -> None:
    first = write("first", PACK.format(number=1), "name: second\n")
    write("second", PACK.format(number=2), "name: second\n")
    write("third", "raise ValueError('of the third')\n", "")

    async def main(manager: ExtensionManager) -> None:
        loaded = await manager.load_all(first.parent)
        refused = str(first.parent / "second")
        assert set(loaded) == {"second", refused, "third"}
        assert loaded["second"].number() == 1
        assert f"extension 'second' is loaded already, from {first}" in str(loaded[refused])
        assert "of the third" in str(loaded["third"])
        assert len(manager) == 1

    run(main)


def test_what_a_pack_raises_is_shown_from_its_own_lines_on(run: Run, write: Write) -> None:
    folder = write("raising_pack", "from . import inner\n", inner__py="def f():\n    raise RuntimeError('boom')\nf()\n")

    async def main(manager: ExtensionManager) -> None:
        with pytest.raises(atoll.WorkerStartError) as raised:
            await manager.load_extension(ExtensionConfig("raising_pack", folder))
        said = str(raised.value)
        assert said.rstrip().endswith("RuntimeError: boom")
        assert "raising_pack/inner.py" in said
        assert said.count("atoll_worker") <= 1

    run(main)


def test_ctrl_c_ends_a_call_and_the_pack(write: Write, tmp_path: Path) -> None:
    folder = write("interrupted_pack", PACK.format(number=1))
    program = f"""
        import asyncio
        from atoll.extensions import ExtensionConfig, ExtensionManager, proxy_nodes

        with ExtensionManager() as manager:
            pack = asyncio.run(manager.load_extension(ExtensionConfig("interrupted_pack", {str(folder)!r})))
            try:
                proxy_nodes(pack)["Node"]().run(begun=lambda pid: print(pid, flush=True))
            except KeyboardInterrupt:
                print("interrupted", pack.number(), flush=True)
    """
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(program))
    process = subprocess.Popen(
        [sys.executable, str(file)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    with process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        children = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted 1\n"
        assert process.wait(60) == 0
    until_gone(pid, *children)


NODE = "class N:\n    FUNCTION = 'run'\n    def run(self): return (1,)\n"
V3 = "from comfy_api.latest import io\nclass N(io.ComfyNode):\n    @classmethod\n    def execute(cls): ...\n"
LIST = "\nclass P:\n    def get_node_list(self): return [N]\ndef comfy_entrypoint(): return P()\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "class N:\n    pass\nNODE_CLASS_MAPPINGS = {'N': N}",
            "its FUNCTION is missing, expected the name of the method",
        ),
        ("class N:\n    FUNCTION = 'absent'\nNODE_CLASS_MAPPINGS = {'N': N}", "it has no method 'absent'"),
        ("class N:\n    FUNCTION = 3\nNODE_CLASS_MAPPINGS = {'N': N}", "its FUNCTION is 3, expected the name"),
        (NODE + "NODE_CLASS_MAPPINGS = {1: N}", "node 1: its id is 1, expected text"),
        (NODE + "NODE_CLASS_MAPPINGS = {'N': N()}", "object at .*>, expected a class"),
        (
            NODE + "    INPUT_TYPES = classmethod(lambda cls: cls.absent)\nNODE_CLASS_MAPPINGS = {'N': N}",
            "no attribute",
        ),
        (NODE + "d = {}\nd['d'] = d\nN.INPUT_TYPES = lambda: d\nNODE_CLASS_MAPPINGS = {'N': N}", "nested without end"),
        (NODE + "    RETURN_TYPES = object()\nNODE_CLASS_MAPPINGS = {'N': N}", "holds <object object at"),
        (
            V3 + "    @classmethod\n    def define_schema(cls): raise ValueError('of the schema')" + LIST,
            "of the schema",
        ),
        (
            V3 + "    @classmethod\n    def define_schema(cls): return None" + LIST,
            "its schema is None, expected io.Schema",
        ),
        (V3 + "    @classmethod\n    def define_schema(cls): return io.Schema()" + LIST, "its schema names no node_id"),
    ],
)
def test_an_odd_node_is_left_out_and_the_others_are_not(
    run: Run, write: Write, caplog: pytest.LogCaptureFixture, text: str, message: str
) -> None:
    base = "from atoll_worker import ExtensionBase\n"
    good = base + "class Good:\n    FUNCTION = 'run'\n    CACHE = object()\n    def run(self): return (1,)\n"
    more = "\nclass All(ExtensionBase):\n    async def on_module_loaded(self, m):\n"
    folder = write("odd_pack", text + more + "        self.nodes = {**self.nodes, 'Good': Good}\n")
    (folder / "__init__.py").write_text(good + (folder / "__init__.py").read_text())

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("odd_pack", folder))
        nodes: Any = proxy_nodes(pack)
        assert list(nodes) == ["Good"]
        assert nodes["Good"]().run() == (1,)

    run(main)
    (said,) = [one.getMessage() for one in caplog.records if "is left out" in one.getMessage()]
    import re

    assert re.search(message, said)


@both
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NODE_CLASS_MAPPINGS = [1]", r"NODE_CLASS_MAPPINGS is \[1\], expected node classes by id"),
        ("def comfy_entrypoint(): return [1]", r"comfy_entrypoint\(\) returned \[1\], expected a ComfyExtension"),
        (
            "class P:\n    def get_node_list(self): pass\ndef comfy_entrypoint(): return P()",
            "returned None, expected node",
        ),
        (
            "from atoll_worker import ExtensionBase\nclass A(ExtensionBase):\n"
            "    def on_module_loaded(self, module): self.nodes = [1]",
            r"A\.nodes is \[1\], expected node classes by id",
        ),
    ],
)
def test_what_is_no_pack_of_nodes_is_named(run: Run, write: Write, isolated: bool, text: str, message: str) -> None:
    folder = write("no_pack", text + "\n")

    async def main(manager: ExtensionManager) -> None:
        with pytest.raises((atoll.WorkerStartError, ValueError), match=message):
            await manager.load_extension(ExtensionConfig("no_pack", folder, isolated=isolated))

    run(main)


def test_names_to_show_that_are_none(run: Run, write: Write) -> None:
    folder = write("named_oddly", NODE + "NODE_CLASS_MAPPINGS = {'N': N}\nNODE_DISPLAY_NAME_MAPPINGS = ['N']\n")

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("named_oddly", folder))
        assert pack.display_names == {}

    run(main)


@both
def test_hooks_may_be_async(run: Run, write: Write, tmp_path: Path, isolated: bool) -> None:
    said = tmp_path / "said"
    folder = write(
        "hooked_pack",
        f"""
        import asyncio
        from atoll_worker import ExtensionBase

        class Pack(ExtensionBase):
            async def on_module_loaded(self, module):
                await asyncio.sleep(0)
                self.loaded = module.__name__

            def seen(self):
                return self.loaded

            async def on_unload(self):
                await asyncio.sleep(0)
                open({str(said)!r}, "w").close()
        """,
    )

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("hooked_pack", folder, isolated=isolated))
        assert pack.seen() == "hooked_pack"

    run(main)
    until(said.exists)


def test_modules_are_not_lent(run: Run, write: Write) -> None:
    folder = write(
        "lending_pack",
        "import os\nfrom atoll_worker import ExtensionBase\nclass Pack(ExtensionBase):\n    def get(self): return os\n"
        "    def use(self, model): return model.get()\n",
    )

    class Model:
        def get(self) -> Any:
            return os

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("lending_pack", folder))
        with pytest.raises(TypeError, match=r"is a module, .* so it is not lent"):
            pack.get()
        with pytest.raises(TypeError, match=r"is a module, .* so it is not lent"):
            pack.use(Model())
        with pytest.raises(TypeError, match=r"is a module, .* so it is not lent"):
            pack.use(os)

    run(main)
