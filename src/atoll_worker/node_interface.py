# SPDX-License-Identifier: Apache-2.0
"""``comfy_api`` in a worker: what a node pack says of its nodes is written down, and repeated in the host.

An isolated pack runs without ComfyUI. What it imports from ``comfy_api`` is this module, whose ``io`` takes every name:
``io.Image.Input("image")`` gives an ``Expression``, plain data that the host evaluates with its own ``comfy_api``. So
no version of that interface is written down here. What does not belong here: running nodes (``extension``).
"""

from __future__ import annotations

import sys

from .registry import register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Dict, List, Optional, Tuple

MARK = "__atoll_expression__"
_PACKAGE = "comfy_api"


class Expression:
    """What was written after ``io.``: names, and calls with their arguments."""

    def __init__(self, steps: Tuple[Any, ...]) -> None:
        self._steps = steps

    def __getattr__(self, name: str) -> Expression:
        if name.startswith("_"):
            raise AttributeError(name)
        return Expression((*self._steps, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Expression:
        return Expression((*self._steps, (args, kwargs)))

    def __or__(self, other: Any) -> Expression:
        return self  # in annotations

    __ror__ = __or__

    def __getitem__(self, item: Any) -> Expression:
        return self  # in annotations

    def __repr__(self) -> str:
        return f"<io.{'.'.join(step if type(step) is str else '(…)' for step in self._steps)}>"


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
        return {MARK: steps}
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


class NodeOutput:
    """What ``execute`` of a node returns.

    Attributes:
        args: the values.
        kwargs: what else it says: ``ui``, ``expand``, ``block_execution``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs

    @property
    def result(self) -> Optional[Tuple[Any, ...]]:
        """The values; None if there are none."""
        return self.args or None

    @property
    def ui(self) -> Any:
        """What the host shows of it."""
        return self.kwargs.get("ui")

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


def _build_output(parts: Any) -> NodeOutput:
    args, kwargs = parts
    return NodeOutput(*args, **kwargs)


register(NodeOutput, name="atoll.NodeOutput", encode=lambda one: (one.args, one.kwargs), decode=_build_output)


class ComfyNode:
    """Base of a node, in a worker."""

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

    def __init__(self) -> None:
        super().__init__(())


class _NoInterface:
    """What of ``comfy_api`` needs its host's files and folders."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(
            f"ui.{name} needs ComfyUI itself, which an isolated pack runs without; return plain values"
        )


def _module(name: str, **names: Any) -> ModuleType:
    module = type(sys)(name)
    module.__dict__.update(names)
    sys.modules[name] = module
    return module


def provide() -> None:
    """Let ``comfy_api`` be imported, in this process: this module's, under the names of its versions."""
    io = _Interface()
    names: Dict[str, Any] = {
        "io": io, "IO": io, "ui": _NoInterface(), "UI": _NoInterface(), "ComfyNodeV3": ComfyNode,
        "ComfyNode": ComfyNode, "ComfyExtension": ComfyExtension, "NodeOutput": NodeOutput,
    }  # fmt: skip
    package = _module(_PACKAGE, __path__=[])
    for version in ("latest", "v0_0_1", "v0_0_2", "v3"):
        setattr(package, version, _module(f"{_PACKAGE}.{version}", **names))
