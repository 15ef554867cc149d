# SPDX-License-Identifier: Apache-2.0
"""What ``test_tensors`` checks where torch is: ``python tensor_checks.py`` runs every ``check_*`` and prints as JSON
what was wrong with each, or null; ``write FILE`` and ``compare FILE`` exchange tensors with who has no torch.

torch is no part of the tests' own environment, nor is pytest one of the other."""

from __future__ import annotations

import ctypes
import gc
import json
import pickle
import sys
import traceback
import weakref
from contextlib import contextmanager
from typing import Any

import torch

from atoll_worker.adapters import Unsupported
from atoll_worker.errors import DecodeError
from atoll_worker.tensors import Storage, restore_name, restore_storage, restore_tensor
from atoll_worker.values import Decoder, Encoder, explain_unencodable

DTYPES = [
    name
    for name in (
        "bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "float32",
        "float64", "bfloat16", "complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
        "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
    )
    if hasattr(torch, name)
]  # fmt: skip


def passed(value: Any, frozen: bool = False, copied: list[int] | None = None) -> Any:
    """A value, by way of bytes."""
    encoder = Encoder()
    payload = encoder.encode(value)
    buffers = encoder.take_buffers()
    if copied is not None:
        copied.append(len(payload) + sum(buffer.nbytes for buffer in buffers))
    kind = bytes if frozen else bytearray
    return Decoder(checked=True, side="the host").decode(payload, [kind(buffer) for buffer in buffers])


def bytes_of(tensor: Any) -> bytes:
    """A tensor's items, one after another."""
    packed = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return ctypes.string_at(packed.data_ptr(), packed.numel() * packed.element_size()) if packed.numel() else b""


def assert_same(one: Any, other: Any) -> None:
    """Equal in type, dtype, shape, strides and items."""
    assert type(one) is type(other), type(one)
    assert one.dtype == other.dtype, one.dtype
    assert one.shape == other.shape, one.shape
    assert one.stride() == other.stride() or not one.numel(), one.stride()
    assert bytes_of(one) == bytes_of(other)


@contextmanager
def refused(kind: type[Exception], words: str) -> Any:
    """The block raises such an error, which says this."""
    try:
        yield
    except kind as error:
        text = error.why if isinstance(error, Unsupported) else str(error)
        assert words in text, text
    else:
        raise AssertionError(f"nothing was raised, where {words!r} was expected")


def some(dtype: str, *shape: int) -> Any:
    """A tensor of any dtype whose bytes are all different, as far as they may be."""
    kind = getattr(torch, dtype)
    count = torch.empty(0, dtype=kind).element_size()
    for length in shape:
        count *= length
    data = torch.arange(count, dtype=torch.int64).remainder(2 if dtype == "bool" else 101).to(torch.uint8)
    return data.view(kind).reshape(shape)


# -- alone -------------------------------------------------------------------------------------------------------------


def check_every_dtype() -> None:
    for dtype in DTYPES:
        for tensor in (some(dtype, 7, 5), some(dtype, 70, 90, 2), some(dtype, 1)[0], some(dtype, 70, 90)[::3, 5:].t()):
            assert_same(passed([tensor])[0], tensor)
            assert_same(passed([tensor], frozen=True)[0], tensor)


def layouts() -> dict[str, Any]:
    base = torch.arange(6 * 8 * 10, dtype=torch.int32).reshape(6, 8, 10)
    return {
        "contiguous": base,
        "axes swapped": base.permute(2, 0, 1),
        "every other": base[:, ::2],
        "a crop": base[1:5, 2:7, 3:6],
        "expanded": base[0, 0].expand(5, 10),
        "expanded scalar": torch.tensor(3.5).expand(4, 4),
        "windows": base[0, 0].unfold(0, 4, 1),
        "channels last": torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "no axes": base[1, 2, 3],
        "no items": base[:, :0],
        "no items at all": torch.empty(0),
        "no items, many axes": torch.empty(3, 0, 2, dtype=torch.bool),
        "a diagonal": torch.arange(100.0).reshape(10, 10).diagonal(),
        "from within": base.reshape(-1)[77:],
    }


