# SPDX-License-Identifier: Apache-2.0
"""What both kinds of worker of ``pyproc_wire`` serve, and the two kinds: ``run_worker``, and the plain program that one
writes by hand, with a thread for each connection and ``json.dumps``.

    PYPROC_SOCKET_PATH=... python -m benchmarks.pyproc_worker atoll|plain
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from typing import Any

from atoll_worker import expose, run_worker


@expose
def predict(req: Any) -> Any:
    return {"result": req["value"] * 2}


@expose
def echo(req: Any) -> Any:
    return req


FUNCTIONS = {"predict": predict, "echo": echo}


def read_exactly(connection: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)


def serve_plainly(connection: socket.socket) -> None:
    with connection:
        while (head := read_exactly(connection, 4)) is not None:
            text = read_exactly(connection, int.from_bytes(head, "big"))
            if text is None:
                return
            request = json.loads(text)
            body = FUNCTIONS[request["method"]](request["body"])
            reply = json.dumps({"id": request["id"], "ok": True, "body": body}, separators=(",", ":")).encode()
            connection.sendall(len(reply).to_bytes(4, "big") + reply)


def main() -> None:
    if sys.argv[1] == "atoll":
        run_worker()
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.environ["PYPROC_SOCKET_PATH"])
        listener.listen(128)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve_plainly, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
