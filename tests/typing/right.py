# SPDX-License-Identifier: Apache-2.0
"""What type checkers see of right calls: the parameters and the result of the function that was decorated."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, assert_type

import atoll
from atoll_worker import Service, expose, register


@atoll.function
def plain(image: bytes, threshold: float = 0.5, *, name: str = "x") -> list[int]:
    return []


@atoll.function(dependencies=["numpy==1.26.4"], python="3.12", timeout=2.0, env_vars={"A": "b"})
def with_options(count: int) -> tuple[str, float]:
    return "", 0.0


@atoll.function()
def without_options() -> None:
    return None


assert_type(plain(b"", 0.1, name="y"), list[int])
assert_type(plain(image=b""), list[int])
assert_type(plain.local(b""), list[int])
assert_type(plain.submit(b"", name="z"), Future[list[int]])
assert_type(plain.submit(b"").result(), list[int])
assert_type(plain.map([b""], [0.5]), Iterator[list[int]])
assert_type(list(plain.map([b""])), list[list[int]])
assert_type(plain.options(timeout=1.0)(b""), list[int])
assert_type(plain.options(timeout=None).submit(b""), Future[list[int]])
assert_type(plain.pid, int | None)
assert_type(with_options(3), tuple[str, float])
assert_type(with_options.options(timeout=3)(count=1), tuple[str, float])
assert_type(atoll.function(lambda: 3)(), int)


async def awaited() -> None:
    assert_type(await plain.aio(b"", threshold=1), list[int])
    assert_type(await plain.options(timeout=2).aio(b""), list[int])
    coroutine: Coroutine[Any, Any, tuple[str, float]] = with_options.aio(1)
    assert_type(await coroutine, tuple[str, float])


def takes_any_callable(function: Callable[[int], tuple[str, float]]) -> None:
    function(1)


takes_any_callable(with_options)
takes_any_callable(with_options.local)
takes_any_callable(with_options.options(timeout=1))

wider: atoll.RemoteFunction[[int], tuple[object, ...]] = with_options

with atoll.Service("services/vision.py", timeout=3, env_vars={"A": "b"}) as vision:
    assert_type(vision, atoll.Service)
    assert_type(vision.detect, atoll.RemoteFunction[..., Any])
    vision.detect(1, x=2)
    vision.call("detect", 1, x=2)
    assert_type(vision.functions, Mapping[str, atoll.FunctionInfo])
    assert_type(vision.functions["detect"].signature, str)
    assert_type(vision.spec.dependencies, tuple[str, ...])
atoll.Service(Path("services"), name="n", environment=Path("venv"))
atoll.Service(
    "services",
    workers=2,
    restart=atoll.Restart(backoff=1),
    breaker={"failures": 3},
    recycle=atoll.Recycle(memory_growth="500MB"),
    health_interval=None,
    memory="2GB",
    sandbox=atoll.Sandbox(read=("/data",)),
)


@atoll.function(workers=2, restart=atoll.Restart(window=3), health_interval=None, preload=["numpy"], cpus=1)
def supervised(x: int) -> int:
    return x


assert_type(supervised(1), int)


@expose
def exposed(x: int) -> str:
    return str(x)


@expose(name="other")
def renamed(x: int) -> str:
    return str(x)


assert_type(exposed(1), str)
assert_type(renamed(1), str)


class Stateful(Service):
    @expose
    def method(self, x: int) -> str:
        return str(x)


assert_type(Stateful().method(1), str)


@register
class Registered:
    attribute = 1


@atoll.register(name="other")
class RegisteredToo:
    attribute = 2


assert_type(Registered().attribute, int)
assert_type(RegisteredToo().attribute, int)

try:
    without_options()
except atoll.WorkerDied as death:
    assert_type(death.exit_code, int | None)
    assert_type(death.stderr, tuple[str, ...])
except atoll.RemoteError as error:
    assert_type(error.remote_traceback, str)
