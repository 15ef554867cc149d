# SPDX-License-Identifier: Apache-2.0
"""The options of a service that consist of several values: ``Restart``, ``Breaker``, ``Recycle``, ``Sandbox``.

What always holds here: every value has a default that suits most services, and says its unit. What does not belong
here: what is done with them (``atoll.pool.policy``, ``atoll.processes``), and checking what users wrote (``spec``).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Restart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a worker that ended unexpectedly is replaced.

    The first time at once; then after ``backoff`` seconds, twice as many each time until a worker serves a call again,
    with up to a quarter more or less, so that many pools do not start in step. Who was ended by a caller's deadline,
    or retired, is replaced at once and not counted.

    Attributes:
        backoff: seconds before the second restart in a row.
        backoff_max: seconds that no pause is longer than.
        max_restarts: restarts within ``window``, for each worker of the pool; when more are needed, it is a crash loop
            and the breaker opens.
        window: seconds in which restarts are counted.
    """

    backoff: Annotated[float, Meta(ge=0, description="Seconds before the second restart in a row; then doubled.")] = 0.1
    backoff_max: Annotated[float, Meta(ge=0, description="Seconds that no pause is longer than.")] = 30.0
    max_restarts: Annotated[
        int,
        Meta(ge=0, description="Restarts within the window, for each worker; when more are needed, the breaker opens."),
    ] = 10
    window: Annotated[float, Meta(gt=0, description="Seconds in which restarts are counted.")] = 60.0


class Breaker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When to stop starting workers that only fail. Callers are then refused at once, with the reason.

    Attributes:
        failures: workers that fail one after another, without one that served a call, until it opens.
        cooldown: seconds until one worker is tried again; doubled each time that one fails too, up to 12 times as long.
    """

    failures: Annotated[int, Meta(ge=1, description="Workers that fail one after another until it opens.")] = 10
    cooldown: Annotated[
        float, Meta(gt=0, description="Seconds until one worker is tried again; longer each time that fails too.")
    ] = 5.0


class Recycle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When to replace a worker that works, as one does with code that leaks. The replacement is started first.

    Attributes:
        calls: after so many calls; None for never.
        age: seconds after it became ready; None for never.
        memory_growth: when its resident memory has grown so much since it became ready: bytes, or text such as
            ``"500MB"`` or ``"512MiB"``; None for never.
    """

    calls: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description="After so many calls.")] = None
    age: Annotated[Annotated[float, Meta(gt=0)] | None, Meta(description="Seconds after it became ready.")] = None
    memory_growth: Annotated[
        Annotated[int, Meta(ge=1)] | str | None,
        Meta(description='When its resident memory has grown so much: bytes, or text such as "500MB" or "512MiB".'),
    ] = None


class Sandbox(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker may reach. What is not named is denied; its environment and its code it may read.

    Attributes:
        network: whether it may use the network.
        read: files and folders that it may read.
        write: files and folders that it may read and write.
    """

    network: Annotated[bool, Meta(description="Whether it may use the network.")] = False
    read: Annotated[tuple[str, ...], Meta(description="Files and folders that it may read.")] = ()
    write: Annotated[tuple[str, ...], Meta(description="Files and folders that it may read and write.")] = ()
