# SPDX-License-Identifier: Apache-2.0
"""What the host loads of a worker's bytes: everything that ``Encoder`` writes, and nothing that does harm."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll_worker import adapters, arrays, guard
from atoll_worker.errors import DecodeError
from atoll_worker.values import Decoder, Encoder

from .forking import in_child
from .samples import EXAMPLES, anything

MEBIBYTE = 1 << 20
HEAD = b"\x80\x05"


def checked() -> Decoder:
    return Decoder(checked=True, side="the host")


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """The opcodes that look a global up and call it."""
    count = len(arguments)
    return text(module) + text(name) + b"\x93" + b"(" + b"".join(arguments) + b"t" * bool(count) + b"R"


# -- what is admitted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_all_that_is_encoded_passes(value: Any) -> None:
    """No value that may cross is refused on the way."""
    guard.check(Encoder().encode(value))


@given(anything)
@settings(max_examples=200, deadline=None)
def test_all_that_is_encoded_passes_whatever_it_is(value: Any) -> None:
    """As above, for nested values of all sorts."""
    guard.check(Encoder().encode(value))


PLAIN_TYPES = (type(None), bool, int, float, str, tuple, list, dict, set, frozenset)


def is_plain_value(value: Any) -> bool:
    if type(value) is dict:
        return all(is_plain_value(part) for item in value.items() for part in item)
    if type(value) in (list, tuple, set, frozenset):
        return all(is_plain_value(part) for part in value)
    return type(value) in PLAIN_TYPES


@given(anything)
@settings(max_examples=200, deadline=None)
def test_plain_means_plain(value: Any) -> None:
    """What the fast unrestricted unpickler gets consists of built-in scalars and containers, and calls nothing."""
    payload = Encoder().encode(value)
    if guard.is_plain(payload):
        assert is_plain_value(value)
        loaded = pickle.loads(payload)
        assert is_plain_value(loaded)


@pytest.mark.parametrize(
    "value", [None, 1, -5, 300, 70_000, 1.5, "short", [1, "a"], {"a": (1, 2)}, {1}, frozenset({2})]
)
def test_the_usual_value_takes_the_fast_way(value: Any) -> None:
    """The small plain values that most calls carry are known to be plain."""
    assert guard.is_plain(Encoder().encode(value))


# -- what is refused -------------------------------------------------------------------------------------------------


def restore(name: str, *arguments: bytes) -> bytes:
    return HEAD + call("atoll_worker.adapters", name, *arguments) + b"."


BAD: dict[str, bytes] = {
    "GLOBAL": b"cos\nsystem\n" + text("id") + b"\x85R.",
    "INST": b"(" + text("id") + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + text("id") + b"o.",
    "EXT1": b"\x82\x01.",
    "EXT2": b"\x83\x01\x00.",
    "EXT4": b"\x84\x01\x00\x00\x00.",
    "PERSID": b"Pname\n.",
    "BINPERSID": text("name") + b"Q.",
    "BUILD": b"}}b.",
    "NEWOBJ": b"]" + b")\x81.",
    "NEWOBJ_EX": b"])}\x92.",
    "PUT": b"Np1\n.",
    "BINPUT": b"Nq\xff.",
    "LONG_BINPUT": b"Nr\xff\xff\xff\x7f.",
    "PROTO again": b"\x80\x05N.",
    "DUP": b"N2\x86.",
    "INT": b"I1\n.",
    "LONG": b"L1L\n.",
    "FLOAT": b"F1.5\n.",
    "STRING": b"S'x'\n.",
    "UNICODE": b"Vx\n.",
    "GET": b"N\x94g0\n.",
    "BINSTRING": b"T\x01\x00\x00\x00x.",
    "SHORT_BINSTRING": b"U\x01x.",
    "DICT": b"(d.",
    "LIST": b"(l.",
    "unassigned": b"\xff.",
    "zero": b"\x00.",
}


@pytest.mark.parametrize("name", BAD)
def test_opcodes_that_have_no_place(name: str) -> None:
    """Old, textual and dangerous opcodes are refused before anything is loaded."""
    for payload in (HEAD + BAD[name], HEAD + b"\x95" + struct.pack("<Q", len(BAD[name])) + BAD[name]):
        with pytest.raises(DecodeError, match="data pickle"):
            guard.check(payload)
        with pytest.raises(DecodeError):
            checked().decode(payload)


GLOBALS = [
    ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("subprocess", "Popen"),
    ("atoll_worker.adapters", "sys"), ("atoll_worker.adapters", "sys.modules"), ("atoll_worker.adapters", "children"),
    ("atoll_worker.adapters", "restore_date.__globals__"), ("atoll_worker.adapters", "build_registered"),
    ("atoll_worker.adapters.restore_date", "__globals__"), ("atoll_worker.values", "Decoder"), ("", ""),
    ("numpy.core.multiarray", "_reconstruct"), ("functools", "partial"), ("copyreg", "_reconstructor"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), GLOBALS)
def test_only_restorers_are_found(module: str, name: str) -> None:
    """A name that is not a restorer's is not looked up, whether it is called or only named."""
    for tail in (call(module, name, text("id")), text(module) + text(name) + b"\x93"):
        with pytest.raises(DecodeError, match="refused to load"):
            checked().decode(HEAD + tail + b".")


