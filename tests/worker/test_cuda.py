# SPDX-License-Identifier: Apache-2.0
"""Arrays of CUDA devices, between real processes, with a stand-in for the driver (``stand_in_cuda``).

Where a GPU is, ``tests/device`` says the same of the real one.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll_worker import cuda, cuda_driver
from atoll_worker.adapters import Unsupported
from atoll_worker.cuda import restore_cuda_array
from atoll_worker.device_array import DeviceArray
from atoll_worker.errors import DecodeError, EncodeError
from atoll_worker.references import OBJECT, Lending, RemoteObject
from atoll_worker.values import Encoder
from conditions import until, until_gone

HERE = Path(__file__).parent


def load_stand_in() -> Any:
    spec = importlib.util.spec_from_file_location("stand_in_cuda", HERE / "stand_in_cuda.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stand_in_cuda"] = module
    spec.loader.exec_module(module)
    return module


stand_in = load_stand_in()
read, write, address_of = stand_in.read, stand_in.write, stand_in.address_of

SERVICE = """\
import gc
import os
import pathlib
import sys
sys.path.insert(0, {here!r})

from atoll_worker import Service, cuda, expose, host
from stand_in_cuda import Array, StandIn, read, write

kept = []

class Tail:
    def __init__(self, array):
        self.array = array

    @property
    def __cuda_array_interface__(self):
        interface = dict(self.array.__cuda_array_interface__)
        address, read_only = interface["data"]
        (length,) = interface["shape"]
        return {{**interface, "shape": (length - 1,), "data": (address + 8, read_only)}}

class Device(Service):
    def setup(self):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1")
        self.driver = StandIn(pathlib.Path({folder!r}), tuple(map(int, visible.split(","))))
        cuda.use_driver(self.driver)

    @expose
    def process_id(self):
        return os.getpid()

    @expose
    def make(self, *items):
        array = Array(self.driver, (len(items),))
        for index, item in enumerate(items):
            write(array, item, index)
        return array

    @expose
    def make_two_views(self):
        array = self.make(1.0, 2.0, 3.0, 4.0)
        return {{"low": array.view(0, (2,)), "high": array.view(16, (2,))}}

    @expose
    def read(self, array):
        return type(array).__name__, read(array)

    @expose
    def read_several(self, arrays):
        return [read(array) for array in arrays], self.counts()

    @expose
    def write(self, array, item):
        write(array, item)

    @expose
    def keep(self, array):
        kept.append(array)

    @expose
    def kept(self, index):
        return kept[index]

    @expose
    def drop(self):
        kept.clear()
        gc.collect()

    @expose
    def same(self, array):
        return array

    @expose
    def tail(self, array):
        "All but its first item, as a library of arrays would give it."
        return Tail(array)

    @expose
    def fail(self, array):
        raise ValueError("after the array came")

    @expose
    def many(self, count):
        for index in range(count):
            yield self.make(float(index))

    @expose
    def ask_host(self):
        return read(host.make())

    @expose
    def counts(self):
        gc.collect()
        return cuda.counts()

    @expose
    def owned(self):
        gc.collect()
        return len(self.driver.own), len(self.driver.opened)
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Any]:
    folder = tmp_path / "device"
    folder.mkdir()
    driver = stand_in.StandIn(folder)
    cuda.use_driver(driver)
    yield driver
    cuda.use_driver(None)
    # What others gave back is let go of on a thread of its own.
    until(lambda: gc.collect() is not None and not driver.opened and not driver.own, what="nothing to be left")


Start = Callable[..., atoll.Service]


@pytest.fixture
def start(driver: Any, tmp_path: Path) -> Iterator[Start]:
    """Start a service that has, as this process does, the stand-in."""
    file = tmp_path / "device_service.py"
    file.write_text(SERVICE.format(here=str(HERE), folder=str(driver.folder)))
    services = []

    def start_service(**options: Any) -> atoll.Service:
        services.append(atoll.Service(file, **options))
        return services[-1]

    yield start_service
    for service in services:
        service.close()


