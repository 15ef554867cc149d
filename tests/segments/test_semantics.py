# SPDX-License-Identifier: Apache-2.0
"""What users see of shared memory: where arrays lie, who may write to them, what is counted, step by step."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll
from atoll_worker.allocation import segment_of, span_of
from conditions import WITHIN, until
from segment_counts import until_given_back

MB = 1 << 20
Random = Callable[[int], np.ndarray]


def test_empty_is_passed_without_a_copy(service: Any) -> None:
    array = atoll.empty((1024, 1024), "u1")
    array[...] = 3
    assert atoll.memory().segments == 1
    before = atoll.memory().copied_bytes
    for number in range(5):
        array[0, 0] = number
        assert service.invert(array[:1, :1]).item() == 255 - number
        assert service.checksum(array) is not None
    assert atoll.memory().copied_bytes == before
    del array
    until_given_back()
    assert atoll.memory().recycled == 1


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), 7, (0, 3), (300, 200, 3)])
@pytest.mark.parametrize("dtype", ["f4", ">i8", "M8[us]", "?", [("a", "u1"), ("b", "<f8")], "S3", "V0"])
def test_empty_of_every_kind(shape: Any, dtype: Any, order: Any) -> None:
    array = atoll.empty(shape, dtype, order)
    assert array.dtype == np.dtype(dtype)
    assert array.shape == (shape if isinstance(shape, tuple) else (shape,))
    assert array.flags.writeable
    if array.ndim > 1 and array.size:
        assert array.flags.f_contiguous == (order == "F")


def test_empty_refuses_objects() -> None:
    with pytest.raises(TypeError, match="references to objects"):
        atoll.empty(3, "O")


@pytest.mark.parametrize("shape", [3, np.int64(3), (2, np.int8(3)), [2, 3], range(2, 4), np.array([2, 3]), 0, (2, 0)])
@pytest.mark.parametrize("dtype", ["f4", ("f4", (2,))])
def test_empty_takes_the_shapes_that_numpy_takes(shape: Any, dtype: Any) -> None:
    assert atoll.empty(shape, dtype).shape == np.empty(shape, dtype).shape


@pytest.mark.parametrize("shape", [-1, (2, -1), (-2, -3), (0, -1)])
def test_empty_refuses_negative_lengths(shape: Any) -> None:
    with pytest.raises(ValueError, match=r"shape \(.*negative"):
        atoll.empty(shape)


@pytest.mark.parametrize("shape", ["3", 3.5, (3.0,), [2, "3"], None])
def test_empty_refuses_lengths_that_are_no_whole_numbers(shape: Any) -> None:
    with pytest.raises(TypeError, match="as an integer"):
        atoll.empty(shape)


def test_asarray_copies_once(service: Any, random_bytes: Random) -> None:
    plain = random_bytes(MB)
    array = atoll.asarray(plain)
    assert np.array_equal(array, plain)
    assert atoll.asarray(array) is array
    copied = atoll.memory().copied_bytes
    assert service.checksum(array) == service.checksum(array)
    assert atoll.memory().copied_bytes == copied
    assert np.array_equal(atoll.asarray([1, 2, 3]), [1, 2, 3])
    fortran = atoll.asarray(np.asfortranarray(np.arange(12).reshape(3, 4)))
    assert fortran.flags.f_contiguous
    assert not np.shares_memory(atoll.asarray(plain[::2]), plain)


def test_a_view_keeps_its_array(service: Any, random_bytes: Random) -> None:
    """The memory is used again only once no view is left."""
    expected = random_bytes(MB)
    view = atoll.asarray(expected)[100:200]
    gc.collect()
    for _ in range(3):
        assert service.echo(random_bytes(MB)).sum()
    assert np.array_equal(view, expected[100:200])
    assert np.array_equal(service.echo(view), expected[100:200])


def test_plain_arguments_take_one_recycled_segment(service: Any, random_bytes: Random) -> None:
    before = atoll.memory().created
    for _ in range(20):
        array = random_bytes(MB)
        assert service.checksum(array) == service.checksum(array.copy())
    assert atoll.memory().created - before <= 3


def test_results_are_read_only_views(service: Any) -> None:
    result = service.make(MB, 1)
    assert not result.flags.writeable
    assert atoll.memory().borrowed == 1
    with pytest.raises(ValueError, match="read-only"):
        result[0] = 1
    small = result[:10].copy()
    del result
    until_given_back()
    assert small.size == 10


def test_writable_results_are_ones_own(service: Any) -> None:
    writable = service.make.options(writable=True)
    first, second = writable(MB, 1), writable(MB, 1)
    first[...] = 0
    assert np.array_equal(second, service.make(MB, 1))
    assert atoll.memory().borrowed == 0
    assert segment_of(*span_of(first)) is not None  # so passing it on copies nothing
    copied = atoll.memory().copied_bytes
    assert service.checksum(second) == service.checksum(second)
    assert atoll.memory().copied_bytes == copied
    tiny = writable(10, 1)
    tiny[...] = 0


def test_memory_counts_step_by_step(service: Any, random_bytes: Random) -> None:
    start = atoll.memory()
    array = atoll.asarray(random_bytes(MB))
    now = atoll.memory()
    assert (now.segments, now.lent, now.recycled, now.copies - start.copies) == (1, 0, 0, 1)
    assert now.holders == {"arrays of this process": (1, MB)}
    pid = service.keep("a", array)
    now = atoll.memory()
    assert (now.segments, now.lent, now.lent_bytes) == (1, 1, MB)
    (whose,) = set(now.holders) - {"arrays of this process"}
    assert str(pid) in whose
    assert whose in str(now)
    assert now.holders[whose] == (1, MB)
    result = service.kept_array("a")  # it came from here, and comes back as a copy in the worker's memory
    assert np.array_equal(result, array)
    del array
    assert atoll.memory().holders.keys() == {whose}
    assert atoll.memory().borrowed == 1
    assert atoll.memory().borrowed_bytes >= MB
    service.drop("a")
    del result
    now = until_given_back()
    assert (now.segments, now.recycled, now.recycled_bytes, now.holders) == (1, 1, MB, {})
    atoll.trim_memory()
    assert (atoll.memory().segments, atoll.memory().bytes) == (0, 0)
    assert "0 segments" in str(atoll.memory())


def test_a_lower_budget_is_kept_at_once(random_bytes: Random) -> None:
    """Memory that nobody uses is let go of, as far as it does not fit any more."""
    arrays = [atoll.asarray(random_bytes(MB)) for _ in range(4)]
    arrays.clear()
    assert atoll.memory().bytes == 4 * MB
    atoll.set_memory_budget(2 * MB)
    assert atoll.memory().bytes <= 2 * MB


@dataclass
class Frame:
    name: str
    pixels: Any
    more: dict[str, Any]


def test_nested(write: Callable[[str, str], Path], random_bytes: Random) -> None:
    atoll.register(Frame)
    file = write(
        "nested.py",
        """\
        from dataclasses import dataclass
        import atoll_worker
        from atoll_worker import expose

        @atoll_worker.register
        @dataclass
        class Frame:
            name: str
            pixels: object
            more: dict

        @expose
        def swap(frame, *, others):
            return {"frame": Frame("there", others[0]["x"], {"old": [frame.pixels]}), "count": len(others)}
        """,
    )
    one, two = random_bytes(MB), random_bytes(3 * MB)
    with atoll.Service(file) as service:
        result = service.swap(Frame("here", one, {}), others=[{"x": two}, {"x": (one, two)}])
    # The service is closed, and what came from it stays.
    assert np.array_equal(result["frame"].pixels, two)
    assert np.array_equal(result["frame"].more["old"][0], one)
    assert result["count"] == 2


# -- nothing is left to the collector of cycles ----------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def cancelled(service: Any, x: Any) -> Any:
    entered, leave = threading.Event(), threading.Event()

    def wait(_: Any) -> None:
        entered.set()
        leave.wait(WITHIN)

    call = service.call_back.submit(wait, x)
    assert entered.wait(WITHIN)
    call.cancel()
    leave.set()
    try:
        return call.result()
    finally:
        del call  # what it raises has this frame


WAYS_TO_FAIL: dict[str, Callable[[Any, Any], object]] = {
    "plainly": lambda service, x: service.fail(x),
    "with options": lambda service, x: service.fail.options(timeout=60)(x),
    "in the background": lambda service, x: service.fail.submit(x).result(),
    "with out": lambda service, x: service.invert_and_fail(x, out=x),
    "not encoded": lambda service, x: service.fail(x, object()),
    "cancelled": cancelled,
    "in a callback": lambda service, x: service.call_back(lambda y: y.no_such_thing, x),
    "late": lambda service, x: service.call_back.options(timeout=0.1)(lambda _: threading.Event().wait(0.3), x),
    "by dying": lambda service, x: service.call_back(
        lambda _: os.kill(service.status().workers[0].pid, signal.SIGKILL), x
    ),
}


@pytest.mark.parametrize("way", WAYS_TO_FAIL)
def test_a_call_that_fails_keeps_nothing(service: Any, no_collector: None, way: str) -> None:
    """Its exception's traceback has frames with the arguments; nothing in these has the exception."""
    for _ in range(3):
        x = atoll.empty(MB, "u1")
        try:
            WAYS_TO_FAIL[way](service, x)
        except Exception:
            del x
        else:
            pytest.fail("it did not fail")
        until(lambda: is_let_go(way == "by dying"))


