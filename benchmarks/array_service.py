# SPDX-License-Identifier: Apache-2.0
"""What the far side does with arrays, for atoll's workers and for its peers' alike: next to nothing, so that what is
measured is how the bytes get there; and enough to tell a wrong answer from a right one.
"""

from __future__ import annotations

import numpy

from atoll_worker import expose, values

_own: dict = {}


def own_array(nbytes):
    """An array of this process, the same one each time, whose pages are there."""
    if nbytes not in _own:
        _own.clear()
        _own[nbytes] = numpy.ones(nbytes, numpy.uint8)
    return _own[nbytes]


@expose
def detect(image_id, *, threshold=0.5, label="cat"):
    """The small call."""
    return {"id": image_id, "label": label, "score": threshold}


@expose
def look(data):
    """Touches next to nothing: the length, the first and the last byte."""
    return len(data), int(data[0]), int(data[-1])


@expose
def largest(data):
    """Reads everything."""
    return int(data.max())


@expose
def give(nbytes, mark):
    """An array of so many bytes, the last of which is ``mark``."""
    array = own_array(nbytes)
    array[-1] = mark
    return array


@expose
def give_bytes(nbytes, mark):
    """As ``give``, as bytes; made anew for each mark."""
    if _own.get("bytes", (0, 0))[:2] != (nbytes, mark):
        _own["bytes"] = (nbytes, mark, bytes(nbytes - 1) + bytes([mark]))
    return _own["bytes"][2]


@expose
def fill(nbytes, mark, out):
    """As ``give``, written into the caller's array."""
    array = own_array(nbytes)
    array[-1] = mark
    numpy.copyto(out, array)


@expose
def exchange(data):
    """Another array of the same size, with the same last byte."""
    array = own_array(len(data))
    array[-1] = data[-1]
    return array


@expose
def invert(frame):
    """A new frame, computed from the one given."""
    return 255 - frame


@expose
def exchange_all(frames):
    """``exchange``, as a stream."""
    for frame in frames:
        yield exchange(frame)


@expose
def look_all(frames):
    """``look``, as a stream."""
    for frame in frames:
        yield look(frame)


@expose
def look_at_table(table):
    """Rows of an Arrow table, and the last value of its first column."""
    return table.num_rows, table.column(0)[-1].as_py()


@expose
def look_at_tensor(tensor):
    """Items of a tensor, and the last of them."""
    return tensor.numel(), float(tensor[-1])


@expose
def set_inline(nbytes):
    """From which size on this process passes bytes beside the payload instead of in it."""
    values.Encoder.inline = nbytes
    # Shorter `bytes` the pickler itself puts among the rest of the payload.
    values._LARGE_CHUNK = max(nbytes, 1 << 16)