@pytest.fixture
def service(start: Start) -> atoll.Service:
    return start()


def make(driver: Any, *items: float, **options: Any) -> Any:
    array = stand_in.Array(driver, (len(items),), **options)
    for index, item in enumerate(items):
        write(array, item, index)
    return array


def log(driver: Any, *words: str) -> list[tuple[int, str, str]]:
    """What was asked of all drivers, in order: who, what, and of which memory."""
    lines = [line.split(" ", 2) for line in (driver.folder / "log").read_text().splitlines()]
    return [(int(pid), what, rest[0] if rest else "") for pid, what, *rest in lines if not words or what in words]


def nothing_is_shared(driver: Any, service: atoll.Service) -> bool:
    gc.collect()
    return cuda.counts() == (0, 0) and not driver.opened and tuple(service.counts()) == (0, 0)


# -- there and back ------------------------------------------------------------------------------------------------


def test_an_argument(driver: Any, service: atoll.Service) -> None:
    array = make(driver, 1.0, 2.0, 3.0)
    assert service.read(array) == ("DeviceArray", [1.0, 2.0, 3.0])
    service.write(array, 5.0)
    assert read(array) == [5.0, 2.0, 3.0], "the memory is shared, not copied"
    until(lambda: nothing_is_shared(driver, service))


def test_a_result(driver: Any, service: atoll.Service) -> None:
    array = service.make(1.0, 2.0)
    assert type(array) is DeviceArray
    assert (array.shape, array.dtype, array.strides, array.device) == ((2,), "<f8", (8,), 0)
    assert (array.ndim, array.size, array.nbytes) == (1, 2, 16)
    assert "DeviceArray" in repr(array)
    assert read(array) == [1.0, 2.0]
    assert tuple(service.owned()) == (1, 0), "the worker's array is still there"
    del array
    until(lambda: tuple(service.owned()) == (0, 0))
    until(lambda: nothing_is_shared(driver, service))


def test_strided_arrays_scalars_and_empty_ones(driver: Any, service: atoll.Service) -> None:
    array = make(driver, *map(float, range(12)))
    for view, items in (
        (array.view(0, (3, 4)), [float(one) for one in range(12)]),
        (array.view(8, (2, 2), (64, 16)), [1.0, 3.0, 9.0, 11.0]),
        (array.view(88, (12,), (-8,)), [float(one) for one in reversed(range(12))]),
        (array.view(16, (3,), (0,)), [2.0, 2.0, 2.0]),
        (array.view(24, ()), [3.0]),
        (array.view(0, (0, 4)), []),
    ):
        assert service.read(view) == ("DeviceArray", items)
        again = service.same(view)
        assert read(again) == items
        assert again.shape == view.interface["shape"]
    empty = service.same({"empty": array.view(0, (3, 0, 2))})["empty"]
    assert (empty.shape, empty.size, empty.nbytes) == ((3, 0, 2), 0, 0)
    assert service.same(empty).shape == (3, 0, 2)


def test_views_of_one_allocation_are_mapped_once(driver: Any, service: atoll.Service) -> None:
    array = make(driver, 1.0, 2.0, 3.0, 4.0)
    views = [array.view(8 * index, (2,)) for index in range(3)]
    found, counts = service.read_several([array, *views, array])
    assert found == [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]
    assert counts[0] == 1
    assert len([line for line in log(driver, "open") if line[0] == service.process_id()]) == 1
    both = service.make_two_views()
    write(both["low"], 9.0)
    assert cuda.counts()[0] == 1
    low = both.pop("low")
    del both
    gc.collect()
    assert read(low) == [9.0, 2.0], "the mapping stays for the view that is left"
    del low
    until(lambda: nothing_is_shared(driver, service))


def test_through_streams_and_callbacks(driver: Any, start: Start) -> None:
    lent = []

    def make_here() -> Any:
        lent.append(make(driver, 4.0, 5.0))
        return lent[-1]

    service = start(host={"make": make_here})
    assert service.ask_host() == [4.0, 5.0]
    lent.clear()
    assert [read(array) for array in service.many(20)] == [[float(index)] for index in range(20)]
    until(lambda: nothing_is_shared(driver, service) and tuple(service.owned()) == (0, 0))


