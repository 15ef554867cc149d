# SPDX-License-Identifier: Apache-2.0
"""Bytes of arrays beside a data pickle: which way they take, and that they arrive. An encoder and a decoder in this
process, with loans between them."""

from __future__ import annotations

import contextlib
import gc
import glob
import os
import pickle
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import atoll_worker
from atoll_worker import allocation, cargo, values
from atoll_worker.errors import DecodeError
from atoll_worker.loans import Loans
from atoll_worker.segments import store
from atoll_worker.values import INLINE_BUFFER, Decoder, Encoder

ENTRY = struct.Struct("<BB2xIQQQ")
LARGE = values._LARGE_CHUNK

pytestmark = pytest.mark.timeout(600)  # as long as all examples of a test take on a busy machine


class Way:
    """From an encoder to a decoder."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.lender, self.borrower = Loans(ours, "the borrower"), Loans(theirs, "the lender")
        for one in (self.lender, self.borrower):
            one.on_forget = lambda number: None
        self.encoder = Encoder(loans=lambda: self.lender)
        self.decoder = Decoder(checked=True, side="the host", read_only=True, loans=lambda: self.borrower)
        self.payload = b""
        self.frame: list[Any] = []

    def encode(self, value: Any) -> None:
        self.payload = self.encoder.encode(value)
        self.frame = list(self.encoder.take_buffers())

    def decode(self, own: bool = False) -> Any:
        return self.decoder.decode(self.payload, [bytearray(one) for one in self.frame], own=own)

    def pass_on(self, value: Any, own: bool = False) -> Any:
        self.encode(value)
        return self.decode(own)

    @property
    def entries(self) -> list[tuple[int, int, int, int, int, int]]:
        """The table of what was encoded last."""
        if self.payload[:1] != b"\x93":
            return []
        (count,) = struct.unpack_from("<I", self.payload, 4)
        return list(ENTRY.iter_unpack(self.payload[8 : 8 + ENTRY.size * count]))

    def close(self) -> None:
        self.encoder.take_back()
        self.lender.close()
        self.borrower.close()


@pytest.fixture
def way() -> Iterator[Way]:
    """One; afterwards nothing is lent or borrowed."""
    made = Way()
    yield made
    made.frame.clear()
    gc.collect()
    figures = store.figures()
    assert (figures["lent"], figures["borrowed"]) == (0, 0)
    made.close()


def same(one: Any, other: Any) -> bool:
    if type(one) is np.ndarray:
        return bool(one.dtype == other.dtype and np.array_equal(one, other))
    if type(one) in (list, tuple):
        return type(other) is type(one) and len(one) == len(other) and all(map(same, one, other))
    if type(one) is dict:
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


def array(nbytes: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, nbytes, "u1")


# -- which way -------------------------------------------------------------------------------------------------------


def test_small_ones_stay_in_the_pickle(way: Way) -> None:
    """Below the threshold there is no table and no segment."""
    assert same(way.pass_on([array(INLINE_BUFFER - 1)]), [array(INLINE_BUFFER - 1)])
    assert way.entries == []
    assert way.frame == []


def test_middling_ones_share_a_segment_and_large_ones_have_their_own(way: Way) -> None:
    """Each begins at a multiple of 64; each arrives."""
    value = [array(INLINE_BUFFER + 1, 1), array(cargo.OWN_SEGMENT, 2), array(INLINE_BUFFER + 2, 3)]
    value.append(array(cargo.OWN_SEGMENT + 1, 4))
    assert same(way.pass_on(value), value)
    kinds, _, cells, numbers, offsets, lengths = zip(*way.entries, strict=True)
    assert kinds == (cargo.SEGMENT,) * 4
    assert lengths == tuple(one.nbytes for one in value)
    assert numbers[0] == numbers[2]
    assert len(set(numbers)) == len(set(cells)) == 3
    assert [offset % 64 for offset in offsets] == [0] * 4


def test_what_lies_in_a_segment_is_lent_as_it_is(way: Way) -> None:
    """Nothing is copied; views of it neither; one loan for all of a message."""
    x = allocation.asarray(array(300_000))
    copies = store.copies
    value = [x, x[100_000:], x[::-1], x[:70_000]]
    assert same(way.pass_on(value), value)
    assert store.copies == copies
    assert len({entry[2:4] for entry in way.entries}) == 1


def test_the_same_array_twice_crosses_once(way: Way) -> None:
    """It is one memory over there too; so are two arrays on the same bytes."""
    x = array(300_000)
    first, second, third = way.pass_on([x, x, x.view("i1")], own=True)
    assert first is second
    first[0] = 77
    assert third[0] == 77
    assert [entry[0] for entry in way.entries] == [cargo.SEGMENT, cargo.SAME]
    del first, second, third


def test_more_than_may_have_a_segment_of_their_own(way: Way) -> None:
    """The others share one."""
    value = [array(cargo.OWN_SEGMENT, seed) for seed in range(cargo._MOST_OWN + 5)]
    assert same(way.pass_on(value), value)
    assert len({entry[3] for entry in way.entries}) == cargo._MOST_OWN + 1


def test_without_loans_all_goes_into_the_frame() -> None:
    """As where there are no segments."""
    encoder, decoder = Encoder(), Decoder(checked=True, side="the host")
    value = [array(300_000), {"a": array(80_000, 2)}, array(80_000, 2)[::-1]]
    payload = encoder.encode(value)
    frame = list(encoder.take_buffers())
    assert len(frame) == 3
    assert same(decoder.decode(payload, frame), value)


def fill(way: Way) -> None:
    """Nothing goes through the socket any more."""
    with contextlib.suppress(BlockingIOError):
        while True:
            way.lender._sock.sendmsg([b"x"], [], socket.MSG_DONTWAIT)


def test_what_cannot_be_lent_goes_into_the_frame(way: Way) -> None:
    """No descriptor can be passed: arrays and bytes arrive all the same, the same twice as one, and nothing is kept."""
    fill(way)
    x = array(300_000)
    value = [x, x.view(), array(80_000), b"b" * (LARGE + 1), bytearray(b"c" * (LARGE + 2)), allocation.asarray(x)]
    way.encode(value)
    assert {entry[0] for entry in way.entries} == {cargo.FRAME, cargo.SAME}
    arrived = way.decode()
    assert same(arrived, value)
    assert np.shares_memory(arrived[0], arrived[1])
    del value
    gc.collect()
    assert store.figures()["lent"] == 0


def test_some_can_be_lent_and_some_cannot(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes the way it can."""
    monkeypatch.setattr(store, "most_borrowed", 2)
    held = [allocation.asarray(array(300_000, seed)) for seed in range(4)]
    way.encode([held[0], b"b" * (LARGE + 1), held[1], held[2], array(100_000), held[3]])
    kinds = {entry[0] for entry in way.entries}
    assert kinds == {cargo.SEGMENT, cargo.FRAME}
    arrived = way.decode()
    assert same(arrived, [held[0], b"b" * (LARGE + 1), held[1], held[2], array(100_000), held[3]])
    del arrived


