# SPDX-License-Identifier: Apache-2.0
"""One photograph through two services whose packages cannot be installed together. Run it with ``make demo``.

Prints why they cannot share an environment (in the resolver's own words), what each worker really runs, and how long
each call took; writes one picture of it all. The first run builds two environments, the next ones open them.
"""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atoll

HERE = Path(__file__).resolve().parent
OUT = HERE / "out" / "photo.png"


def timed(what: str, call: Callable[[], Any]) -> Any:
    """Make a call and print how long it took."""
    began = time.perf_counter()
    result = call()
    print(f"  {what:<42} {1000 * (time.perf_counter() - began):9.2f} ms")
    return result


def main() -> None:
    began = time.perf_counter()
    vision = atoll.Service(HERE / "services" / "vision.py")
    palette = atoll.Service(HERE / "services" / "palette.py")

    print("1. One environment for both services? The resolver says:\n")
    together = [*vision.spec.dependencies, *palette.spec.dependencies]
    impossible = atoll.Service(
        HERE / "services" / "vision.py", name="together", dependencies=together, python=vision.spec.python
    )
    try:
        impossible.start()
        sys.exit("it resolved; then this demonstration shows nothing")
    except atoll.ResolutionError as error:
        print("\n".join("   | " + line for line in str(error).splitlines()))

    print("\n2. One environment for each (built the first time, opened in milliseconds after):\n")
    with vision, palette:
        timed("vision: one small call", vision.versions)
        for name, versions in (
            ("this program", {"python": platform.python_version()}),
            ("vision", vision.versions()),
            ("palette", palette.versions()),
        ):
            print(f"  {name:<14}" + "  ".join(f"{package} {version}" for package, version in versions.items()))

        print("\n3. The photograph, as numpy arrays, from process to process:\n")
        photograph = timed("palette.photograph()", palette.photograph)
        edges = timed("vision.edges(photograph)", lambda: vision.edges(photograph))
        reduced = timed("palette.reduce(photograph, colours=6)", lambda: palette.reduce(photograph, colours=6))
        png = timed(
            "vision.side_by_side([...])",
            lambda: vision.side_by_side(
                [photograph, edges, reduced["image"]],
                [
                    "a photograph",
                    f"outlines: OpenCV, numpy {vision.versions()['numpy']}",
                    f"6 colours: scikit-learn, numpy {palette.versions()['numpy']}",
                ],
            ),
        )
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_bytes(png)
    print(f"\n  its colours: {'  '.join(reduced['palette'])}")
    print(f"\nWritten: {OUT.relative_to(Path.cwd()) if OUT.is_relative_to(Path.cwd()) else OUT}")
    print(f"In all: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="  %(name)s: %(message)s")
    logging.getLogger("atoll.environments").setLevel(logging.INFO)
    main()