# -- how long ------------------------------------------------------------------------------------------------------


def test_the_senders_memory_stays_until_the_last_view_is_gone(driver: Any, service: atoll.Service) -> None:
    array = make(driver, 1.0, 2.0)
    service.keep(array)
    service.keep(array.view(8, (1,)))
    del array
    gc.collect()
    assert len(driver.own) == 1
    assert read(service.kept(0)) == [1.0, 2.0]
    assert service.read(service.kept(1)) == ("DeviceArray", [2.0])
    service.drop()
    until(lambda: gc.collect() is not None and not driver.own)


def test_it_is_unmapped_before_it_is_given_back(driver: Any, service: atoll.Service) -> None:
    """And after all work on the device: the sender may free it at once."""
    array = make(driver, 1.0)
    service.keep(array)
    del array
    service.drop()
    until(lambda: gc.collect() is not None and log(driver, "free"))
    assert not driver.own
    events = [(pid, what) for pid, what, _ in log(driver)]
    worker = service.process_id()
    assert events[0] == (os.getpid(), "synchronize")
    assert events[1:] == [
        (os.getpid(), "export"),
        (worker, "open"),
        (worker, "synchronize"),
        (worker, "close"),
        (os.getpid(), "free"),
    ]


def test_what_is_still_mapped_is_not_given_back(driver: Any, foreign: bytes) -> None:
    class Watching(Lending):
        def __init__(self) -> None:
            super().__init__("a peer", {OBJECT: RemoteObject}, str)
            self.seen: list[tuple[int, int]] = []

        def give_back(self, number: int, received: int) -> None:
            self.seen.append((number, len(driver.opened)))

    peer = Watching()
    memory = stand_in.DEVICES[0], b"o" * 16, 4096, foreign, 0, False
    first = restore_cuda_array("", "<f8", (4,), (8,), memory, peer.borrow(OBJECT, 1))
    within = restore_cuda_array("", "<f8", (2,), (8,), memory, peer.borrow(OBJECT, 2))
    assert peer.seen == [(2, 1)], "the first loan keeps it"
    wider = restore_cuda_array("", "<f8", (8,), (8,), memory, peer.borrow(OBJECT, 3))
    del first
    gc.collect()
    assert len(peer.seen) == 1, "there is a view of it"
    del within
    gc.collect()
    assert peer.seen[1:] == [(1, 1)], "another span of the allocation is still in use"
    del wider
    gc.collect()
    assert peer.seen[2:] == [(3, 0)], "unmapped first, then given back"


def test_the_stream_of_the_array_is_waited_for(driver: Any, service: atoll.Service) -> None:
    def waited() -> list[str]:
        return [rest for pid, what, rest in log(driver, "synchronize") if pid == os.getpid()]

    service.read(make(driver, 1.0, stream=42))
    assert waited() == ["42"]
    service.read(make(driver, 1.0, stream=None))
    assert waited() == ["42"], "it says that nothing is to be waited for"
    old = make(driver, 1.0)
    del old.interface["stream"]
    old.interface["version"] = 2
    service.read(old)
    assert waited() == ["42", "all"], "before version 3 nobody says which stream"


def test_a_call_that_has_returned_has_done_its_work(driver: Any, service: atoll.Service) -> None:
    """Also where it maps and unmaps nothing: what it writes to an argument is there when it has returned."""

    def waits() -> int:
        worker = service.process_id()
        return sum(pid == worker and rest == "all" for pid, _, rest in log(driver, "synchronize"))

    array, made = make(driver, 1.0), service.make(1.0)
    service.keep(array)
    before = waits()
    service.write(made, 2.0)
    assert waits() == before + 1, "its own memory"
    service.write(array, 2.0)
    assert waits() == before + 2, "memory that it has mapped already"
    service.drop()


