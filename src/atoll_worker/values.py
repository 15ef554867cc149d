# SPDX-License-Identifier: Apache-2.0
"""Python values <-> payload and out-of-band buffers.

A value is written as a **data pickle**: protocol 5, in which everything but the plain containers and scalars is
spelled as a call of one of the restorers in ``adapters``. The reader admits these and nothing else, so bytes from
the other side can never import or run code. What always holds here:

* A closed list of types crosses, by value: None, bool, int, float, complex, str, bytes, bytearray, tuple, list, dict,
  set, frozenset, range, slice, Ellipsis, date, time, datetime, timedelta, timezone, ZoneInfo, Decimal, Fraction, UUID,
  paths, what was given to ``registry.register``, and what ``arrays`` finds a room for: arrays, tensors, tables, frames,
  images, and plain memory.
* With a ``Lending``, iterators, ``ref(x)`` and callables among arguments cross as references, in the same places.
* The bytes mean the same on every Python from 3.9 on, and with numpy 1 and 2, whoever wrote them.
* References are kept: the same list twice is one list again, and a list may hold itself.
* What cannot cross is named exactly: ``args[1]['cfg'].lock: _thread.lock``.

JSON is the other codec, for callers in other languages; it carries what JSON carries.
"""

from __future__ import annotations

from _pickle import PickleBuffer, Pickler, Unpickler, UnpicklingError
from _pickle import loads as _loads
from functools import partial
from io import BytesIO

from . import adapters, arrays
from .adapters import Unsupported, build_registered, children, reducer_of
from .arrays import Carrier, Shared, array_reducer_of
from .errors import DecodeError, EncodeError, SegmentsExhausted
from .registry import by_name
from .wire import CARGO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence, Tuple

    from .cargo import Cargo, Part
    from .loans import Loans
    from .references import Lending
    from .wire import Bytes

# Arrays of fewer bytes stay inside the payload, which then fits a slot: benchmarks/zero_copy_threshold.py chose it.
INLINE_BUFFER = 60_000

_STACK_GLOBAL = b"\x93"
_NEXT_BUFFER = b"\x97"
_BYTEARRAY8 = 0x96
# Opcodes of bytes that the pickler does not copy, and the bytes that these take with the length: BINBYTES, BINBYTES8.
_HEADER_SIZES = {0x42: 5, 0x8E: 9, _BYTEARRAY8: 9}
_LARGE_CHUNK = 1 << 19  # bytes; the same benchmark
# All that a data pickle may call.
_RESTORERS = {
    (module.__name__, name): restorer for module in (adapters, arrays) for name, restorer in module.RESTORERS.items()
}
_RESTORER_FUNCTIONS = frozenset(_RESTORERS.values())
_ARRAYS = arrays.__name__
_Function = type(children)
# Stands in a data pickle for bytes that a carrier has taken.
_STORED = PickleBuffer(bytearray(1))


class _DataPickler(Pickler):
    carrier: Carrier
    lending: Optional[Lending] = None
    lends_callables = False
    lent: List[int]

    def reducer_override(self, value: Any) -> Any:
        """Called by the pickler for everything but exact built-in scalars and containers."""
        cls = type(value)
        if cls is _Function and (value in _RESTORER_FUNCTIONS or arrays.is_room_restorer(value)):
            return NotImplemented  # by its name, as pickle does it
        reducer = reducer_of(cls)
        if reducer is not None:
            return reducer(value)
        array_reducer = array_reducer_of(cls)
        if array_reducer is not None:
            return array_reducer(value, self.carrier)
        if cls is Shared:
            return self.carrier.share(value.value)
        lending = self.lending
        if lending is not None:
            reference = lending.reduce(value, self.lends_callables, self.lent)
            if reference is not None:
                return adapters.RESTORERS[reference[0]], reference[1]
        raise Unsupported(value)


