# SPDX-License-Identifier: Apache-2.0
"""``comfy_api`` in a worker: what a node pack says to it is written down, and said again in the host.

An isolated pack runs without ComfyUI. What it imports from ``comfy_api`` is this module, whose ``io``, ``ui`` and
others take every name: ``io.Image.Input("image")`` gives an ``Expression``, which the host evaluates with its own
``comfy_api``: those of a schema when the pack is loaded, those of a result, such as ``ui.PreviewImage(image)``, when it
has come. So no version of that interface is written down here.

What does not belong here: running nodes (``extension``); other modules of ComfyUI (``host_modules``).
"""

from __future__ import annotations

import sys
from _contextvars import ContextVar

from .lent import lend, unlend
from .registry import register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Tuple

MARK = "__atoll_expression__"
# What of the interface an expression may begin with.
ROOTS = ("io", "ui", "Input", "InputImpl", "Types")
# What a pack can import of the interface, and the versions of it that there are.
NAMES = (*ROOTS, "IO", "UI", "ComfyExtension", "ComfyNode", "ComfyNodeV3", "NodeOutput")
VERSIONS = ("latest", "v0_0_1", "v0_0_2", "v3")
# Stands for the node's own class, in what a node says: its host has another.
OWN_CLASS = "cls"
_PACKAGE = "comfy_api"


class Expression:
    """What was written after ``io.``: names, and calls with their arguments."""

    def __init__(self, steps: Tuple[Any, ...], root: str = "io") -> None:
        self._steps = steps
        self._root = root

    def __getattr__(self, name: str) -> Expression:
        if name.startswith("_"):
            raise AttributeError(name)
        return Expression((*self._steps, name), self._root)

    def __call__(self, *args: Any, **kwargs: Any) -> Expression:
        return Expression((*self._steps, (args, kwargs)), self._root)

    def __or__(self, other: Any) -> Expression:
        return self  # in annotations

    __ror__ = __or__

    def __getitem__(self, item: Any) -> Expression:
        return self  # in annotations

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError(
            f"{self!r} is evaluated by the host, once this pack has returned it, so here it has no length, no items "
            "and no order; write down the values themselves"
        )

    # Without these a loop over one would never end, because of __getitem__.
    __iter__ = __len__ = __contains__ = __lt__ = __gt__ = __le__ = __ge__ = __int__ = __float__ = _refuse

    def __bool__(self) -> bool:
        return True

    def __mro_entries__(self, bases: Tuple[Any, ...]) -> Tuple[type, ...]:
        # A class of the pack's own that derives from the interface's, such as a type for `comfytype`.
        return (_OfInterface,) if next(one for one in bases if isinstance(one, Expression)) is self else ()

    def __repr__(self) -> str:
        return "<" + self._root + "".join("(…)" if type(step) is not str else f".{step}" for step in self._steps) + ">"


class _OfInterface:
    """What stands for a base class of the interface."""


def comfytype(io_type: str, **_: Any) -> Callable[[type], type]:
    """``io.comfytype``: a type of the pack's own, whose inputs and outputs the host makes by ``io.Custom``."""

    def decorate(cls: type) -> type:
        own = Expression(("Custom", ((io_type,), {})))
        for name in ("Input", "Output"):
            if name not in vars(cls):
                setattr(cls, name, getattr(own, name))
        setattr(cls, "io_type", io_type)  # noqa: B010 - mypy knows no such attribute
        return cls

    return decorate


def _build_expression(parts: Any) -> Expression:
    root, steps = parts
    return Expression(tuple(steps), str(root))


register(Expression, name="atoll.Expression", encode=lambda one: (one._root, one._steps), decode=_build_expression)


