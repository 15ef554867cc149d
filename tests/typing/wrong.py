# SPDX-License-Identifier: Apache-2.0
"""What type checkers refuse. Each ignored line must be an error: an ignore that is not needed is one itself."""

from __future__ import annotations

from collections.abc import Iterator

import atoll
from atoll_worker import expose


@atoll.function
def f(count: int, *, name: str = "") -> str:
    return name * count


f("1")  # type: ignore[arg-type]
f()  # type: ignore[call-arg]
f(1, "positional")  # type: ignore[call-arg]
f(1, nam="misspelled")  # type: ignore[call-arg]
f.submit("1")  # type: ignore[arg-type]
f.submit(1, 2)  # type: ignore[arg-type, call-arg]
f.local("1")  # type: ignore[arg-type]
f.options(timeout=1)("1")  # type: ignore[arg-type]
f.options(timeout="1")  # type: ignore[arg-type]
f.options(1)  # type: ignore[call-arg]
f.map(1)  # type: ignore[call-overload]
f.map(["one"])  # type: ignore[list-item]
number: int = f(1)  # type: ignore[assignment]
result: int = f.submit(1).result()  # type: ignore[assignment]


@atoll.function
async def fetched(address: str) -> bytes:
    return b""


@atoll.function
def counted(count: int) -> Iterator[int]:
    yield from range(count)


fetched(1)  # type: ignore[arg-type]
text: str = fetched("a")  # type: ignore[assignment]
text = next(counted(3))  # type: ignore[assignment]
counted("3")  # type: ignore[arg-type]
f.options(retries="2")  # type: ignore[arg-type]
f.options(on_progress=lambda done: None)  # type: ignore[arg-type, misc]
f.scale("1", 2)  # type: ignore[arg-type]


async def awaited() -> None:
    await fetched("a")  # type: ignore[misc]
    async for item in fetched.aio("a"):  # type: ignore[attr-defined]
        del item
    async for item in counted.aio("3"):  # type: ignore[call-overload]
        del item
    async for item in counted.aio(3):
        word: str = item  # type: ignore[assignment]
        print(word)
    await f.aio("1")  # type: ignore[arg-type]
    await f(1)  # type: ignore[misc]
    awaited_number: int = await f.aio(1)  # type: ignore[assignment]
    print(awaited_number)


atoll.function(dependancies=["x"])  # type: ignore[call-overload]
atoll.function(timeout="1")  # type: ignore[call-overload]
atoll.function(3)  # type: ignore[call-overload]
atoll.function(restart=atoll.Breaker())  # type: ignore[call-overload]
atoll.Restart(backoff="soon")  # type: ignore[arg-type]
atoll.Service("s", workers="2")  # type: ignore[arg-type]
atoll.Service(3)  # type: ignore[arg-type]
atoll.Service("s", timeout="1")  # type: ignore[arg-type]
expose(3)  # type: ignore[call-overload]