def test_back_and_forth_a_thousand_times(driver: Any, service: atoll.Service) -> None:
    """What comes home is the own memory again, and no chain of loans grows."""
    array = make(driver, 0.0)
    place = address_of(array)
    passed: Any = array
    for index in range(1000):
        passed = service.same(passed)
        write(passed, float(index))
    assert address_of(passed) == place
    assert read(array) == [999.0]
    assert cuda.counts() == (0, 1)
    (worker,) = service._pool.workers
    until(lambda: gc.collect() is not None and worker.lending.count <= 1)
    del array
    assert read(passed) == [999.0], "what came home keeps the memory that it lies in"
    del passed
    until(lambda: nothing_is_shared(driver, service))


def test_the_workers_own_memory_comes_home(driver: Any, service: atoll.Service) -> None:
    array = service.make(1.0, 2.0)
    service.write(array, 7.0)
    assert read(array) == [7.0, 2.0]
    service.keep(array)
    service.drop()
    passed = array
    for _ in range(200):
        passed = service.same(passed)
    assert address_of(passed) == address_of(array)
    (worker,) = service._pool.workers
    until(lambda: gc.collect() is not None and worker.lending.count == 0)
    assert len(log(driver, "open")) == 1
    del array, passed
    until(lambda: nothing_is_shared(driver, service) and tuple(service.owned()) == (0, 0))


def test_from_one_service_to_another(driver: Any, start: Start) -> None:
    """Only the process that allocated memory can export it; who has it passes its handle on."""
    first, second = start(), start()
    array = first.make(1.0, 2.0)
    assert second.read(array) == ("DeviceArray", [1.0, 2.0])
    second.keep(array)
    del array
    gc.collect()
    assert tuple(first.owned()) == (1, 0)
    passed = second.kept(0)
    for _ in range(100):
        passed = second.same(passed)
    assert len([line for line in log(driver, "open") if line[0] == os.getpid()]) <= 2
    assert first.read(passed) == ("DeviceArray", [1.0, 2.0]), "and home"
    assert [pid for pid, _, _ in log(driver, "export")] == [first.process_id()], "by nobody but who made it, once"
    for service in (first, second):  # what is given back comes beside the calls
        until(lambda service=service: service._pool.workers[0].lending.count <= 2)
    second.drop()
    del passed
    until(lambda: nothing_is_shared(driver, first) and nothing_is_shared(driver, second))
    until(lambda: tuple(first.owned()) == (0, 0))


def test_a_call_that_fails_gives_back(driver: Any, service: atoll.Service) -> None:
    array = make(driver, 1.0)
    with pytest.raises(ValueError, match="after the array came"):
        service.fail(array)
    with pytest.raises(EncodeError):
        service.read([array, object()])
    del array
    until(lambda: gc.collect() is not None and not driver.own)
    until(lambda: nothing_is_shared(driver, service))


def test_a_killed_receiver_gives_back(driver: Any, service: atoll.Service) -> None:
    array = make(driver, 1.0)
    service.keep(array)
    del array
    gc.collect()
    assert len(driver.own) == 1
    pid = service.process_id()
    os.kill(pid, signal.SIGKILL)
    until_gone(pid)
    until(lambda: gc.collect() is not None and not driver.own)
    assert service.read(make(driver, 2.0)) == ("DeviceArray", [2.0]), "the next worker serves"


def test_a_killed_sender(driver: Any, service: atoll.Service) -> None:
    """What was received can be let go of; nothing waits for who is gone."""
    array = service.make(1.0, 2.0)
    pid = service.process_id()
    os.kill(pid, signal.SIGKILL)
    until_gone(pid)
    assert read(array) == [1.0, 2.0], "a mapping of the stand-in outlives its maker; CUDA does not promise that"
    del array
    gc.collect()
    assert cuda.counts() == (0, 0)
    assert not driver.opened
    for file in driver.folder.glob(f"*-{pid}-*"):
        file.unlink()


