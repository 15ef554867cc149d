# SPDX-License-Identifier: Apache-2.0
"""A process that echoes values, under any Python from 3.9 on: ``python -I echo_process.py FOLDER_OF_ATOLL_WORKER``.

Reads CALL frames from stdin and answers each on stdout. A payload is a pair: ("echo", value) is sent back as decoded
and encoded here; ("own", group) is answered with this process's own values of that group (``STANDARD``, ``ARRAYS``,
``SCALARS``, ``VALUES`` of pandas); ("has", module) and ("version", None) with what is there;
("same", (group, values)) with the positions at which the values differ from them.
"""

from __future__ import annotations

import enum
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True)
class Part:
    name: str
    inner: Any = None


class Point(NamedTuple):
    x: int
    y: Any


def load(name: str) -> Any:
    """A module that lies beside this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(name + ".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(what: str, value: Any) -> Any:
    """What one request asks for."""
    if what == "echo":
        return value
    if what == "version":
        return tuple(sys.version_info[:3]), (sys.modules["numpy"].__version__ if "numpy" in sys.modules else None)
    if what == "has":
        return importlib.util.find_spec(value) is not None
    standard = load("standard_values")
    group = value if what == "own" else value[0]
    room = {"STANDARD": "standard_values", "VALUES": "frame_values"}.get(group, "array_values")
    mine = getattr(standard if group == "STANDARD" else load(room), group)
    if what == "own":
        return mine
    return [index for index, (one, other) in enumerate(zip(value[1], mine)) if not standard.same(one, other)]  # noqa: B905


def main(folder: str) -> None:
    """Serve until stdin ends."""
    sys.path.insert(0, folder)
    from atoll_worker import register, wire
    from atoll_worker.values import Decoder, Encoder

    for cls in (Colour, Rights, Level, Part, Point):
        register(cls)
    reader, encoder, decoder = wire.FrameReader(), Encoder(), Decoder(checked=False, side="the worker")
    while True:
        data = sys.stdin.buffer.raw.read(1 << 16)  # type: ignore[attr-defined]
        if not data:
            return
        for frame in reader.receive_data(data):
            kind = wire.RESULT
            try:
                payload = encoder.encode(answer(*decoder.decode(frame.payload, frame.buffers)))
            except Exception as error:
                kind, payload = wire.ERROR, encoder.encode(f"{type(error).__name__}: {error}")
            for piece in wire.pack(kind, wire.PICKLE, frame.call_id, payload, encoder.take_buffers()):
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