def check_every_layout() -> None:
    for name, tensor in layouts().items():
        try:
            arrived = passed({"tensor": tensor})["tensor"]
            assert_same(arrived, tensor)
            if tensor.numel() and 0 not in tensor.stride():
                arrived.fill_(1)
                assert bool((arrived == 1).all())
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def check_a_small_view_brings_no_large_storage_along() -> None:
    large = torch.zeros(1 << 28, dtype=torch.uint8)
    copied: list[int] = []
    view = large[1 << 27 :][:100]
    arrived = passed(view, copied=copied)
    assert arrived.untyped_storage().nbytes() == 100
    rows = large.reshape(1 << 14, 1 << 14)
    arrived = passed([rows[0], rows[5000], rows[-1]], copied=copied)
    assert [row.shape for row in arrived] == [(1 << 14,)] * 3
    assert copied[0] < 1000, copied
    assert copied[1] < 60_000, copied


def check_what_autograd_knows_stays() -> None:
    leaf = torch.ones(3, requires_grad=True)
    for tensor in (leaf, leaf * 2, (leaf * 2)[1:]):
        arrived = passed(tensor)
        assert arrived.requires_grad is False
        assert arrived.grad_fn is None
        assert arrived.tolist() == tensor.tolist()
        assert not arrived._is_view()
        arrived.requires_grad_()
        (arrived * 2).sum().backward()
        assert arrived.grad.tolist() == [2.0] * len(arrived)
    assert leaf.requires_grad


def check_parameters() -> None:
    for wanted in (True, False):
        parameter = torch.nn.Parameter(torch.arange(5000.0), wanted)
        arrived = passed({"weight": parameter})["weight"]
        assert type(arrived) is torch.nn.Parameter
        assert arrived.requires_grad is wanted
        assert torch.equal(arrived, parameter)
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Linear(40, 5))
    other = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Linear(40, 5))
    state = dict(model.state_dict())
    other.load_state_dict(passed(state))
    sample = torch.ones(2, 30)
    assert torch.equal(model(sample), other(sample))
    tied = torch.nn.Parameter(torch.ones(3))
    one, two = passed([tied, tied])
    assert one is two


def check_conjugated_and_negated() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    for bits in (tensor.conj(), tensor.conj().imag, tensor.real, tensor.mT if tensor.ndim > 1 else tensor):
        arrived = passed(bits)
        assert not arrived.is_conj()
        assert not arrived.is_neg()
        assert arrived.tolist() == bits.tolist()


def check_what_cannot_cross() -> None:
    sparse = torch.eye(3).to_sparse()
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for value, words in [
        (sparse, "of layout torch.sparse_coo; pass x.to_dense()"),
        (torch.eye(3).to_sparse_csr(), "of layout torch.sparse_csr"),
        (torch.ones(3, device="meta"), "of the device meta, where tensors have no data"),
        (quantised, "quantised; pass x.dequantize()"),
        (nested, "nested; pass x.unbind()"),
    ]:
        with refused(Unsupported, words):
            Encoder().encode([value])

    class Own(torch.Tensor):
        pass

    own = torch.ones(3).as_subclass(Own)
    with refused(Unsupported, ""):
        Encoder().encode(own)
    assert str(explain_unencodable(Unsupported(own), [("x", own)])).endswith("; pass x.as_subclass(torch.Tensor)")


def check_small_things() -> None:
    values = [
        torch.Size([1, 2]), torch.float32, torch.bfloat16, torch.device("cpu"), torch.device("cuda", 3), torch.strided,
        torch.sparse_coo, torch.channels_last,
    ]  # fmt: skip
    arrived = passed(values)
    assert arrived == values
    assert [type(one) for one in arrived] == [type(one) for one in values]
    for kind, name in [
        ("dtype", "float7"),
        ("dtype", "nn"),
        ("layout", "float32"),
        ("nn", "Module"),
        ("dtype", "load"),
    ]:
        with refused(DecodeError, "of this side does not have"):
            restore_name(kind, name)


# -- views of one storage ----------------------------------------------------------------------------------------------