def test_a_collection_while_something_is_unmapped(driver: Any, service: atoll.Service) -> None:
    """Finalizers run anywhere, also in who has the lock: they must not wait for it."""
    first, second = service.make(1.0), service.make(2.0)
    others = [second]
    del second

    def in_the_middle() -> None:
        others.clear()
        gc.collect()

    driver.on_close = in_the_middle
    del first
    gc.collect()
    assert cuda.counts() == (0, 0)
    until(lambda: tuple(service.owned()) == (0, 0))


@pytest.mark.parametrize("seed", range(4))
def test_whoever_has_an_array_can_read_it(driver: Any, start: Start, seed: int) -> None:
    """Three processes make, pass, keep, cut and drop arrays at random; each array holds what its maker wrote into it,
    for as long as anybody has it. In the end nothing is left."""
    chance = random.Random(seed)
    services = [start(), start()]
    here: list[tuple[Any, list[float]]] = []
    there: list[list[list[float]]] = [[], []]
    for step in range(250):
        act = chance.choice(("make", "make there", "keep", "fetch", "through", "cut", "forget", "drop", "read"))
        index = chance.randrange(2)
        service, kept = services[index], there[index]
        items = [float(step), *(float(one) for one in range(chance.randrange(1, 4)))]
        if act == "make":
            here.append((make(driver, *items), items))
        elif act == "make there":
            here.append((service.make(*items), items))
        elif act == "fetch" and kept:
            place = chance.randrange(len(kept))
            here.append((service.kept(place), kept[place]))
        elif act == "drop" and chance.random() < 0.3:
            service.drop()
            kept.clear()
        elif here:
            place = chance.randrange(len(here))
            array, held = here[place]
            if act == "keep":
                service.keep(array)
                kept.append(held)
            elif act == "through":
                here[place] = service.same(array), held
            elif act == "cut":
                if len(held) > 1:
                    here.append((service.tail(array), held[1:]))
            elif act == "forget":
                del here[place]
            else:
                assert service.read(array) == ("DeviceArray", held)
                assert read(array) == held
            del array
    for array, held in here:
        assert read(array) == held
    for service, kept in zip(services, there, strict=True):
        assert [read(service.kept(place)) for place in range(len(kept))] == kept
        service.drop()
    array = None
    here.clear()
    for service in services:
        until(lambda service=service: nothing_is_shared(driver, service) and tuple(service.owned()) == (0, 0))
    until(lambda: gc.collect() is not None and not driver.own)


# -- devices -------------------------------------------------------------------------------------------------------


def test_devices_are_known_by_their_uuid(driver: Any, start: Start) -> None:
    other_order = start(env_vars={"CUDA_VISIBLE_DEVICES": "1,0"})
    array = other_order.make(1.0)
    assert array.device == 1, "the worker's first device is this process's second"
    assert driver.device_of(address_of(array)) == 1


def test_a_device_that_is_not_visible(driver: Any, start: Start) -> None:
    service = start(env_vars={"CUDA_VISIBLE_DEVICES": "1"})
    array = make(driver, 1.0)
    message = refusal(DecodeError, service.read, array)
    assert "GPU-a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0" in message
    assert "GPU-b1b1b1b1-b1b1-b1b1-b1b1-b1b1b1b1b1b1 as 0" in message
    assert "CUDA_VISIBLE_DEVICES is '1'" in message
    del array
    until(lambda: gc.collect() is not None and not driver.own)


def refusal(kind: type[Exception], call: Callable[..., object], *args: Any) -> str:
    """What an error says, without keeping what its traceback holds."""
    with pytest.raises(kind) as caught:
        call(*args)
    return str(caught.value)


# -- what cannot be passed -----------------------------------------------------------------------------------------


