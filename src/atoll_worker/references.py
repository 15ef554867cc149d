# SPDX-License-Identifier: Apache-2.0
"""Objects that stay where they are: lent to the other side by number, and used there through a proxy.

The same on both sides. What is lent: a callable passed as an argument, an iterator (``streams``), and what was wrapped
in ``ref``. What always holds:

* A number says how often it was received; the other side gives it back as often, once its proxy is collected. Nothing
  is kept by a timer, and everything goes with the process at the other end.
* A proxy that goes back to where its object lives becomes that object again. Who passes it as an argument has it for as
  long as the call takes; in a result it is kept until the other side says that it has come.
* Only public methods, and a closed list of special ones, can be called from the other side. An object's attributes
  are read only if its class has ``__atoll_read__``, which decides of each.

What does not belong here: how a call crosses (``invoke`` is given by whoever makes a ``Lending``).
"""

from __future__ import annotations

from _thread import allocate_lock
from _weakref import ref as weak_reference

from .errors import DecodeError
from .streams import Inlet, Outlet, is_iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Awaitable, Callable, Dict, FrozenSet, Iterable, List, Mapping, Optional, Tuple, Union

    Target = Union[int, str]

CALLABLE = "callable"
ITERATOR = "iterator"
OBJECT = "object"
READABLE = "readable"

# What to say to who calls back at the wrong time.
NO_CALL = "the host can be called while a call is in progress, and none is: not yet in setup(), or not any more"

# Name of the function, in both sides' tables, that calls what was lent: (target, method or None, args, kwargs).
INVOKE = "__invoke__"
# And the one that reads an attribute: (target, name).
READ = "__read__"

# The special method by which an object says which of its attributes are read from the other side, and how.
READ_ATTRIBUTE = "__atoll_read__"

_SPECIAL = frozenset(
    ("__call__", "__getitem__", "__setitem__", "__delitem__", "__len__", "__contains__", "__iter__", "__enter__",
     "__exit__", READ_ATTRIBUTE)
)  # fmt: skip


