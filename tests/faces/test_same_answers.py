# SPDX-License-Identifier: Apache-2.0
"""One service, one call, one answer: whether it is run by hand, or called by a client, warm or cold, from plain code or
from asyncio, by itself or from a pool."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
import atoll_worker
from atoll import ServiceClient, ServicePool

NAN, INFINITY = float("nan"), float("inf")

SERVICE = """
import sys
from atoll_worker import ServiceBase


class Own(Exception):
    class Inner(Exception):
        pass


class Silent(Exception):
    def __str__(self):
        return ""


class Shut(Exception):
    __slots__ = ()

    def __setattr__(self, name, value):
        raise TypeError("nothing can be set")


class Anything(ServiceBase):
    def validate_input(self, params):
        exec(params.get("before", ""), globals(), {"params": params})

    def process(self, params):
        names = {"params": params}
        exec(params.get("run", ""), globals(), names)
        return names.get("result")

    def validate_output(self, result):
        if result == "invalid":
            raise Own("not this")


if __name__ == "__main__":
    Anything().run()
"""

ITEMS = """
from atoll_worker import ServiceBase

class Items(ServiceBase):
    def process(self, params):
        yield 1.5
        yield eval(params["second"])

if __name__ == "__main__":
    Items().run()
"""


def by_hand(file: Path, params: dict[str, Any]) -> dict[str, Any]:
    """What the program answers."""
    environ = {**os.environ, "PYTHONPATH": str(Path(atoll_worker.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(file)], input=json.dumps(params), capture_output=True, text=True, env=environ, timeout=60
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(answer, dict)
    assert done.returncode == (0 if answer["success"] else 1)
    return answer


def lines_of_user(answer: dict[str, Any], file: Path) -> list[str]:
    """Lines of the traceback that are the service's own."""
    return [line.strip().rpartition(file.name)[2] for line in answer["traceback"].splitlines() if file.name in line]


def check_same(file: Path, params: dict[str, Any], ways: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    expected = by_hand(file, params)
    for name, call in ways.items():
        found = call(params)
        assert set(found["_meta"]) == set(expected["_meta"]), name
        assert found["_meta"]["duration_seconds"] >= 0
        if not expected["success"] and "traceback" in expected:
            assert lines_of_user(found, file) == lines_of_user(expected, file), name
        assert without_traceback(found) == without_traceback(expected), name


def without_traceback(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in ("_meta", "traceback")}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("services") / "anything_service.py"
    path.write_text(SERVICE)
    return path


@pytest.fixture(scope="module")
def ways(file: Path) -> Iterator[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]]:
    """All ways in but the program's own. What a worker of one case did, it may do for the next."""
    with ServiceClient(file) as client, ServicePool(file, 1) as pool:

        async def from_asyncio(params: dict[str, Any]) -> dict[str, Any]:
            return await client.call_async(params, check_success=False)

        yield {
            "warm": lambda params: client.call(params, check_success=False),
            "asyncio": lambda params: asyncio.run(from_asyncio(params)),
            "submit": lambda params: client.submit(params, check_success=False).result(),
            "pool": lambda params: next(pool.map([params], check_success=False)),
        }


RESULTS = [
    "{'a': 1, 'b': [None, True, 'ü', 1.5, -0.0, 10**30]}",
    "[1, [2]]",
    "'text'",
    "None",
    "{}",
    "{'success': False, 'error': 'no such user'}",
    "{'success': True, 'result': 5}",
    "{'_meta': {'duration_seconds': 1, 'timestamp': 2}, 'a': 1}",
    "{'deep': " + "[" * 90 + "]" * 90 + "}",
]


@pytest.mark.parametrize("text", RESULTS)
def test_results(file: Path, ways: Any, text: str) -> None:
    check_same(file, {"run": f"result = {text}"}, ways)


NUMBERS = [
    "float('nan')",
    "-float('inf')",
    "{'scores': [0.5, {'last': float('nan')}]}",
    "[1e308, 1e308, 10**400, 2.5, float('inf')]",
    "[0.5] * 1000 + [float('nan')]",
    "{'a': (1, 'x', float('inf'))}",
    "{'first': [1.0, 2.0], 'then': float('nan'), 'last': 1.0}",
    "__import__('collections').OrderedDict(a=float('inf'))",
    "[{'a': 1, 'b': 'x', 'c': 0.5} for _ in range(2000)] + [{'a': [float('nan')]}]",
    "[[1, 'x', (0.5, float('-inf'))] for _ in range(2000)]",
]


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_that_json_has_not_are_errors_that_name_the_place(file: Path, ways: Any, text: str) -> None:
    params = {"run": f"result = {text}"}
    answer = by_hand(file, params)
    assert (answer["error_type"], answer["context"]) == ("EncodeError", "Unexpected error")
    assert "cannot be written as JSON: there is no " in answer["error"]
    for name, call in ways.items():
        found = call(params)
        assert (found["error_type"], found["context"]) == ("EncodeError", "Unexpected error"), name
        # The one names the place in the answer, the other in the result.
        for place in ("the result['result']", "the result"):
            if answer["error"].startswith(place):
                assert found["error"].removeprefix("the result") == answer["error"].removeprefix(place), name
                break


