# SPDX-License-Identifier: Apache-2.0
"""``out=``: arrays of the caller's that a function writes to, as numpy's own functions do.

An array in shared memory (``atoll.empty``) is lent to the worker, which then writes into the very memory that the
caller has. One that lies elsewhere is copied there and, once the call has ended well, back; so is one in shared memory
that somebody was lent to read: from then on nobody new can be given it to write to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from atoll_worker.allocation import copy_for_writers, segment_of, span_of
from atoll_worker.arrays import Shared

from ..errors import EncodeError

if TYPE_CHECKING:
    from atoll_worker.loans import Loans


class Outs:
    """Those of one call."""

    def __init__(self) -> None:
        self._back: list[Callable[[], object]] = []

    def lend(self, value: Any, loans: Callable[[], Loans]) -> Any:
        """What to send in the place of the argument ``out``: an array, or a tuple or list of them. What is none is
        sent as it is.

        Raises:
            EncodeError: an array is not to be written to.
            SegmentsExhausted: there is no room for a copy.
        """
        self._back.clear()
        return self._lend(value, loans, "kwargs['out']")

    def _lend(self, value: Any, loans: Callable[[], Loans], where: str) -> Any:
        if type(value) in (tuple, list):
            return type(value)(self._lend(one, loans, f"{where}[{index}]") for index, one in enumerate(value))
        numpy = sys.modules.get("numpy")
        if numpy is not None and type(value) in (numpy.ndarray, numpy.memmap) and value.nbytes:
            if value.dtype.kind == "O":
                raise EncodeError(
                    f"{where}: an array of objects is copied item by item, so nothing can be written to it"
                )
            if not value.flags.writeable:
                raise EncodeError(f"{where}: the array is read-only, so nothing can be written to it")
            return Shared(self._in_segment(value, span_of(value), loans, numpy.copyto))
        torch = sys.modules.get("torch")
        if torch is not None and type(value) is torch.Tensor and value.device.type == "cpu" and value.numel():
            if value.requires_grad:
                raise EncodeError(f"{where}: the tensor requires a gradient, so it cannot be written to in place")
            span = value.untyped_storage().data_ptr(), value.untyped_storage().nbytes()
            return Shared(self._in_segment(value, span, loans, lambda target, source: target.copy_(source)))
        if type(value) in (bytearray, memoryview) or type(value).__module__ == "array":
            raise EncodeError(
                f"{where}: a {type(value).__name__} is not written to from there; pass an array of numpy on it"
            )
        return value

    def _in_segment(
        self, value: Any, span: tuple[int, int], loans: Callable[[], Loans], copy: Callable[[Any, Any], object]
    ) -> Any:
        segment = segment_of(*span)
        if segment is not None and loans().can_write(segment):
            return value
        inside = copy_for_writers(value, loans())
        self._back.append(lambda: copy(value, inside))
        return inside

    def finish(self) -> None:
        """The call has ended well: what was written to copies is the caller's."""
        for back in self._back:
            back()