class Encoder(Carrier):
    """Values -> bytes. Reused from call to call, because setting one up costs more than a small value; so it is
    for one thread at a time.

    Args:
        lending: lends what does not cross by value; without it, that is an error.
        loans: gives what lends segments to the other side; without it, arrays go into the frame's buffers.

    Attributes:
        lends_callables: lend callables too, as in arguments; else only iterators and what ``ref`` was called on.
        announce: called before so much is copied that the other side may wake up meanwhile.
    """

    inline = INLINE_BUFFER

    def __init__(
        self, lending: Optional[Lending] = None, loans: Optional[Callable[[], Optional[Loans]]] = None
    ) -> None:
        self._lending = lending
        self._loans = loans
        self.lends_callables = False
        self._lent: List[Any] = []
        self._chunks: List[Any] = []
        self.announce: Optional[Callable[[], None]] = None
        self.is_sharing = False
        self.notes: Dict[Any, Any] = {}
        self._wants_again: Optional[bool] = None  # False: it had it
        self._parts: List[Part] = []
        self._cargo: Optional[Cargo] = None
        self._buffers: List[memoryview] = []
        self.has_buffers = self._buffers  # true while there are some
        self._reset()

    def _reset(self) -> None:
        self._pickler = _DataPickler(_Sink(self._chunks), 5, buffer_callback=self._take_buffer)
        self._pickler.carrier = self
        self._pickler.lending = self._lending
        self._pickler.lends_callables = self.lends_callables
        self._pickler.lent = self._lent
        self._dump = self._pickler.dump
        self._clear = self._pickler.clear_memo

    def encode(self, value: Any) -> bytes:
        """The payload of a value. Those of its buffers that go into the frame are in ``take_buffers()``.

        Raises:
            Unsupported: some part has no place on the wire.
            SegmentsExhausted: there is no room for its arrays.
            RecursionError, MemoryError: too deeply nested, too large.
        """
        chunks = self._chunks
        if self._lent:
            self._lent.clear()
        if self._cargo is not None and self._cargo.cells:
            self._cargo.begin()
        try:
            self._dump(value)
            if not self._parts and len(chunks) == 1 and not self.notes:
                payload: bytes = chunks[0]
            else:
                if self._wants_again:
                    self._dump_again(value)
                payload = self._load(chunks)
        except BaseException:
            chunks.clear()
            self._buffers.clear()
            self.take_back()
            self.notes.clear()
            self._wants_again = None
            self._reset()
            raise
        self._clear()  # the memo would keep every part of the value alive
        chunks.clear()
        return payload

    def _dump_again(self, value: Any) -> None:
        self._chunks.clear()
        self.take_back()
        self._clear()
        self._wants_again = False
        self._dump(value)

    # -- as a carrier, while encoding ------------------------------------------------------------------------

    def _take_buffer(self, buffer: Any) -> bool:
        if buffer is _STORED:
            return False
        view = buffer.raw()
        if view.nbytes < self.inline:
            return True
        self.store(view.nbytes, lambda memory: _copy_bytes(memory, view), raw=lambda: view)
        return False

    def find(self, address: int, nbytes: int) -> Any:
        found = self._open_cargo().find(len(self._chunks), address, nbytes, self.is_sharing)
        return _STORED if found else None

    def share(self, value: Any) -> Any:
        reducer = array_reducer_of(type(value))
        assert reducer is not None
        self.inline, inline = 0, self.inline
        self.is_sharing = True
        try:
            return reducer(value, self)
        finally:
            self.inline = inline
            self.is_sharing = False

    def store(
        self,
        nbytes: int,
        fill: Callable[[memoryview], object],
        address: int = 0,
        raw: Optional[Callable[[], Any]] = None,
    ) -> Any:
        self._open_cargo().store(len(self._chunks), nbytes, fill, address, raw)
        return _STORED

    def again(self) -> bool:
        if self._wants_again is False:
            return False
        self._wants_again = True
        return True

    def _open_cargo(self) -> Cargo:
        cargo = self._cargo
        if cargo is None:
            from .cargo import Cargo

            cargo = self._cargo = Cargo(self._parts, self._loans() if self._loans is not None else None)
            cargo.announce = self.announce
        return cargo

    def _load(self, chunks: List[Any]) -> bytes:
        """The payload where there may be cargo."""
        if self.notes:
            self.notes.clear()
            self._wants_again = None
        if self._loans is not None and len(chunks) > 1:
            self._unload_chunks(chunks)
        pickle: bytes = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        cargo = self._cargo
        if cargo is None or not self._parts:
            return pickle
        table, buffers = cargo.load()
        self._buffers.extend(buffers)
        return table + pickle

    def _unload_chunks(self, chunks: List[Any]) -> None:
        """Large ``bytes`` and ``bytearray`` objects, which the pickler writes as they are, become cargo.

        Before such a chunk it writes one that ends with the opcode for it, outside of any frame.
        """
        for index in range(1, len(chunks)):
            opcode = _header_before(chunks[index], chunks[index - 1])
            if opcode:
                part = chunks[index]
                self._open_cargo().insert(index, part, opcode == _BYTEARRAY8, partial(_copy_bytes, source=part))
                chunks[index - 1] = chunks[index - 1][: -_HEADER_SIZES[opcode]] + _NEXT_BUFFER
                chunks[index] = b""

    def for_arguments(self, lends_callables: bool) -> None:
        """Whether what is encoded next are arguments, in which callables are lent, or results."""
        self.lends_callables = self._pickler.lends_callables = lends_callables

    def take_back(self) -> None:
        """What the last value lent is not lent after all: it was not sent."""
        lending = self._lending
        if lending is not None:
            for number in self._lent:
                lending.take_back(number, 1)
            self._lent.clear()
        if self._cargo is not None:
            self._cargo.take_back()
            self._cargo.clear()

    def take_buffers(self) -> Sequence[memoryview]:
        """The frame's buffers for the last encoded value; ``has_buffers`` tells cheaply whether there are any."""
        buffers = list(self._buffers)
        self._buffers.clear()
        return buffers