def is_let_go(collect: bool) -> bool:
    """Of a worker that dies in the middle of a callback two errors may tell, one of them in a circle of its own."""
    if collect:
        gc.collect()
    return not atoll.memory().holders


def test_a_call_on_a_loop_that_fails_keeps_nothing(service: Any, no_collector: None) -> None:
    import asyncio

    async def main() -> None:
        for fail in (service.fail, service.fail.options(timeout=60)):
            x = atoll.empty(MB, "u1")
            try:
                await fail.aio(x)
            except ValueError:
                del x
            until(lambda: not atoll.memory().holders)

    asyncio.run(main())


def test_a_submitted_call_keeps_its_result_as_long_as_it_lives(service: Any, no_collector: None) -> None:
    for _ in range(3):
        call = service.make.submit(MB, 1)
        result = call.result()
        del result
        assert atoll.memory().borrowed == 1
        del call
        until(lambda: not atoll.memory().borrowed)


# -- out= ----------------------------------------------------------------------------------------------------------


def test_out_in_shared_memory_is_written_to_directly(service: Any, random_bytes: Random) -> None:
    x = atoll.asarray(random_bytes(MB))
    out = atoll.empty(MB, "u1")
    copied = atoll.memory().copied_bytes
    service.invert(x, out=out)
    assert np.array_equal(out, 255 - x)
    x[0] = 77
    service.invert(x, out=out)
    assert out[0] == 255 - 77
    assert atoll.memory().copied_bytes == copied