def test_what_was_encoded_and_not_sent_is_taken_back(way: Way) -> None:
    """When told so, and at an error in the middle."""
    x = allocation.asarray(array(300_000))
    way.encode([x, array(300_000)])
    assert store.figures()["lent"] == 2
    way.encoder.take_back()
    assert store.figures()["lent"] == 0
    with pytest.raises(Exception, match="object"):
        way.encode([x, array(300_000), object()])
    assert store.figures()["lent"] == 0
    assert same(way.pass_on([x]), [x])


def test_what_was_sent_is_not_taken_back_with_what_cannot_be_encoded_next(way: Way) -> None:
    """The other side has it until it gives it back, whatever becomes of later values."""
    kept = way.pass_on([array(300_000)])
    for wrong in (object(), [array(300_000, 2), object()], [array(300_000, 2), array(100_000, 2), {"a": object()}]):
        with pytest.raises(Exception, match="object"):
            way.encode(wrong)
        assert store.figures()["lent"] == 1
        assert same(way.pass_on([array(300_000, 3)]), [array(300_000, 3)])
        assert same(kept, [array(300_000)])
    del kept
    gc.collect()
    assert store.figures()["lent"] == 0


def test_own_copies(way: Way) -> None:
    """They can be written to, are nobody else's, and have a segment of their own to be passed on from."""
    x = allocation.asarray(array(300_000))
    (mine,) = way.pass_on([x], own=True)
    assert mine.flags.writeable
    mine[:] = 0
    assert same(x, array(300_000))
    assert allocation.segment_of(*allocation.span_of(mine)) is not None
    del mine


