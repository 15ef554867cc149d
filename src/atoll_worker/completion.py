# SPDX-License-Identifier: Apache-2.0
"""Running a coroutine to its end from code that is not asynchronous.

A worker has one event loop, on its main thread. With one call at a time it runs while a coroutine does, and is
continued by the next; with several it runs all the time. Anywhere else (in the host, or where the loop's own thread
waits for a nested call) a coroutine gets a loop of its own.
"""

from __future__ import annotations

from _contextvars import ContextVar
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, Task
    from typing import Any, Callable, Coroutine, Optional


class Loop:
    """The event loop of a worker. Made on its main thread.

    Args:
        on_task: told of the task that runs for a call, and after it of the one it returned then.
    """

    def __init__(self, on_task: Callable[[Optional[Task[Any]]], Optional[Task[Any]]]) -> None:
        import asyncio

        self.asyncio = asyncio
        self.loop: AbstractEventLoop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.runs_always = False  # from now on, or in a moment: coroutines of other threads are left to it
        self._thread = get_ident()
        self._on_task = on_task

    def complete(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end, and return what it returns."""
        loop = self.loop
        if self.runs_always or loop.is_running():
            if get_ident() == self._thread:
                return _elsewhere(coroutine)
            return self.asyncio.run_coroutine_threadsafe(self._as_task(coroutine), loop).result()
        if get_ident() != self._thread or self.asyncio._get_running_loop() is not None:
            return _elsewhere(coroutine)
        task: Task[Any] = loop.create_task(coroutine)
        outer = self._on_task(task)
        try:
            return loop.run_until_complete(task)
        except BaseException:
            if not task.done():  # interrupted in the loop's own code
                task.cancel()
                try:
                    loop.run_until_complete(task)
                except BaseException:  # it was cancelled, or raised on its way
                    pass
            raise
        finally:
            self._on_task(outer)

    async def _as_task(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        outer = self._on_task(self.asyncio.current_task())
        try:
            return await coroutine
        finally:
            self._on_task(outer)

    @property
    def is_running(self) -> bool:
        """Whether some code of a coroutine is running, or about to."""
        return self.loop.is_running()

    @property
    def has_tasks(self) -> bool:
        """Whether user code left tasks behind that want to run."""
        return bool(self.asyncio.all_tasks(self.loop))

    def turn(self) -> None:
        """Let what was left to the loop begin: an asynchronous generator that was collected is to be closed."""
        if not self.loop.is_running():
            for _ in range(2):
                self.loop.call_soon(self.loop.stop)
                self.loop.run_forever()

    def run_until_readable(self, fd: int) -> None:
        """Let the tasks run until the descriptor can be read, or none is left."""
        loop = self.loop
        readable = self.asyncio.Event()

        async def wait() -> None:
            loop.add_reader(fd, readable.set)
            try:
                while not readable.is_set() and len(self.asyncio.all_tasks(loop)) > 1:
                    try:
                        await self.asyncio.wait_for(readable.wait(), 1.0)
                    except self.asyncio.TimeoutError:
                        pass
            finally:
                loop.remove_reader(fd)

        loop.run_until_complete(wait())

    def run_until(self, stopped: Callable[[], bool]) -> None:
        """Run the loop until it is stopped with ``stop``."""
        if not stopped():
            self.loop.run_forever()

    def stop(self) -> None:
        """End ``run_until``. From any thread."""
        try:
            self.loop.call_soon_threadsafe(self.loop.stop)
        except RuntimeError:
            pass  # closed already

    def close(self) -> None:
        """Cancel what is left, as ``asyncio.run`` does at its end."""
        loop = self.loop
        tasks = self.asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(self.asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _elsewhere(
    coroutine: Coroutine[Any, Any, Any], complete: Optional[Callable[[Coroutine[Any, Any, Any]], Any]] = None
) -> Any:
    """On a thread of its own, and a loop of its own if none is given."""
    import asyncio
    import contextvars
    import threading

    run_to_end = complete or asyncio.run

    outcome = []

    def run() -> None:
        try:
            outcome.append((True, run_to_end(coroutine)))
        except BaseException as error:
            outcome.append((False, error))

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="atoll-coroutine", daemon=True)
    thread.start()
    thread.join()
    fine, value = outcome[0]
    if fine:
        return value
    raise value


def is_coroutine(value: object) -> bool:
    """Whether a value is to be awaited, and then comes to something."""
    return hasattr(type(value), "__await__") and hasattr(type(value), "send")


async def on_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function on a thread of its own, in this context. As ``asyncio.to_thread``, but it never waits for a
    thread to be free, which calls nested in each other might do for ever."""
    import asyncio
    import contextvars
    import threading

    loop = asyncio.get_running_loop()
    outcome: Future[Any] = loop.create_future()

    def settle(value: Any, error: Optional[BaseException]) -> None:
        if outcome.done():
            return  # the task was cancelled
        if error is None:
            outcome.set_result(value)
        elif isinstance(error, StopIteration):  # no future takes that
            outcome.set_exception(RuntimeError(f"StopIteration was raised: {error}"))
        else:
            outcome.set_exception(error)

    def run() -> None:
        value, failure = None, None
        try:
            value = function(*args)
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, value, failure)
        except RuntimeError:
            pass  # the loop was closed under its task

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="atoll-callback", daemon=True).start()
    return await outcome


_loop: Optional[Loop] = None

# The loop that a callback's coroutines belong to, in a host whose caller awaits.
home: ContextVar[Optional[AbstractEventLoop]] = ContextVar("atoll_home", default=None)


class OwnLoop:
    """An event loop for what has to run on the same one each time, such as an asynchronous generator; of its own only
    where there is no other."""

    def __init__(self) -> None:
        self._loop: Optional[AbstractEventLoop] = None

    def complete(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """As ``completion.complete``."""
        if _loop is not None:
            return _loop.complete(coroutine)
        import asyncio

        present = asyncio._get_running_loop()
        own = home.get()
        if own is not None and own.is_running() and own is not present:
            return asyncio.run_coroutine_threadsafe(coroutine, own).result()
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        if present is None:
            return self._loop.run_until_complete(coroutine)
        return _elsewhere(coroutine, self._loop.run_until_complete)

    def close(self) -> None:
        """End what was begun on it. Idempotent."""
        loop, self._loop = self._loop, None
        if loop is not None:
            try:
                self._loop = loop
                self.complete(loop.shutdown_asyncgens())
            finally:
                self._loop = None
                loop.close()


def use(loop: Loop) -> None:
    """Let ``complete`` run coroutines on this loop from now on."""
    global _loop
    _loop = loop


def complete(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, and return what it returns, or raise what it raises."""
    if _loop is not None:
        return _loop.complete(coroutine)
    import asyncio

    own = home.get()
    if own is not None and own.is_running() and asyncio._get_running_loop() is not own:
        return asyncio.run_coroutine_threadsafe(coroutine, own).result()
    if asyncio._get_running_loop() is not None:
        return _elsewhere(coroutine)
    return asyncio.run(coroutine)
