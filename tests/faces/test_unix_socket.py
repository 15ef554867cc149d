# SPDX-License-Identifier: Apache-2.0
"""Where a socket stands: of many that begin at once at one place, one gets it."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from atoll_worker.faces import unix_socket


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # a relative path is short enough, wherever tests keep their files
    return "s.sock"


def leave_behind(path: str) -> None:
    """A socket whose owner was killed."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)


@pytest.mark.parametrize("is_stale", [False, True], ids=["free", "left behind"])
def test_one_of_many_gets_it(path: str, is_stale: bool) -> None:
    for _ in range(20):
        if is_stale:
            leave_behind(path)
        got: list[tuple[socket.socket, unix_socket.Place]] = []
        refused: list[str] = []
        together = threading.Barrier(8)

        def listen(together: threading.Barrier = together, got: list[Any] = got, no: list[str] = refused) -> None:
            together.wait()
            try:
                got.append(unix_socket.listen(path, "a worker"))
            except FileExistsError as error:
                no.append(str(error))

        threads = [threading.Thread(target=listen) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        assert all("a worker listens here already" in words for words in refused)
        assert len(refused) == 7
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        ((listener, place),) = got
        assert place.is_ours
        listener.close()
        place.unlink()
        assert not os.path.exists(path)


def test_a_place_that_was_taken_by_another_is_left(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.bind(path)
        place = unix_socket.Place(path)
        assert place.is_ours
        os.rename(path, "elsewhere")
        second.bind(path)
        assert not place.is_ours
        place.unlink()
        assert os.path.exists(path)
        os.rename("elsewhere", path)
        place.unlink()
        place.unlink()
        assert not os.path.exists(path)


def test_a_socket_that_was_removed_before_its_owner_had_looked_is_not_taken_for_that_of_another(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts another in its place may do so as soon as somebody answers, or earlier."""
    with socket.socket(socket.AF_UNIX) as second:

        class Slow(unix_socket.Place):
            def __init__(self, path: str) -> None:
                os.unlink(path)
                super().__init__(path)

        monkeypatch.setattr(unix_socket, "Place", Slow)
        listener, place = unix_socket.listen(path, "a worker")
        listener.close()
        assert not place.is_ours
        second.bind(path)
        place.unlink()
        assert os.path.exists(path)


def test_who_connects_finds_somebody_who_knows_where_it_stands(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []

    class Watched(unix_socket.Place):
        def __init__(self, path: str) -> None:
            with socket.socket(socket.AF_UNIX) as caller:
                looked.append(bool(caller.connect_ex(path)))  # nobody listens yet
            super().__init__(path)

    monkeypatch.setattr(unix_socket, "Place", Watched)
    listener, _ = unix_socket.listen(path, "a worker")
    listener.close()
    assert looked == [True]


def test_there_is_none_without_a_path() -> None:
    """The kernel would make up a name that every user may connect to."""
    with pytest.raises(FileNotFoundError, match="its path is empty"):
        unix_socket.listen("", "a worker")
