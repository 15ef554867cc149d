# SPDX-License-Identifier: Apache-2.0
"""Arrays of a real CUDA device through real services, and what passing them costs.

A program, for a Python that has torch with CUDA and what atoll itself needs (msgspec, PyYAML); with cupy and numba
more is checked::

    PYTHONPATH=src python3 tests/device/cuda_device_checks.py

It prints every check with what was wrong, then the figures; it ends with 1 if anything was, and with 77 if there is
nothing to check with.
"""

from __future__ import annotations

import gc
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVICE = """\
import gc
import os
import sys
import torch
from atoll_worker import cuda, expose

kept = []

@expose
def process_id():
    return os.getpid()

@expose
def nothing(value=None):
    return None

@expose
def same(value):
    return value

@expose
def describe(value):
    if not isinstance(value, torch.Tensor):
        value = torch.as_tensor(value, device="cuda")
    return str(value.dtype), list(value.shape), value.cpu().tolist()

@expose
def name(value):
    return type(value).__module__.partition(".")[0]

@expose
def add_one(value):
    value += 1

@expose
def total(value):
    return float(value.double().sum())

@expose
def late(size, cycles):
    "The kernel that writes it is still queued when the function returns."
    value = torch.zeros(size, device="cuda")
    torch.cuda._sleep(cycles)
    value += 7
    return value

@expose
def make(size):
    return torch.arange(float(size), device="cuda")

@expose
def make_with(library, size):
    if library == "cupy":
        import cupy
        return cupy.arange(size, dtype="float32")
    from numba import cuda as numba_cuda
    import numpy
    return numba_cuda.to_device(numpy.arange(size, dtype="float32"))

@expose
def keep(value):
    kept.append(value)

@expose
def total_of_kept():
    return [float(value.double().sum()) for value in kept]

@expose
def drop():
    kept.clear()
    gc.collect()

@expose
def state():
    gc.collect()
    return list(cuda.counts()), torch.cuda.memory_allocated()
"""

NOTHING_TO_CHECK_WITH = 77

sys.path.insert(0, str(Path(__file__).parents[1]))
from conditions import until, until_gone  # noqa: E402 - where the tests are is known only now


def missing() -> str | None:
    """What keeps the checks from being run, in words."""
    try:
        import torch
    except ImportError as error:
        return f"{sys.executable} has no torch ({error})"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} of {sys.executable} sees no CUDA device"
    try:
        import msgspec  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        return f"{sys.executable} lacks what atoll itself needs: {error}"
    return None