def _header_before(chunk: Any, before: bytes) -> int:
    """The opcode that ``before`` ends with, if it is one that ``chunk`` is the data of; else 0."""
    length = len(chunk)
    if length < _LARGE_CHUNK:
        return 0
    # What comes before the header is a frame, or too small to be one.
    start = 2 if before[:2] == b"\x80\x05" else 0
    if before[start : start + 1] == b"\x95":
        start += 9 + int.from_bytes(before[start + 1 : start + 9], "little")
    for opcode, size in _HEADER_SIZES.items():
        at = len(before) - size
        is_there = start <= at <= start + 4 and before[at] == opcode
        if is_there and int.from_bytes(before[at + 1 :], "little") == length:
            return opcode
    return 0


def _copy_bytes(memory: memoryview, source: Any) -> None:
    from .cargo import copy_bytes

    copy_bytes(memory, source)


class _Sink:
    """The file a pickler writes to."""

    __slots__ = ("write",)

    def __init__(self, chunks: List[bytes]) -> None:
        self.write: Callable[[bytes], object] = chunks.append


class _Missing:
    """Stands in a decoded value where an object of a class should be that was not registered on this side."""

    def __init__(self, name: str) -> None:
        self.name = name


class _DataUnpickler(Unpickler):
    missing: Optional[List[_Missing]] = None
    lending: Optional[Lending] = None
    arrays: Dict[str, Callable[..., Any]]

    def find_class(self, module: str, name: str) -> Any:
        if module == _ARRAYS and name in self.arrays:
            return self.arrays[name]
        if module == adapters.__name__:
            if name == "restore_registered":
                return self._restore_registered
            if self.lending is not None:
                if name == "restore_lent":
                    return self.lending.borrow
                if name == "restore_own":
                    return self.lending.own
                if name == "restore_returned":
                    return self.lending.returned
        restorer = _RESTORERS.get((module, name)) or arrays.room_restorer(module, name)
        if restorer is not None:
            return restorer
        raise DecodeError(f"refused to load {module}.{name}: only values cross, never code")

    def _restore_registered(self, name: str, parts: Any) -> Any:
        known = by_name(name) if isinstance(name, str) else None
        if known is not None:
            return build_registered(known, parts)
        missing = _Missing(name)
        if self.missing is None:
            self.missing = []
        self.missing.append(missing)
        return missing

    def persistent_load(self, pid: Any) -> NoReturn:
        raise DecodeError("persistent ids have no place in a data pickle")