def test_out_of_plain_memory(service: Any, random_bytes: Random) -> None:
    x, out = random_bytes(MB), np.zeros(MB, "u1")
    service.invert(x, out=out)
    assert np.array_equal(out, 255 - x)
    small = np.zeros(3, "u1")
    service.invert(x[:3], out=small)
    assert np.array_equal(small, 255 - x[:3])


def test_out_of_a_mapped_file(service: Any, random_bytes: Random, tmp_path: Path) -> None:
    x, out = random_bytes(MB), np.memmap(tmp_path / "out", "u1", "w+", shape=MB)
    service.invert(x, out=out)
    assert np.array_equal(out, 255 - x)
    assert (tmp_path / "out").read_bytes() == (255 - x).tobytes()


def test_out_of_objects(service: Any, random_bytes: Random) -> None:
    with pytest.raises(atoll.EncodeError, match=r"kwargs\['out'\].*objects"):
        service.invert(random_bytes(3), out=np.zeros(3, "O"))


def test_out_of_several(service: Any, random_bytes: Random) -> None:
    x = random_bytes(MB)
    outs = atoll.empty(MB, "u1"), np.zeros(MB, "u1"), atoll.empty((2, MB), "u1")[1]
    service.invert_all(x, out=outs)
    assert all(np.array_equal(one, 255 - x) for one in outs)
    service.invert_all(x, out=list(outs))


