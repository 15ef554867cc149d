# SPDX-License-Identifier: Apache-2.0
"""Data connections between real processes: frames of all sizes, waiting, deadlines, and the other end's death."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from atoll_worker import connection as connections
from atoll_worker import wire
from atoll_worker.connection import Connection, ConnectionClosed, DeadlinePassed, WouldSleep
from atoll_worker.errors import LocalProtocolError
from atoll_worker.lane import SLOT_SIZE

from .pairs import PATIENCE, Raw, both_ends, echo, forked

WAYS = pytest.mark.parametrize(
    ("with_lane", "spin"),
    [(True, True), (True, False), (False, True), (False, False)],
    ids=["lane", "lane asleep", "socket", "socket asleep"],
)
FITS = SLOT_SIZE - wire.HEADER_SIZE


@WAYS
def test_frames_of_all_sizes(with_lane: bool, spin: bool) -> None:
    """Calls and answers from empty to megabytes, with and without buffers, in changing order."""
    sizes = [0, 1, 100, FITS - 1, FITS, FITS + 1, 1 << 16, 3 << 20, 5, 0, 1 << 18]
    with forked(echo, with_lane, spin) as (client, _):
        for round_ in range(3):
            for size in sizes:
                payload = bytes([size % 251 + round_]) * size
                for buffers in ([], [b""], [b"x" * 10, b"y" * size, b""]):
                    kind, codec, answer, back = client.exchange(wire.PICKLE, payload, buffers)
                    assert (kind, codec, bytes(answer)) == (wire.RESULT, wire.PICKLE, payload)
                    assert [bytes(one) for one in back] == buffers


@WAYS
def test_many_buffers(with_lane: bool, spin: bool) -> None:
    """More buffers than one sendmsg takes, empty ones among them."""
    buffers = [bytes([index % 7]) * (index % 5 * 300) for index in range(wire.MAX_BUFFERS)]
    with forked(echo, with_lane, spin) as (client, _):
        *_, back = client.exchange(wire.PICKLE, b"p", buffers)
        assert [bytes(one) for one in back] == buffers


@WAYS
def test_patient_waiting(with_lane: bool, spin: bool) -> None:
    """A caller who knows that it takes long sleeps at once, and gets the same answers."""
    with forked(echo, with_lane, spin) as (client, _):
        for size in (0, 100, 200_000):
            assert len(client.exchange(wire.RAW, b"x" * size, patient=True)[2]) == size


def test_a_worker_among_busy_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once yielding took long it sleeps, for some calls; every call is answered, before, meanwhile and after."""
    monkeypatch.setattr(connections, "_CROWD", -1.0)  # as if every yield took long
    monkeypatch.setattr(connections, "_CROWDED_CALLS", 3)
    with forked(echo) as (client, _):
        for number in range(50):
            payload = b"x" * (number * 4000)
            assert bytes(client.exchange(wire.RAW, payload)[2]) == payload


def test_errors_are_answers_too() -> None:
    """ERROR ends a call as RESULT does, and the next one follows."""

    def serve(server: Connection, _: Raw) -> None:
        while True:
            payload = server.receive_call()[2]
            server.reply(wire.ERROR if payload == b"bad" else wire.RESULT, wire.RAW, payload)

    with forked(serve) as (client, _):
        for payload, kind in [(b"good", wire.RESULT), (b"bad", wire.ERROR), (b"good", wire.RESULT)] * 3:
            assert client.exchange(wire.RAW, payload)[0] == kind


def test_the_greeting_over_a_connection() -> None:
    """send and receive carry every other frame, in turn."""

    def serve(server: Connection, _: Raw) -> None:
        server.conversation.state = wire.START
        wire.check_hello(server.receive().payload)
        server.send(wire.HELLO, wire.RAW, wire.hello())
        assert bytes(server.receive().payload) == b"what" * 100_000
        server.send(wire.READY, wire.RAW, b"ready")
        echo(server, _)

    with forked(serve) as (client, _):
        client.conversation.state = wire.START
        client.send(wire.HELLO, wire.RAW, wire.hello())
        assert wire.check_hello(client.receive().payload) == wire.CODEC_BITS
        client.send(wire.LOAD, wire.RAW, b"what" * 100_000)
        assert client.receive(time.monotonic() + PATIENCE).kind == wire.READY
        assert client.exchange(wire.RAW, b"x")[2] == b"x"


