# SPDX-License-Identifier: Apache-2.0
"""Code that may crash, or never return, kept at arm's length: your program goes on."""

import atoll


@atoll.function
def fragile(number: int) -> int:
    import ctypes
    import sys

    if number == 3:
        print("about to read address zero", file=sys.stderr)
        ctypes.string_at(0)
    return number * number


if __name__ == "__main__":
    for number in range(5):
        try:
            print(number, fragile(number))
        except atoll.WorkerDied as death:
            print(f"{number} the worker died of signal {death.signal} and said:", *death.stderr[:2], sep="\n    ")
