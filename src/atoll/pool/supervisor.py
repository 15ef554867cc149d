# SPDX-License-Identifier: Apache-2.0
"""Keeps the workers of a pool as its policy wants them.

What happens is told to the policy on the warden's thread, one event at a time; what it answers is done here. A worker
is started on a thread of its own, since that takes long and may build an environment; it can be called as soon as it is
ready, before the policy has heard of it. What does not belong here: any decision (``policy``), and calls (``pool``).
"""

from __future__ import annotations

import copy
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..errors import AtollError, CircuitOpen, WorkerDied, WorkerOutOfMemory, WorkerStartError
from ..manifest.options import Breaker, Recycle, Restart
from ..processes import output_reader, tree_rss, usage, warden
from .lifecycle import (
    Action,
    Cause,
    CloseBreaker,
    Kill,
    OpenBreaker,
    Ping,
    PoolState,
    Retire,
    Sample,
    Start,
    WorkerState,
)
from .policy import Policy
from .settings import IDLE_TIMEOUT, PoolSettings
from .worker import Worker, WorkerPlan, template_for

if TYPE_CHECKING:
    from ..processes.template import Template
    from .dispatcher import Dispatcher
    from .lending import HostLending
    from .metrics import PoolMetrics

logger = logging.getLogger("atoll.pool")

# Seconds that a worker which is free to go gets to tear down.
STOP_GRACE = 3.0
# Seconds for a template that was killed to have ended.
_KILL_PATIENCE = 5.0