def test_memory_that_cuda_cannot_share(driver: Any, service: atoll.Service) -> None:
    array = make(driver, 1.0)
    driver.exportable = False
    message = refusal(EncodeError, service.read, {"a": [array]})
    assert message.startswith("args[0]['a'][0]: stand_in_cuda.Array cannot be passed by value")
    assert "export: invalid argument" in message
    assert "PYTORCH_CUDA_ALLOC_CONF" in message
    assert "x.cpu()" in message
    beyond = array.view(0, (1000,))
    assert "across several allocations" in refusal(EncodeError, service.read, beyond)
    del beyond
    driver.exportable = True
    assert service.read(array) == ("DeviceArray", [1.0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": object()}, "masked"),
        ({"typestr": "|O8"}, "dtype '|O8'"),
        ({"typestr": "<f3"}, "dtype '<f3'"),
        ({"data": None}, "TypeError"),
        ({"strides": (8, 8)}, "strides (8, 8)"),
        ({"shape": None}, "TypeError"),
    ],
)
def test_an_interface_that_cannot_be_followed(driver: Any, change: dict[str, Any], words: str) -> None:
    array = make(driver, 1.0)
    array.interface.update(change)
    with pytest.raises(Unsupported) as caught:
        cuda.reduce_array(array, Encoder())
    assert caught.value.value is array
    assert words in caught.value.why
    del caught


def test_an_interface_that_raises(driver: Any) -> None:
    class Strange:
        @property
        def __cuda_array_interface__(self) -> Any:
            raise RuntimeError("no")

    with pytest.raises(Unsupported, match="RuntimeError: no"):
        Encoder().encode(Strange())


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "_LIBRARY", "libcuda_that_is_not_there.so.1")
    cuda.use_driver(None)
    described = "", "<f8", (2,), (8,), (bytes(16), bytes(16), 0, bytes(64), 0, False), proxy([])
    assert "the CUDA driver cannot be loaded" in refusal(DecodeError, restore_cuda_array, *described)


# -- peers that lie ------------------------------------------------------------------------------------------------


class Peer(Lending):
    """Where a proxy comes from; writes down what is given back."""

    def __init__(self, given_back: list[int]) -> None:
        super().__init__("a peer", {OBJECT: RemoteObject}, str)
        self.given_back = given_back

    def give_back(self, number: int, received: int) -> None:
        self.given_back.append(number)


def proxy(given_back: list[int]) -> Any:
    # A peer outlives what it lends, as a worker's does: with it, nothing would be given back to anybody.
    peers.append(Peer(given_back))
    return peers[-1].borrow(OBJECT, 1)


peers: list[Peer] = []


@pytest.fixture
def foreign(driver: Any) -> bytes:
    """The handle of an allocation of 64 bytes of another process."""
    name = f"{stand_in.DEVICES[0].hex()}-1-1"
    (driver.folder / name).write_bytes(bytes(64))
    return name.encode().ljust(64, b"\0")


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 8},
        {"offset": -8},
        {"offset": 1 << 62},
        {"shape": (9,)},
        {"shape": (1 << 70,)},
        {"strides": (-8,)},
        {"strides": (1 << 40,)},
        {"shape": (-1,)},
        {"shape": (8, 1)},
        {"shape": ("8",)},
        {"shape": 8},
        {"dtype": "<f80"},
        {"dtype": "O"},
        {"dtype": ""},
        {"dtype": None},
        {"handle": b"x" * 64},
        {"handle": b"x" * 63},
        {"handle": "x" * 64},
        {"handle": bytes(64)},
        {"uuid": b"?" * 16},
        {"uuid": b""},
        {"origin": None},
        {"base": "0"},
        {"read_only": 0},
        {"lent": None},
        {"lent": 1},
    ],
    ids=str,
)
def test_a_description_that_lies(driver: Any, foreign: bytes, change: dict[str, Any]) -> None:
    def restore(**change: Any) -> Any:
        given = {
            "dtype": "<f8", "shape": (8,), "strides": (8,), "uuid": stand_in.DEVICES[0], "origin": b"o" * 16,
            "base": 4096, "handle": foreign, "offset": 0, "read_only": False, "lent": proxy(given_back), **change,
        }  # fmt: skip
        memory = tuple(given[name] for name in ("uuid", "origin", "base", "handle", "offset", "read_only"))
        return restore_cuda_array("", given["dtype"], given["shape"], given["strides"], memory, given["lent"])

    given_back: list[int] = []
    array = restore()
    assert read(array) == [0.0] * 8
    del array
    assert given_back == [1]
    assert not driver.opened
    refusal(DecodeError, lambda: restore(**change))
    gc.collect()
    assert cuda.counts() == (0, 0)
    assert not driver.opened
    assert given_back == [1, 1]
    # Also where it is open already.
    array = restore()
    refusal(DecodeError, lambda: restore(**change))
    assert read(array) == [0.0] * 8
    del array