def test_bytes_and_arrays_in_one_segment_own_copies_of_both(way: Way) -> None:
    """In whichever order they are."""
    for value in ([b"b" * (LARGE + 1), array(70_000)], [array(70_000), b"b" * (LARGE + 1)]):
        arrived = way.pass_on(value, own=True)
        assert same(arrived, value)
        (mine,) = (one for one in arrived if type(one) is np.ndarray)
        assert allocation.segment_of(*allocation.span_of(mine)) is not None
        del arrived, mine


sizes = st.sampled_from([0, 1, 100, INLINE_BUFFER - 1, INLINE_BUFFER, LARGE - 1, LARGE, LARGE + 1, 700_000])
things = st.one_of(
    st.tuples(st.just("array"), sizes, st.integers(0, 3)),
    st.tuples(st.just("shared"), sizes, st.integers(0, 3)),
    st.tuples(st.just("strided"), sizes, st.integers(0, 3)),
    st.tuples(st.just("bytes"), sizes, st.integers(0, 3)),
    st.tuples(st.just("bytearray"), sizes, st.integers(0, 3)),
    st.tuples(st.just("text"), sizes, st.integers(0, 3)),
)


def thing(kind: str, size: int, seed: int, made: dict[Any, Any]) -> Any:
    key = kind, size, seed
    if key not in made:
        data = array(size, seed)
        made[key] = {
            "array": lambda: data,
            "shared": lambda: allocation.asarray(data),
            "strided": lambda: data[::2],
            "bytes": data.tobytes,
            "bytearray": lambda: bytearray(data.tobytes()),
            "text": lambda: "t" * size,
        }[kind]()
    return made[key]