class Decoder:
    """Bytes -> values.

    Args:
        checked: check every opcode first (``guard``), as the host does with what workers send.
        side: what to call this side in messages.
        lending: knows what references mean; without it they are refused.
        read_only: arrays may not be written to, where their library knows of that.
        loans: gives what borrows segments of the other side; without it, there are none.
    """

    def __init__(
        self,
        checked: bool,
        side: str,
        lending: Optional[Lending] = None,
        read_only: bool = False,
        loans: Optional[Callable[[], Optional[Loans]]] = None,
    ) -> None:
        self._loans = loans
        self._side = side
        self._lending = lending
        self._is_plain: Optional[Callable[[Bytes], object]] = None
        self._arrays = arrays.READ_ONLY if read_only else arrays.OWN
        if checked:
            from .guard import check, is_plain

            self._is_plain = is_plain
            self._check = check

    def decode(
        self,
        payload: Bytes,
        buffers: Sequence[Any] = (),
        labels: Sequence[Tuple[str, int]] = (),
        own: bool = False,
    ) -> Any:
        """The value of a payload.

        Args:
            payload: what ``Encoder.encode`` made.
            buffers: those of its frame.
            labels: how to name the parts of a tuple in messages, with their positions; the whole is "result".
            own: arrays are copied, and may be written to.

        Raises:
            DecodeError: the bytes are no data pickle, or hold what this side does not know.
        """
        is_plain = self._is_plain
        try:
            if is_plain is None:
                # Only bytes can be searched quickly; what comes with buffers of its own, or is large, is neither.
                if (payload.__class__ is bytes or payload.__class__ is bytearray) and _STACK_GLOBAL not in payload:
                    return _loads(payload)
            elif is_plain(payload) is not None:
                return _loads(payload)
            if payload and payload[0] == CARGO:
                from .cargo import unload

                buffers, payload = unload(payload, buffers, self._loans and self._loans(), own)
            if is_plain is not None:
                self._check(payload)
            unpickler = _DataUnpickler(BytesIO(payload), buffers=buffers)
            unpickler.lending = self._lending
            unpickler.arrays = arrays.OWN if own else self._arrays
            value = unpickler.load()
            if unpickler.missing is not None:
                self._refuse_missing(value, unpickler.missing[0], labels)
            return value
        except (DecodeError, MemoryError):  # SegmentsExhausted is one
            raise
        except (UnpicklingError, RecursionError) as error:
            raise DecodeError(f"not a data pickle: {error}") from None
        except Exception as error:
            # The C unpickler and the constructors it calls raise all sorts of errors for malformed input.
            raise DecodeError(f"a value could not be put together: {type(error).__name__}: {error}") from error

    def _refuse_missing(self, value: Any, missing: _Missing, labels: Sequence[Tuple[str, int]]) -> NoReturn:
        where = None
        for label, index in labels:
            where = where or find_path(value[index], missing, label)
        if not labels:
            where = find_path(value, missing, "result")
        raise DecodeError(
            f"{where or 'a value'} is of class {missing.name!r}, which is not registered in {self._side}: "
            f"call {'atoll' if 'host' in self._side else 'atoll_worker'}.register on it there"
        )


def find_path(root: Any, target: Any, label: str) -> Optional[str]:
    """The words that lead from ``root`` to the very object ``target``, or None. No recursion: values nest deeply."""
    if root is target:
        return label
    seen = {id(root)}
    # Children may be made on the way (an encoded part); holding them keeps their ids from being used again.
    queue: List[Tuple[str, Any]] = [(label, root)]
    for path, value in queue:
        for step, child in children(value):
            if child is target:
                return path + step
            if id(child) not in seen and len(queue) < 1_000_000:
                seen.add(id(child))
                queue.append((path + step, child))
    return None


def explain_unencodable(error: BaseException, parts: Sequence[Tuple[str, Any]]) -> Exception:
    """The error to raise when encoding failed; ``parts`` are the labelled values that were being encoded.

    It is made also where a value's own code raises at being looked at, then with fewer words.
    """
    try:
        return _explain(error, parts)
    except Exception as strange:
        labels = ", ".join(label for label, _ in parts)
        if isinstance(strange, RecursionError):
            return EncodeError(f"{labels} cannot be passed: the recursion that leads here is too deep for that")
        name = type.__dict__["__name__"].__get__(type(strange))  # whatever a metaclass makes of it
        return EncodeError(f"{labels} cannot be passed by value, and looking for the reason raised {name}")


