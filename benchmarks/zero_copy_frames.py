# SPDX-License-Identifier: Apache-2.0
"""4K frames (8.3 MB of uint8) through two services: here -> the first -> here -> the second -> a few numbers.

    python -m benchmarks.zero_copy_frames [quick]

The first service answers a frame with a frame, which is passed on to the second, which looks at it. Two copies are
needed: of the frame here into a segment, and of the first service's answer. A sample is the time a frame takes, in
nanoseconds:

* ``calls``: a call of each service; the first answers with a frame that it has. Reference: two copies here, of the same
  frames and of one more, to where others were before.
* ``computed``: as before, but the first service computes its answer (``255 - frame``). Reference: the same
  computed here between two copies.
* ``stream``: the frames are a generator's, which the first service consumes, and whose stream the second consumes. The
  sample is a share of the whole stream. Reference: as of ``calls``.

All take turns. Every answer is checked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy

import atoll
from benchmarks import array_service
from benchmarks.copying import marks, random_bytes
from benchmarks.percentiles import summarize
from benchmarks.turns import Contender, take_turns

NBYTES = 3840 * 2160
FRAMES, STREAMED = 8, 24
ROUNDS, QUICK_ROUNDS = 60, 6
SERVICE = Path(array_service.__file__)


def chained(first: Callable[[Any], Any], second: Callable[[Any], Any], frames: list[Any], answers: Any) -> Contender:
    """Each frame through a call of the one and then of the other. ``answers`` tells what must come of a mark."""

    def contend() -> list[int]:
        samples = []
        for frame in frames:
            frame[-1] = mark = next(marks)
            begin = perf_counter_ns()
            answer = second(first(frame))
            samples.append(perf_counter_ns() - begin)
            if answer[::2] != (NBYTES, answers(mark)):
                raise RuntimeError(f"{answer} instead of {(NBYTES, answers(mark))}")
        return samples

    return contend


def streamed(first: Any, second: Any, frames: list[Any]) -> Contender:
    """All frames as one stream through both."""

    def contend() -> list[int]:
        sent = []

        def camera() -> Iterator[Any]:
            for number in range(STREAMED):
                frame = frames[number % len(frames)]
                frame[-1] = mark = next(marks)
                sent.append((NBYTES, 1, mark))
                yield frame

        begin = perf_counter_ns()
        answers = list(second(first(camera())))
        taken = perf_counter_ns() - begin
        if answers != sent:
            raise RuntimeError(f"{answers} instead of {sent}")
        return [taken // STREAMED]

    return contend


def copied_twice(frames: list[Any], compute: Callable[[Any], Any] | None = None) -> Contender:
    """The reference: each frame copied, and then an answer to it."""
    given, own, returned = (random_bytes(NBYTES) for _ in range(3))

    def contend() -> list[int]:
        samples = []
        for frame in frames:
            begin = perf_counter_ns()
            numpy.copyto(given, frame)
            numpy.copyto(returned, own if compute is None else compute(given))
            samples.append(perf_counter_ns() - begin)
        return samples

    return contend


def main() -> int:
    rounds = QUICK_ROUNDS if "quick" in sys.argv else ROUNDS
    frames = [random_bytes(NBYTES) for _ in range(FRAMES)]
    with atoll.Service(SERVICE, name="first") as first, atoll.Service(SERVICE, name="second") as second:
        contenders = {
            "two_copies": copied_twice(frames),
            "two_copies_and_inversion": copied_twice(frames, array_service.invert),
            "calls": chained(first.exchange, second.look, frames, lambda mark: mark),
            "computed": chained(first.invert, second.look, frames, lambda mark: 255 - mark),
            "stream": streamed(first.exchange_all, second.look_all, frames),
        }
        taken = take_turns(contenders, rounds)
    atoll.shutdown()
    print(json.dumps({name: asdict(summarize(samples)) for name, samples in taken.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
