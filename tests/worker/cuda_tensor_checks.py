# SPDX-License-Identifier: Apache-2.0
"""Tensors of torch as they cross from a CUDA device, with the stand-in for the driver: a program, for a Python that has
torch (``test_cuda.py`` runs it). Its one argument is a folder of its own.

The memory is main memory, so a torch without CUDA can look at it; everything else is what happens with a GPU.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
from stand_in_cuda import StandIn

from atoll_worker import cuda, tensors
from atoll_worker.errors import EncodeError

SERVICE = """\
import sys
sys.path.insert(0, {here!r})
import gc
import pathlib
import torch
from atoll_worker import cuda, expose, tensors
from stand_in_cuda import StandIn
from cuda_tensor_checks import on_device, treat_all_tensors_as_of_the_device

driver = StandIn(pathlib.Path({folder!r}))
cuda.use_driver(driver)
treat_all_tensors_as_of_the_device()

@expose
def same(value):
    return value

@expose
def describe(value):
    return str(value.dtype), list(value.shape), list(value.stride()), value.tolist(), value.requires_grad

@expose
def add_one(value):
    value += 1

@expose
def make(count):
    return on_device(driver, torch.arange(float(count)))

@expose
def counts():
    gc.collect()
    return cuda.counts(), len(driver.own), len(driver.opened)
"""


class Block:
    """Memory of the stand-in, freed when it is collected."""

    def __init__(self, driver: StandIn, nbytes: int) -> None:
        self.driver = driver
        self.address = driver.allocate(nbytes)

    def __del__(self) -> None:
        self.driver.free(self.address)


def on_device(driver: StandIn, tensor: Any) -> Any:
    """A copy of a tensor in memory of the stand-in, some way into an allocation."""
    tensor = tensor.contiguous()
    nbytes = tensor.numel() * tensor.element_size()
    block = Block(driver, nbytes + 128)
    memory = (ctypes.c_ubyte * nbytes).from_address(block.address + 64)
    memory.block = block  # type: ignore[attr-defined]
    ctypes.memmove(memory, tensor.data_ptr(), nbytes)
    return torch.frombuffer(memory, dtype=torch.uint8).view(tensor.dtype).reshape(tensor.shape)


def treat_all_tensors_as_of_the_device() -> None:
    tensors.BY_NAME[("torch", "Tensor")] = cuda.reduce_tensor
    tensors.BY_NAME[("torch.nn.parameter", "Parameter")] = cuda.reduce_tensor


def check_dtypes(driver: StandIn, service: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    missing = []
    for name in cuda.TORCH_DTYPES:
        dtype = getattr(torch, name, None)
        if dtype is None:
            missing.append(name)
            continue
        size = dtype.itemsize
        raw = torch.randint(0, 2 if name == "bool" else 120, (3 * 4 * size,), generator=generator, dtype=torch.uint8)
        tensor = on_device(driver, raw).view(dtype).reshape(3, 4)
        for view in (tensor, tensor.T, tensor[1:, ::2], tensor[1, 1], tensor[0:0], tensor[:, :1].expand(3, 4)):
            back = service.same(view)
            assert type(back) is torch.Tensor
            assert back.dtype is dtype, name
            assert back.shape == view.shape, name
            assert view.numel() == 0 or back.stride() == view.stride(), name
            assert bits(back) == bits(view), name
            assert view.numel() == 0 or back.data_ptr() == view.data_ptr(), f"{name}: not the same memory"
    print("without:", ", ".join(missing) or "none")


def bits(tensor: Any) -> bytes:
    tensor = tensor.contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def check_views(driver: StandIn, service: Any) -> None:
    tensor = on_device(driver, torch.arange(12.0)).reshape(3, 4)
    assert service.describe(tensor[:, 1]) == ("torch.float32", [3], [4], [1.0, 5.0, 9.0], False)
    service.add_one(tensor[0])
    assert tensor[0].tolist() == [1.0, 2.0, 3.0, 4.0]
    made = service.make(8)
    both = service.same([made[2:], made[:4]])
    both[0][0] = -1.0
    assert made[2] == -1.0
    assert both[1][2] == -1.0
    (_, _), owned, _ = service.counts()
    assert owned == 1
    piece = made[3:5]
    del made, both
    gc.collect()
    assert service.counts()[1] == 1, "a view keeps the memory"
    assert piece.tolist() == [3.0, 4.0]


def check_what_is_more_than_data(driver: StandIn, service: Any) -> None:
    wanting = on_device(driver, torch.ones(3)).requires_grad_()
    assert service.describe(wanting)[-1] is False
    parameter = torch.nn.Parameter(on_device(driver, torch.ones(2)))
    assert service.describe(parameter)[3:] == ([1.0, 1.0], False)
    complex_one = on_device(driver, torch.tensor([1 + 2j, 3 - 4j]))
    # What is made of it lies in torch's own memory, of which the stand-in knows nothing: as with a pool of CUDA's.
    for value, words in (
        (complex_one.conj(), "nothing was allocated"),
        (on_device(driver, torch.eye(3)).to_sparse(), "layout torch.sparse_coo"),
        (torch.quantize_per_tensor(torch.ones(3), 0.5, 0, torch.qint8), "dtype torch.qint8"),
    ):
        said = "it crossed"
        try:
            service.same(value)
        except EncodeError as error:
            said = str(error)
        assert words in said, said


def main(folder: Path) -> None:
    # Not above: the worker takes things from here too.
    import atoll

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from conditions import until

    device = folder / "device"
    device.mkdir()
    file = folder / "tensor_service.py"
    file.write_text(SERVICE.format(here=str(Path(__file__).parent), folder=str(device)))
    driver = StandIn(device)
    cuda.use_driver(driver)
    treat_all_tensors_as_of_the_device()
    with atoll.Service(file, environment=sys.executable, start_timeout=120) as service:
        for check in (check_dtypes, check_views, check_what_is_more_than_data):
            check(driver, service)
            until(lambda: gc.collect() is not None and not driver.own and not driver.opened, what=str(check))
            until(lambda: service.counts() == ((0, 0), 0, 0), what=str(check))
    atoll.shutdown()
    print("all tensors crossed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
