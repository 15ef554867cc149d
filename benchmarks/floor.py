# SPDX-License-Identifier: Apache-2.0
"""Compiles ``floor.c`` at run time and runs it as a contender: give it a count, get that many samples.

What always holds: the binary lies in the build folder, named by the hash of its source, and is rebuilt when
the source changes. What the floor measures is written at the top of ``floor.c``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

MESSAGE_BYTES = 64
SOURCE = Path(__file__).with_name("floor.c")


class FloorError(Exception):
    """The floor could not be compiled or run, or it saw a wrong byte."""


def compile_floor(folder: Path) -> Path:
    """Compiles the floor into ``folder`` unless this very source is there already. Returns the binary."""
    return compile_program(SOURCE, folder)


def compile_program(source: Path, folder: Path, *flags: str) -> Path:
    """Compiles a C program into ``folder`` unless this very source is there already. Returns the binary."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FloorError("no C compiler: set CC, or install cc, gcc or clang")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    binary = folder / f"{source.stem}-{digest}"
    if binary.exists():
        return binary
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{binary.name}.{os.getpid()}"
    command = [compiler, "-O2", "-Wall", "-Wextra", *flags, "-o", str(unfinished), str(source)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    if compiled.returncode != 0:
        raise FloorError(f"{' '.join(command)} failed:\n{compiled.stderr}")
    unfinished.replace(binary)
    return binary


class Floor:
    """A running floor: two processes that sleep until samples are asked for."""

    def __init__(self, binary: Path, parent_cpu: int = -1, child_cpu: int = -1) -> None:
        """Starts both processes, each pinned to the given processor; -1 leaves it to the scheduler."""
        self._process = subprocess.Popen(
            [str(binary), str(parent_cpu), str(child_cpu), str(MESSAGE_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.description: dict[str, object] = {"message_bytes": MESSAGE_BYTES}

    def run(self, count: int) -> list[int]:
        """Makes ``count`` round trips. Returns the nanoseconds of each, in order."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{count}\n")
        stdin.flush()
        samples = []
        for _ in range(count):
            line = stdout.readline()
            if not line:
                raise FloorError(f"the floor ended with exit code {self._process.wait()}")
            samples.append(int(line))
        return samples

    def close(self) -> None:
        """Ends both processes and waits for the first, which waits for the second."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.close()
        except BrokenPipeError:
            pass
        self._process.wait(timeout=10)
        stdout.close()