def test_a_name_by_way_of_the_memo() -> None:
    """Names put together of memoized parts, and parts of other types, are no way around."""
    memoized = text("os") + b"\x94" + text("system") + b"\x94" + b"00" + b"h\x00h\x01\x93" + text("id") + b"\x85R."
    with pytest.raises(DecodeError, match=r"refused to load os\.system"):
        checked().decode(HEAD + memoized)
    for parts in (b"NN", b"K\x01K\x01", b"))", text("os") + b"N"):
        with pytest.raises(DecodeError):
            checked().decode(HEAD + parts + b"\x93.")


def test_nothing_runs_while_it_is_refused(tmp_path: Any) -> None:
    """The proof by deed: a pickle that Python's own unpickler runs leaves no trace here."""
    trace = tmp_path / "ran"

    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (f"open({str(trace)!r}, 'w').close()",)

    for protocol in range(6):
        payload = pickle.dumps(Harm(), protocol)
        with pytest.raises(DecodeError):
            checked().decode(payload)
        assert not trace.exists()
        pickle.loads(payload)
        assert trace.exists()
        trace.unlink()


@pytest.mark.parametrize(
    "bomb",
    [
        b"Nr\xff\xff\xff\x7f.",  # a memo of two thousand million places
        b"Nr\xff\xff\xff\xff.",
        b"Np2000000000\n.",
        b"B\xff\xff\xff\x7f.",
        b"X\xff\xff\xff\xff.",
        b"\x8d" + struct.pack("<Q", 1 << 40) + b".",
        b"\x8e" + struct.pack("<Q", 1 << 63) + b".",
        b"\x96" + struct.pack("<Q", 1 << 36) + b".",
        b"\x96" + b"\xff" * 8 + b".",
        b"\x8b\xff\xff\xff\x7f.",
        b"\x8b\xff\xff\xff\xff.",  # a negative length
        b"\x95" + struct.pack("<Q", 1 << 40) + b"N.",  # a frame longer than there is
        b"\x95" + b"\xff" * 8 + b"N.",
        b"j\xff\xff\xff\xff.",  # a memo place nobody filled
        restore("restore_ndarray", text("|V0"), b"J\xff\xff\xff\x7f\x85", text("C"), b"C\x00")[2:],
        restore("restore_ndarray", text("|S0"), b"J\xff\xff\xff\x7f\x85", text("C"), b"C\x00")[2:],
        restore("restore_ndarray", text("<i8"), b"J\xff\xff\xff\x7f\x85", text("C"), b"C\x00")[2:],
    ],
)  # fmt: skip
def test_bombs_touch_no_memory(bomb: bytes) -> None:
    """A few bytes never make the reader allocate much, be it for the memo, for an announced length or an array."""

    def run() -> None:
        tracemalloc.start()
        try:
            loaded = checked().decode(HEAD + bomb)
        except DecodeError:
            pass
        else:
            assert loaded is None  # a frame's length has no meaning for what lies in memory already
        assert tracemalloc.get_traced_memory()[1] < 4 * MEBIBYTE

    in_child(run, 256 * MEBIBYTE)


def frame(content: bytes, length: int | None = None) -> bytes:
    return b"\x95" + struct.pack("<Q", len(content) if length is None else length) + content