@pytest.mark.parametrize("shared", [True, False])
def test_out_with_strides(service: Any, random_bytes: Random, shared: bool) -> None:
    x = random_bytes(300 * 400).reshape(300, 400)
    base = atoll.empty((300, 800), "u1") if shared else np.zeros((300, 800), "u1")
    base[...] = 9
    service.invert(x, out=base[:, ::2])
    assert np.array_equal(base[:, ::2], 255 - x)
    assert (base[:, 1::2] == 9).all()
    service.invert(x, out=base[::-1, 799::-2])
    assert np.array_equal(base[::-1, 799::-2], 255 - x)
    turned = (atoll.empty((400, 300), "u1") if shared else np.zeros((400, 300), "u1")).T
    service.invert(x, out=turned)
    assert np.array_equal(turned, 255 - x)


@pytest.mark.parametrize("shared", [True, False])
def test_out_is_an_input_too(service: Any, random_bytes: Random, shared: bool) -> None:
    expected = random_bytes(MB)
    array = atoll.asarray(expected) if shared else expected.copy()
    service.invert(array, out=array)
    assert np.array_equal(array, 255 - expected)
    service.invert(array[: MB // 2], out=array[MB // 2 :])
    assert np.array_equal(array[MB // 2 :], expected[: MB // 2])


def test_out_that_was_lent_to_be_read_before(serve: Callable[..., Any], random_bytes: Random) -> None:
    """A reader may have been given it for good, so others get a copy to write to, and it is copied back."""
    service, other = serve(), serve()
    out = atoll.asarray(random_bytes(MB))
    other.keep("a", out)
    for _ in range(3):
        x = random_bytes(MB)
        service.invert(x, out=out)
        assert np.array_equal(out, 255 - x)
    atoll.trim_memory()  # memory that was sealed would do for `empty`, where there is no other
    first, second = atoll.empty(MB, "u1"), random_bytes(MB)
    service.invert(second, out=first)  # the other way round: whoever could write goes on
    other.keep("a", first)
    copied = atoll.memory().copied_bytes
    service.invert(atoll.asarray(second[::-1]), out=first)
    assert np.array_equal(first, 255 - second[::-1])
    assert atoll.memory().copied_bytes - copied == MB  # what asarray copied
    other.drop("a")


def test_out_that_is_read_only(service: Any, random_bytes: Random) -> None:
    out = np.zeros(MB, "u1")
    out.flags.writeable = False
    with pytest.raises(atoll.EncodeError, match=r"kwargs\['out'\].*read-only"):
        service.invert(random_bytes(MB), out=out)
    with pytest.raises(atoll.EncodeError, match=r"kwargs\['out'\]\[1\].*read-only"):
        service.invert_all(random_bytes(MB), out=(np.zeros(MB, "u1"), service.make(MB, 1)))
    assert service.checksum(out) is not None


def test_out_of_a_call_that_fails(service: Any, random_bytes: Random) -> None:
    """What lies in shared memory may have been written to; what does not is as it was."""
    x, plain, shared = random_bytes(MB), np.zeros(MB, "u1"), atoll.empty(MB, "u1")
    for out in (plain, shared):
        with pytest.raises(ValueError, match="after it was written"):
            service.invert_and_fail(x, out=out)
    assert not plain.any()
    assert np.array_equal(shared, 255 - x)


def test_out_that_is_none_or_something_else(service: Any, random_bytes: Random) -> None:
    x = random_bytes(MB)
    assert np.array_equal(service.invert(x, out=None), 255 - x)


def test_out_on_a_loop(service: Any, random_bytes: Random) -> None:
    import asyncio

    x, out, plain = random_bytes(MB), atoll.empty(MB, "u1"), np.zeros(MB, "u1")

    async def main() -> None:
        await service.invert.aio(x, out=out)
        await service.invert_all.aio(x, out=(plain,))

    asyncio.run(main())
    assert np.array_equal(out, 255 - x)
    assert np.array_equal(plain, 255 - x)
