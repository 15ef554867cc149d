# SPDX-License-Identifier: Apache-2.0
"""What type checkers refuse. Each ignored line must be an error: an ignore that is not needed is one itself."""

from __future__ import annotations

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


async def awaited() -> None:
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