def test_nothing_hides_behind_the_end_of_a_frame() -> None:
    """An unpickler that reads a file drops what a frame's end cuts off, and would go on in the midst of a part: here
    with opcodes that were checked as the text of a string."""
    hidden = b"\x8c\x04" + b"cos\n" + b"\x8e" + struct.pack("<Q", 12) + b"Nr\xff\xff\xff\x7f" + b"." * 6
    whole = text("system") + b"\x93" + hidden + b"0."
    for length in range(len(whole) + 1):
        payload = HEAD + restore("restore_date")[2:-1] + frame(whole, length)
        try:
            guard.check(payload)
        except DecodeError:
            continue
        # Admitted only where the frame ends between two parts: both readers see the same parts.
        places = [place for _, _, place in pickletools.genops(HEAD + whole)]
        assert length + 2 in [*places, len(whole) + 2]
    for payload in (
        frame(frame(b"N")) + b".",
        frame(frame(b"N."), 4),
        frame(b"N.", 1 << 63),
        b"\x95\0\0\0",
        frame(b""),
    ):
        with pytest.raises(DecodeError):
            guard.check(HEAD + payload)
    for payload in (frame(b"N."), frame(b"N") + b".", frame(b"N") + frame(b"."), frame(b"]") + b"N" + frame(b"a.")):
        guard.check(HEAD + payload)


@pytest.mark.parametrize("value", [1, "text", "long text " * 100, 10**100, [1, (2, b"bytes")], bytearray(300), 1 + 2j])
def test_every_cut_and_every_tail(value: Any) -> None:
    """A payload cut anywhere, or with anything behind its end, is refused."""
    payload = Encoder().encode(value)
    for end in range(len(payload)):
        with pytest.raises(DecodeError):
            guard.check(payload[:end])
        with pytest.raises(DecodeError):
            checked().decode(payload[:end])
    for tail in (b"\x00", b".", b"N.", payload):
        with pytest.raises(DecodeError, match=f"{len(tail):,} bytes after its end"):
            guard.check(payload + tail)
        with pytest.raises(DecodeError):
            checked().decode(payload + tail)


@pytest.mark.xfail(reason="hashing a tuple of 100,000 levels overflows CPython's stack, whoever builds it", strict=True)
def test_a_key_nested_without_end() -> None:
    """Half a megabyte of nested tuples as a key is refused, and does not end the process."""
    payload = HEAD + b"})" + b"\x85" * 500_000 + b"Ns."

    def run() -> None:
        with pytest.raises(DecodeError):
            checked().decode(payload)

    in_child(run, 512 * MEBIBYTE)


@pytest.mark.parametrize("protocol", range(5))
def test_other_protocols(protocol: int) -> None:
    """Only protocol 5 is spoken."""
    with pytest.raises(DecodeError, match="protocol 5"):
        checked().decode(pickle.dumps([1, "x"], protocol))


def test_stacks_that_do_not_fit() -> None:
    """Admitted opcodes in senseless orders are the unpickler's errors, turned into ours."""
    for body in (
        b".",
        b"0.",
        b"1.",
        b"e.",
        b"(e.",
        b"Na.",
        b"t.",
        b"]}u.",
        b"h\x00.",
        b"\x97.",
        b"N\x98.",
        b"\x94.",
        b"NNR.",
    ):
        with pytest.raises(DecodeError):
            checked().decode(HEAD + body)


@pytest.mark.parametrize(
    ("module", "name"), [(module.__name__, name) for module in (adapters, arrays) for name in sorted(module.RESTORERS)]
)
def test_restorers_with_senseless_arguments(module: str, name: str) -> None:
    """A restorer called with what it was not made for gives a value or DecodeError."""
    arguments = [
        b"N",
        b"K\x01",
        text("x"),
        b"]",
        b")",
        b"}",
        b"C\x00",
        b"G" + struct.pack(">d", float("nan")),
        b"J\xff\xff\xff\xff",
    ]
    for count in range(5):
        for one in arguments:
            for other in arguments:
                try:
                    checked().decode(HEAD + call(module, name, *([one] + [other] * count)[:count]) + b".")
                except DecodeError:
                    pass


