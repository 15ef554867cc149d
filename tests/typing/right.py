# SPDX-License-Identifier: Apache-2.0
"""What type checkers see of right calls: the parameters and the result of the function that was decorated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, assert_type

import atoll
from atoll.client.submitter import Call
from atoll_worker import Cancelled, Service, ServiceBase, expose, progress, register


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
assert_type(plain.submit(b"", name="z"), Call[list[int]])
assert_type(plain.submit(b"").result(), list[int])
assert_type(plain.map([b""], [0.5]), Iterator[list[int]])
assert_type(list(plain.map([b""])), list[list[int]])
assert_type(plain.options(timeout=1.0)(b""), list[int])
assert_type(plain.options(timeout=None).submit(b""), Call[list[int]])
assert_type(list(plain.map([b""], ordered=False)), list[list[int]])
plain.options(retries=2, on_progress=lambda done, total, message: print(done, total, message))
assert_type(plain.pid, int | None)
plain.scale(0, 4, idle=3)
plain.reload(timeout=3)
for worker in plain.status().workers:
    assert_type(worker.pid, int)
assert_type(with_options(3), tuple[str, float])
assert_type(with_options.options(timeout=3)(count=1), tuple[str, float])
assert_type(atoll.function(lambda: 3)(), int)


async def awaited() -> None:
    assert_type(await plain.aio(b"", threshold=1), list[int])
    assert_type(await plain.options(timeout=2).aio(b""), list[int])
    coroutine: Coroutine[Any, Any, tuple[str, float]] = with_options.aio(1)
    assert_type(await coroutine, tuple[str, float])


@atoll.function
async def fetched(address: str, *, tries: int = 1) -> bytes:
    return b""


@atoll.function(timeout=3, idempotent=True)
async def fetched_with_options(address: str) -> bytes:
    return b""


# Run to its end over there: here it is a function like any other.
assert_type(fetched("a", tries=2), bytes)
assert_type(fetched.submit("a"), Call[bytes])
assert_type(fetched_with_options.options(retries=2)("a"), bytes)
assert_type(fetched.map(["a"]), Iterator[bytes])
future: Future[bytes] = fetched.submit("a")
assert_type(fetched.submit("a").cancel(), bool)


@atoll.function
def counted(count: int) -> Iterator[int]:
    yield from range(count)


@atoll.function(timeout=3)
def generated(count: int) -> Generator[int, None, None]:
    yield from range(count)


@atoll.function
async def ticks(count: int) -> AsyncIterator[str]:
    yield "tick"


assert_type(counted(3), atoll.Stream[int])
assert_type(generated(count=3), atoll.Stream[int])
assert_type(ticks(3), atoll.Stream[str])
for number in counted(3):
    assert_type(number, int)
with counted.options(timeout=1)(3) as stream:
    assert_type(next(stream), int)
    assert_type(list(stream), list[int])


async def streamed() -> None:
    assert_type(await fetched.aio("a"), bytes)
    assert_type(await fetched_with_options.aio("a"), bytes)
    async for number in counted.aio(3):
        assert_type(number, int)
    async for tick in ticks.aio(3):
        assert_type(tick, str)
    async with await ticks.aio(3) as stream:
        assert_type(stream, atoll.Stream[str])
        async for tick in stream:
            assert_type(tick, str)
    assert_type([number async for number in counted.options(timeout=1).aio(3)], list[int])


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


async def untyped_service() -> bool:
    service = atoll.Service("services/vision.py")
    answered: bool = await service.detect.aio(3) == 3
    limited: bool = await service.detect.options(timeout=1.0).aio(3) == 3
    async for item in service.frames.aio(n=3):
        print(item)
    return answered and limited


class Greeting(ServiceBase):
    def __init__(self) -> None:
        super().__init__(log_level="DEBUG", log_file="greeting.log")

    def validate_input(self, params: dict[str, Any]) -> None:
        if "name" not in params:
            raise ValueError("name is missing")

    def process(self, params: dict[str, Any]) -> dict[str, str]:
        try:
            self.logger.info("greeting")
            progress(1, 2, "half")
        except Cancelled:
            raise
        return {"message": "Hello"}


Greeting().run()
client = atoll.ServiceClient("services/greeting.py", warm=False, timeout=3)
assert_type(client.call({"name": "Alice"}, timeout=30), dict[str, Any])
assert_type(client.call_stream({}), Iterator[Any])
assert_type(atoll.ServicePool.discover("services", workers=2), dict[str, atoll.ServicePool])
with atoll.ServicePool("services/greeting.py", workers=2) as pool:
    assert_type(pool.submit({}), Call[dict[str, Any]])
    assert_type(pool.map([{}]), Iterator[dict[str, Any]])
try:
    client.call()
except atoll.ServiceFailed as failed:
    assert_type(failed.answer, Mapping[str, Any])
