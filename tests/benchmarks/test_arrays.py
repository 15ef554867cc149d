# SPDX-License-Identifier: Apache-2.0
"""What arrays are measured beside gives right answers and leaves nothing; samples are taken in turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.memory import resident_bytes, shared_memories
from benchmarks.turns import take_turns

from conditions import until

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, because multiprocessing leaves a process running for as long as the one that used it.
PEERS = """
import json
import numpy
from benchmarks.array_peers import opened_array_peers
from benchmarks.array_service import largest, look

if __name__ == "__main__":
    left_out, answers = {}, {}
    array = numpy.arange(100, dtype="u1")
    with opened_array_peers(100, left_out) as peers:
        for name, peer in peers.items():
            result = peer.result(100, 9)
            answers[name] = [len(result), int(result[-1]), peer.argument(look, array), peer.argument(largest, array)]
            del result
    print(json.dumps([answers, sorted(left_out)]))
"""


def test_every_peer_answers_alike(tmp_path):
    script = tmp_path / "peers.py"
    script.write_text(PEERS)
    before = set(os.listdir("/dev/shm"))
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    answers, left_out = json.loads(done.stdout)
    assert set(left_out) <= {"loky"}, done.stdout  # which is in the benchmarks' environment only
    assert set(answers) | set(left_out) == {"shared_memory", "pipe", "process_pool", "loky"}
    assert list(answers.values()) == [[100, 9, [100, 0, 99], 99]] * len(answers)

    def left() -> set[str]:
        return {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("psm_")}

    until(lambda: not left())  # others' may be there meanwhile


def test_all_have_their_turns_and_the_first_does_not_count():
    calls = {"often": 0, "seldom": 0}

    def contend(name):
        calls[name] += 1
        return [calls[name]]

    taken = take_turns({name: lambda name=name: contend(name) for name in calls}, 9, ["seldom"], 4)
    assert taken == {"often": list(range(2, 11)), "seldom": [2, 3, 4]}


def test_shared_memory_is_found_by_size():
    known = shared_memories(os.getpid(), 1)
    descriptor = os.memfd_create("test")
    try:
        os.ftruncate(descriptor, 1 << 20)
        assert shared_memories(os.getpid(), 1 << 20) - known == {os.fstat(descriptor).st_ino}
        assert shared_memories(os.getpid(), (1 << 20) + 1) <= known
    finally:
        os.close(descriptor)
    assert shared_memories(os.getpid(), 1) == known


def test_resident_memory_grows_with_what_is_written():
    before = resident_bytes(os.getpid())
    assert before > 1_000_000
    memory = bytearray(b"x") * 50_000_000
    assert resident_bytes(os.getpid()) - before == pytest.approx(len(memory), rel=0.2)