def test_time_grows_with_length_only() -> None:
    """The expressions never back up: twice the bytes take about twice the time, for admitted and refused ones."""

    def seconds(make: Callable[[int], bytes], size: int) -> float:
        payload = make(size)
        best = float("inf")
        for _ in range(3):
            start = time.thread_time()  # of the processor: what others take of it does not count
            guard.is_plain(payload)
            try:
                guard.check(payload)
            except DecodeError:
                pass
            best = min(best, time.thread_time() - start)
        return best

    for make in (
        lambda size: HEAD + b"\x8c\x20" * size,
        lambda size: HEAD + b"K\x01" * size + b"\xff",
        lambda size: HEAD + b"N" * size,
        lambda size: HEAD + b"\x8c\x01x" * size + b"\xff.",
    ):
        short, long = seconds(make, 40_000), seconds(make, 400_000)
        for _ in range(20):  # a processor that others use too may be slow for a while
            if long < 40 * max(short, 1e-4):
                break
            short, long = min(short, seconds(make, 40_000)), min(long, seconds(make, 400_000))
        assert long < 40 * max(short, 1e-4)


# -- hypothesis, in a child with little memory -----------------------------------------------------------------------


def value_or_refusal(payload: bytes) -> None:
    try:
        checked().decode(payload, [bytearray(16)] * 2)
    except DecodeError:
        pass


@given(st.binary(max_size=120), st.booleans())
@settings(max_examples=1500, deadline=None, database=None)
def random_bytes(noise: bytes, with_head: bool) -> None:
    value_or_refusal(HEAD + noise + b"." if with_head else noise)


ADMITTED = b"\x94asue(t)\x5d}N\x85\x86\x87\x88\x89\x8f\x90\x9101\x93R\x97\x98KhGMJj\x95\x8cC\x8aXB\x8b\x8d\x8e\x96"


@given(st.lists(st.sampled_from(ADMITTED) | st.integers(0, 8), max_size=60))
@settings(max_examples=1500, deadline=None, database=None)
def random_admitted_opcodes(codes: list[int]) -> None:
    value_or_refusal(HEAD + bytes(codes) + b".")


ENCODED = [Encoder().encode(value) for value in EXAMPLES if not isinstance(value, numpy.ndarray) or value.nbytes < 4000]


@given(st.sampled_from([payload for payload in ENCODED if len(payload) < 4000]), st.data())
@settings(max_examples=1500, deadline=None, database=None)
def mutated_pickles(payload: bytes, data: st.DataObject) -> None:
    changed = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(2, len(changed) - 1))
        what = data.draw(st.sampled_from(["set", "insert", "delete", "opcode"]))
        if what == "set":
            changed[place] = data.draw(st.integers(0, 255))
        elif what == "opcode":
            changed[place] = data.draw(st.sampled_from(ADMITTED))
        elif what == "insert":
            changed.insert(place, data.draw(st.integers(0, 255)))
        elif len(changed) > 4:
            del changed[place]
    value_or_refusal(bytes(changed))


@pytest.mark.parametrize("search", [random_bytes, random_admitted_opcodes, mutated_pickles])
def test_a_value_or_a_refusal(search: Callable[[], None]) -> None:
    """Whatever comes, a checked decoder gives a value or raises DecodeError: no crash, no other error."""
    in_child(search, 512 * MEBIBYTE)


def test_the_alphabet_is_the_guards() -> None:
    """The opcodes tried above are those that the guard admits, so that the search goes where it can find something."""
    admitted = set()
    for code in range(256):
        try:
            guard.check(HEAD + bytes([code]) + b"\x00" * 8 + b".")
        except DecodeError as error:
            if "has no place" in str(error) and f"{code:#04x} at byte 2 " in str(error):
                continue
        admitted.add(code)
    assert admitted == set(ADMITTED) | {ord(".")}


def test_check_reads_any_bytes() -> None:
    """Payloads come as bytes, bytearray, memoryview and mmap; the guard treats them alike."""
    payload = Encoder().encode([1, "x" * 100, b"y" * 300])
    for kind in (bytes, bytearray, memoryview):
        guard.check(kind(payload))
        with pytest.raises(DecodeError):
            guard.check(kind(payload + b"x"))
    assert checked().decode(memoryview(io.BytesIO(payload).getbuffer())) == [1, "x" * 100, b"y" * 300]