# -- one's own mistakes ----------------------------------------------------------------------------------------------


def test_out_of_turn_is_refused_and_harmless() -> None:
    """A frame out of turn, or too large, is this side's error; nothing was sent, and the right one may follow."""
    with both_ends() as (client, server):
        with pytest.raises(LocalProtocolError):
            server.reply(wire.RESULT, wire.RAW, b"")
        with pytest.raises(LocalProtocolError):
            client.send(wire.HELLO, wire.RAW, b"")
        with pytest.raises(LocalProtocolError, match="4,097 buffers"):
            client.exchange(wire.RAW, b"", [b""] * (wire.MAX_BUFFERS + 1))
        client.send(wire.CALL, wire.RAW, b"first")
        with pytest.raises(LocalProtocolError):
            client.exchange(wire.RAW, b"second")
        assert server.receive_call()[2] == b"first"
        with pytest.raises(LocalProtocolError):
            server.reply(wire.READY, wire.RAW, b"no answer")
        with pytest.raises(LocalProtocolError):
            server.exchange(wire.RAW, b"", kind=wire.LOAD)
        with pytest.raises(LocalProtocolError, match="4,097 buffers"):
            server.reply(wire.RESULT, wire.RAW, b"", [b""] * (wire.MAX_BUFFERS + 1))
        server.reply(wire.ERROR, wire.RAW, b"an answer after all")
        assert client.receive().payload == b"an answer after all"


# -- time ------------------------------------------------------------------------------------------------------------


def deaf(server: Connection, _: Raw) -> None:
    """Takes a call and never answers."""
    server.receive_call()
    server.receive_call()


@WAYS
def test_a_deadline_passes(with_lane: bool, spin: bool) -> None:
    """Without an answer the wait ends at the deadline, not before and not much later."""
    with forked(deaf, with_lane, spin) as (client, _):
        begun = time.monotonic()
        with pytest.raises(DeadlinePassed):
            client.exchange(wire.RAW, b"x", deadline=begun + 0.15)
        assert 0.15 <= time.monotonic() - begun < PATIENCE
        with pytest.raises(DeadlinePassed):
            client.receive(time.monotonic() - 1)


@WAYS
def test_a_deadline_while_sending(with_lane: bool, spin: bool) -> None:
    """The other side takes nothing: sending a large frame ends at the deadline too."""

    def serve(_: Connection, raw: Raw) -> None:
        raw.sock.setblocking(True)
        raw.sock.recv(1)
        threading.Event().wait()

    with forked(serve, with_lane, spin) as (client, _), pytest.raises(DeadlinePassed):
        client.exchange(wire.RAW, b"x" * (8 << 20), deadline=time.monotonic() + 0.1)


@pytest.mark.parametrize("with_lane", [True, False])
def test_a_flood_of_wakes_does_not_hold_back_the_deadline(with_lane: bool) -> None:
    """A peer that sends wake bytes as fast as it can keeps nobody past the deadline."""

    def serve(_: Connection, raw: Raw) -> None:
        raw.sock.setblocking(True)
        while True:
            raw.sock.sendall(bytes(1 << 20))

    with forked(serve, with_lane) as (client, _), pytest.raises(DeadlinePassed):
        client.exchange(wire.RAW, b"x", deadline=time.monotonic() + 0.1)


def test_would_sleep() -> None:
    """A caller that must not sleep is told so, and takes the answer up later."""
    with both_ends() as (client, server):
        with pytest.raises(WouldSleep):
            client.exchange(wire.RAW, b"x", sleep=False)
        server.receive_call()
        server.reply(wire.RESULT, wire.RAW, b"y")
        frame = client.poll_frame()
        assert frame is not None
        assert frame.payload == b"y"