class Supervisor:
    """See the module.

    Args:
        service: name of the service.
        make_plan: makes the plan of a worker; it may build an environment, and is called anew for a reload.
        settings: of the pool.
        dispatcher: where ready workers are announced.
        metrics: where restarts are counted.
        lending: makes what is lent to and borrowed from one worker.
    """

    def __init__(
        self,
        service: str,
        make_plan: Callable[[], WorkerPlan],
        settings: PoolSettings,
        dispatcher: Dispatcher,
        metrics: PoolMetrics,
        lending: Callable[[], HostLending],
    ) -> None:
        self._service = service
        self._make_plan = make_plan
        self._settings = settings
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._lending = lending
        self._policy = Policy(
            minimum=settings.workers,
            maximum=settings.workers,
            restart=settings.restart or Restart(),
            breaker=settings.breaker or Breaker(),
            recycle=settings.recycle or Recycle(),
            health_interval=settings.health_interval,
            idle_timeout=IDLE_TIMEOUT,
            random=random.random,
        )
        recycle = settings.recycle
        self.look_at_calls = recycle.calls if recycle is not None and recycle.calls is not None else 1 << 62
        self._workers: dict[int, Worker] = {}  # all that are not gone, by number
        self._plan: WorkerPlan | None = None
        self._plan_lock = threading.Lock()
        # What workers are forked from, if anything: none or one, in a list because taking it out is one step.
        self._templates: list[Template] = []
        self._changed = threading.Condition()  # whenever a worker comes or goes
        self._closing = threading.Event()
        self._asked = False  # `wanted` was posted and not heard yet
        self._look_asked = False  # and so was `look`
        self._timer: float | None = None
        self._was_ready = False  # some worker was, with the present plan
        self._last_error: BaseException | None = None  # of a start that left nobody to call
        self._minimum = self._maximum = settings.workers
        self._one_wanted = False  # by somebody who does not stand in the queue
        self._failed_starts = 0
        self._failures = 0  # how many of those there were
        self._replacement_error: BaseException | None = None  # of the last start of a replacement that failed
        self._replacement_failures = 0

    # -- from any thread -------------------------------------------------------------------------------------

    @property
    def workers(self) -> list[Worker]:
        """All that are not gone, oldest first."""
        return list(self._workers.values())

    def states(self) -> dict[int, WorkerState]:
        """Number of each worker -> its state, as the policy sees it."""
        return self._policy.workers

    @property
    def state(self) -> PoolState:
        """Of the pool, as the policy sees it; closed as soon as it is to be, of which the policy hears later."""
        return PoolState.CLOSED if self._closing.is_set() else self._policy.state

    def wanted(self) -> None:
        """Somebody waits for a worker, or wants one to be ready."""
        if len(self._dispatcher.workers) >= self._maximum:
            return  # there are as many as there may be: the policy would say so too
        if not self._asked:
            self._asked = True
            self._post(Supervisor._hear_wanted)

    def refusal(self) -> CircuitOpen | None:
        """What a caller that finds no worker is to be told at once; None if it may wait, or is told otherwise that the
        pool is closed."""
        if self._dispatcher.serving_since is not None:
            return None
        refusal = self._policy.refusal(time.monotonic())
        if refusal is None or self._closing.is_set():
            return None
        return CircuitOpen(self._service, refusal.reason, refusal.retry_in)

    def succeeded(self, worker: Worker) -> None:
        """A worker that is not proven has answered a call."""
        self._set_unproven(worker, False)

        def succeeded(self: Supervisor) -> None:
            self._do(self._policy.succeeded(worker.number, time.monotonic()))
            if self._policy.state is PoolState.HALF_OPEN:
                self._set_unproven(worker, True)

        self._post(succeeded)

    def _set_unproven(self, worker: Worker, unproven: bool) -> None:
        """Whether to be told of the next successful call of a worker."""
        worker.unproven = unproven
        for channel in worker.channels:
            channel.look_at = 0 if unproven else self.look_at_calls

    def look(self, worker: Worker) -> None:
        """A worker has answered as many calls as it may."""
        if worker.is_serving and not self._look_asked:  # once: it is told after every call from then on
            self._look_asked = True
            self._post(Supervisor._look)

    def scale(self, minimum: int, maximum: int, idle_timeout: float | None) -> None:
        """Other bounds from now on.

        Raises:
            ValueError: they are wrong.
        """
        if not 0 <= minimum <= maximum or maximum < 1:
            raise ValueError(f"scale(min={minimum!r}, max={maximum!r}): expected 0 <= min <= max, and max at least 1")

        self._minimum, self._maximum = minimum, maximum

        def scale(self: Supervisor) -> None:
            if idle_timeout is not None:
                self._policy.idle_timeout = idle_timeout
            self._do(self._policy.scale(time.monotonic(), minimum, maximum))

        self._post(scale)

    def reload(self, timeout: float | None) -> None:
        """Replace every worker, one after another, and wait until that is done.

        Raises:
            what starting a replacement raised; the workers there are go on.
            TimeoutError: it took longer than ``timeout`` seconds; it goes on.
        """
        with self._plan_lock:
            self._plan = None
            self._release_template(outdated=True)
        old = self.workers
        failures = self._replacement_failures
        self._post(lambda self: self._do(self._policy.reload(time.monotonic())))

        def done() -> bool:
            if self._closing.is_set() or self._replacement_failures > failures:
                return True
            serving = self._dispatcher.workers
            return not any(one in serving or (one.number in self._workers and not one.is_serving) for one in old)

        if not old:
            return
        with self._changed:
            if not self._changed.wait_for(done, timeout):
                raise TimeoutError(f"reload of {self._service!r} was not done within {timeout:g} seconds; it goes on")
        if self._replacement_error is not None and self._replacement_failures > failures:
            raise _again(self._replacement_error)

    def wait_ready(self) -> None:
        """Wait until the workers that are to be kept are ready, one at least; or as many as can be had.

        Raises:
            what starting the last one raised, if none is ready.
        """
        before, starts_before = self._failures, self._failed_starts
        self._one_wanted = True
        self.wanted()

        def done() -> bool:
            if self._closing.is_set() or self._failures > before or self._policy.state is PoolState.OPEN:
                return True
            if self._failed_starts > starts_before and not any(not one.is_serving for one in self.workers):
                return True  # some cannot be started; the policy tries again when it is time
            return len(self._dispatcher.workers) >= max(1, self._minimum)

        with self._changed:
            self._changed.wait_for(done)
        if self._last_error is not None and self._failures > before and not self._dispatcher.workers:
            raise _again(self._last_error)

    def close(self, grace: float) -> None:
        """Stop every worker in order, for at most ``grace`` seconds; then kill what is left. Idempotent."""
        self.hang_up()
        deadline = time.monotonic() + grace
        for worker in self.workers:
            worker.stop(max(0.0, deadline - time.monotonic()))
        ended = self._release_template()
        if ended is not None:
            ended.wait(_KILL_PATIENCE)

    def hang_up(self) -> None:
        """Start none any more, and tell every worker to end. Does not wait."""
        self._closing.set()
        self._post(lambda self: self._do(self._policy.close(time.monotonic())))
        for worker in self.workers:
            worker.cause = worker.cause or Cause.RETIRED
            worker.hang_up()
        for template in self._templates.copy():
            template.wake()
        self._tell_changed()

    def abandon(self) -> None:
        """Nobody can call any more. As ``close``, without waiting: this may run at any moment, on any thread."""
        self._closing.set()
        for worker in self.workers:
            worker.cause = worker.cause or Cause.RETIRED
            worker.hang_up()
            if worker.process is not None:
                worker.process.abandon(STOP_GRACE)
        templates = self._templates
        if templates:

            def let_go() -> None:
                _release_all(templates)

            warden().post(let_go)

    # -- on the warden's thread ------------------------------------------------------------------------------

    def _post(self, step: Callable[[Supervisor], None]) -> None:
        # The warden must not keep a pool that nobody has any more.
        reference = weakref.ref(self)

        def run() -> None:
            supervisor = reference()
            if supervisor is not None:
                step(supervisor)

        warden().post(run)

    def _hear_wanted(self) -> None:
        self._asked = False
        if self._closing.is_set():
            return
        concurrency = self._settings.concurrency
        waiting = -(-self._dispatcher.waiting // concurrency)  # workers' worth of callers
        if self._one_wanted:
            self._one_wanted = False
            waiting = max(waiting, 0 if self._dispatcher.workers else 1)
        self._do(self._policy.wanted(time.monotonic(), waiting))
        self._refuse_waiting()

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self._start(action)
            elif isinstance(action, Retire):
                self._retire(action)
            elif isinstance(action, Kill):
                worker = self._workers.get(action.worker)
                if worker is not None:
                    if not self._closing.is_set():
                        self._say(logging.WARNING, "worker pid %d is killed: %s", worker.pid, action.why)
                    worker.end(action.cause, action.why)
            elif isinstance(action, Ping):
                worker = self._workers.get(action.worker)
                if worker is not None:
                    worker.ping()
            elif isinstance(action, OpenBreaker):
                self._say(
                    logging.ERROR,
                    "calls are refused for %.1f s: %s",
                    max(0.0, action.until - time.monotonic()),
                    action.reason,
                )
                for worker in self.workers:
                    self._set_unproven(worker, True)
                self._tell_changed()
            elif isinstance(action, CloseBreaker):
                self._say(logging.WARNING, "workers serve again")
        self._refuse_waiting()
        self._set_timer()

    def _say(self, level: int, message: str, *args: object) -> None:
        """To the log. Its handlers are the user's and may block or raise, so they do not run on the warden's thread."""
        output_reader().post(partial(logger.log, level, "%s: " + message, self._service, *args))

    def _refuse_waiting(self) -> None:
        if self._dispatcher.queue:
            refusal = self.refusal()
            if refusal is not None:
                self._dispatcher.fail_waiting(refusal)

    def _set_timer(self) -> None:
        wake = self._policy.next_wake
        if wake is None or (self._timer is not None and self._timer <= wake + 0.001):
            return
        self._timer = wake
        reference = weakref.ref(self)

        def ring() -> None:
            supervisor = reference()
            if supervisor is not None and supervisor._timer == wake:
                supervisor._timer = None
                supervisor._tick()

        warden().after(max(0.0, wake - time.monotonic()), ring)

    def _look(self) -> None:
        self._look_asked = False
        self._tick()

    def _tick(self) -> None:
        if self._closing.is_set():
            return
        now = time.monotonic()
        for worker in self.workers:
            if worker.is_serving:
                sample = self._sample(worker, now)
                if sample is not None:
                    self._policy.sampled(worker.number, now, sample)
        self._do(self._policy.tick(now))

    def _sample(self, worker: Worker, now: float) -> Sample | None:
        process = worker.process
        found = usage(process.python_pid, shared=True) if process is not None and not process.has_exited else None
        if found is None:
            return None
        in_flight = self._dispatcher.in_flight(worker)
        sent = worker.ping_sent_at
        return Sample(
            calls=worker.calls,
            in_flight=in_flight,
            rss=found.rss - found.shared,  # what was lent to it is no growth of its own
            idle_for=0.0 if in_flight else now - worker.used_at,
            cpu_seconds=found.cpu,
            stopped=found.state in "Tt",
            pong_age=None if sent is None else now - sent,
        )

    # -- starting --------------------------------------------------------------------------------------------

    def _start(self, action: Start) -> None:
        worker = Worker(self._service, action.worker, self._settings.concurrency, self._lending())
        self._workers[action.worker] = worker
        if action.restart:
            self._metrics.restarted(self._restart_reason)
        threading.Thread(
            target=self._run_start, args=(worker, action.replaces is not None), name="atoll-start", daemon=True
        ).start()

    _restart_reason = "crashed"

    def _run_start(self, worker: Worker, is_replacement: bool) -> None:
        """On a thread of its own."""
        try:
            with self._plan_lock:
                if self._plan is None:
                    self._plan = self._make_plan()
                plan = self._plan
                template = self._take_template(plan)
            if self._closing.is_set():
                self._release_template()
                raise WorkerStartError(f"service {self._service!r} was closed")
            worker.start(plan, template)
        except BaseException as error:  # noqa: BLE001 - told to those who wait
            failure = _kept(error)
            self._post(lambda self: self._hear_failed(worker, failure, is_replacement))
            return
        process = worker.process
        assert process is not None
        reference = weakref.ref(self)

        def on_exit() -> None:
            worker.doom()  # first of all
            supervisor = reference()
            if supervisor is not None:
                supervisor._hear_ended(worker)

        baseline = tree_rss(process.python_pid)  # before the first call, which may be what fills it
        worker.is_serving = True
        self._was_ready = True
        self._set_unproven(worker, True)
        if not self._closing.is_set():
            self._dispatcher.add(worker)
        worker.on_doomed = partial(self._dispatcher.retire, worker)
        process.on_exit = on_exit
        self._post(lambda self: self._hear_ready(worker, baseline))
        self._tell_changed()
        if process.has_exited:  # perhaps before it could be told
            warden().post(on_exit)
        if self._closing.is_set():
            worker.hang_up()
            process.abandon(STOP_GRACE)

    def _take_template(self, plan: WorkerPlan) -> Template | None:
        """What to fork a worker from; another than before if, say, an environment variable has changed."""
        present = self._templates[0] if self._templates else None
        template = template_for(plan, present)
        if template is not present:
            self._release_template()
            if template is not None:
                self._templates.append(template)
        return template

    def _release_template(self, *, outdated: bool = False) -> threading.Event | None:
        """What is set once its process has ended, if it is to."""
        return _release_all(self._templates, outdated)

    def _hear_ready(self, worker: Worker, baseline: int) -> None:
        if worker.number in self._workers:
            self._do(self._policy.ready(worker.number, time.monotonic(), baseline))

    def _hear_failed(self, worker: Worker, error: BaseException, is_replacement: bool) -> None:
        self._workers.pop(worker.number, None)
        self._failed_starts += 1
        if is_replacement:
            self._replacement_error = error
            self._replacement_failures += 1
        # What never worked will not work by trying again: the next caller may, and sees why. A crash is another matter.
        fatal = not isinstance(error, WorkerDied) and not self._was_ready
        self._restart_reason = str(Cause.OUT_OF_MEMORY if isinstance(error, WorkerOutOfMemory) else Cause.CRASHED)
        actions = self._policy.failed(worker.number, time.monotonic(), _in_one_line(error), fatal=fatal)
        if not self._closing.is_set():
            self._say(logging.WARNING, "a worker could not be started: %s", _in_one_line(error))
        if worker.cause is Cause.RETIRED and not self._closing.is_set():
            # The pool had no place for it any more, which is nothing to tell those who wait: another one serves them.
            self._do(actions)
            if self._dispatcher.queue:
                self.wanted()
            self._tell_changed()
            return
        starting = any(not one.is_serving for one in self.workers)
        if self._dispatcher.serving_since is None and not starting:
            self._last_error = error
            self._failures += 1
            self._dispatcher.fail_waiting(_again(error))
        self._do(actions)
        self._tell_changed()

    # -- ending ----------------------------------------------------------------------------------------------

    def _retire(self, action: Retire) -> None:
        worker = self._workers.get(action.worker)
        if worker is None:
            return
        if not self._closing.is_set():
            self._say(logging.INFO, "worker pid %d is let go: %s", worker.pid, action.why)
        worker.cause = worker.cause or Cause.RETIRED
        worker.why = worker.why or action.why

        def stop() -> None:
            worker.on_free = None
            worker.hang_up()
            if worker.process is not None:
                worker.process.kill_after(STOP_GRACE)

        worker.on_free = stop
        self._dispatcher.retire(worker)
        worker.check_free()
        self._tell_changed()

    def _hear_ended(self, worker: Worker) -> None:
        if self._workers.pop(worker.number, None) is None:
            return
        process = worker.process
        assert process is not None
        self._dispatcher.ended(worker)
        cause = worker.cause or (Cause.CRASHED if process.out_of_memory is None else Cause.OUT_OF_MEMORY)
        reason = worker.why or _how_it_ended(worker)
        if not self._closing.is_set():
            if cause not in (Cause.RETIRED, Cause.CANCELLED):
                self._say(logging.WARNING, "worker pid %d ended: %s", process.pid, reason)
            self._restart_reason = str(cause)
            self._do(self._policy.ended(worker.number, time.monotonic(), cause, reason))
        self._tell_changed()

    def _tell_changed(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _release_all(templates: list[Template], outdated: bool = False) -> threading.Event | None:
    ended = None
    while templates:
        from ..processes.template import release

        try:
            ended = release(templates.pop(), outdated=outdated)
        except IndexError:
            break  # another thread was first
    return ended


def _kept(error: BaseException) -> BaseException:
    """An error that is kept after its thread has ended. What atoll raises says all there is to know; its frames would
    keep the worker, whose memory and descriptors are to go. Where it was raised is shown of others."""
    some: BaseException | None = error if isinstance(error, AtollError) else None
    while some is not None and some.__traceback__ is not None:
        some.__traceback__ = None
        some = some.__cause__ or some.__context__
    return error


def _again(error: BaseException) -> BaseException:
    """A kept error as one to be raised: or the kept one would keep the frames of whoever it is raised for."""
    again = copy.copy(error)
    again.__cause__, again.__suppress_context__ = error.__cause__, error.__suppress_context__
    return again.with_traceback(error.__traceback__)


def _in_one_line(error: BaseException) -> str:
    """What went wrong; of a remote traceback, its last line too, which is what it is about."""
    lines = (str(error) or type(error).__name__).strip().splitlines()
    return (lines[0] if len(lines) == 1 or not lines[0].endswith(":") else f"{lines[0]} {lines[-1].strip()}")[:500]


def _how_it_ended(worker: Worker) -> str:
    process = worker.process
    assert process is not None
    if process.out_of_memory is not None:
        return "it held more memory than it may"
    if process.signal is not None:
        return f"killed by signal {process.signal}"
    return f"exited with code {process.exit_code}"
