# SPDX-License-Identifier: Apache-2.0
"""``Connection``'s path of a call holds the rules of ``wire.Conversation`` inline. Here both run over the same random
scripts, side by side, and must never disagree."""

from __future__ import annotations

import time
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll_worker import wire
from atoll_worker.connection import Connection
from atoll_worker.errors import ProtocolError
from atoll_worker.wire import Conversation

from .pairs import PATIENCE, against_raw

STATES = [wire.START, wire.GREETED, wire.OPEN, wire.LOADING, wire.IDLE, wire.CALLING, wire.FAILED]
# Mostly what is right, often enough what is nearly right.
kinds = st.sampled_from([wire.RESULT, wire.ERROR, wire.CALL] * 6 + [wire.HELLO, wire.LOAD, wire.READY, wire.PING])
codecs = st.sampled_from([wire.PICKLE, wire.JSON, wire.RAW] * 6 + [3, 255])
off_by = st.sampled_from([0] * 12 + [-1, 1, 5])
steps = st.lists(st.tuples(kinds, codecs, off_by, kinds, st.booleans()), min_size=1, max_size=8)
ways = {"with_lane": st.booleans(), "spin": st.booleans(), "state": st.sampled_from([wire.IDLE] * 8 + STATES)}


def outcome(act: Callable[[], object]) -> type[ProtocolError] | None:
    """The kind of error, or None."""
    try:
        act()
    except ProtocolError as error:
        return type(error)
    return None


def in_step(connection: Connection, model: Conversation) -> bool:
    real = connection.conversation
    return (real.state, real.call_id) == (model.state, model.call_id)


def arrives(model: Conversation, kind: int, off: int) -> int:
    """The call id that a frame carries: the right one, or nearly."""
    return max(0, model.call_id + (kind == wire.CALL) + off)


@given(script=steps, **ways)
@settings(max_examples=400, deadline=None)
def test_the_clients_path(
    script: list[tuple[int, int, int, int, bool]], with_lane: bool, spin: bool, state: str
) -> None:
    """``exchange`` against ``sending(CALL)`` and ``received``: the same errors, states and call ids."""
    with against_raw("client", with_lane, spin) as (client, raw):
        model = Conversation("client")
        model.state = client.conversation.state = state
        number = 0
        for kind, codec, off, _, patient in script:
            trial = Conversation("client")
            trial.state, trial.call_id = model.state, model.call_id
            expected = outcome(lambda: trial.sending(wire.CALL))  # noqa: B023
            if expected is None:
                call_id = arrives(trial, kind, off)
                frame = (kind, codec, 0, 1, call_id)
                if with_lane:
                    number += 2
                    raw.put(number, frame, b"x")
                else:
                    raw.sock.send(wire.HEADER.pack(*frame) + b"x")
                model.sending(wire.CALL)
                expected = outcome(lambda: model.received(kind, codec, call_id))  # noqa: B023
            deadline = time.monotonic() + PATIENCE
            answer: list[int] = []
            got = outcome(lambda: answer.extend(client.exchange(wire.RAW, b"", (), deadline, patient)[:2]))  # noqa: B023
            assert got is expected
            if got is not None and not with_lane:
                return  # the reader refuses some headers before the conversation sees them
            assert in_step(client, model)
            if got is not None:
                return
            assert answer == [kind, codec]


@given(script=steps, **ways)
@settings(max_examples=400, deadline=None)
def test_the_servers_path(
    script: list[tuple[int, int, int, int, bool]], with_lane: bool, spin: bool, state: str
) -> None:
    """``receive_call`` and ``reply`` against ``received`` and ``sending``: the same errors, states and call ids."""
    with against_raw("server", with_lane, spin) as (server, raw):
        model = Conversation("server")
        model.state = server.conversation.state = state
        number = 0
        for kind, codec, off, reply, _ in script:
            kind = wire.CALL if kind in (wire.RESULT, wire.ERROR) and off == 0 else kind  # mostly calls
            call_id = arrives(model, kind, off)
            frame = (kind, codec, 0, 1, call_id)
            if with_lane:
                number += 2
                raw.put(number, frame, b"x")
            else:
                raw.sock.send(wire.HEADER.pack(*frame) + b"x")
            expected = outcome(lambda: model.received(kind, codec, call_id))  # noqa: B023
            call: list[int] = []
            assert outcome(lambda: call.extend(server.receive_call()[:2])) is expected  # noqa: B023
            assert in_step(server, model)
            if expected is not None:
                return
            assert call == [kind, codec]
            expected = outcome(lambda: model.sending(reply))  # noqa: B023
            assert outcome(lambda: server.reply(reply, wire.RAW, b"y")) is expected  # noqa: B023
            assert in_step(server, model)
            if expected is not None and model.state is wire.CALLING:
                model.sending(wire.RESULT)
                server.reply(wire.RESULT, wire.RAW, b"after all")
                assert in_step(server, model)
