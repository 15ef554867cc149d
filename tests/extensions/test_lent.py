# SPDX-License-Identifier: Apache-2.0
"""What of an object that stays where it is can be used from the other side: its methods, and what it consists of."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.extensions import ExtensionConfig, ExtensionManager
from interpreters import INTERPRETERS

Run = Callable[[Callable[[ExtensionManager], Any]], Any]
Write = Callable[..., Path]

PACK = """
    import copy
    from atoll_worker import ExtensionBase

    class Sampling:
        sigma = 14.5

    class Model:
        kind = "the pack's"

        def __init__(self):
            self.factor = 3
            self.sampling = Sampling()

        def double(self):
            return 2 * self.factor

    class Pack(ExtensionBase):
        def read(self, model, name):
            try:
                return getattr(model, name)
            except AttributeError as error:
                return f"AttributeError: {error}"

        def has(self, model, *names):
            return [hasattr(model, name) for name in names]

        def walk(self, model):
            return model.sampling.sigma, model.options["scale"](4), model.alone(5), model.sampling.of(model)

        def call_method(self, model, name, *args):
            return getattr(model, name)(*args)

        def deeper(self, model, name, attribute):
            return getattr(getattr(model, name), attribute)

        def set(self, model):
            model.factor = 5

        def copy(self, model):
            return copy.deepcopy(model)

        def made(self):
            return Model()

        def adder(self, number):
            return lambda other: number + other

        def apply(self, function, *args):
            return function(*args)
"""


class Sampling:
    """A part of a model."""

    sigma = 14.5

    def of(self, model: Any) -> bool:
        """Whether it is this model's: an object that came back is itself."""
        return bool(model.sampling is self)


class Model:
    """Stays in this process."""

    system = os  # what must not be reached
    part = Sampling

    def __init__(self) -> None:
        self.factor = 4
        self.weights = np.arange(3.0)
        self.sampling = Sampling()
        self.options = {"scale": lambda value: value * self.factor, "depth": [1, {"deep": (2,)}]}
        self.alone = lambda value: value + self.factor
        self.log = logging.getLogger("of another package")
        self.holds = {"deep": [os]}
        self.partly = functools.partial(self.scale, 5)
        self.shadowed = 6  # type: ignore[method-assign,assignment]
        self._hidden = 1

    @property
    def doubled(self) -> int:
        return 2 * self.factor

    @property
    def broken(self) -> int:
        raise ValueError("of the property")

    def scale(self, value: Any) -> Any:
        return value * self.factor

    def shadowed(self) -> int:
        return 0


def test_what_an_object_consists_of_is_read(run: Run, write: Write) -> None:
    folder = write("reading_pack", PACK)

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("reading_pack", folder))
        model = Model()
        assert (pack.read(model, "factor"), pack.read(model, "doubled")) == (4, 8)
        assert np.array_equal(pack.read(model, "weights"), model.weights)
        assert pack.read(model, "options")["depth"] == [1, {"deep": (2,)}]
        assert pack.read(model, "sampling") is model.sampling  # read there, and itself again here
        assert pack.walk(model) == (14.5, 16, 9, True)
        names = ("factor", "scale", "sampling", "absent", "_hidden", "system")
        assert pack.has(model, *names) == [True, True, True, False, False, False]
        with pytest.raises(ValueError, match="of the property"):
            pack.read(model, "broken")
        assert pack.read(model, "shadowed") == 6
        # What is of another package can be called, if it can be, and comes back as itself.
        assert pack.call_method(model, "partly") == 20
        assert pack.read(model, "partly") is model.partly
        with pytest.raises(AttributeError, match=r"'func': 'partly' of .*Model is or holds a functools\.partial"):
            pack.deeper(model, "partly", "func")
        # The other way round too.
        made = pack.made()
        assert (made.kind, made.factor, made.sampling.sigma, made.double()) == ("the pack's", 3, 14.5, 6)
        assert not hasattr(made, "absent")

    run(main)


def test_nothing_is_read_from_which_one_could_walk_on(run: Run, write: Write) -> None:
    folder = write("walking_pack", PACK)

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("walking_pack", folder))
        model = Model()
        assert "is or holds a module, which is not used from the other side" in pack.read(model, "system")
        assert "is or holds a module" in pack.read(model, "holds")
        assert "is or holds a class" in pack.read(model, "part")
        assert "is or holds a logging.Logger, neither data nor of the same package" in pack.read(model, "log")
        assert "give Model a method that does what is needed" in pack.read(model, "log")
        for name in ("_hidden", "__globals__", "__subclasshook__x"):
            assert pack.read(model, name).startswith("AttributeError: ")
        with pytest.raises(AttributeError, match=r"'factor': attributes .* can be read, not set; give it a method"):
            pack.set(model)
        assert model.factor == 4
        with pytest.raises(TypeError, match="stays where it is, so it cannot be copied"):
            pack.copy(model)

    run(main)


def test_functions_are_lent_both_ways(run: Run, write: Write) -> None:
    folder = write("function_pack", PACK)

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("function_pack", folder))
        add = pack.adder(2)
        assert add(3) == 5
        assert await add.aio(4) == 6
        assert pack.apply(add, 5) == 7
        model = Model()
        assert pack.apply(model.scale, 3) == 12
        assert pack.apply(lambda one: one, model) is model  # what crosses to a function and back is itself

        async def later(one: Any) -> Any:
            return one

        assert pack.apply(later, model) is model

    run(main)


def test_on_the_oldest_python(run: Run, write: Write) -> None:
    folder = write("oldest_pack", PACK)
    python = min(INTERPRETERS, key=lambda version: int(version.partition(".")[2]))

    async def main(manager: ExtensionManager) -> None:
        pack = await manager.load_extension(ExtensionConfig("oldest_pack", folder, python=INTERPRETERS[python]))
        model = Model()
        model.weights = None  # type: ignore[assignment] - there is no numpy there
        assert pack.walk(model) == (14.5, 16, 9, True)

    run(main)
