# SPDX-License-Identifier: Apache-2.0
"""asyncio: several workers at the same time, from one event loop, with a deadline for each call."""

import asyncio

import atoll


def worker(number: int) -> atoll.Function[[float], int]:
    """A function with a worker of its own."""

    @atoll.function(name=f"worker{number}")
    def work(seconds: float) -> int:
        import os
        import time

        time.sleep(seconds)
        return os.getpid()

    return work


async def main() -> None:
    workers = [worker(number) for number in range(3)]
    pids = await asyncio.gather(*(one.aio(0.1) for one in workers))
    print(f"{len(set(pids))} processes worked at the same time")
    try:
        await workers[0].options(timeout=0.1).aio(60)
    except atoll.CallTimeout as error:
        print(str(error).splitlines()[0])
    print("and the worker goes on:", await workers[0].aio(0) == pids[0])
    for one in workers:
        one.close()


if __name__ == "__main__":
    asyncio.run(main())