def test_memory_of_this_process_that_was_not_passed(driver: Any) -> None:
    array = make(driver, 1.0, 2.0)
    secret = make(driver, 3.0)
    reduced = cuda.reduce_array(array.view(8, (1,)), Encoder())
    restorer, (library, dtype, shape, strides, memory, kept) = reduced
    again = restorer(library, dtype, shape, strides, memory, proxy([]))
    assert address_of(again) == address_of(array) + 8
    uuid, origin, base, handle, offset, read_only = memory
    for wrong in ((base, offset - 8), (secret.block, 128), (base, offset + 8), (0, 0)):
        lie = uuid, origin, wrong[0], handle, wrong[1], read_only
        message = refusal(DecodeError, restorer, library, dtype, shape, strides, lie, proxy([]))
        assert "was not passed to anybody" in message
    del kept, reduced
    gc.collect()
    del array
    gc.collect()
    assert read(again) == [2.0], "it keeps what it is a view of"
    del secret


def test_what_is_lent_can_only_be_given_back(driver: Any) -> None:
    """The other side cannot call or read anything of it."""
    _, (*_, kept) = cuda.reduce_array(make(driver, 1.0), Encoder())
    assert [name for name in dir(type(kept.value)) if not name.startswith("_")] == []
    lending = Peer([])
    numbers: list[int] = []
    lending.reduce(kept, True, numbers)
    for method in ("__call__", "__getitem__", "__iter__", "_value", "owner"):
        with pytest.raises((AttributeError, TypeError)):
            lending.serve(numbers[0], method, (), {})
    lending.take_back(numbers[0], 1)


# -- other libraries -----------------------------------------------------------------------------------------------


def test_every_library_can_take_it_over(driver: Any, service: atoll.Service) -> None:
    """numpy stands for them: the stand-in's device is main memory, and DLPack says so."""
    numpy = pytest.importorskip("numpy")
    array = service.same(make(driver, 1.0, 2.0, 3.0, 4.0).view(8, (3,), (8,)))
    taken = numpy.from_dlpack(array)
    backwards = service.same(make(driver, 1.0, 2.0).view(8, (2,), (-8,)))
    assert numpy.from_dlpack(backwards).tolist() == [2.0, 1.0]
    assert taken.tolist() == [2.0, 3.0, 4.0]
    write(array, 9.0)
    del array
    gc.collect()
    assert taken.tolist() == [9.0, 3.0, 4.0], "it keeps the memory"
    view = taken[1:]
    del taken, backwards
    gc.collect()
    assert len(driver.own) == 1
    del view
    until(lambda: nothing_is_shared(driver, service) and not driver.own)


def test_a_capsule_that_nobody_takes_over(driver: Any, service: atoll.Service) -> None:
    array = service.make(1.0)
    capsule = array.__dlpack__()
    del array
    assert cuda.counts() == (1, 1)
    del capsule
    until(lambda: nothing_is_shared(driver, service))


def test_what_dlpack_cannot_say(driver: Any, service: atoll.Service) -> None:
    array = make(driver, 1.0, 2.0, 3.0)
    array.interface["data"] = (address_of(array), True)
    with pytest.raises(BufferError, match="read-only"):
        service.same(array).__dlpack__()
    array.interface["data"] = (address_of(array), False)
    with pytest.raises(BufferError, match="no multiples"):
        service.same(array.view(0, (2,), (12,))).__dlpack__()
    with pytest.raises(BufferError, match="not as a copy"):
        service.same(array).__dlpack__(copy=True)
    array.interface["typestr"] = ">f8"
    with pytest.raises(BufferError, match="dtype '>f8'"):
        service.same(array).__dlpack__()