def described(value: Any) -> Any:
    """A value of a schema as plain data.

    Raises:
        TypeError: something in it is no data.
    """
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if type(value) is Expression:
        steps = [
            step if type(step) is str else [described(step[0]), described(step[1])] for step in value._steps
        ]  # fmt: skip
        return {MARK: steps, "root": value._root}
    if isinstance(value, str):
        # The usual way to say "any type": text that is unequal to nothing.
        wildcard = not (value != "\0 another")  # noqa: SIM202 - `!=` is what they override
        return {MARK: "any", "text": str.__str__(value)} if wildcard else str.__str__(value)
    if isinstance(value, (int, float)):
        return float(value) if isinstance(value, float) else int(value)
    if isinstance(value, dict):
        return {described(key): described(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(described(item) for item in value)
    if isinstance(value, (list, set, frozenset)) or hasattr(type(value), "__iter__"):
        return [described(item) for item in value]
    raise TypeError(f"a node's schema holds {value!r:.100}, which is no data, so its host cannot be told")


def told(value: Any) -> Any:
    """A result of a node as it crosses: as ``lend``, and what is said to the interface as the host can say it."""
    return _with_each(_tell, value)


def come_back(value: Any) -> Any:
    """A result of a node that crossed: as ``unlend``, also within what ``told`` said."""
    return _with_each(unlend, value)


def _tell(value: Any) -> Any:
    if isinstance(value, type) and issubclass(value, ComfyNode):
        return Expression((), OWN_CLASS)
    return lend(value)


def _with_each(change: Callable[[Any], Any], value: Any) -> Any:
    """A copy, in which everything that is no container and nothing of the interface's is changed."""
    cls = type(value)
    if cls is Expression:
        steps = tuple(
            step if type(step) is str else (_with_each(change, step[0]), _with_each(change, step[1]))
            for step in value._steps
        )
        return Expression(steps, value._root)
    if cls is NodeOutput:
        return NodeOutput(*_with_each(change, value.args), **_with_each(change, value.kwargs))
    if cls is list:
        return [_with_each(change, item) for item in value]
    if cls is tuple:
        return tuple(_with_each(change, item) for item in value)
    if cls is dict:
        return {key: _with_each(change, item) for key, item in value.items()}
    return change(value)


class NodeOutput:
    """What ``execute`` of a node returns.

    Attributes:
        args: the values.
        kwargs: what else it says: ``ui``, ``expand``, ``block_execution``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs

    @classmethod
    def from_dict(cls, data: Dict[str, Any]) -> NodeOutput:
        """From what a node of the older interface returns: ``result``, ``ui``, ``expand``."""
        said = {name: data[name] for name in ("ui", "expand") if name in data}
        return cls(*data.get("result", ()), **said)

    @property
    def result(self) -> Optional[Tuple[Any, ...]]:
        """The values; None if there are none."""
        return self.args or None

    @property
    def ui(self) -> Any:
        """What the host shows of it."""
        return self.kwargs.get("ui")

    @property
    def expand(self) -> Any:
        """The graph that takes the node's place."""
        return self.kwargs.get("expand")

    @property
    def block_execution(self) -> Any:
        """Why what comes after the node is not to be run."""
        return self.kwargs.get("block_execution")

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


def _build_output(parts: Any) -> NodeOutput:
    args, kwargs = parts
    return NodeOutput(*args, **kwargs)


register(NodeOutput, name="atoll.NodeOutput", encode=lambda one: (one.args, one.kwargs), decode=_build_output)


class Hidden:
    """``cls.hidden`` of a node: what its host knows of this run, such as ``unique_id``. What was not said is None."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return None


# Of the run that the present code belongs to; a context variable, since nodes are run by several threads and tasks.
hidden_now: ContextVar[Optional[Hidden]] = ContextVar("atoll_hidden", default=None)


class _HiddenNow:
    def __get__(self, one: Any, owner: Any = None) -> Optional[Hidden]:
        return hidden_now.get()


class ComfyNode:
    """Base of a node, in a worker.

    Attributes:
        hidden: what the host knows of this run; None where the host says nothing.
    """

    hidden = _HiddenNow()

    @classmethod
    def define_schema(cls) -> Any:
        """What the host shows of the node."""
        raise NotImplementedError(f"{cls.__name__} has no define_schema()")


class ComfyExtension:
    """Base of what ``comfy_entrypoint`` returns, in a worker."""

    async def on_load(self) -> None:
        """Called before ``get_node_list``."""

    async def get_node_list(self) -> List[type]:
        """The node classes."""
        raise NotImplementedError(f"{type(self).__name__} has no get_node_list()")


class _Interface(Expression):
    """``io``: a few real classes, and expressions for all the rest."""

    NodeOutput = NodeOutput
    ComfyNode = ComfyNode
    comfytype = staticmethod(comfytype)

    def __init__(self) -> None:
        super().__init__(())


def _module(name: str, **names: Any) -> ModuleType:
    module = type(sys)(name)
    module.__dict__.update(names)
    sys.modules[name] = module
    return module


def _no_name(version: str) -> Callable[[str], NoReturn]:
    def missing(name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        # Not AttributeError, of which `from ... import` would say nothing but the name.
        raise ImportError(
            f"{_PACKAGE}.{version}.{name} is ComfyUI's own, which an isolated pack runs without; there are: "
            f"{', '.join(NAMES)}"
        )

    return missing


def provide() -> None:
    """Let ``comfy_api`` be imported, in this process: this module's, under the names of its versions."""
    io = _Interface()
    names: Dict[str, Any] = {
        **{root: Expression((), root) for root in ROOTS},
        "io": io, "IO": io, "UI": Expression((), "ui"), "ComfyNodeV3": ComfyNode,
        "ComfyNode": ComfyNode, "ComfyExtension": ComfyExtension, "NodeOutput": NodeOutput,
    }  # fmt: skip
    package = _module(_PACKAGE, __path__=[])
    for version in VERSIONS:
        module = _module(f"{_PACKAGE}.{version}", __getattr__=_no_name(version), **names)
        setattr(package, version, module)