def _explain(error: BaseException, parts: Sequence[Tuple[str, Any]]) -> Exception:
    if isinstance(error, (EncodeError, SegmentsExhausted)):
        return error
    if isinstance(error, RecursionError):
        depth, label = max(((_depth(value), label) for label, value in parts), default=(0, "the value"))
        return EncodeError(
            f"{label} is nested too deeply to be passed ({depth:,} levels), or holds itself elsewhere than in a list, "
            "dict or set"
        )
    if not isinstance(error, Unsupported):
        labels = ", ".join(label for label, _ in parts)
        return EncodeError(f"{labels} cannot be passed: {type(error).__name__}: {error}")
    # Never isinstance on the value itself: that asks it for its __class__, which may be a property that raises.
    value = error.value
    cls = type(value)
    where = None
    for label, root in parts:
        where = where or find_path(root, value, label)
    where = where or parts[0][0]
    if issubclass(cls, type):
        name = f"the class {value.__module__}.{value.__qualname__}"  # type: ignore[attr-defined]
    else:
        name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    message = f"{where}: {name} cannot be passed by value"
    instead, code = _instead_of(cls), _name_of_code(value)
    if error.why:
        message += f" ({error.why})"
    elif _could_be_registered(cls):
        message += f"; register({cls.__name__}), on both sides, lets it cross (atoll.register, atoll_worker.register)"
    elif instead is not None:
        message += f"; {'return' if where.startswith('result') else 'pass'} {instead}"
    elif code is not None:
        message += f"; {code!r} is code, and only values cross"
    return EncodeError(message)


def _could_be_registered(cls: type) -> bool:
    return hasattr(cls, "__dataclass_fields__") or hasattr(cls, "__members__") or hasattr(cls, "_fields")


# What to say instead of a subclass of a plain type, or of what makes values one by one.
_PLAIN = (dict, list, tuple, frozenset, set, str, bytes, bytearray, int, float, complex)
_SEQUENCES = (
    ("collections", "deque"), ("builtins", "dict_keys"), ("builtins", "dict_values"), ("builtins", "dict_items"),
    ("builtins", "map"), ("builtins", "filter"), ("builtins", "zip"), ("builtins", "enumerate"),
)  # fmt: skip


def _instead_of(cls: type) -> Optional[str]:
    """What can be passed in place of a value of this class, in words."""
    for plain in _PLAIN:
        if issubclass(cls, plain):
            return f"{plain.__name__}(x)"
    place = (cls.__module__, cls.__qualname__)
    if place in _SEQUENCES:
        return "list(x)"
    if place in (("builtins", "generator"), ("builtins", "async_generator")):
        return "a list"
    if place == ("builtins", "coroutine"):
        return "what it comes to, with asyncio.run(x)"
    if any(base.__module__.partition(".")[0] == "numpy" and base.__name__ == "ndarray" for base in cls.__mro__[1:]):
        return ".filled() and .mask" if cls.__name__ == "MaskedArray" else "numpy.asarray(x)"
    for base in cls.__mro__[1:]:
        if base.__module__ == "_ctypes" and base.__name__ == "Array":
            return "memoryview(x)"
        if base.__module__.partition(".")[0] == "pandas" and base.__name__ in ("DataFrame", "Series"):
            return f"pandas.{base.__name__}(x)"
    if any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in cls.__mro__):
        return "x.as_subclass(torch.Tensor)"
    if any("__array__" in base.__dict__ for base in cls.__mro__):
        return "numpy.asarray(x)"
    return None


def _name_of_code(value: Any) -> Optional[str]:
    try:
        return str(value.__name__) if callable(value) else None
    except Exception:
        return None  # it has none, or is a stand-in for something that is not there


def _is_container(value: Any) -> bool:
    cls = type(value)
    return issubclass(cls, (dict, list, tuple, set, frozenset)) or hasattr(cls, "__dataclass_fields__")


def _depth(value: Any) -> int:
    """How deeply containers are nested; a value that holds itself counts once."""
    depth = 0
    level: List[Any] = [value]
    seen = set()
    while level and depth < 1_000_000:
        following: List[Any] = []
        for one in level:
            if id(one) not in seen:
                seen.add(id(one))
                following.extend(child for _, child in children(one) if _is_container(child))
        level = following
        depth += 1
    return depth