class Services:
    """Starts services of the file above."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "device_service.py"
        self._file.write_text(SERVICE)

    @contextmanager
    def start(self, **options: Any) -> Iterator[Any]:
        """One, as a context."""
        import atoll

        with atoll.Service(self._file, environment=sys.executable, start_timeout=300, **options) as service:
            yield service


def nothing_is_shared(service: Any) -> bool:
    from atoll_worker import cuda

    gc.collect()
    return cuda.counts() == (0, 0) and service.state()[0] == [0, 0]


# -- checks --------------------------------------------------------------------------------------------------------


def check_arguments_and_results(services: Services) -> None:
    import torch

    with services.start() as service:
        tensor = torch.arange(12.0, device="cuda").reshape(3, 4)
        assert service.describe(tensor)[2] == tensor.tolist()
        service.add_one(tensor)
        torch.cuda.synchronize()
        assert tensor[0].tolist() == [1.0, 2.0, 3.0, 4.0], "the memory is shared"
        made = service.make(1 << 20)
        assert made.device == torch.device("cuda", torch.cuda.current_device())
        assert float(made.double().sum()) == (1 << 20) * ((1 << 20) - 1) / 2
        made += 1
        assert service.total(made) == (1 << 20) * ((1 << 20) + 1) / 2
        del made
        until(lambda: nothing_is_shared(service))


def check_dtypes_and_layouts(services: Services) -> None:
    import torch

    from atoll_worker.cuda import TORCH_DTYPES

    with services.start() as service:
        for dtype_name in TORCH_DTYPES:
            dtype = getattr(torch, dtype_name, None)
            if dtype is None:
                continue
            raw = torch.randint(0, 2 if dtype_name == "bool" else 120, (12 * dtype.itemsize,), dtype=torch.uint8)
            tensor = raw.cuda().view(dtype).reshape(3, 4)
            for view in (tensor, tensor.T, tensor[1:, ::2], tensor[1, 1], tensor[:0], tensor[:, :1].expand(3, 4)):
                home = service.same(view)
                assert (home.dtype, home.shape) == (view.dtype, view.shape), dtype_name
                assert not view.numel() or home.stride() == view.stride(), dtype_name
                assert not view.numel() or home.data_ptr() == view.data_ptr(), dtype_name
            assert service.same(tensor[0:0]).is_cuda
        complex_one = torch.tensor([1 + 2j, 3 - 4j], device="cuda").conj()
        assert service.same(complex_one).resolve_conj().tolist() == complex_one.tolist()
        assert service.describe(torch.nn.Parameter(torch.ones(2, device="cuda")))[2] == [1.0, 1.0]


def check_that_queued_work_is_waited_for(services: Services) -> None:
    import torch

    with services.start() as service:
        late = service.late(1 << 20, 400_000_000)
        assert float(late.double().sum()) == 7.0 * (1 << 20)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            value = torch.zeros(1 << 20, device="cuda")
            torch.cuda._sleep(400_000_000)
            value += 3
            assert service.total(value) == 3.0 * (1 << 20)


def check_that_memory_stays_as_long_as_it_is_used(services: Services) -> None:
    import torch

    with services.start() as service:
        before = torch.cuda.memory_allocated()
        size = 1 << 22
        service.keep(torch.full((size,), 2.0, device="cuda"))
        gc.collect()
        assert torch.cuda.memory_allocated() > before
        others = [torch.full((size,), 9.0, device="cuda") for _ in range(8)]
        torch.cuda.synchronize()
        assert service.total_of_kept() == [2.0 * size], "somebody else got its memory"
        del others
        service.drop()
        until(lambda: gc.collect() is not None and torch.cuda.memory_allocated() == before)
        value = service.make(size)
        owned = service.state()[1]
        view = value[size // 2 :]
        del value
        gc.collect()
        assert service.state()[1] == owned
        assert float(view[0]) == size // 2
        del view
        until(lambda: nothing_is_shared(service) and service.state()[1] < owned)


def check_back_and_forth(services: Services) -> None:
    import torch

    with services.start() as first, services.start() as second:
        tensor = torch.zeros(4, device="cuda")
        passed = tensor
        for _ in range(300):
            passed = first.same(passed)
            passed += 1
        assert tensor.tolist() == [300.0] * 4
        assert passed.data_ptr() == tensor.data_ptr()
        made = first.make(1000)
        for _ in range(50):
            made = second.same(made)
        assert first.total(made) == 999 * 1000 / 2, "from one worker to the other, and home"
        for _ in range(300):
            assert first.make(16)[3] == 3.0, "mapped, unmapped and mapped again"
        del made, passed, tensor
        until(lambda: nothing_is_shared(first) and nothing_is_shared(second))


def check_small_allocations_of_their_own(services: Services) -> None:
    """CUDA cuts small ones from a larger block; each has a handle of its own."""
    try:
        import cupy
    except ImportError:
        print("  without cupy: not checked")
        return
    cupy.cuda.set_allocator(None)
    try:
        with services.start() as service:
            arrays = [cupy.full(100 + index, index, dtype="float32") for index in range(40)]
            for index, array in enumerate(arrays):
                assert service.describe(array)[2] == [float(index)] * (100 + index)
            for array in arrays:
                service.keep(array)
            service.drop()
            del arrays, array
            until(lambda: nothing_is_shared(service))
    finally:
        cupy.cuda.set_allocator(cupy.cuda.MemoryPool().malloc)


def check_cupy_and_numba(services: Services) -> None:
    with services.start() as service:
        for library in ("cupy", "numba"):
            try:
                __import__(library)
                value = service.make_with(library, 10)
            except Exception as error:
                print(f"  without {library}: not checked ({type(error).__name__}: {error})")
                continue
            assert type(value).__module__.partition(".")[0] == library
            assert service.name(value) == library
            assert service.describe(value)[2] == [float(one) for one in range(10)]
            del value
        until(lambda: nothing_is_shared(service))


def check_memory_that_cannot_be_shared(services: Services) -> None:
    from atoll import EncodeError

    for setting in ("expandable_segments:True", "backend:cudaMallocAsync"):
        with services.start(env_vars={"PYTORCH_CUDA_ALLOC_CONF": setting}) as service:
            try:
                service.make(1000)
            except EncodeError as error:
                said = str(error)
            else:
                said = "it crossed"
            print(f"  {setting}: {said}")
            assert "PYTORCH_CUDA_ALLOC_CONF" in said, said


def serves(service: Any) -> bool:
    """Whether a call comes back, which it does not before the end of the last worker was noticed."""
    import torch

    from atoll import WorkerDied

    try:
        return bool(service.total(torch.ones(10, device="cuda")) == 10.0)
    except WorkerDied:
        return False


def check_killed_workers(services: Services) -> None:
    import torch

    with services.start() as service:
        before = torch.cuda.memory_allocated()
        service.keep(torch.ones(1 << 20, device="cuda"))
        pid = service.process_id()
        os.kill(pid, signal.SIGKILL)
        until_gone(pid)
        until(lambda: gc.collect() is not None and torch.cuda.memory_allocated() == before)
        made, pid = service.make(100), service.process_id()
        os.kill(pid, signal.SIGKILL)
        until_gone(pid)
        until(lambda: serves(service), what="the next worker serves")
        del made
        gc.collect()
        torch.cuda.synchronize()


def check_a_device_that_is_not_visible(services: Services) -> None:
    import torch

    from atoll import DecodeError

    if torch.cuda.device_count() < 2:
        print("  one device: not checked")
        return
    with services.start(env_vars={"CUDA_VISIBLE_DEVICES": "1"}) as service:
        assert service.total(torch.ones(10, device="cuda:1")) == 10.0
        assert service.make(10).device.index == 1
        said = "it came"
        try:
            service.total(torch.ones(10, device="cuda:0"))
        except DecodeError as error:
            said = str(error)
        assert "does not see" in said, said


# -- figures -------------------------------------------------------------------------------------------------------


def _print_figure(label: str, times: int, call: Callable[..., object], *args: Any) -> None:
    for _ in range(max(3, times // 10)):
        call(*args)
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call(*args)
        taken.append((time.perf_counter() - began) * 1e6)
    taken.sort()
    print(
        f"  {label:<50} p50 {statistics.median(taken):10,.1f} µs   p99 {taken[int(times * 0.99)]:10,.1f} µs", flush=True
    )


def print_figures(services: Services) -> None:
    """Of one run: what a call costs with tensors of all sizes, beside a small call and beside copying."""
    import torch

    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}")
    with services.start() as service:
        _print_figure("small call", 2000, service.nothing, 1)
        for size, words in ((1 << 10, "1 KiB"), (1 << 20, "1 MiB"), (100 << 20, "100 MiB"), (1 << 30, "1 GiB")):
            tensor = torch.ones(size // 4, device="cuda")
            service.keep(tensor)
            _print_figure(f"argument, {words}, mapped already", 300, service.nothing, tensor)
            service.drop()
            _print_figure(f"argument, {words}, mapped anew every time", 300, service.nothing, tensor)
            _print_figure(f"argument, {words}, and home as the result", 300, service.same, tensor)
            if size <= 100 << 20:
                _print_figure(f"argument, {words}, by x.cpu()", 30, lambda of: service.nothing(of.cpu()), tensor)
        _print_figure("result, 4 MiB, made and mapped every time", 300, service.make, 1 << 20)


def main() -> int:
    """Run all checks, then the figures."""
    lacking = missing()
    if lacking is not None:
        print(lacking)
        return NOTHING_TO_CHECK_WITH
    import atoll

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        services = Services(Path(folder))
        for name, check in list(globals().items()):
            if name.startswith("check_"):
                print(name.replace("_", " "), flush=True)
                try:
                    check(services)
                except BaseException:
                    failed += 1
                    print(traceback.format_exc())
        print_figures(services)
        atoll.shutdown()
    print(f"\n{failed} checks failed" if failed else "\nall is well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