class Ref:
    """A value to be passed as a reference; see ``ref``."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def ref(value: Any) -> Any:
    """Pass a value as a reference: it stays where it is, and the other side gets a proxy whose methods can be called.

    The value is let go of when the proxy is collected, or the process at the other end is gone.
    """
    return value if isinstance(value, (Ref, Proxy)) else Ref(value)


class Proxy:
    """Stands for an object of the other side.

    Where the object lives, and its number there, are in ``_lending`` and ``_number``.
    """

    __slots__ = ("__weakref__", "_lending", "_loan", "_number")
    _kind = OBJECT

    def __init__(self, lending: Lending, number: int) -> None:
        self._lending = lending
        self._number = number
        self._loan: Optional[_Loan] = None

    def _let_go(self) -> None:
        """Give it back now, not only when it is collected. Idempotent."""
        if self._loan is not None:
            self._lending.end(self._loan)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._number} of {self._lending.whose}>"


class RemoteMethod:
    """A method of an object of the other side. Call it, or await its ``aio``.

    ``proxy`` is that of the object, if it has one: it must not be given back before it is called.
    """

    __slots__ = ("_lending", "_method", "_proxy", "_target")

    def __init__(self, lending: Lending, target: Target, method: str, proxy: Optional[Proxy] = None) -> None:
        self._lending = lending
        self._target = target
        self._method = method
        self._proxy = proxy

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._lending.invoke(self._target, self._method, args, kwargs)

    async def aio(self, *args: Any, **kwargs: Any) -> Any:
        """As a call, to be awaited."""
        return await self._lending.invoke_async(self._target, self._method, args, kwargs)

    def __repr__(self) -> str:
        return f"<method {self._method!r} of {self._target!r} of {self._lending.whose}>"


class RemoteCallable(Proxy):
    """A callable of the other side: calling it runs it there."""

    __slots__ = ()
    _kind = CALLABLE

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._lending.invoke(self._number, None, args, kwargs)

    async def aio(self, *args: Any, **kwargs: Any) -> Any:
        """As a call, to be awaited."""
        return await self._lending.invoke_async(self._number, None, args, kwargs)


class RemoteObject(Proxy):
    """An object of the other side: its public methods can be called, and ``[]``, ``len()``, ``in`` and ``with`` work
    if they do over there."""

    __slots__ = ()

    def __getattr__(self, name: str) -> RemoteMethod:
        if name.startswith("_"):
            raise AttributeError(f"{name!r}: only public methods of an object on the other side can be called")
        return RemoteMethod(self._lending, self._number, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object itself, if it can be called."""
        return self._lending.invoke(self._number, None, args, kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self._lending.invoke(self._number, "__getitem__", (key,), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self._lending.invoke(self._number, "__setitem__", (key, value), {})

    def __delitem__(self, key: Any) -> None:
        self._lending.invoke(self._number, "__delitem__", (key,), {})

    def __len__(self) -> int:
        return int(self._lending.invoke(self._number, "__len__", (), {}))

    def __bool__(self) -> bool:
        return True  # not by __len__, which would be a call

    def __contains__(self, item: Any) -> bool:
        return bool(self._lending.invoke(self._number, "__contains__", (item,), {}))

    def __iter__(self) -> Any:
        return self._lending.invoke(self._number, "__iter__", (), {})

    def __enter__(self) -> Any:
        return self._lending.invoke(self._number, "__enter__", (), {})

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> Any:
        return self._lending.invoke(self._number, "__exit__", (None, None, None), {})


class ReadableObject(RemoteObject):
    """As ``RemoteObject``, of an object that also has its attributes read: those that are data, and parts of it."""

    __slots__ = ("_methods",)
    _kind = READABLE

    def __init__(self, lending: Lending, number: int) -> None:
        super().__init__(lending, number)
        self._methods: FrozenSet[str] = frozenset()  # of its class: these need not be asked for

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in self._methods:
            return super().__getattr__(name)
        return self._lending.invoke(self._number, READ_ATTRIBUTE, (name,), {})

    async def aio(self, *args: Any, **kwargs: Any) -> Any:
        """As a call of the object itself, to be awaited."""
        return await self._lending.invoke_async(self._number, None, args, kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise AttributeError(
                f"{name!r}: attributes of an object on the other side can be read, not set; give it a method that does"
            )
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"{self!r} stays where it is, so it cannot be copied; call a method of it that copies it there")


class RemoteIterator(Proxy):
    """An iterator of the other side, for ``for`` and ``async for``: its items are fetched in batches."""

    __slots__ = ("_inlet",)
    _kind = ITERATOR

    def __init__(self, lending: Lending, number: int) -> None:
        super().__init__(lending, number)
        self._inlet = Inlet()

    def _ask(self, method: str, *args: Any) -> Any:
        """Call a method of the ``Outlet`` over there."""
        return self._lending.invoke(self._number, method, args, {})

    def _ask_async(self, method: str, *args: Any) -> Awaitable[Any]:
        """As ``_ask``, to be awaited."""
        return self._lending.invoke_async(self._number, method, args, {})

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self._inlet.next(self._fetch)

    def _fetch(self, maximum: int) -> Any:
        batch = self._ask("take", maximum)
        if batch[1]:
            self._let_go()  # it has ended over there
        return batch

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        inlet = self._inlet
        while not inlet.items:
            if inlet.ended:
                raise StopAsyncIteration
            try:
                batch = await self._ask_async("take", inlet.appetite())
                inlet.arrived(batch)
                if batch[1]:
                    self._let_go()
            except BaseException:
                inlet.ended = True
                raise
        return inlet.items.pop()

    def close(self) -> None:
        """Let it end over there."""
        self._inlet.ended = True
        self._ask("close")


class _Loan:
    """What is known of a proxy: kept by it, and told by a weak reference of its end. Not by ``__del__``, during which
    another thread may still find it, and go on to use it."""

    __slots__ = ("number", "proxy", "received")

    def __init__(self, number: int) -> None:
        self.number = number
        self.received = 1
        self.proxy: Any = None


class _Lent:
    __slots__ = ("count", "number", "owner", "value")

    def __init__(self, number: int, value: Any, owner: Any) -> None:
        self.number = number
        self.value = value  # what is called
        self.owner = owner  # what was passed, kept so that its id stays its own
        self.count = 0


class Lending:
    """What this side lent to one peer, and what that peer lent to this side.

    Args:
        whose: who the peer is, for messages.
        proxies: the class of proxy for each kind.
        named: finds an object by name, for targets that are not numbers; raises LookupError.
    """

    def __init__(
        self,
        whose: str,
        proxies: Mapping[str, Callable[[Lending, int], Proxy]],
        named: Callable[[str], Any],
    ) -> None:
        self.whose = whose
        self._proxies = {READABLE: ReadableObject, **proxies}
        self._named = named
        self._lock = allocate_lock()
        self._next = 1
        self._lent: Dict[int, _Lent] = {}
        self._by_id: Dict[int, _Lent] = {}
        self._borrowed: Dict[int, _Loan] = {}
        self._returning: List[Proxy] = []  # once for each time that one is on its way home in a result

    # -- to be given by the side -----------------------------------------------------------------------------

    def invoke(self, target: Target, method: Optional[str], args: Any, kwargs: Any) -> Any:
        """Call a method of an object of the other side, or the object itself."""
        raise NotImplementedError

    def invoke_async(self, target: Target, method: Optional[str], args: Any, kwargs: Any) -> Awaitable[Any]:
        """As ``invoke``, to be awaited."""
        raise NotImplementedError

    def give_back(self, number: int, received: int) -> None:
        """Tell the other side that a proxy was collected. Called at any moment, on any thread: it must not wait."""
        raise NotImplementedError

    # -- lending ---------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many objects are lent now."""
        return len(self._lent)

    def reduce(self, value: Any, callables: bool, lent: List[int]) -> Optional[Tuple[str, Tuple[Any, ...]]]:
        """The restorer's name and arguments that stand for a value, or None if it is not lent.

        Args:
            value: any value that does not cross by value.
            callables: these are arguments, in which callables are lent too; else it is a result.
            lent: gets the number of what is lent, to be taken back should the value not be sent.
        """
        cls = type(value)
        if issubclass(cls, Proxy):
            if value._lending is self:
                if callables:
                    return "restore_own", (value._number,)
                self._returning.append(value)
                return "restore_returned", (value._number,)
            # One of another peer's: that one is asked by way of this side.
            passed_on = Outlet(value) if value._kind == ITERATOR else value
            return "restore_lent", (value._kind, self._lend(value, passed_on, lent))
        if cls is Ref:
            kept = value.value
            number = self._lend(kept, kept, lent)
            methods = getattr(type(kept), "__atoll_methods__", None)
            return "restore_lent", (OBJECT, number) if methods is None else (READABLE, number, methods(kept))
        if is_iterator(cls):
            return "restore_lent", (ITERATOR, self._lend(value, Outlet(value), lent))
        if callables and callable(value) and not issubclass(cls, type):
            return "restore_lent", (CALLABLE, self._lend(value, value, lent))
        return None

    def _lend(self, owner: Any, value: Any, numbers: List[int]) -> int:
        with self._lock:
            lent = self._by_id.get(id(owner))
            if lent is None:
                lent = _Lent(self._next, value, owner)
                self._next += 1
                self._lent[lent.number] = self._by_id[id(owner)] = lent
            lent.count += 1
        numbers.append(lent.number)
        return lent.number

    def take_back(self, number: int, received: int) -> None:
        """The other side needs an object no more, as often as it was received; or, with 0, it has one of its own back
        that was returned to it."""
        if not received:
            self._has_come_home(number)
            return
        lent = None
        with self._lock:
            lent = self._lent.get(number)
            if lent is None:
                return
            lent.count -= received
            if lent.count > 0:
                return
            del self._lent[number]
            del self._by_id[id(lent.owner)]
        del lent  # out of the lock: this may run a destructor of the user's

    def _has_come_home(self, number: int) -> None:
        proxy = None
        with self._lock:
            for index, proxy in enumerate(self._returning):
                if proxy._number == number:
                    del self._returning[index]
                    break
        del proxy  # out of the lock, as above

    def clear(self) -> None:
        """The other side is gone."""
        self._returning.clear()
        with self._lock:
            lent, self._lent, self._by_id = self._lent, {}, {}
        lent.clear()

    def target(self, target: Target) -> Any:
        """The object that the other side means.

        Raises:
            DecodeError: nothing was lent under this number.
            LookupError: there is nothing of this name.
        """
        if isinstance(target, str):
            return self._named(target)
        lent = self._lent.get(target)
        if lent is None:
            raise DecodeError(f"there is no object {target!r} that was lent, or it was given back")
        return lent.value

    def own(self, number: int) -> Any:
        """The object itself, when its proxy came back.

        Raises:
            DecodeError: nothing was lent under this number.
        """
        lent = self._lent.get(number)
        if lent is None:
            raise DecodeError(f"there is no object {number!r} that was lent, or it was given back")
        return lent.owner

    def returned(self, number: int) -> Any:
        """As ``own``, and the other side need not keep its proxy any more."""
        value = self.own(number)
        self.give_back(number, 0)
        return value

    def serve(self, target: Target, method: Optional[str], args: Any, kwargs: Any) -> Any:
        """``INVOKE`` from the other side."""
        found = self.target(target)
        if method is None:
            return found(*args, **kwargs)
        if method.startswith("_") and method not in _SPECIAL:
            raise AttributeError(f"{method!r} is not public, so it cannot be called from the other side")
        result = getattr(found, method)(*args, **kwargs)
        # What returns the object itself, as `__enter__` and builders do, gives the proxy that the other side has.
        return Ref(found) if result is found and not isinstance(found, (Ref, Outlet)) else result

    def read(self, target: Target, name: str) -> Any:
        """``READ`` from the other side."""
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is not public, so it cannot be read from the other side")
        return getattr(self.target(target), name)

    # -- borrowing -------------------------------------------------------------------------------------------

    def borrow(self, kind: str, number: int, methods: Iterable[str] = ()) -> Proxy:
        """The proxy for what the other side lent.

        Args:
            kind: one of the kinds.
            number: its number there.
            methods: names of its methods, of one whose attributes are read.

        Raises:
            DecodeError: there is no such kind.
        """
        make = self._proxies.get(kind) if type(kind) is str else None
        if make is None or type(number) is not int:
            raise DecodeError(f"{kind!r} is not a kind of reference")
        with self._lock:
            known = self._borrowed.get(number)
            proxy: Optional[Proxy] = known.proxy() if known is not None else None
            if proxy is None:
                proxy = make(self, number)
                if methods and isinstance(proxy, ReadableObject):
                    proxy._methods = frozenset(methods)
                proxy._loan = self._borrowed[number] = loan = _Loan(number)
                owner = weak_reference(self)
                loan.proxy = weak_reference(proxy, lambda _: _collected(owner, loan))
            else:
                assert known is not None
                known.received += 1
            return proxy

    def end(self, loan: _Loan) -> None:
        """A proxy was collected, or will not be used any more."""
        # Not under the lock: a collection may happen while this very thread holds it.
        received, loan.received = loan.received, 0
        if self._borrowed.get(loan.number) is loan:
            self._borrowed.pop(loan.number, None)
        if received:
            self.give_back(loan.number, received)


def _collected(owner: Any, loan: _Loan) -> None:
    lending: Optional[Lending] = owner()
    if lending is not None:
        lending.end(loan)