@pytest.mark.parametrize("with_lane", [True, False])
def test_the_idle_hook_runs_once_per_long_sleep(with_lane: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """``on_idle`` is called when a wait gets long, once; not in short waits, not with a deadline. How many naps go by
    before a frame comes is said here, not left to a peer that may get no processor meanwhile."""
    monkeypatch.setattr(connections, "_NAPS", (1, 1, 1))
    idle: list[int] = []
    with both_ends(with_lane) as (client, server):
        server.on_idle = lambda: idle.append(1)
        poll = server._poll
        for naps, has_deadline, times in ((0, False, 0), (1, False, 0), (2, False, 1), (5, False, 1), (5, True, 0)):
            left = naps

            def poll_or_call(deadline: float | None, at_most_ms: int) -> bool:
                nonlocal left
                left -= 1
                if left < 0:
                    client.send(wire.CALL, wire.RAW, b"x")
                return poll(deadline, at_most_ms)

            monkeypatch.setattr(server, "_poll", poll_or_call)
            if has_deadline:
                assert server.receive(time.monotonic() + PATIENCE).payload == b"x"
            else:
                assert server.receive_call()[2] == b"x"
            assert left == -1
            assert len(idle) == times
            idle.clear()
            server.reply(wire.RESULT, wire.RAW, b"y")
            assert client.receive().payload == b"y"


# -- many wakes ------------------------------------------------------------------------------------------------------


def test_a_hundred_thousand_wakes() -> None:
    """Each call finds the server asleep, so each sends a wake byte: they are taken in, however many they are."""
    with both_ends() as (client, server):
        for _ in range(100_000):
            assert server.prepare_sleep()
            client.start_send(wire.CALL, wire.RAW, b"")
            server.drain_wakes()
            server.end_sleep()
            assert server.poll_frame() is not None
            server.reply(wire.RESULT, wire.RAW, b"")
            assert client.poll_frame() is not None
        with pytest.raises(DeadlinePassed):  # and the connection is as open as before
            server.receive(time.monotonic() + 0.02)


def test_a_wake_that_came_late_is_no_frame() -> None:
    """A wake byte that was sent to somebody who woke by himself lies in the socket; larger frames pass behind it."""
    with both_ends() as (client, server):
        for size in (10, 100_000, 10, 200_000):
            server.prepare_sleep()
            left = client.start_send(wire.CALL, wire.RAW, b"x" * size)
            server.end_sleep()
            while left:
                left = client.continue_send(left)
                server.poll_frame() if left else None
            assert len(server.receive().payload) == size
            server.reply(wire.RESULT, wire.RAW, b"")
            client.receive()


# -- death -----------------------------------------------------------------------------------------------------------


@WAYS
def test_the_other_side_closes_in_a_call(with_lane: bool, spin: bool) -> None:
    """The end of the other process during a call ends the wait."""

    def serve(server: Connection, _: Raw) -> None:
        server.receive_call()

    with forked(serve, with_lane, spin) as (client, child):
        with pytest.raises(ConnectionClosed):
            client.exchange(wire.RAW, b"x", deadline=time.monotonic() + PATIENCE)
        assert child.wait() == 0


@WAYS
@pytest.mark.parametrize("size", [10, 4 << 20])
def test_killed_while_asleep(with_lane: bool, spin: bool, size: int) -> None:
    """SIGKILL of a server that waits for a call: the next call, small or large, is ConnectionClosed."""
    with forked(echo, with_lane, spin) as (client, child):
        client.exchange(wire.RAW, b"x")
        child.wait_until_asleep()
        child.kill()
        with pytest.raises(ConnectionClosed):
            client.exchange(wire.RAW, b"x" * size, deadline=time.monotonic() + PATIENCE)


@WAYS
@pytest.mark.parametrize("size", [10, 4 << 20])
def test_one_that_went_by_itself_has_not_taken_what_came_after(with_lane: bool, spin: bool, size: int) -> None:
    """A server whose socket was closed under it says so to nobody, but that it takes nothing any more."""

    def serve(server: Connection, raw: Raw) -> None:
        server.reply(wire.RESULT, wire.RAW, server.receive_call()[2])
        os.close(server.sock.detach())
        server.receive_call()

    with forked(serve, with_lane, spin) as (client, child):
        client.exchange(wire.RAW, b"x")
        assert child.wait() == 0
        with pytest.raises(ConnectionClosed) as info:
            client.exchange(wire.RAW, b"x" * size, deadline=time.monotonic() + PATIENCE)
        assert not client.was_taken(info.value)


@pytest.mark.parametrize("spin", [True, False])
@pytest.mark.parametrize("size", [10, 4 << 20])
def test_one_that_went_while_it_answered_has_not_taken_what_came_after(spin: bool, size: int) -> None:
    """As above, where its socket was closed before it answered: the answer in the slot arrives, its wake does not."""

    def serve(server: Connection, raw: Raw) -> None:
        payload = server.receive_call()[2]
        os.close(server.sock.detach())
        server.reply(wire.RESULT, wire.RAW, payload)

    with forked(serve, True, spin) as (client, child):
        assert client.prepare_sleep()
        client.send(wire.CALL, wire.RAW, b"x")
        child.wait()  # by an error: it could not wake the client
        client.end_sleep()
        assert client.receive().payload == b"x"
        with pytest.raises(ConnectionClosed) as info:
            client.exchange(wire.RAW, b"x" * size, deadline=time.monotonic() + PATIENCE)
        assert not client.was_taken(info.value)


@WAYS
def test_killed_in_the_middle_of_a_frame(with_lane: bool, spin: bool) -> None:
    """A frame that breaks off is ConnectionClosed, wherever it breaks off."""
    frame = b"".join(wire.pack(wire.RESULT, wire.RAW, 1, b"x" * 1000, [b"y" * 200_000]))

    for cut in (1, 15, 16, 500, 1016, 1024, 100_000, len(frame) - 1):

        def serve(server: Connection, raw: Raw, cut: int = cut) -> None:
            server.receive_call()
            if with_lane:
                raw.lane.words[raw.lane.write_number_word] = 3
            raw.sock.setblocking(True)
            raw.sock.sendall(frame[:cut])

        with forked(serve, with_lane, spin) as (client, _), pytest.raises(ConnectionClosed):
            client.exchange(wire.RAW, b"x", deadline=time.monotonic() + PATIENCE)


@WAYS
@pytest.mark.parametrize("size", [10, 100_000])
def test_what_a_dying_peer_said_last_is_heard(with_lane: bool, spin: bool, size: int) -> None:
    """A result published just before death is delivered; the one after it is ConnectionClosed."""

    def serve(server: Connection, _: Raw) -> None:
        server.receive_call()
        server.reply(wire.RESULT, wire.RAW, b"y" * size)

    for _ in range(30):
        with forked(serve, with_lane, spin) as (client, child):
            client.send(wire.CALL, wire.RAW, b"x")
            if size < 1000:
                assert child.wait() == 0  # so it is dead before anybody looks
            assert client.receive(time.monotonic() + PATIENCE).payload == b"y" * size
            with pytest.raises(ConnectionClosed):
                client.exchange(wire.RAW, b"x", deadline=time.monotonic() + PATIENCE)


def test_the_client_goes() -> None:
    """A server that waits, and one that answers, see the client's end as ConnectionClosed."""
    with both_ends() as (client, server):
        client.send(wire.CALL, wire.RAW, b"x")
        server.receive_call()
        client.close()
        client.close()
        with pytest.raises(ConnectionClosed):
            server.reply(wire.RESULT, wire.RAW, b"y" * 100_000)
        with pytest.raises(ConnectionClosed):
            server.receive()


def test_threads_with_connections_of_their_own() -> None:
    """Several connections in one process, each used by a thread, do not keep one another from getting on."""
    wrong: list[BaseException] = []

    def work(client: Connection, mark: bytes) -> None:
        try:
            for index in range(2000):
                payload = mark * (index % 50)
                assert client.exchange(wire.RAW, payload, deadline=time.monotonic() + PATIENCE)[2] == payload
        except BaseException as error:
            wrong.append(error)

    with forked(echo) as (one, _), forked(echo) as (two, _), forked(echo) as (three, _):
        threads = [
            threading.Thread(target=work, args=pair) for pair in zip((one, two, three), (b"a", b"b", b"c"), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_connection_shows_its_state() -> None:
    """Its representation names the state and the call."""
    with both_ends() as (client, _):
        client.send(wire.CALL, wire.RAW, b"")
        assert repr(client) == "<Connection CALLING call 1>"


def test_close_frees_the_descriptor() -> None:
    """After close the descriptor is gone."""
    ours, theirs = socket.socketpair()
    connection = Connection(ours, None, "client")
    number = ours.fileno()
    connection.close()
    theirs.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