def test_what_was_read_only_stays_so(driver: Any, service: atoll.Service) -> None:
    array = make(driver, 1.0)
    array.interface["data"] = (address_of(array), True)
    assert service.same(array).read_only
    assert service.same(service.same(array)).__cuda_array_interface__["data"] == (address_of(array), True)


@pytest.mark.parametrize(
    ("module", "convert"), [("cupy", "asarray"), ("numba.cuda", "as_cuda_array")], ids=["cupy", "numba"]
)
def test_it_is_an_array_of_the_library_that_it_came_from(
    driver: Any, foreign: bytes, monkeypatch: pytest.MonkeyPatch, module: str, convert: str
) -> None:
    given: list[Any] = []
    library = types.ModuleType(module)
    setattr(library, convert, lambda array: given.append(array) or "converted")
    memory = stand_in.DEVICES[0], b"o" * 16, 4096, foreign, 0, False
    name = module.partition(".")[0]
    monkeypatch.setitem(sys.modules, module, None)  # cannot be imported
    array = restore_cuda_array(name, "<f8", (8,), (8,), memory, proxy([]))
    assert type(array) is DeviceArray
    assert array.origin == name
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module, library)
    assert restore_cuda_array(name, "<f8", (8,), (8,), memory, proxy([])) == "converted"
    assert type(given[0]) is DeviceArray


def test_a_tensor_where_torch_is_not(driver: Any, foreign: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed on as the tensor that it was."""
    monkeypatch.setitem(sys.modules, "torch", None)
    memory = stand_in.DEVICES[0], b"o" * 16, 4096, foreign, 16, False
    array = restore_cuda_array("torch", "bfloat16", (2, 3), (2, 4), memory, proxy([]))
    assert (type(array), array.dtype, array.itemsize, array.nbytes) == (atoll.DeviceArray, "bfloat16", 2, 12)
    assert array.__cuda_array_interface__["typestr"] == "|V2", "which is no number that other libraries know"
    _, (*described, again, kept) = cuda.reduce_array(array, Encoder())
    assert described == ["torch", "bfloat16", (2, 3), (2, 4)]
    assert again == memory
    del kept


# -- processes -----------------------------------------------------------------------------------------------------


def test_a_forked_child_leaves_the_parents_mappings_alone(driver: Any, service: atoll.Service) -> None:
    array = service.make(1.0, 2.0)
    child = os.fork()
    if child == 0:
        try:
            del array
            gc.collect()
            fine = cuda.counts() == (0, 0) and not log(driver, "close")
        finally:
            os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read(array) == [1.0, 2.0]
    del array
    until(lambda: nothing_is_shared(driver, service) and tuple(service.owned()) == (0, 0))


def test_many_threads(driver: Any, start: Start) -> None:
    """They open, close and collect at the same time; in the end nothing is left."""
    service = start(concurrency=4)
    shared = service.make(*map(float, range(16)))
    failed: list[BaseException] = []

    def work(seed: int, shared: Any) -> None:
        try:
            for index in range(40):
                array = make(driver, float(seed), float(index))
                assert service.read(array) == ("DeviceArray", [float(seed), float(index)])
                home = service.same(array)
                assert address_of(home) == address_of(array)
                assert read(service.same(shared))[seed] == float(seed)
                made = service.make(float(index))
                assert read(made) == [float(index)]
                if index % 8 == 0:
                    gc.collect()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed, shared)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threads.clear()
    assert not failed
    del shared
    until(lambda: nothing_is_shared(driver, service) and tuple(service.owned()) == (0, 0))
    until(lambda: gc.collect() is not None and not driver.own)


@pytest.mark.slow
@pytest.mark.skipif("ATOLL_TEST_TORCH" not in os.environ, reason="ATOLL_TEST_TORCH names no interpreter that has torch")
def test_tensors_of_torch(tmp_path: Path) -> None:
    """All dtypes, views and what is more than data: see the program."""
    done = subprocess.run(
        [os.environ["ATOLL_TEST_TORCH"], str(HERE / "cuda_tensor_checks.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(HERE.parent.parent / "src")},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all tensors crossed\n")
