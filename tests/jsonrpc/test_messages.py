# SPDX-License-Identifier: Apache-2.0
"""What a message of JSON-RPC 2.0 says, and what is said back to one that says nothing right."""

from __future__ import annotations

import json
from typing import Any

import pytest

import atoll
from atoll.jsonrpc import messages
from atoll.jsonrpc.messages import Refused, Request, read_message


def request(**more: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **more}).encode()


@pytest.mark.parametrize("number", [1, -1, 0, 2**70, 1.5, 1.0, "1", "", "ü", None])
def test_an_id_is_given_back_as_it_came(number: Any) -> None:
    found = read_message(request(id=number, method="add"))
    assert isinstance(found, Request)
    assert not found.is_notification
    answer = json.loads(messages.write_message(messages.result_answer(found.id, 5)))
    assert answer == {"jsonrpc": "2.0", "id": number, "result": 5}
    assert type(answer["id"]) is type(number)


def test_without_an_id_it_is_a_notification() -> None:
    assert read_message(request(method="add", params=[1])) == Request(None, "add", [1], {}, True)
    assert read_message(request(method="add", params={"a": 1})) == Request(None, "add", [], {"a": 1}, True)
    assert read_message(request(id=1, method="add", params=None)) == Request(1, "add", [], {}, False)


@pytest.mark.parametrize(
    ("text", "code", "number"),
    [
        (b"", -32700, None),
        (b"{", -32700, None),
        (b'{"jsonrpc": "2.0", "id": NaN}', -32700, None),
        (b"\xff", -32700, None),
        (b"[" * 100_000, -32700, None),
        (b"1" * 10_000, -32700, None),
        (b"[]", -32600, None),
        (b"5", -32600, None),
        (b'"add"', -32600, None),
        (b"null", -32600, None),
        (b"{}", -32600, None),
        (b'{"id": 1, "method": "add"}', -32600, 1),
        (b'{"jsonrpc": "1.0", "id": "a", "method": "add"}', -32600, "a"),
        (b'{"jsonrpc": "2.0", "id": 1}', -32600, 1),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 1}', -32600, 1),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "add", "params": 5}', -32600, 1),
        (b'{"jsonrpc": "2.0", "id": [1], "method": "add"}', -32600, None),
        (b'{"jsonrpc": "2.0", "id": true, "method": "add"}', -32600, None),
        (b'{"jsonrpc": "2.0", "id": 1e999, "method": "add"}', -32600, None),
    ],
)
def test_what_is_no_request(text: bytes, code: int, number: Any) -> None:
    found = read_message(text)
    assert isinstance(found, Refused)
    assert found.answer["error"]["code"] == code
    assert found.answer["id"] == number
    assert found.answer["error"]["message"]
    messages.write_message(found.answer)


def test_answers_to_what_nobody_asked() -> None:
    assert read_message(request(id=1, result=5)) is None
    assert read_message(request(id=1, error={"code": 1, "message": ""})) is None


def test_a_batch() -> None:
    found = read_message(b"[" + request(id=1, method="a") + b"," + request(method="b") + b", 1]")
    assert isinstance(found, list)
    assert [type(one) for one in found] == [Request, Request, Refused]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (atoll.FunctionNotFound("no"), -32601),
        (atoll.CallCancelled("no"), -32800),
        (atoll.CallTimeout("no"), -32010),
        (atoll.WorkerDied("s", 1, phase="call"), -32011),
        (atoll.WorkerStartError("no"), -32011),
        (atoll.QueueFull("no"), -32012),
        (atoll.CircuitOpen("s", "no", None), -32012),
        (atoll.EncodeError("no"), -32603),
        (RuntimeError("no"), -32603),
    ],
)
def test_codes(error: Exception, code: int) -> None:
    answer = messages.raised_answer(1, error)
    assert answer["error"]["code"] == code
    assert answer["error"]["data"]["type"] == type(error).__name__


def test_a_result_that_is_no_json_is_an_error_of_its_request() -> None:
    answers = [messages.result_answer(1, [float("nan")]), messages.result_answer(2, 5)]
    first, second = json.loads(messages.write_message(answers))
    assert first["id"] == 1
    assert first["error"]["code"] == -32603
    assert "the result[0] cannot be written as JSON" in first["error"]["message"]
    assert second == {"jsonrpc": "2.0", "id": 2, "result": 5}
