# SPDX-License-Identifier: Apache-2.0
"""``atoll serve --stdio`` is spoken to by clients that others wrote: vscode-jsonrpc, which is that of editors, and
pygls'."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from pygls.client import JsonRPCClient
from pygls.exceptions import JsonRpcException

import atoll

ROOT = Path(__file__).resolve().parents[2]
# Where .ci/run puts vscode-jsonrpc, and says so; who is told where it is, or runs on CI, has to find it there.
MODULES = Path(os.environ.get("ATOLL_TEST_NODE_MODULES") or ROOT / ".build" / "node" / "node_modules")
IS_PROMISED = bool(os.environ.get("ATOLL_TEST_NODE_MODULES") or os.environ.get("CI"))

SERVICE = """
import time
from atoll_worker import cancelled, expose, progress

@expose
def add(a, b=0):
    print("printed", flush=True)
    return a + b

@expose
def nothing():
    return None

@expose
def same(value):
    return value

@expose
def fail(kind):
    raise ValueError("wrong " + kind)

@expose
def steps(n):
    for number in range(n):
        progress(number + 1, n, "step")
    return "done"

@expose
def count(n):
    yield from range(n)

@expose
def hang():
    while not cancelled():
        time.sleep(0.001)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """What starts the server."""
    file = tmp_path / "numbers_service.py"
    file.write_text(SERVICE)
    return [sys.executable, "-m", "atoll.cli", "serve", "--stdio", str(file)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(atoll.__file__).parents[1]), "NODE_PATH": str(MODULES)}


def missing(what: str) -> NoReturn:
    """Leave the test out where nobody promised what it needs; where somebody did, it fails."""
    if IS_PROMISED:
        pytest.fail(what)
    pytest.skip(what)


def test_vscode_jsonrpc(command: list[str]) -> None:
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        missing("node is missing: apt-get install nodejs")
    if not (MODULES / "vscode-jsonrpc").is_dir():
        missing("vscode-jsonrpc is missing: npm install --prefix .build/node vscode-jsonrpc@8.2.1")
    script = Path(__file__).with_name("client.js")
    done = subprocess.run(
        [node, str(script), json.dumps(command)], capture_output=True, text=True, timeout=120, env=environment()
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["byPosition"] == 3
    assert found["byName"] == "ü€"
    assert found["nothing"] is None
    assert found["raised"] == {"code": -32000, "message": "wrong value", "type": "ValueError"}
    assert found["unknown"]["code"] == -32601
    assert found["wrong"]["code"] == -32602
    assert [one["kind"] for one in found["progress"]] == ["begin", "report", "report", "end"]
    assert found["progress"][1]["percentage"] == 50
    assert found["steps"] == "done"
    assert found["items"] == [0, 1, 2, 3, 4]
    assert found["stream"] == []
    assert found["cancelled"]["code"] == -32800
    assert found["many"] is True
    assert found["large"] == 3_000_000
    assert found["after"] == 1
    assert found["errors"] == []
    assert found["status"] == 0


def test_pygls(command: list[str]) -> None:
    errors: list[object] = []

    class Client(JsonRPCClient):
        def report_server_error(self, error: Exception, source: object) -> None:
            errors.append(error)

    async def main() -> None:
        client = Client()
        told: list[Any] = []

        @client.feature("$/progress")  # type: ignore[untyped-decorator]
        def progress(params: Any) -> None:
            told.append(params)

        await client.start_io(*command, env=environment())
        ask = client.protocol.send_request_async
        assert await ask("add", [1, 2]) == 3
        assert await ask("add", {"a": "ü", "b": "€"}) == "ü€"
        assert await ask("nothing") is None
        assert await asyncio.gather(*(ask("same", [number]) for number in range(50))) == list(range(50))
        assert len(await ask("same", ["x" * 3_000_000])) == 3_000_000
        for method, params, code in (("fail", ["value"], -32000), ("subtract", [1], -32601), ("add", {"c": 1}, -32602)):
            with pytest.raises(JsonRpcException) as caught:
                await ask(method, params)
            assert caught.value.code == code
        client.protocol.notify("add", [1])
        assert await ask("steps", {"n": 2, "workDoneToken": "work"}) == "done"
        assert [one.value.kind for one in told] == ["begin", "report", "report", "end"]
        told.clear()
        assert await ask("count", {"n": 3, "partialResultToken": 7}) == []
        assert [(one.token, one.value) for one in told] == [(7, [0]), (7, [1]), (7, [2])]
        hanging = client.protocol.send_request("hang", msg_id="hanging")
        client.protocol.notify("$/cancelRequest", {"id": "hanging"})
        with pytest.raises(JsonRpcException) as caught:
            await asyncio.wrap_future(hanging)
        assert caught.value.code == -32800
        assert await ask("add", [1]) == 1
        server = client._server
        assert server is not None
        server.stdin.close()
        await client.stop()
        assert server.returncode == 0
        server._transport.close()  # its standard error, which pygls leaves open

    asyncio.run(asyncio.wait_for(main(), 120))
    assert errors == []
