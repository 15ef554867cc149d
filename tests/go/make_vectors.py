# SPDX-License-Identifier: Apache-2.0
"""Writes vectors.json: frames as bytes, which every implementation of the wire must read and write alike.

Run it after a change of the wire: ``python tests/go/make_vectors.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from atoll_worker import wire

DEEP = 1 << 48
CALL = '{"function":"add","args":[2,3],"kwargs":{}}'
ERROR = (
    '{"type":"ValueError","module":"builtins","message":"no","notes":[],'
    '"traceback":"Traceback (most recent call last):\\nValueError: no\\n"}'
)
READY = '{"pid":7,"service":"calls","functions":["add"],"max_size":67108864,"in_flight":2}'
DIED = (
    '{"type":"WorkerDied","module":"atoll.errors","message":"exited with code 3","notes":[],"traceback":"",'
    '"atoll":"WorkerDied","died":{"pid":8,"exit_code":3,"signal":null,"phase":"call","stderr":["last words"]}}'
)
_JSON_ONLY = wire.HELLO_PAYLOAD.pack(wire.MAGIC, wire.VERSION, 1 << wire.JSON)
FRAMES: list[tuple[str, int, int, int, bytes, list[bytes]]] = [
    ("hello", wire.HELLO, wire.RAW, 0, wire.hello(), []),
    (
        "load",
        wire.LOAD,
        wire.JSON,
        0,
        b'{"entry":{"kind":"file","path":"/srv/service.py","class":null},"log_level":30}',
        [],
    ),
    ("hello of a service at a socket", wire.HELLO, wire.RAW, 0, _JSON_ONLY, []),
    ("load of a service at a socket", wire.LOAD, wire.JSON, 0, b"null", []),
    ("ready of a service at a socket", wire.READY, wire.JSON, 0, READY.encode(), []),
    ("ready of a further connection", wire.READY, wire.RAW, 0, b"", []),
    ("call", wire.CALL, wire.JSON, 1, CALL.encode(), []),
    (
        "call with a timeout",
        wire.CALL,
        wire.JSON,
        2,
        b'{"function":"sleep","args":[1],"kwargs":{},"timeout":0.5}',
        [],
    ),
    ("result", wire.RESULT, wire.JSON, 1, b"5", []),
    ("error", wire.ERROR, wire.JSON, 7, ERROR.encode(), []),
    ("text beyond ASCII", wire.RESULT, wire.JSON, 8, '"Lagune \u00e4 \U0001f3dd"'.encode(), []),
    ("largest number of a call", wire.CALL, wire.JSON, wire.CALL_NUMBER, b"{}", []),
    ("call back", wire.CALL, wire.PICKLE, DEEP + 9, b"\x80\x05N.", []),
    ("buffers", wire.RESULT, wire.PICKLE, 10, b"two", [b"", b"\x00\x01\x02"]),
    ("ping", wire.PING, wire.RAW, 3, wire.PING_PAYLOAD.pack(30), []),
    ("pong", wire.PONG, wire.RAW, 3, b"", []),
    ("ping of a service at a socket", wire.PING, wire.RAW, 5, b"", []),
    ("pong of a service at a socket", wire.PONG, wire.RAW, 5, b"half-open", []),
    ("cancel of a service at a socket", wire.CANCEL, wire.RAW, 2, wire.CANCEL_PAYLOAD.pack(0, 1), []),
    ("error of a service at a socket", wire.ERROR, wire.JSON, 3, DIED.encode(), []),
    ("phase", wire.PHASE, wire.RAW, 0, b"setup", []),
    ("cancel", wire.CANCEL, wire.RAW, 4, wire.CANCEL_PAYLOAD.pack(1, 1), []),
    ("log", wire.LOG, wire.RAW, 4, b'["calls",30,1.5,"MainThread","said","","calls.py",3,"log"]', []),
    ("stacks", wire.STACKS, wire.RAW, 0, b"", []),
    ("release", wire.RELEASE, wire.RAW, 0, wire.RELEASED.pack(5, 2), []),
    ("forget", wire.FORGET, wire.RAW, 0, wire.FORGOTTEN.pack(6), []),
]
_HEADER = wire.HEADER.pack
MALFORMED = [
    ("unknown kind", _HEADER(31, wire.RAW, 0, 0, 0)),
    ("unknown codec", _HEADER(wire.RESULT, 9, 0, 0, 1)),
    ("payload too large", _HEADER(wire.RESULT, wire.JSON, 0, wire.MAX_PAYLOAD + 1, 1)),
    ("too many buffers", _HEADER(wire.RESULT, wire.JSON, wire.MAX_BUFFERS + 1, 0, 1)),
    ("buffer too large", _HEADER(wire.RESULT, wire.JSON, 1, 0, 1) + wire.BUFFER_LENGTH.pack(wire.MAX_BUFFER + 1)),
]
HELLOS = [
    ("not of this wire", b"HTTP" + wire.hello()[4:]),
    ("another version", wire.HELLO_PAYLOAD.pack(wire.MAGIC, wire.VERSION + 1, wire.CODEC_BITS)),
    ("too short", wire.hello()[:-1]),
]


def vectors() -> dict[str, Any]:
    """All of them."""
    frames = []
    for name, kind, codec, call_id, payload, buffers in FRAMES:
        data = b"".join(bytes(piece) for piece in wire.pack(kind, codec, call_id, payload, buffers))
        frames.append(
            {
                "name": name,
                "kind": kind,
                "codec": codec,
                "call_id": call_id,
                "payload": payload.hex(),
                "buffers": [buffer.hex() for buffer in buffers],
                "bytes": data.hex(),
            }
        )
    return {
        "version": wire.VERSION,
        "frames": frames,
        "malformed": [{"name": name, "bytes": data.hex()} for name, data in MALFORMED],
        "refused_hellos": [{"name": name, "payload": payload.hex()} for name, payload in HELLOS],
    }


if __name__ == "__main__":
    Path(__file__).with_name("vectors.json").write_text(json.dumps(vectors(), indent=1) + "\n")