def storage_of(tensor: Any) -> int:
    """The address of its storage."""
    address: int = tensor.untyped_storage().data_ptr()
    return address


def check_views_of_one_storage_stay_views() -> None:
    for size in (100, 10_000):
        base = torch.zeros(size)
        for views in (
            [base, base[10:20], base[:50].reshape(5, 10)],
            [base[10:20], base],
            [base[0:30], base[20:50], base[40:90]],
            [base[60:90], base[20:70], base[0:30]],
            [base[::2], base[1::2]],
            [base[0:10], base[80:90], base[5:85]],
            list(base.split(30)),
            [base[5:], base.view(torch.int32)[:50]],
        ):
            arrived = passed({"views": views})["views"]
            for one, other in zip(arrived, views, strict=True):
                assert_same(one, other)
            assert len({storage_of(one) for one in arrived}) == 1, size
            for index, view in enumerate(views):
                # What one writes, the others see, exactly as here.
                view.fill_(index + 1)
                arrived[index].fill_(index + 1)
                for one, other in zip(arrived, views, strict=True):
                    assert_same(one, other)
            base.zero_()


def check_views_that_have_nothing_in_common_cross_apart() -> None:
    base = torch.arange(100_000.0)
    one, two = passed([base[:5000], base[50_000:60_000]])
    assert storage_of(one) != storage_of(two)
    assert one.untyped_storage().nbytes() + two.untyped_storage().nbytes() < 100_000


def check_an_alias_is_one_tensor() -> None:
    tensor = torch.ones(10_000)
    one, two, three = passed([tensor, tensor, tensor.detach()])
    assert one is two
    assert three is not one
    three.zero_()
    assert not one.any()


def check_many_views() -> None:
    base = torch.arange(20_000.0).reshape(2000, 10)
    copied: list[int] = []
    arrived = passed(list(base), copied=copied)
    assert [row.tolist() for row in arrived] == base.tolist()
    assert len({storage_of(row) for row in arrived}) == 1
    arrived = passed([base[index] for index in (*range(0, 2000, 20), *range(0, 2000, 20))])
    assert len({storage_of(row) for row in arrived}) == 100


def check_the_encoder_starts_over_only_once() -> None:
    from atoll_worker import register

    class Maker:
        """Its encoding makes other tensors each time."""

    made: list[Any] = []

    def encode(value: Maker) -> Any:
        base = torch.arange(100.0)
        made.append(base)
        return [base[:20], base[10:40]]

    register(Maker, encode=encode, decode=lambda parts: parts)
    base = torch.arange(100.0)
    first, second, parts = passed([base[:50], base[40:], Maker()])
    assert storage_of(first) == storage_of(second)
    assert [part.tolist() for part in parts] == [list(map(float, range(20))), list(map(float, range(10, 40)))]
    assert len(made) == 2, len(made)


def check_an_encoder_is_used_again() -> None:
    base = torch.arange(5000.0)
    encoder = Encoder()
    decoder = Decoder(checked=True, side="the host")
    for _ in range(3):
        for value in ([base[:100], base[50:]], [base[3000:], base[:2000]], base[:10]):
            payload = encoder.encode(value)
            arrived = decoder.decode(payload, [bytearray(one) for one in encoder.take_buffers()])
            for one, other in zip(
                *(each if isinstance(each, list) else [each] for each in (arrived, value)), strict=True
            ):
                assert_same(one, other)
        with refused(Unsupported, ""):
            encoder.encode([base[:100], base[50:], object()])
        assert encoder.encode([1, "x"]) == Encoder().encode([1, "x"])
        assert not encoder.has_buffers


def check_nothing_is_kept_alive() -> None:
    encoder = Encoder()
    tensor = torch.ones(100_000)
    gone = weakref.ref(tensor)
    payload = encoder.encode([tensor[10:], tensor[:500]])
    buffers = [bytearray(one) for one in encoder.take_buffers()]
    del tensor
    gc.collect()
    assert gone() is None
    one, two = Decoder(checked=True, side="the host").decode(payload, buffers)
    memory = buffers.pop()
    del one
    gc.collect()
    assert two.tolist() == [1.0] * 500
    try:
        memory.append(1)
    except BufferError:
        pass  # held by what is left
    else:
        raise AssertionError("the tensor does not hold its memory")
    del two
    gc.collect()
    memory.append(1)


