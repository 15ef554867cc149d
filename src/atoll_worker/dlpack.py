# SPDX-License-Identifier: Apache-2.0
"""Memory offered as a DLPack capsule: how every array library takes over device memory without copying it.

torch reads ``__cuda_array_interface__`` only where numpy is installed, and knows fewer dtypes by it; DLPack needs
neither. What always holds: a capsule, and whoever took it over, keeps ``owner`` alive until they let go of it; and who
lets go when the interpreter is gone already, as a library in C++ may, calls nothing that is gone with it.

What does not belong here: whose memory it is (``cuda``).
"""

from __future__ import annotations

import atexit
import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Sequence, Tuple

INT, UINT, FLOAT, BFLOAT, COMPLEX, BOOL = 0, 1, 2, 4, 5, 6

_NAME = b"dltensor"  # who takes it over renames it


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_kind", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        # With these two it is a DLManagedTensor.
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


# What each tensor that was handed out is made of, and what it keeps alive, by its address.
_handed_out: Dict[int, Tuple[Any, ...]] = {}


def _forget(address: int) -> None:
    _handed_out.pop(address, None)


def _destroyed(capsule: int) -> None:
    # Without its name somebody took it over. What is being destroyed must not be made a Python object again.
    if _is_valid(capsule, _NAME):
        _handed_out.pop(_get_pointer(capsule, _NAME), None)


_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_delete = _Callback(_forget)
_destroy = _Callback(_destroyed)

_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def offer(
    address: int,
    device: Tuple[int, int],
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: Tuple[int, int],
    owner: object,
) -> Any:
    """A capsule of a tensor at an address.

    Args:
        address: of the first item.
        device: its kind, as DLPack numbers them, and its ordinal.
        strides: in items.
        dtype: one of ``INT``, ..., and the bits of an item.
        owner: kept alive for as long as the tensor is in use.
    """
    many = ctypes.c_int64 * max(1, len(shape))
    lengths, steps = many(*shape), many(*strides)
    tensor = _Tensor(
        data=address,
        device_kind=device[0],
        device=device[1],
        ndim=len(shape),
        code=dtype[0],
        bits=dtype[1],
        lanes=1,
        shape=ctypes.addressof(lengths),
        strides=ctypes.addressof(steps),
        byte_offset=0,
        context=None,
        deleter=ctypes.cast(_delete, ctypes.c_void_p).value,
    )
    place = ctypes.addressof(tensor)
    _handed_out[place] = (tensor, lengths, steps, owner)
    try:
        return _new(place, _NAME, ctypes.cast(_destroy, ctypes.c_void_p))
    except BaseException:
        del _handed_out[place]
        raise


def _at_exit() -> None:
    """What is still in use will be let go of by a process whose interpreter may be gone: then nothing is to be done,
    by a function of C that does nothing, and nothing of it is freed before the process ends."""
    harmless = ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value
    for entry in list(_handed_out.values()):
        entry[0].deleter = harmless
    for kept in (_handed_out, _delete, _destroy):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


atexit.register(_at_exit)