def test_large_numbers_are_none_of_them(file: Path, ways: Any) -> None:
    """Their sum is infinite, and none of them is."""
    check_same(file, {"run": "result = [1e308, 1e308, 10**400]"}, ways)
    check_same(file, {"run": "result = [True, 1e308, 'x', {'a': 1e308}]"}, ways)


@pytest.mark.parametrize(
    "number", [NAN, [1.0, -INFINITY], {"a": {"b": [1, {"c": INFINITY}]}}], ids=["plain", "in a list", "deep"]
)
def test_numbers_that_json_has_not_among_the_parameters(file: Path, ways: Any, number: Any) -> None:
    """The program refuses what its caller would have to write as no JSON; a client says the same."""
    params = {"run": "raise SystemExit('it was begun')", "number": number}
    answer = by_hand(file, params)
    assert (answer["error_type"], answer["context"]) == ("ValueError", "Invalid JSON input")
    for name, call in ways.items():
        found = call(params)
        assert (found["error_type"], found["context"]) == ("ValueError", "Invalid JSON input"), name
        assert found["error"].startswith("the params['number']")
        assert found["error"].endswith("which is not JSON")


ERRORS = [
    {"run": "raise ValueError('of the value')"},
    {"run": "raise ValueError"},
    {"run": "raise KeyError('key')"},
    {"run": "raise KeyError('key', 2)"},
    {"run": "raise Own('mine')"},
    {"run": "raise Own.Inner('within')"},
    {"run": "raise Silent()"},
    {"run": "raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'no text')"},
    {"run": "import json; json.loads('{')"},
    {"run": "raise OSError(2, 'No such file', 'a.txt')"},
    {"run": "raise ExceptionGroup('several', [ValueError('one')])"},
    {"run": "raise RuntimeError('first') from ValueError('cause')"},
    {"run": "def f(): f()\nf()"},
    {"run": "assert False, 'asserted'"},
    {"run": "1/0"},
    {"run": "raise StopIteration('stop')"},
    {"run": "result = 'invalid'"},
    {"before": "raise Own('not so')"},
    {"before": "raise Shut('shut')"},
    {"before": "raise ValueError('not so')"},
    {"before": "assert 'name' in params, 'no name'"},
]


@pytest.mark.parametrize("params", ERRORS, ids=lambda params: next(iter(params.values())))
def test_errors(file: Path, ways: Any, params: dict[str, Any]) -> None:
    check_same(file, params, ways)


def test_a_process_for_every_call(file: Path) -> None:
    with ServiceClient(file, warm=False) as client:
        ways = {"cold": lambda params: client.call(params, check_success=False)}
        for params in ({"run": "result = {'a': 1}"}, {"run": "raise Own('mine')"}, {"before": "raise Own('so')"}):
            check_same(file, params, ways)
        with pytest.raises(ValueError, match=r"the result\['a'\] cannot be written as JSON: there is no nan in JSON"):
            client.call({"run": "result = {'a': float('nan')}"})


@pytest.mark.parametrize("second", ["2", "float('nan')", "{'a': [float('inf')]}"])
def test_items(tmp_path: Path, second: str) -> None:
    file = tmp_path / "items_service.py"
    file.write_text(ITEMS)
    params = {"second": second}
    answer = by_hand(file, params)
    with ServiceClient(file) as client:
        found = client.call(params, check_success=False)
        assert (found["success"], found.get("error_type")) == (answer["success"], answer.get("error_type"))
        stream = client.call_stream(params)
        assert next(stream) == 1.5
        if answer["success"]:
            assert found["result"] == answer["result"] == [1.5, 2]
            assert list(stream) == [2]
        else:
            assert answer["error_type"] == "EncodeError"
            with pytest.raises(atoll.ServiceFailed, match="cannot be written as JSON") as caught:
                next(stream)
            assert caught.value.answer["error_type"] == "EncodeError"

        async def from_asyncio() -> list[Any]:
            return [item async for item in client.call_stream_async(params)]

        if answer["success"]:
            assert asyncio.run(from_asyncio()) == [1.5, 2]
        else:
            with pytest.raises(atoll.ServiceFailed, match="cannot be written as JSON"):
                asyncio.run(from_asyncio())


def test_other_values_of_python_cross_all_the_same(file: Path) -> None:
    """Between Pythons an answer is not text."""
    with ServiceClient(file) as client:
        assert client.call({"run": "result = {'raw': b'bytes', 'set': {1}, 'pair': (1, 2)}"})["raw"] == b"bytes"
        assert client.call({"given": (1, {2}), "run": "result = params['given']"})["result"] == (1, {2})
        one = client.call({"run": "result = {'a': [1.5]}; result['itself'] = result"})
        assert one["itself"]["itself"]["a"] == [1.5]
        one = client.call({"run": "result = {'many': [0, 'x'] * 1000}; result['many'].append(result)"})
        assert one["many"][-1]["many"][:2] == [0, "x"]
        shared = "part = [0.5, 'x']\nfor _ in range(60):\n    part = [part, part]\nresult = [0] * 1000 + [part]"
        with pytest.raises(atoll.ServiceFailed, match="there is no inf in JSON"):
            client.call({"run": f"{shared}\nresult.append(float('inf'))"})
        assert len(client.call({"run": shared})["result"]) == 1001