def check_what_was_sent_is_kept_until_it_is() -> None:
    encoder = Encoder()
    payload = encoder.encode(torch.arange(100_000.0)[5:])
    buffers = encoder.take_buffers()
    gc.collect()
    trash = [torch.full((100_000,), 7.0) for _ in range(20)]
    arrived = Decoder(checked=True, side="the host").decode(payload, [bytearray(one) for one in buffers])
    assert arrived.tolist() == list(map(float, range(5, 100_000)))
    del trash


# -- descriptions that lie ---------------------------------------------------------------------------------------------


def check_descriptions_that_lie() -> None:
    def storage() -> Storage:
        return restore_storage(b"12345678")

    for parts in [
        (storage(), "float32", 4, 0, (3,), (1,)), (storage(), "float32", 4, 8, (1,), (1,)),
        (storage(), "float32", 4, -4, (1,), (1,)), (storage(), "float32", 4, 2, (1,), (1,)),
        (storage(), "float32", 4, 0, (2,), (-1,)), (storage(), "float32", 4, 0, (-2,), (1,)),
        (storage(), "float32", 4, 0, (2, 2), (1,)), (storage(), "float32", 2, 0, (4,), (1,)),
        (storage(), "float64", 4, 0, (2,), (1,)), (storage(), "float32", 0, 0, (2,), (1,)),
        (storage(), "float99", 4, 0, (2,), (1,)), (storage(), "nn", 4, 0, (2,), (1,)),
        (storage(), "float32", 4, 0, (0,), (1,)), (None, "float32", 4, 0, (2,), (1,)),
        ("x", "float32", 4, 0, (1,), (1,)),
        (storage(), "float32", 4, 0, (1 << 62,), (1 << 62,)), (storage(), "float32", 4, 0, (2, 1 << 62), (1, 4)),
    ]:  # fmt: skip
        try:
            restore_tensor(*parts)
        except DecodeError:
            continue
        raise AssertionError(f"{parts} was restored")


# -- with who has no torch ---------------------------------------------------------------------------------------------


def samples() -> dict[str, Any]:
    """Tensors to be exchanged."""
    base = torch.arange(20_000.0)
    return {
        **{dtype: some(dtype, 30, 40) for dtype in DTYPES},
        **layouts(),
        "shared": [base[:15_000], base[10_000:], base.view(torch.bfloat16)[:20]],
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "size": torch.Size([3, 4]),
    }


def write(path: str) -> None:
    """Encode the samples, one by one."""
    encoder = Encoder()
    encoded = {}
    for name, value in samples().items():
        payload = encoder.encode(value)
        encoded[name] = payload, [bytes(buffer) for buffer in encoder.take_buffers()]
    with open(path, "wb") as file:
        pickle.dump(encoded, file)


def compare(path: str) -> None:
    """Decode what has become of the samples, as far as it is tensors again."""
    decoder = Decoder(checked=True, side="the host")
    with open(path, "rb") as file:
        encoded = pickle.load(file)
    wanted = samples()
    for name, (payload, buffers) in encoded.items():
        arrived = decoder.decode(payload, [bytearray(buffer) for buffer in buffers])
        for one, other in zip(
            *([each] if torch.is_tensor(each) else each for each in (arrived, wanted[name])), strict=True
        ):
            assert_same(one, other)
        if name == "shared":
            assert len({storage_of(one) for one in arrived}) == 1


def main() -> None:
    """Run all, or those named."""
    if sys.argv[1:2] in (["write"], ["compare"]):
        return globals()[sys.argv[1]](sys.argv[2])
    found = {}
    for name, check in list(globals().items()):
        if name.startswith("check_") and (not sys.argv[1:] or name in sys.argv[1:]):
            try:
                check()
                found[name] = None
            except Exception:
                found[name] = traceback.format_exc()
            gc.collect()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