@given(st.lists(things, max_size=8), st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_mixture(recipe: list[tuple[str, int, int]], own: bool, nested: bool) -> None:
    """Of all kinds, sizes and ways, some of them the same object: all arrive as they were."""
    way, made = Way(), {}
    value: Any = [thing(*one, made) for one in recipe]
    if nested:
        value = {"a": (value, {"b": value[:1]}), "c": value[-1:]}
    for _ in range(2):
        arrived = way.pass_on(value, own)
        assert same(arrived, value)
        del arrived
    gc.collect()
    assert store.figures()["lent"] == 0
    way.close()


# -- bytes between the opcodes ---------------------------------------------------------------------------------------


def header(opcode: int, length: int) -> bytes:
    """What the pickler writes before so many bytes."""
    return bytes([opcode]) + length.to_bytes(4 if opcode == 0x42 else 8, "little")


OPCODES = [0x42, 0x8E, 0x96]


@pytest.mark.parametrize("opcode", OPCODES)
@pytest.mark.parametrize("kind", [bytes, bytearray, "text", "array"])
def test_values_that_end_like_a_header(way: Way, opcode: int, kind: Any) -> None:
    """The bytes of a value before a large one look like the header of that: nobody takes them for it."""
    for length in (LARGE, LARGE + 1, 600_000):
        fake = header(opcode, length)
        for before in (fake, b"x" * 300 + fake, b"x" * 60_000 + fake, b"x" * LARGE + fake, b"\x95" + fake * 3):
            first = bytearray(before) if kind is bytearray else before
            last: Any = b"y" * length
            if kind == "text":
                last = "y" * length
            elif kind == "array":
                last = np.full(length, 7, "u1")
            value = [first, last, first, bytearray(last) if type(last) is bytes else last, before.decode("latin-1")]
            assert same(way.pass_on(value), value)


headers = st.tuples(st.sampled_from(OPCODES), st.sampled_from([LARGE, LARGE + 5]), st.integers(0, 300))


@given(st.lists(headers, max_size=5))
@settings(max_examples=60, deadline=None)
def test_headers_within_headers(recipe: list[tuple[int, int, int]]) -> None:
    """Values made of nothing but what looks like opcodes, of small and large sizes."""
    way = Way()
    value: list[Any] = []
    for opcode, length, padding in recipe:
        fake = b"\x94" * padding + header(opcode, length)
        value += [fake, (fake * (length // len(fake) + 1))[:length], bytearray(fake * 2), {fake: fake}]
    assert same(way.pass_on(value), value)
    gc.collect()
    way.close()


def test_large_bytes_are_cargo(way: Way) -> None:
    """They are not copied into the pickle; bytes and bytearray arrive as what they were."""
    value = [b"b" * LARGE, bytearray(b"c" * (LARGE + 1)), b"d" * (LARGE - 1)]
    way.encode(value)
    assert [entry[1] for entry in way.entries] == [cargo.BYTES, cargo.BYTEARRAY]
    assert len(way.payload) < 2 * LARGE
    assert same(way.decode(), value)


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_tables_by_hand(way: Way) -> None:
    """Forms of the frame's own buffers; and none of segments where there are no loans."""
    head = struct.pack("<B3xI", 0x93, 3)
    entries = [ENTRY.pack(cargo.FRAME, form, 0, 0, 0, 0) for form in (cargo.MEMORY, cargo.BYTES, cargo.BYTEARRAY)]
    payload = head + b"".join(entries) + b"\x80\x05](\x97\x97\x97e."
    first, second, third = way.decoder.decode(payload, [b"a", bytearray(b"b"), b"c"])
    assert (bytes(first), second, third) == (b"a", b"b", bytearray(b"c"))
    lent = head[:4] + struct.pack("<I", 1) + ENTRY.pack(cargo.SEGMENT, 0, 0, 1, 0, 1) + b"\x80\x05\x97."
    with pytest.raises(DecodeError, match="segments have no meaning here"):
        Decoder(checked=True, side="the host").decode(lent, [])


# -- on every Python -------------------------------------------------------------------------------------------------

PROGRAM = """\
    import gc, socket, sys
    sys.path.insert(0, sys.argv[1])
    from atoll_worker import values
    from atoll_worker.loans import Loans
    from atoll_worker.segments import store
    from atoll_worker.values import Decoder, Encoder

    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lender, borrower = Loans(one, "the borrower"), Loans(other, "the lender")
    encoder, decoder = Encoder(loans=lambda: lender), Decoder(False, "here", loans=lambda: borrower)
    large = values._LARGE_CHUNK
    cases = [[b"b" * large, bytearray(b"c" * (large + 1)), memoryview(b"d" * 300_000)], b"e" * 5_000_000]
    for opcode, width in ((0x42, 4), (0x8E, 8), (0x96, 8)):
        for length in (large, large + 1):
            fake = bytes([opcode]) + length.to_bytes(width, "little")
            for before in (fake, b"x" * 300 + fake, b"x" * 70_000 + fake, b"x" * large + fake, b"\\x95" + fake * 3):
                cases.append([before, b"y" * length, bytearray(before), bytearray(b"z" * length), "t" * length])
                cases.append({before: [before] * 3, "a": (b"y" * length, {"b": before})})
    for value in cases:
        for own in (False, True):
            payload = encoder.encode(value)
            assert payload[0] == 0x93, payload[:20]
            assert decoder.decode(payload, encoder.take_buffers(), own=own) == value
        payload = value = None
    gc.collect()
    figures = store.figures()
    assert (figures["lent"], figures["borrowed"]) == (0, 0), figures
    lender.close()
    borrower.close()
    store.trim()
    assert not store.size
    print("passed")
"""


def interpreters() -> list[str]:
    """Of every minor version from 3.9 on that pyenv has, and the one that runs this."""
    found = {path.split("/versions/")[1].rpartition(".")[0]: path
             for path in sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python3")))}  # fmt: skip
    usable = [path for version, path in found.items() if tuple(map(int, version.split(".")[:2])) >= (3, 9)]
    return [sys.executable, *usable]


@pytest.mark.parametrize("python", interpreters())
def test_bytes_on_every_python(tmp_path: Path, python: str) -> None:
    """Where picklers write headers and frames is theirs to decide: large bytes are found on all of them."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    source = str(Path(atoll_worker.__file__).parents[1])
    done = subprocess.run([python, "-I", "-B", str(program), source], capture_output=True, text=True, timeout=120)
    assert done.stdout == "passed\n", done.stderr


def test_the_guard_admits_what_is_written(way: Way) -> None:
    """The checked decoder is the one used above: what it was given is a data pickle behind a table."""
    way.encode([array(300_000), b"b" * LARGE])
    _, rest = cargo.unload(way.payload, way.frame, way.borrower, False)
    assert bytes(rest[:2]) == pickle.PROTO + b"\x05"
