# SPDX-License-Identifier: Apache-2.0
"""Runs a piece of a test in a forked child with little memory, and hands its failure back."""

from __future__ import annotations

import os
import resource
import traceback
from collections.abc import Callable


def in_child(run: Callable[[], object], address_space: int) -> None:
    """Run in a child that may map so many bytes more than it has now.

    Raises:
        AssertionError: it raised, with its traceback, or it was killed.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            with open("/proc/self/statm") as file:
                limit = int(file.read().split()[0]) * resource.getpagesize() + address_space
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            run()
            os._exit(0)
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(70)
    os.close(writing)
    said = b""
    while chunk := os.read(reading, 65536):
        said += chunk
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"the child ended with {code}\n{said.decode()}"
